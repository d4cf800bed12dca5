package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"purchase-relay/internal/testkit/process"
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

// startProcess runs a binary with its own environment: the shell's variables for the product (TIKTOK_*, ADMIN_*,
// DATABASE_URL and the rest) are left out, so that a sample never reaches a real pixel or a real ledger. Its name is
// sent on died when it ends.
func (s *stack) startProcess(path string, env []string) (*process.Process, error) {
	name := filepath.Base(path)
	if err := os.Remove(s.log(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	p, err := process.Start(process.Command{Path: path, Env: append(environment(s.getenv), env...), Log: s.log(name)})
	if err != nil {
		return nil, err
	}
	go func() {
		<-p.Ended()
		select {
		case s.died <- name:
		default:
		}
	}()
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
