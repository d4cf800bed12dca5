package pglocal_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/wait"
)

func TestMain(m *testing.M) {
	if err := pglocal.Ensure(context.Background(), os.Stderr); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	if !wait.Until(t.Context(), time.Minute, 10*time.Millisecond, done) {
		t.Fatalf("timed out waiting for %s", what)
	}
}

func start(t *testing.T, o pglocal.Options) *pglocal.Server {
	t.Helper()
	s, err := pglocal.Start(t.Context(), o)
	check(t, err)
	t.Cleanup(func() { _ = s.Stop() })
	return s
}

// refused checks that a server does not start, and returns the error, which holds want.
func refused(t *testing.T, o pglocal.Options, want string) error {
	t.Helper()
	s, err := pglocal.Start(t.Context(), o)
	if err == nil {
		_ = s.Stop()
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error = %v, want %q", err, want)
	}
	return err
}

func execute(ctx context.Context, url, sql string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

// One cluster on TCP lives through restarts, kill -9, strangers and files replaced by links.
func TestStart_KeptCluster(t *testing.T) {
	t.Parallel()
	addr, err := freeport.Addr()
	check(t, err)
	options := pglocal.Options{Dir: filepath.Join(t.TempDir(), "postgres"), Addr: addr}
	s := start(t, options)
	dir := s.Dir() // under root in /var/tmp: the server's user cannot reach the test's folder
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	check(t, s.CreateDatabase(t.Context(), "shop", ""))
	check(t, execute(t.Context(), s.URL("shop"), `CREATE TABLE sales ()`))
	check(t, s.CreateDatabase(t.Context(), "copy", "shop"))
	check(t, execute(t.Context(), s.URL("copy"), `TABLE sales`))

	t.Run("no login without the role's own password", func(t *testing.T) {
		check(t, execute(t.Context(), s.URL("shop"), `CREATE ROLE clerk LOGIN PASSWORD 'known'`))
		for _, user := range []string{"postgres", "postgres:", "postgres:postgres", "postgres:known", "clerk"} {
			err := execute(t.Context(), "postgres://"+user+"@"+addr+"/shop?sslmode=disable", `SELECT 1`)
			if err == nil || !strings.Contains(err.Error(), "28P01") && !strings.Contains(err.Error(), "password") {
				t.Errorf("%s: error = %v, want a password refused", user, err)
			}
		}
		if len(s.Password()) != 40 {
			t.Errorf("password = %q, want 40 digits", s.Password())
		}
		for _, path := range []string{dir, filepath.Join(dir, "password"), filepath.Join(dir, "data")} {
			if info, err := os.Lstat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: %v, %v, want no access for other users", path, info, err)
			}
		}
	})
	t.Run("data survives a restart and a kill", func(t *testing.T) {
		check(t, s.Stop())
		s = start(t, options)
		check(t, execute(t.Context(), s.URL("shop"), `INSERT INTO sales DEFAULT VALUES`))
		check(t, syscall.Kill(s.Process().PID(), syscall.SIGKILL), s.Stop())
		await(t, "the port of the server's children", func() bool { return freeport.Check(addr) == nil })
		s = start(t, options)
		check(t, execute(t.Context(), s.URL("shop"), `INSERT INTO sales DEFAULT VALUES`))
		_ = refused(t, options, addr)
		check(t, s.Stop())
		if err := syscall.Kill(s.Process().PID(), 0); err == nil {
			t.Error("the server is still running")
		}
	})
	t.Run("no password", func(t *testing.T) {
		check(t, os.Rename(filepath.Join(dir, "password"), filepath.Join(dir, "kept")))
		_ = refused(t, options, "has no password")
		check(t, os.Rename(filepath.Join(dir, "kept"), filepath.Join(dir, "password")))
	})
	t.Run("another version", func(t *testing.T) {
		version := filepath.Join(dir, "data", "PG_VERSION")
		installed, err := os.ReadFile(version)
		check(t, err, os.WriteFile(version, []byte("8\n"), 0o600))
		_ = refused(t, options, "initialized by PostgreSQL version 8")
		check(t, os.WriteFile(version, installed, 0o600))
	})
	// The server's own user may replace files by links: root follows none of them, to write or to read.
	for _, name := range []string{"password", "data/PG_VERSION", "server.log"} {
		t.Run("link at "+name, func(t *testing.T) {
			if os.Getuid() != 0 {
				t.Skip("needs root")
			}
			target, file := filepath.Join(t.TempDir(), "target"), filepath.Join(dir, name)
			check(t, os.WriteFile(target, []byte("untouched"), 0o600))
			check(t, os.Rename(file, file+".kept"), os.Symlink(target, file))
			if err := refused(t, options, ""); err != nil && strings.Contains(err.Error(), "untouched") {
				t.Errorf("error shows the target: %v", err)
			}
			if got, err := os.ReadFile(target); err != nil || string(got) != "untouched" {
				t.Errorf("target = %q, %v, want untouched", got, err)
			}
			check(t, os.Rename(file+".kept", file))
		})
	}
	t.Run("a folder open to others", func(t *testing.T) {
		check(t, os.Chmod(dir, 0o750))
		_ = refused(t, options, "is open to other users")
	})
}

// A throw-away server has no TCP port, its socket is in a private folder, and it leaves nothing behind.
func TestStart_ThrowAway(t *testing.T) {
	t.Parallel()
	s := start(t, pglocal.Options{})
	if info, err := os.Lstat(s.Dir()); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("folder: %v, %v, want mode 0700", info, err)
	}
	conn, err := pgx.Connect(t.Context(), s.URL("postgres"))
	check(t, err)
	var addresses string
	err = conn.QueryRow(t.Context(), `SHOW listen_addresses`).Scan(&addresses)
	if check(t, err, conn.Close(t.Context())); addresses != "" {
		t.Errorf("listen_addresses = %q, want none", addresses)
	}
	check(t, s.Stop(), s.Stop())
	if _, err := os.Stat(s.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder after Stop: %v, want none", err)
	}
	if err := syscall.Kill(s.Process().PID(), 0); err == nil {
		t.Error("the server is still running")
	}
}

// A killed test leaves its server's folder in memory: a later start removes it, and no running server's.
func TestStart_RemovesAbandoned(t *testing.T) {
	t.Parallel()
	running, abandoned := start(t, pglocal.Options{}), start(t, pglocal.Options{})
	if !strings.HasPrefix(running.Dir(), "/dev/shm/") {
		t.Skip("no room in memory: the folders are on a disk")
	}
	check(t, syscall.Kill(abandoned.Process().PID(), syscall.SIGKILL))
	<-abandoned.Process().Ended()
	old := time.Now().Add(-time.Hour)
	for _, s := range []*pglocal.Server{running, abandoned} {
		check(t, os.Chtimes(s.Dir(), old, old))
	}
	start(t, pglocal.Options{})
	// Another process' start may be removing it, too.
	await(t, "the removal of the abandoned folder", func() bool {
		_, err := os.Stat(abandoned.Dir())
		return errors.Is(err, os.ErrNotExist)
	})
	if _, err := os.Stat(running.Dir()); err != nil {
		t.Errorf("running server's folder: %v", err)
	}
}
