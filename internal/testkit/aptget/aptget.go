// Package aptget installs Debian packages that tests and development commands need. It announces the commands
// before running them as root, and runs nothing when NO_INSTALL is set.
package aptget

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// lockFile is in a folder of root's: in /tmp another user could prepare it as a symbolic link.
const lockFile = "/run/purchase-relay-install.lock"

// ErrMissing means that a program is neither installed nor can be.
var ErrMissing = errors.New("not on this machine")

// Program is one that tests or development commands need.
type Program struct {
	Name     string                 // for the announcement, for instance Postgres
	Find     func() (string, error) // returns its path, or its folder
	Commands []string               // install it, in this order; a shell runs them
	Remedy   string                 // the command that a refusal names; "" is Commands
}

// Packages returns the commands that install a package from the configured repositories.
func Packages(name string) []string {
	const quiet = "apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold "
	return []string{"apt-get update -qq", quiet + name}
}

// Ensure returns the program's path. Where it is missing and root may use apt-get, Ensure announces the
// commands on out and runs them; elsewhere the error, ErrMissing, names them.
func (p Program) Ensure(ctx context.Context, out io.Writer) (string, error) {
	path, err := p.Find()
	if err == nil {
		return path, nil
	}
	if err = p.install(ctx, out); err == nil {
		path, err = p.Find()
	}
	if err != nil {
		return "", fmt.Errorf("%s is %w: %w", p.Name, ErrMissing, err)
	}
	return path, nil
}

// install installs the program unless another process has. One process installs per machine: dpkg accepts
// one, and `go test` runs packages concurrently.
func (p Program) install(ctx context.Context, out io.Writer) error {
	noInstall := os.Getenv("NO_INSTALL") //nolint:forbidigo // tests have no main to pass it
	if why := refusal(noInstall, os.Getuid()); why != "" {
		remedy := cmp.Or(p.Remedy, strings.Join(p.Commands, " && "))
		return fmt.Errorf("not installed automatically (%s): run `%s`", why, remedy)
	}
	lock, err := os.OpenFile(lockFile, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("open the installation lock: %w", err)
	}
	defer func() { _ = lock.Close() }() // unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock the installation: %w", err)
	}
	if _, err := p.Find(); err == nil {
		return nil
	}
	if tty, err := os.OpenFile("/dev/tty", os.O_WRONLY, 0); err == nil && testing.Testing() {
		defer func() { _ = tty.Close() }()
		out = io.MultiWriter(out, tty) // `go test` hides what a passing test prints
	}
	lines := strings.Join(p.Commands, "\n  ")
	_, _ = fmt.Fprintf(out, "%s is missing. Running as root (NO_INSTALL=1 refuses):\n  %s\n", p.Name, lines)
	for _, command := range p.Commands {
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command) //nolint:gosec // the caller's fixed commands
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", command, err, output)
		}
	}
	return nil
}

// refusal returns why nothing may be installed; "": it may.
func refusal(noInstall string, uid int) string {
	switch _, err := exec.LookPath("apt-get"); {
	case noInstall != "" && noInstall != "0" && noInstall != "false":
		return "NO_INSTALL is set"
	case uid != 0:
		return "needs root"
	case err != nil:
		return "no apt-get"
	}
	return ""
}
