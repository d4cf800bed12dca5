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

	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/pglocal"
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

// Over TCP, which every local user reaches, no role gets in without its own password.
func TestStart_TCPNeedsPasswords(t *testing.T) {
	t.Parallel()
	s := start(t, pglocal.Options{Addr: freeAddr(t)})
	execute(t, s.URL("postgres"), `CREATE ROLE shop LOGIN PASSWORD '`+s.Password("shop")+`'`)
	execute(t, s.URLOf("shop", "postgres"), `SELECT 1`)
	if err := s.CreateDatabase(t.Context(), "shop", ""); err != nil {
		t.Error(err)
	}
	addr := strings.TrimPrefix(s.URL("postgres")[strings.Index(s.URL("postgres"), "@"):], "@")
	for name, user := range map[string]string{
		"no password": "postgres", "a guessed one": "postgres:postgres", "an empty one": "postgres:", "the runtime role": "shop", "another role's": "postgres:" + s.Password("shop"),
	} {
		conn, err := pgx.Connect(t.Context(), "postgres://"+user+"@"+addr)
		if err == nil {
			_ = conn.Close(t.Context())
			t.Errorf("%s: connected", name)
		} else if !strings.Contains(err.Error(), "28P01") && !strings.Contains(err.Error(), "password") {
			t.Errorf("%s: error = %v, want a refused password", name, err)
		}
	}
	other := start(t, pglocal.Options{Addr: freeAddr(t)})
	if s.Password("postgres") == other.Password("postgres") || len(s.Password("postgres")) < 20 || len(s.Password("shop")) < 20 {
		t.Errorf("passwords = %q, %q, want long random ones", s.Password("postgres"), other.Password("postgres"))
	}
	for _, open := range []string{s.Dir(), filepath.Join(s.Dir(), "password")} {
		if info, err := os.Lstat(open); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v, %v, want no access for other users", open, info, err)
		}
	}
}

// Without an address the server has no TCP port, and its socket is in a folder that other users cannot enter.
func TestStart_SocketIsPrivate(t *testing.T) {
	t.Parallel()
	s := start(t, pglocal.Options{})
	if info, err := os.Lstat(s.Dir()); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("folder: %v, %v, want mode 0700", info, err)
	}
	conn, err := pgx.Connect(t.Context(), s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	var listens string
	if err := conn.QueryRow(t.Context(), `SHOW listen_addresses`).Scan(&listens); err != nil || listens != "" {
		t.Errorf("listen_addresses = %q, %v, want none", listens, err)
	}
}

// kept starts a server whose data are kept, stops it, and returns its options and its folder: under root that
// is a predictable one in /var/tmp, since the server's user cannot reach the test's own.
func kept(t *testing.T) (pglocal.Options, string) {
	t.Helper()
	options := pglocal.Options{Dir: filepath.Join(t.TempDir(), "postgres"), Addr: freeAddr(t)}
	s := start(t, options)
	t.Cleanup(func() { _ = os.RemoveAll(s.Dir()) })
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	return options, s.Dir()
}

// A folder that another user made first, under the same predictable name, is refused and left as it was.
func TestStart_RefusesForeignFolder(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		root bool // only root can prepare it
		make func(t *testing.T, dir, target string)
		want string
	}{
		"a symbolic link": {false, func(t *testing.T, dir, target string) {
			t.Helper()
			check(t, os.Symlink(target, dir))
		}, "is not a folder"},
		"a link to nowhere": {false, func(t *testing.T, dir, target string) {
			t.Helper()
			check(t, os.Symlink(filepath.Join(target, "new"), dir))
		}, "is not a folder"},
		"a file":               {false, func(t *testing.T, dir, _ string) { t.Helper(); check(t, os.WriteFile(dir, nil, 0o600)) }, "is not a folder"},
		"open to other users":  {false, func(t *testing.T, dir, _ string) { t.Helper(); check(t, os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)) }, "open to other users"},
		"readable for a group": {false, func(t *testing.T, dir, _ string) { t.Helper(); check(t, os.Mkdir(dir, 0o700), os.Chmod(dir, 0o750)) }, "open to other users"},
		"another user's": {true, func(t *testing.T, dir, _ string) {
			t.Helper()
			check(t, os.Mkdir(dir, 0o700), os.Chown(dir, 12345, 12345))
		}, "belongs to another user"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.root && os.Getuid() != 0 {
				t.Skip("needs root")
			}
			options, dir := kept(t)
			target := t.TempDir()
			check(t, os.RemoveAll(dir))
			tc.make(t, dir, target)
			s, err := pglocal.Start(t.Context(), options)
			if err == nil {
				_ = s.Stop()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q", err, tc.want)
			}
			if entries, err := os.ReadDir(target); err != nil || len(entries) > 0 {
				t.Errorf("the link's target holds %v, %v, want nothing", entries, err)
			}
		})
	}
}

// The server's own user may replace files in its folder by links: root follows none of them, to write or to
// read.
func TestStart_FollowsNoLinkAsRoot(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	const untouched = "root's own\n"
	for _, name := range []string{"server.log", "password", "data/PG_VERSION"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			options, dir := kept(t)
			target := filepath.Join(t.TempDir(), "target")
			check(t, os.WriteFile(target, []byte(untouched), 0o600), os.Remove(filepath.Join(dir, name)), os.Symlink(target, filepath.Join(dir, name)))
			s, err := pglocal.Start(t.Context(), options)
			if err == nil {
				_ = s.Stop()
				t.Error("the server started, want an error")
			} else if strings.Contains(err.Error(), strings.TrimSpace(untouched)) {
				t.Errorf("the error shows the target: %v", err)
			}
			if got, err := os.ReadFile(target); err != nil || string(got) != untouched {
				t.Errorf("target = %q, %v, want %q", got, err, untouched)
			}
		})
	}
}

// A cluster without a password, as older versions made them, is not served over TCP.
func TestStart_RefusesClusterWithoutPassword(t *testing.T) {
	t.Parallel()
	options, dir := kept(t)
	check(t, os.Remove(filepath.Join(dir, "password")))
	if s, err := pglocal.Start(t.Context(), options); err == nil || !strings.Contains(err.Error(), "has no password") {
		if err == nil {
			_ = s.Stop()
		}
		t.Errorf("error = %v, want a refusal", err)
	}
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}
