// Package pglocal runs a private Postgres from the binaries on this machine: for tests and the local stack.
//
// A server without an address listens on a Unix socket in a folder of mode 0700; its roles need no password.
// A server with an address listens on TCP, which every local user reaches, and needs passwords (SCRAM).
//
// Postgres refuses to run as root. Under root the server runs as the user postgres (or nobody), who could
// replace files in its folder by links. This process therefore opens no file there: that user's shell does.
package pglocal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"purchase-relay/internal/testkit/aptget"
	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/safedir"
	"purchase-relay/internal/testkit/wait"
)

// Options configure a server. The zero value is a throw-away one for tests.
type Options struct {
	Dir      string   // kept between starts, in an existing one; "": a temporary folder that Stop removes
	Addr     string   // TCP with passwords, for instance 127.0.0.1:8085; "": a Unix socket only
	Durable  bool     // fsync on; off is faster and loses data in a crash of the machine
	Settings []string // further server settings, each name=value
}

// Server is a running Postgres.
type Server struct {
	options  Options
	bin      string
	dir      string              // holds data, socket, log and password
	password string              // the superuser's; "" without TCP
	owner    *syscall.Credential // runs the server; nil: the current user
	process  *process.Process
}

const (
	startTimeout = 3 * time.Minute
	stopTimeout  = 2 * time.Minute
)

// Start runs a server and returns when it accepts connections. Where the server's user cannot reach
// Options.Dir, the data is in /var/tmp: see Dir.
func Start(ctx context.Context, o Options) (*Server, error) {
	s := &Server{options: o}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start Postgres: %w", err), s.removeTemporary())
	}
	return s, nil
}

func (s *Server) start(ctx context.Context) (err error) {
	if s.bin, err = binaries(); err != nil {
		return err
	}
	if s.options.Addr != "" {
		if err := freeport.Check(s.options.Addr); err != nil {
			return err
		}
	}
	if s.owner, err = serverUser(); err != nil {
		return err
	}
	if err := s.makeDir(ctx); err != nil {
		return err
	}
	if err := s.initialise(ctx); err != nil {
		return err
	}
	// The children of a killed server hold its shared memory for a moment.
	wait.Until(ctx, stopTimeout, 100*time.Millisecond, func() bool {
		err = s.launch(ctx)
		return err == nil || !strings.Contains(err.Error(), "is still in use")
	})
	return err
}

// Dir returns the folder with the data.
func (s *Server) Dir() string { return s.dir }

// Programs returns the folder with Postgres' own programs, psql among them.
func (s *Server) Programs() string { return s.bin }

// Process returns the postmaster's process.
func (s *Server) Process() *process.Process { return s.process }

// Password returns the superuser's password; "" without TCP.
func (s *Server) Password() string { return s.password }

// URL returns the superuser's connection string of a database.
func (s *Server) URL(database string) string {
	if s.options.Addr != "" {
		return s.URLAt(s.options.Addr, database)
	}
	return "postgres:///" + database + "?" + url.Values{"host": {s.dir}, "user": {"postgres"}}.Encode()
}

// URLAt returns the superuser's connection string through another address, for instance a proxy's.
func (s *Server) URLAt(addr, database string) string {
	return "postgres://postgres:" + s.password + "@" + addr + "/" + database + "?sslmode=disable"
}

// CreateDatabase makes a database, as a copy of template where one is named.
func (s *Server) CreateDatabase(ctx context.Context, name, template string) error {
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	defer func() { _ = conn.Close(ctx) }()
	sql := "CREATE DATABASE " + pgx.Identifier{name}.Sanitize()
	if template != "" {
		sql += " TEMPLATE " + pgx.Identifier{template}.Sanitize()
	}
	// Without fsync cheaper than a copy through the WAL. Versions before 15, of two digits, too, always copy so.
	if !s.options.Durable && conn.PgConn().ParameterStatus("server_version") >= "15" {
		sql += " STRATEGY file_copy"
	}
	// A closed connection's process may hold the template for longer than the 5 s that Postgres waits.
	const inUse = "55006"
	wait.Until(ctx, startTimeout, 100*time.Millisecond, func() bool {
		_, err = conn.Exec(ctx, sql)
		refusal, refused := errors.AsType[*pgconn.PgError](err)
		return !refused || refusal.Code != inUse
	})
	if err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	return nil
}

// Stop ends the server by a fast shutdown and waits. It may be called more than once.
func (s *Server) Stop() (err error) {
	s.process.Signal(syscall.SIGINT)
	select {
	case <-s.process.Ended():
	case <-time.After(stopTimeout):
		s.abort()
		err = fmt.Errorf("stop Postgres: not within %s", stopTimeout)
	}
	return errors.Join(err, s.removeTemporary())
}

// abort ends the server and its children without a checkpoint.
func (s *Server) abort() {
	s.process.Signal(syscall.SIGQUIT)
	<-s.process.Ended()
}

func (s *Server) removeTemporary() error {
	if s.options.Dir != "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}

// serverUser returns the user that runs the server; nil is the current one.
func serverUser() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil //nolint:nilnil // as exec.Cmd takes it
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return nil, err
		}
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
}

// makeDir makes the folder and gives it to the server's user.
func (s *Server) makeDir(ctx context.Context) (err error) {
	owner := os.Getuid()
	if s.owner != nil {
		owner = int(s.owner.Uid)
	}
	if s.options.Dir == "" {
		base := disk
		if !s.options.Durable && free(memory) > memoryNeeded {
			if _, err := s.shell(ctx, "/", removeAbandoned, memory); err != nil {
				return err
			}
			base = memory
		}
		s.dir, err = os.MkdirTemp(base, "pglocal")
	} else {
		if s.dir, err = filepath.Abs(s.options.Dir); err != nil {
			return err
		}
		if _, err := s.shell(ctx, filepath.Dir(s.dir), "true"); err != nil { // its user cannot enter it
			sum := sha256.Sum256([]byte(s.dir))
			s.dir = fmt.Sprintf("%s/purchase-relay-%x", disk, sum[:4])
		}
		err = safedir.Make(s.dir, 0o077, owner)
	}
	if err != nil || s.owner == nil {
		return err
	}
	return os.Lchown(s.dir, owner, int(s.owner.Gid))
}

// Every user may make folders in these two.
const (
	disk   = "/var/tmp"
	memory = "/dev/shm" // on Linux
)

// removeAbandoned removes the folders of killed tests, whose servers have ended: memory has no other sweeper.
// rm fails where another process removes the same folder at the same time.
const removeAbandoned = `
	find "$0" -maxdepth 1 -name 'pglocal*' -user "$(id -un)" -mmin +10 | while read -r dir; do
		kill -0 "$(head -n 1 "$dir/data/postmaster.pid" 2>/dev/null)" 2>/dev/null || rm -rf "$dir" || :
	done`

// memoryNeeded is the space, in bytes, that a folder in memory must have for a test binary's databases. Each
// is hundreds of files: making them on a disk took a third of an end-to-end test's processor time.
const memoryNeeded = 4 << 30

// free returns the space of a folder's file system in bytes; 0 without the folder.
func free(dir string) uint64 {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		return 0
	}
	return stat.Bavail * uint64(stat.Bsize) //nolint:gosec // a block has a size
}

// shell runs a script as the server's user, in a folder, and returns its output.
func (s *Server) shell(ctx context.Context, dir, script string, args ...string) (string, error) {
	args = append([]string{"-c", "umask 077; " + script}, args...)
	cmd := exec.CommandContext(ctx, "/bin/sh", args...) //nolint:gosec // our own scripts
	cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Credential: s.owner}
	out, err := cmd.Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return string(out), err
}

// initialise makes the password and the cluster, unless they exist.
func (s *Server) initialise(ctx context.Context) error {
	args := []string{filepath.Join(s.bin, "initdb"), "-D", "new", "-U", "postgres", "-E", "UTF8", "--locale=C"}
	if s.options.Addr == "" {
		args = append(args, "-A", "trust")
	} else {
		password, err := s.shell(ctx, s.dir, `
			[ ! -e data ] || [ -e password ] || { echo "the data has no password" >&2; exit 1; }
			[ -s password ] || od -An -N20 -tx1 /dev/urandom | tr -d ' \n' >password
			cat password`)
		if err != nil {
			return err
		}
		s.password = strings.TrimSpace(password)
		args = append(args, "-A", "scram-sha-256", "--pwfile=password")
	}
	if !s.options.Durable {
		args = append(args, "--no-sync")
	}
	// The rename comes last: initdb may be killed, and half a cluster would be taken for a whole one.
	_, err := s.shell(ctx, s.dir, `[ -e data ] || { rm -rf new && "$0" "$@" && mv new data; }`, args...)
	return err
}

// launch starts the server and waits until it accepts connections.
func (s *Server) launch(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	host, port, sockets := "", "5432", s.dir
	if s.options.Addr != "" {
		if host, port, err = net.SplitHostPort(s.options.Addr); err != nil {
			return err
		}
		sockets = "" // a socket's path may have 107 bytes, and TCP needs none
	}
	settings := append([]string{
		"listen_addresses=" + host, "port=" + port, "unix_socket_directories=" + sockets, "max_connections=200",
	}, s.options.Settings...)
	if !s.options.Durable {
		settings = append(settings, "fsync=off", "synchronous_commit=off", "full_page_writes=off")
	}
	// The shell opens the log as the server's user and then becomes the server, with the same process id.
	const become = `umask 077; exec "$0" -D "$PWD/data" "$@" >>server.log 2>&1`
	args := []string{"-c", become, filepath.Join(s.bin, "postgres")}
	for _, setting := range settings {
		args = append(args, "-c", setting)
	}
	var shellOutput bytes.Buffer
	s.process, err = process.Start(process.Command{
		Path: "/bin/sh", Args: args, Env: os.Environ(), Dir: s.dir, Output: &shellOutput, Credential: s.owner,
		OnParentDeath: syscall.SIGQUIT, // ends its children, too
	})
	if err != nil {
		return err
	}
	ready := func() bool { return s.accepts(ctx) }
	if s.process.Await(ctx, "start Postgres", startTimeout, ready) == nil {
		return nil
	}
	s.abort()
	tail, err := s.shell(context.WithoutCancel(ctx), s.dir, "tail -n 5 server.log")
	return errors.Join(ctx.Err(), err, fmt.Errorf("no connections accepted; %s ends with:\n%s%s",
		filepath.Join(s.dir, "server.log"), tail, shellOutput.Bytes()))
}

// accepts reports whether the server accepts connections, with any password.
func (s *Server) accepts(ctx context.Context) bool {
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err == nil {
		_ = conn.Close(ctx)
		return true
	}
	const startingUp = "57P03"
	refusal, refused := errors.AsType[*pgconn.PgError](err)
	return refused && refusal.Code != startingUp
}

// binaries returns the folder of the newest installed server and its tools.
func binaries() (string, error) {
	var found []string
	for _, pattern := range []string{ // versions of two digits, so that the last one is the newest
		"/usr/lib/postgresql/[1-9][0-9]/bin", "/usr/pgsql-[1-9][0-9]/bin", "/usr/libexec/postgresql[1-9][0-9]",
		"/opt/homebrew/opt/postgresql@[1-9][0-9]/bin", "/usr/local/opt/postgresql@[1-9][0-9]/bin",
	} {
		programs, err := filepath.Glob(pattern + "/initdb")
		if err != nil {
			return "", err
		}
		found = append(found, programs...)
	}
	if len(found) == 0 {
		program, err := exec.LookPath("initdb")
		if err != nil {
			return "", fmt.Errorf("find the Postgres server binaries: %w", err)
		}
		program, err = filepath.EvalSymlinks(program)
		return filepath.Dir(program), err
	}
	return filepath.Dir(slices.Max(found)), nil
}

// Ensure installs a server where none is. Where root may use apt-get, it announces and runs the commands;
// elsewhere the error names the command to run.
func Ensure(ctx context.Context, out io.Writer) error {
	remedy := "sudo apt-get install --no-install-recommends postgresql"
	if _, err := exec.LookPath("brew"); err == nil {
		remedy = "brew install postgresql@17"
	}
	// Debian's package would make and start a server of its own.
	const file = "/etc/postgresql-common/createcluster.conf"
	noServer := "mkdir -p /etc/postgresql-common; [ -e " + file + " ] || echo create_main_cluster=false >" + file
	_, err := aptget.Program{
		Name: "Postgres", Find: binaries, Remedy: remedy,
		Commands: append([]string{noServer}, aptget.Packages("postgresql")...),
	}.Ensure(ctx, out)
	return err
}
