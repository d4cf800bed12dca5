// Package aptget installs Debian packages that tests and development commands need. It announces the commands
// before running them as root, and runs nothing when NO_INSTALL is set.
package aptget

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// lockFile is in a folder of root's: in /tmp another user could prepare it as a symbolic link.
const lockFile = "/run/purchase-relay-install.lock"

// Request describes one installation.
type Request struct {
	What     string      // for the announcement, for instance Postgres
	Commands [][]string  // run in this order
	Remedy   string      // the command that a refusal names; "" is Commands
	Dir      string      // working directory; "" is the current one
	Done     func() bool // reports whether nothing is missing
}

// Packages returns the commands that install packages from the configured repositories.
func Packages(names ...string) [][]string {
	const quiet = "apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold"
	return [][]string{{"apt-get", "update", "-qq"}, append(strings.Fields(quiet), names...)}
}

// Run announces the commands on out and runs them, unless Done. A refusal names the commands.
// One process installs per machine: dpkg accepts one, and `go test` runs packages concurrently.
func (r Request) Run(ctx context.Context, out io.Writer) error {
	if r.Done() {
		return nil
	}
	noInstall := os.Getenv("NO_INSTALL") //nolint:forbidigo // tests have no main to pass it
	if why := refusal(noInstall, os.Getuid()); why != "" {
		remedy := r.Remedy
		if remedy == "" {
			remedy = strings.Join(r.lines(), " && ")
		}
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
	if r.Done() {
		return nil
	}
	if tty, err := os.OpenFile("/dev/tty", os.O_WRONLY, 0); err == nil && testing.Testing() {
		defer func() { _ = tty.Close() }()
		out = io.MultiWriter(out, tty) // `go test` hides what a passing test prints
	}
	lines := strings.Join(r.lines(), "\n  ")
	_, _ = fmt.Fprintf(out, "%s is missing. Running as root (NO_INSTALL=1 refuses):\n  %s\n", r.What, lines)
	for _, args := range r.Commands {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // the caller's fixed commands
		cmd.Dir, cmd.Env = r.Dir, append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, output)
		}
	}
	if !r.Done() {
		return errors.New("still missing after the installation")
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

// lines returns the commands as a shell would take them.
func (r Request) lines() (list []string) {
	for _, args := range r.Commands {
		words := slices.Clone(args)
		for i, word := range words {
			if strings.ContainsAny(word, " $*") {
				words[i] = "'" + word + "'"
			}
		}
		list = append(list, strings.Join(words, " "))
	}
	return list
}
