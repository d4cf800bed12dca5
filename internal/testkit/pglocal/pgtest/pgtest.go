// Package pgtest gives tests a real database, on a throw-away server that the first of them in a test binary
// starts.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/wait"
)

var ( //nolint:gochecknoglobals // the testing package offers no other place for a test binary's server
	start = sync.OnceValues(func() (*pglocal.Server, error) {
		if err := pglocal.Ensure(context.Background(), os.Stderr); err != nil {
			return nil, err
		}
		server, err := pglocal.Start(context.Background(), pglocal.Options{})
		started.Store(server)
		return server, err
	})
	started atomic.Pointer[pglocal.Server]
	count   atomic.Int64

	template     sync.Once
	migrationErr error
)

// Run runs a package's tests and stops the server: for TestMain.
func Run(m *testing.M) int {
	code := m.Run()
	if server := started.Load(); server != nil {
		if err := server.Stop(); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			return max(code, 1)
		}
	}
	return code
}

// Server returns the test binary's server. The package's TestMain must call Run.
func Server(tb testing.TB) *pglocal.Server {
	tb.Helper()
	server, err := start()
	if err != nil {
		tb.Fatal(err)
	}
	return server
}

// Database makes an empty database and returns its URL.
func Database(tb testing.TB) string {
	tb.Helper()
	return create(tb, fmt.Sprintf("test_%d", count.Add(1)), "")
}

// Migrated returns the URL of a new database with a schema. Only a test binary's first call runs migrate: the
// databases are copies of a template, which takes a fifth of the processor time off a test. migrate is
// repeated while it cannot connect: on a busy machine that may take longer than the product waits.
func Migrated(tb testing.TB, migrate func(url string) error) string {
	tb.Helper()
	template.Do(func() {
		url := create(tb, "migrated", "")
		wait.Until(tb.Context(), time.Minute, 100*time.Millisecond, func() bool {
			migrationErr = migrate(url)
			_, failed := errors.AsType[*pgconn.ConnectError](migrationErr)
			return !failed
		})
	})
	if migrationErr != nil {
		tb.Fatal(migrationErr)
	}
	return create(tb, fmt.Sprintf("test_%d", count.Add(1)), "migrated")
}

func create(tb testing.TB, name, template string) string {
	tb.Helper()
	s := Server(tb)
	if err := s.CreateDatabase(tb.Context(), name, template); err != nil {
		tb.Fatal(err)
	}
	return s.URL(name)
}
