// Package nodehandler holds the webhook handler that a shop usually writes (Node with express, stripe and pg; TikTok is
// awaited inside the request), to be measured beside ours.
package nodehandler

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed package.json package-lock.json server.js
var sources embed.FS

// ErrMissing says that it cannot be had on this machine.
var ErrMissing = errors.New("the Node handler cannot be had here")

// Install puts the handler and its packages, as locked, into a folder, and returns the command to run it there with; its
// version goes into the figures. Where node, npm or the packages cannot be had, the error is ErrMissing and says what.
func Install(ctx context.Context, dir string) (command []string, version string, err error) {
	node, err := exec.LookPath("node")
	if err != nil {
		return nil, "", fmt.Errorf("%w: there is no node", ErrMissing)
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		return nil, "", fmt.Errorf("%w: there is no npm", ErrMissing)
	}
	if err := os.CopyFS(dir, fs.FS(sources)); err != nil {
		return nil, "", err
	}
	install := exec.CommandContext(ctx, npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error") //nolint:gosec // from the search path
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return nil, "", ctx.Err()
		}
		return nil, "", fmt.Errorf("%w: npm ci: %w: %.300s", ErrMissing, err, out)
	}
	out, err := exec.CommandContext(ctx, node, "--version").Output() //nolint:gosec // from the search path
	if err != nil {
		return nil, "", fmt.Errorf("node --version: %w", err)
	}
	return []string{node, filepath.Join(dir, "server.js")}, strings.TrimSpace(string(out)), nil
}
