// Package aptget installs Debian packages that tests and development commands need. It announces each command
// before running it as root, and runs nothing when NO_INSTALL is set.
package aptget

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// ErrRefused says that nothing may be installed: NO_INSTALL is set, the user is not root, or apt-get is
// missing.
var ErrRefused = errors.New("not installed automatically")

// Variable refuses every installation when it is set to anything but 0 or false.
const Variable = "NO_INSTALL"

// lockFile is in a folder in which only root can create files: a lock in /tmp could be another user's
// symbolic link.
const lockFile = "/run/purchase-relay-install.lock"

// Request describes one installation.
type Request struct {
	What     string              // for the announcement, for instance Postgres
	Commands [][]string          // apt-get and dpkg-deb commands, run in this order
	Remedy   string              // the command that a refusal names; "" is Commands
	Dir      string              // working directory; "" is the current one
	Done     func() bool         // reports whether the installation has become unnecessary while waiting for the lock
	Before   func() error        // optional preparation, run after the announcement
	Getenv   func(string) string // nil is os.Getenv
	UID      func() int          // nil is os.Getuid
}

// Packages returns the commands that install packages from the configured repositories.
func Packages(names ...string) [][]string {
	install := []string{"apt-get", "install", "-y", "-qq", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold"}
	return [][]string{{"apt-get", "update", "-qq"}, append(install, names...)}
}

// Run announces the commands on out and runs them, one process at a time on this machine. An error that is
// ErrRefused holds the commands for the operator to run.
func (r Request) Run(ctx context.Context, out io.Writer) error {
	if err := r.refusal(); err != nil {
		return err
	}
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()
	if r.Done() {
		return nil
	}
	announce(out, fmt.Sprintf("%s is missing. Running as root (%s=1 refuses):\n  %s\n", r.What, Variable, strings.Join(r.lines(), "\n  ")))
	if r.Before != nil {
		if err := r.Before(); err != nil {
			return err
		}
	}
	for _, args := range r.Commands {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // the caller's fixed commands
		cmd.Dir, cmd.Env = r.Dir, append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, output)
		}
	}
	return nil
}

func (r Request) refusal() error {
	getenv, uid := os.Getenv, os.Getuid //nolint:forbidigo // tests have no main that could pass it
	if r.Getenv != nil {
		getenv = r.Getenv
	}
	if r.UID != nil {
		uid = r.UID
	}
	why := ""
	switch value := getenv(Variable); {
	case value != "" && value != "0" && value != "false":
		why = Variable + " is set"
	case uid() != 0:
		why = "needs root"
	default:
		if _, err := exec.LookPath("apt-get"); err != nil {
			why = "no apt-get"
		}
	}
	if why == "" {
		return nil
	}
	remedy := r.Remedy
	if remedy == "" {
		remedy = strings.Join(r.lines(), " && ")
	}
	return fmt.Errorf("%w (%s): run `%s`", ErrRefused, why, remedy)
}

func (r Request) lines() (list []string) {
	for _, args := range r.Commands {
		words := make([]string, len(args))
		for i, arg := range args {
			if words[i] = arg; strings.ContainsAny(arg, " $*") {
				words[i] = "'" + arg + "'"
			}
		}
		list = append(list, strings.Join(words, " "))
	}
	return list
}

// announce also writes to the terminal in tests: `go test` shows a passing test's output only with -v.
func announce(out io.Writer, text string) {
	_, _ = fmt.Fprint(out, text)
	if !testing.Testing() {
		return
	}
	if terminal, err := os.OpenFile("/dev/tty", os.O_WRONLY, 0); err == nil {
		_, _ = fmt.Fprint(terminal, text)
		_ = terminal.Close()
	}
}

// lock waits for other processes: `go test` runs packages concurrently, and dpkg accepts one at a time.
func lock() (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Clean(lockFile), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the installation lock: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the installation: %w", err), file.Close())
	}
	return func() { _ = file.Close() }, nil
}
