package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// build compiles the two production binaries from this checkout.
func build(ctx context.Context, root string, getenv func(string) string) (dir string, err error) {
	dir = filepath.Join(root, "bin")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", dir+string(filepath.Separator), "./cmd/ingest", "./cmd/tiktok-worker") //nolint:gosec // our own folder
	cmd.Env = environment(getenv)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir, nil
}

// makeRoot makes the stack's folder, or checks the existing one: logs and binaries are written below it, and
// under root a folder that another user may change could lead those writes elsewhere.
func makeRoot(root string) error {
	if err := os.MkdirAll(filepath.Dir(root), 0o750); err != nil {
		return err
	}
	if err := os.Mkdir(root, 0o750); !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(root)
	if err != nil {
		return err
	}
	owners := []uint32{uint32(os.Getuid())} //nolint:gosec // a user's id
	if checkout, err := os.Stat("."); err == nil {
		if stat, ok := checkout.Sys().(*syscall.Stat_t); ok {
			owners = append(owners, stat.Uid) // whose code is run anyway
		}
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s is not a folder: remove it and start again", root)
	case !ok || !slices.Contains(owners, stat.Uid):
		return fmt.Errorf("%s belongs to another user: remove it and start again", root)
	case info.Mode().Perm()&0o002 != 0:
		return fmt.Errorf("%s can be changed by every user (mode %04o): remove it and start again", root, info.Mode().Perm())
	}
	return nil
}

// runCommand runs one of ingest's commands to its end.
func runCommand(ctx context.Context, path, command string, env []string, getenv func(string) string) error {
	cmd := exec.CommandContext(ctx, path, command) //nolint:gosec // our own binary
	cmd.Env = append(environment(getenv), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", filepath.Base(path), command, err, out)
	}
	return nil
}

// process is one of our binaries, running.
type process struct {
	name  string
	cmd   *exec.Cmd
	ended chan struct{}
}

// startProcess starts a binary with its own environment: what the shell has set for the product (TIKTOK_*, ADMIN_*,
// DATABASE_URL and the rest) is left out, so that a sample never reaches a real pixel or a real ledger. died gets its
// name when it ends without being stopped.
func startProcess(path, logFile string, env []string, getenv func(string) string, died chan<- string) (*process, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600) //nolint:gosec // below our own folder
	if err != nil {
		return nil, err
	}
	p := &process{name: filepath.Base(path), ended: make(chan struct{})}
	p.cmd = exec.Command(path) //nolint:noctx // our own binary, stopped by stop
	p.cmd.Env = append(environment(getenv), env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = attributes()
	started := make(chan error, 1)
	go func() {
		// The kernel ends the child when the thread that started it ends, so this thread stays as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // how it ended stands in its log
		}
		_ = log.Close()
		close(p.ended)
		select {
		case died <- p.name:
		default:
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	return p, nil
}

// environment keeps what a Go program and the go command need, and nothing of the product's.
func environment(getenv func(string) string) []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if product(name) {
			continue
		}
		env = append(env, name+"="+getenv(name))
	}
	return env
}

func product(name string) bool {
	for _, prefix := range []string{
		"TIKTOK_", "ADMIN_", "DATABASE_", "MIGRATE_", "STRIPE_", "NATS_", "INGEST_", "CHECKOUT_", "RETRY_", "SWEEP_", "LOG_",
		"WORKER_", "NOTIFY_", "BATCH_", "BACKFILL_", "SHUTDOWN_", "CONSENT_", "SKIP_", "TRIAL_", "FIRST_", "LOCAL_", "PG",
	} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// stop asks a process to end, as an operator would, and ends it for good after the grace.
func (p *process) stop(grace time.Duration) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	select {
	case <-p.ended:
		if code := p.cmd.ProcessState.ExitCode(); code != 0 {
			return fmt.Errorf("%s ended with exit code %d", p.name, code)
		}
		return nil
	case <-time.After(grace):
		_ = p.cmd.Process.Kill()
		<-p.ended
		return fmt.Errorf("%s did not stop within %s and was killed", p.name, grace)
	}
}
