// Package pgtest gives tests a real, empty database: one throw-away server for each test binary, started when the first
// test needs it.
package pgtest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"purchase-relay/internal/testkit/pglocal"
)

var ( //nolint:gochecknoglobals // one server for the test binary: the testing package offers no other place for it
	once    sync.Once
	server  *pglocal.Server
	failure error
	count   atomic.Int64
)

// Run runs a package's tests and stops the server: for TestMain.
func Run(m *testing.M) int {
	code := m.Run()
	if server != nil {
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
	once.Do(func() {
		if failure = pglocal.Ensure(context.Background(), os.Stderr); failure == nil {
			server, failure = pglocal.Start(context.Background(), pglocal.Options{})
		}
	})
	if failure != nil {
		tb.Fatal(failure)
	}
	return server
}

// Database makes an empty database and returns its URL.
func Database(tb testing.TB) string {
	tb.Helper()
	s := Server(tb)
	name := fmt.Sprintf("test_%d", count.Add(1))
	if err := s.CreateDatabase(tb.Context(), name, ""); err != nil {
		tb.Fatal(err)
	}
	return s.URL(name)
}
