package pglocal_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/dev/freeport"
	"purchase-relay/internal/dev/pglocal"
)

func TestMain(m *testing.M) {
	if err := pglocal.Ensure(context.Background(), os.Stderr); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func start(t *testing.T, o pglocal.Options) *pglocal.Server {
	t.Helper()
	s, err := pglocal.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	return s
}

func execute(t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	addr, err := freeport.Addr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// The data is kept between starts, also after kill -9.
func TestKeepsItsData(t *testing.T) {
	dir, addr := filepath.Join(t.TempDir(), "postgres"), freeAddr(t)
	s := start(t, pglocal.Options{Dir: dir, Addr: addr})
	t.Cleanup(func() { _ = os.RemoveAll(s.Dir()) }) // it may be elsewhere
	if err := s.CreateDatabase(t.Context(), "shop", ""); err != nil {
		t.Fatal(err)
	}
	execute(t, s.URL("shop"), `CREATE TABLE sales (n int)`)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	s = start(t, pglocal.Options{Dir: dir, Addr: addr})
	execute(t, s.URL("shop"), `INSERT INTO sales VALUES (1)`)
	pid := s.Pid()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	s = start(t, pglocal.Options{Dir: dir, Addr: addr})
	execute(t, s.URL("shop"), `INSERT INTO sales VALUES (2)`)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err == nil {
		t.Error("a process was left behind")
	}
}

func TestThrowAwayLeavesNothing(t *testing.T) {
	s := start(t, pglocal.Options{})
	execute(t, s.URL("postgres"), `SELECT 1`)
	pid := s.Pid()
	for range 2 {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(s.Dir()); !os.IsNotExist(err) {
		t.Errorf("%s is still there", s.Dir())
	}
	if err := syscall.Kill(pid, 0); err == nil {
		t.Error("the server is still there")
	}
}

func TestBusyAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := pglocal.Start(ctx, pglocal.Options{Addr: l.Addr().String()}); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("error: %v", err)
	}
}

func TestDataOfAnotherVersion(t *testing.T) {
	s := start(t, pglocal.Options{Dir: filepath.Join(t.TempDir(), "postgres")})
	t.Cleanup(func() { _ = os.RemoveAll(s.Dir()) })
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir(), "data", "PG_VERSION"), []byte("8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := pglocal.Start(t.Context(), pglocal.Options{Dir: s.Dir()}); err == nil || !strings.Contains(err.Error(), "belongs to Postgres 8") {
		t.Errorf("error: %v", err)
	}
}
