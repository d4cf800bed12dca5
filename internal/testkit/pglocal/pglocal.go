// Package pglocal runs a private Postgres from the binaries on this machine: for tests and the local stack.
//
// A server without an address listens on a Unix socket in a folder of mode 0700, and its roles need no
// password. A server with an address listens on TCP, which every local user reaches, and its roles have
// random passwords (SCRAM).
//
// Under root the server runs as another user, who could replace files in its own folder. This process
// therefore never opens a file in there itself: it reads and writes as that user.
package pglocal

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"purchase-relay/internal/testkit/aptget"
	"purchase-relay/internal/testkit/process"
)

// Options say how to run a server. The zero value is a throw-away one for tests.
type Options struct {
	Dir     string // kept between starts; "": a temporary folder that Stop removes
	Addr    string // TCP with passwords, for instance 127.0.0.1:8085; "": a Unix socket only
	Durable bool   // fsync on; false is faster and for throw-away data alone

	Settings []string // further ones of the server, each name=value
}

// Server is a running Postgres.
type Server struct {
	options Options
	bin     string
	dir     string              // holds data, socket, log and password
	secret  string              // the superuser's password, from which the other roles' are derived; "" without TCP
	owner   *syscall.Credential // runs the server; nil: our own user
	refused bytes.Buffer        // what the shell printed before it became the server
	process *process.Process    // nil: none was started
	stop    sync.Once
	stopErr error
}

const (
	superuser    = "postgres"
	passwordFile = "password"
)

// startTimeout bounds the wait for the first connection; stopTimeout that for the shutdown.
const (
	startTimeout = 60 * time.Second
	stopTimeout  = 20 * time.Second
)

// Start runs a server and returns when it takes connections. Postgres refuses to run as root: then it runs as the user
// postgres (or nobody), and where that user cannot reach Options.Dir, the data is in /var/tmp: Dir tells.
func Start(ctx context.Context, o Options) (s *Server, err error) {
	bin, err := Binaries()
	if err != nil {
		return nil, err
	}
	if o.Addr != "" {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.Addr)
		if err != nil {
			return nil, fmt.Errorf("postgres cannot listen on %s, something else does: stop that or choose another address", o.Addr)
		}
		if err := l.Close(); err != nil {
			return nil, err
		}
	}
	s = &Server{options: o, bin: bin}
	uid, gid, err := s.dropRoot()
	if err != nil {
		return nil, err
	}
	if err := s.makeDir(ctx, uid, gid); err != nil {
		return nil, err
	}
	if o.Addr != "" {
		if err := s.loadPassword(ctx); err != nil {
			return nil, errors.Join(err, s.removeTemporary())
		}
	}
	if err := s.initialise(ctx); err != nil {
		return nil, errors.Join(err, s.removeTemporary())
	}
	err = s.run(ctx)
	// A killed server's children take a moment to notice, and hold its memory until then.
	for since := time.Now(); err != nil && s.held(ctx) && time.Since(since) < stopTimeout; err = s.run(ctx) {
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), s.Stop())
		case <-time.After(100 * time.Millisecond):
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// held says whether the server has ended because the one before it still has children.
func (s *Server) held(ctx context.Context) bool {
	if s.process == nil {
		return false
	}
	select {
	case <-s.process.Ended():
		return strings.Contains(s.logTail(ctx), "is still in use")
	default:
		return false
	}
}

// Dir is where the data is.
func (s *Server) Dir() string { return s.dir }

// Programs is where Postgres' own programs are, psql among them.
func (s *Server) Programs() string { return s.bin }

// Pid is the postmaster's.
func (s *Server) Pid() int { return s.process.PID() }

// Ended is closed when the server has ended, however.
func (s *Server) Ended() <-chan struct{} { return s.process.Ended() }

// URL returns the superuser's connection string of a database.
func (s *Server) URL(database string) string { return s.URLOf(superuser, database) }

// URLOf returns a role's connection string of a database.
func (s *Server) URLOf(role, database string) string {
	if s.options.Addr != "" {
		return s.URLAt(s.options.Addr, role, database)
	}
	return "postgres:///" + database + "?" + url.Values{"host": {s.dir}, "user": {role}}.Encode()
}

// URLAt is URLOf through another address, for instance a proxy's.
func (s *Server) URLAt(addr, role, database string) string {
	user := url.User(role)
	if s.secret != "" {
		user = url.UserPassword(role, s.Password(role))
	}
	return (&url.URL{Scheme: "postgres", User: user, Host: addr, Path: database, RawQuery: "sslmode=disable"}).String()
}

// Password returns a role's password over TCP, to create the role with; "" without TCP. One role's password
// does not give another's.
func (s *Server) Password(role string) string {
	if role == superuser || s.secret == "" {
		return s.secret
	}
	mac := hmac.New(sha256.New, []byte(s.secret))
	_, _ = mac.Write([]byte(role)) // a hash returns no error
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

var plainName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

// CreateDatabase makes a database, as a copy of template where one is named.
func (s *Server) CreateDatabase(ctx context.Context, name, template string) error {
	args, err := s.address()
	if err != nil {
		return err
	}
	args = append(args, "-U", superuser)
	if !plainName.MatchString(name) {
		return fmt.Errorf("pglocal: %q is no plain database name", name)
	}
	if template != "" {
		args = append(args, "-T", template)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "createdb"), append(args, name)...) //nolint:gosec // our own arguments
	cmd.Env = append(os.Environ(), "PGPASSWORD="+s.secret)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pglocal: createdb %s: %w: %s", name, err, out)
	}
	return nil
}

// address returns the arguments with which Postgres' own programs find the server.
func (s *Server) address() ([]string, error) {
	if s.options.Addr == "" {
		return []string{"-h", s.dir}, nil
	}
	host, port, err := net.SplitHostPort(s.options.Addr)
	return []string{"-h", host, "-p", port}, err
}

// Stop ends the server as an operator would, and waits. It may be called more than once.
func (s *Server) Stop() error {
	s.stop.Do(func() {
		if s.process != nil {
			s.process.Signal(syscall.SIGINT) // fast shutdown
			select {
			case <-s.process.Ended():
			case <-time.After(stopTimeout):
				s.process.Signal(syscall.SIGQUIT)
				<-s.process.Ended()
				s.stopErr = errors.New("pglocal: postgres did not stop in time and was ended at once")
			}
		}
		s.stopErr = errors.Join(s.stopErr, s.removeTemporary())
	})
	return s.stopErr
}

func (s *Server) removeTemporary() error {
	if s.options.Dir != "" || s.dir == "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}

var versionOf = regexp.MustCompile(`(\d+)/?[^/]*/bin$`)

// Binaries finds the folder of the newest installed server, which has its tools, too.
func Binaries() (string, error) {
	var found []string
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin", "/usr/local/opt/postgresql*/bin", "/usr/libexec/postgresql*",
	} {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		for _, dir := range matches {
			if _, err := os.Stat(filepath.Join(dir, "initdb")); err == nil {
				found = append(found, dir)
			}
		}
	}
	if len(found) > 0 {
		return slices.MaxFunc(found, func(a, b string) int { return major(a) - major(b) }), nil
	}
	if initdb, err := exec.LookPath("initdb"); err == nil {
		if real, err := filepath.EvalSymlinks(initdb); err == nil {
			return filepath.Dir(real), nil
		}
	}
	return "", errMissing
}

func major(dir string) int {
	if m := versionOf.FindStringSubmatch(dir); m != nil {
		n, err := strconv.Atoi(m[1])
		if err == nil {
			return n
		}
	}
	return 0
}

// dropRoot chooses the user to run as; -1 where it is our own.
func (s *Server) dropRoot() (uid, gid int, err error) {
	if os.Getuid() != 0 {
		return -1, -1, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return 0, 0, fmt.Errorf("pglocal: under root a user postgres or nobody is needed to run Postgres: %w", err)
		}
	}
	uid, err = strconv.Atoi(u.Uid)
	if err != nil {
		return 0, 0, err
	}
	if gid, err = strconv.Atoi(u.Gid); err != nil {
		return 0, 0, err
	}
	s.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)} //nolint:gosec // ids from the system's own list
	return uid, gid, nil
}

// makeDir makes the folder, belonging to the user that runs the server.
func (s *Server) makeDir(ctx context.Context, uid, gid int) (err error) {
	switch s.options.Dir {
	case "":
		base := os.TempDir()
		if !s.reachable(ctx, base) {
			base = "/var/tmp"
		}
		s.dir, err = os.MkdirTemp(base, "pglocal")
	default:
		if s.dir, err = filepath.Abs(s.options.Dir); err != nil {
			return err
		}
		if !s.reachable(ctx, filepath.Dir(s.dir)) {
			sum := sha256.Sum256([]byte(s.dir))
			s.dir = "/var/tmp/purchase-relay-" + hex.EncodeToString(sum[:4])
		}
		err = makePrivate(s.dir, uid)
	}
	if err != nil || uid < 0 {
		return err
	}
	return os.Lchown(s.dir, uid, gid)
}

// makePrivate makes a folder for the user uid (-1: our own), or checks the existing one. Its name may be
// predictable and its parent writable for everybody, so another user may have made it first: as a folder of
// their own, or as a symbolic link.
func makePrivate(dir string, uid int) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil { //nolint:gosec // the server's user goes through it
		return err
	}
	if err := os.Mkdir(dir, 0o700); !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	owners := []int{os.Getuid(), uid}
	switch {
	case !info.IsDir():
		return fmt.Errorf("pglocal: %s is not a folder: remove it and start again", dir)
	case !ok || !slices.Contains(owners, int(stat.Uid)):
		return fmt.Errorf("pglocal: %s belongs to another user: remove it and start again", dir)
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("pglocal: %s is open to other users (mode %04o): remove it and start again", dir, info.Mode().Perm())
	}
	return nil
}

// asOwner runs a shell script in the server's folder as the server's user, and returns its output.
func (s *Server) asOwner(ctx context.Context, stdin, script string) (string, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", "umask 077; "+script) //nolint:gosec // our own scripts
	cmd.Dir, cmd.SysProcAttr = s.dir, &syscall.SysProcAttr{Credential: s.owner}
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return string(out), err
}

// loadPassword reads the password of an existing cluster, or makes one for a new cluster.
func (s *Server) loadPassword(ctx context.Context) error {
	found, err := s.asOwner(ctx, "", "if [ -s "+passwordFile+" ]; then cat "+passwordFile+"; elif [ -s data/PG_VERSION ]; then echo none; fi")
	if err != nil {
		return fmt.Errorf("pglocal: read the password: %w", err)
	}
	switch s.secret = strings.TrimSpace(found); s.secret {
	case "none":
		return fmt.Errorf("pglocal: the data in %s has no password: remove the folder to start anew", s.dir)
	case "":
		s.secret = rand.Text()
		if _, err := s.asOwner(ctx, s.secret+"\n", "cat >"+passwordFile); err != nil {
			return fmt.Errorf("pglocal: write the password: %w", err)
		}
	}
	return nil
}

// reachable asks as the server's user: permissions, mounts and mandatory access control all have a say.
func (s *Server) reachable(ctx context.Context, dir string) bool {
	for { // the nearest parent that exists
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `cd "$0"`, dir) //nolint:gosec // an argument, not a part of the script
	cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Credential: s.owner}
	return cmd.Run() == nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// initialise makes the cluster, once.
func (s *Server) initialise(ctx context.Context) error {
	if version, err := s.asOwner(ctx, "", "cat data/PG_VERSION"); err == nil {
		have, want := strings.TrimSpace(version), s.majorVersion(ctx)
		if want != "" && have != want {
			return fmt.Errorf("the data in %s belongs to Postgres %s, installed is %s: install that, or remove the folder to start anew", s.data(), have, want)
		}
		return nil
	}
	args := []string{"-D", s.data(), "-U", superuser, "-E", "UTF8", "--locale=C"}
	if s.secret != "" {
		args = append(args, "-A", "scram-sha-256", "--pwfile="+filepath.Join(s.dir, passwordFile))
	} else {
		args = append(args, "-A", "trust")
	}
	if !s.options.Durable {
		args = append(args, "--no-sync")
	}
	_, before := os.Lstat(s.data())
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "initdb"), args...) //nolint:gosec // our own arguments
	cmd.Dir, cmd.SysProcAttr = s.dir, &syscall.SysProcAttr{Credential: s.owner}
	if out, err := cmd.CombinedOutput(); err != nil {
		if before != nil {
			_ = os.RemoveAll(s.data()) // half a cluster would be taken for a whole one
		}
		return fmt.Errorf("pglocal: initdb: %w\n%s", err, out)
	}
	return nil
}

func (s *Server) majorVersion(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, filepath.Join(s.bin, "postgres"), "--version").Output() //nolint:gosec // our own arguments
	if err != nil {
		return ""
	}
	if m := regexp.MustCompile(`\) (\d+)`).FindSubmatch(out); m != nil {
		return string(m[1])
	}
	return ""
}

// run starts the server and waits until it takes connections.
func (s *Server) run(ctx context.Context) error {
	args := []string{"-D", s.data(), "-c", "unix_socket_directories=" + s.dir, "-c", "listen_addresses=", "-c", "max_connections=200"}
	if s.options.Addr != "" {
		host, port, err := net.SplitHostPort(s.options.Addr)
		if err != nil {
			return err
		}
		// A socket path may have 107 bytes; with TCP none is needed.
		args = []string{"-D", s.data(), "-c", "unix_socket_directories=", "-c", "listen_addresses=" + host, "-c", "port=" + port, "-c", "max_connections=200"}
	}
	if !s.options.Durable {
		args = append(args, "-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
	}
	for _, setting := range s.options.Settings {
		args = append(args, "-c", setting)
	}
	// The shell opens the log as the server's user, then becomes the server: same process, same attributes.
	script := append([]string{"-c", `umask 077; exec "$0" "$@" >>server.log 2>&1`, filepath.Join(s.bin, "postgres")}, args...)
	s.refused.Reset()
	var err error
	s.process, err = process.Start(process.Command{
		Path: "/bin/sh", Args: script, Env: os.Environ(), Dir: s.dir, Output: &s.refused, Credential: s.owner,
		OnParentDeath: syscall.SIGQUIT, // an immediate shutdown, its children included
	})
	if err != nil {
		return fmt.Errorf("pglocal: %w", err)
	}
	return s.awaitReady(ctx)
}

func (s *Server) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	args, err := s.address()
	if err != nil {
		return err
	}
	args = append(args, "-q")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for exec.CommandContext(ctx, filepath.Join(s.bin, "pg_isready"), args...).Run() != nil { //nolint:gosec // our own arguments
		select {
		case <-s.process.Ended():
			return fmt.Errorf("pglocal: postgres ended at its start; its log, %s, ends with:\n%s%s", filepath.Join(s.dir, "server.log"), s.logTail(ctx), s.refused.String())
		case <-ctx.Done():
			return fmt.Errorf("pglocal: postgres takes no connections: %w", ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

func (s *Server) logTail(ctx context.Context) string {
	text, err := s.asOwner(context.WithoutCancel(ctx), "", "tail -n 5 server.log")
	if err != nil {
		return err.Error() + "\n"
	}
	return text
}

var errMissing = errors.New("no Postgres server binaries on this machine")

// Ensure makes sure that server binaries are there. Where root may use apt-get, it announces that on out and
// installs them; elsewhere the error names the command to run.
func Ensure(ctx context.Context, out io.Writer) error {
	if _, err := Binaries(); err == nil {
		return nil
	}
	err := aptget.Request{
		What: "Postgres", Commands: aptget.Packages("postgresql"), Remedy: installCommand(), Before: noMainCluster,
		Done: func() bool { _, err := Binaries(); return err == nil },
	}.Run(ctx, out)
	if err != nil {
		return fmt.Errorf("%w: %w", errMissing, err)
	}
	_, err = Binaries()
	return err
}

// noMainCluster keeps Debian's package from making and starting a server of its own.
func noMainCluster() error {
	const file = "/etc/postgresql-common/createcluster.conf"
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // the system's folder has these rights
		return err
	}
	return os.WriteFile(file, []byte("create_main_cluster = false\n"), 0o644) //nolint:gosec // read by the package's scripts
}

func installCommand() string {
	for _, m := range [][2]string{
		{"apt-get", "sudo apt-get install --no-install-recommends postgresql"},
		{"dnf", "sudo dnf install postgresql-server"},
		{"apk", "sudo apk add postgresql"},
		{"pacman", "sudo pacman -S postgresql"},
		{"zypper", "sudo zypper install postgresql-server"},
	} {
		if _, err := exec.LookPath(m[0]); err == nil {
			return m[1]
		}
	}
	return "brew install postgresql@17"
}
