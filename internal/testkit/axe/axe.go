// Package axe fetches axe-core, which finds faults of accessibility in pages, for tests in a real browser.
package axe

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// The package and the hash that npm's registry states for it.
const (
	version   = "4.14.1"
	integrity = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
)

// ErrMissing means that axe-core is neither in the folder nor can be fetched.
var ErrMissing = errors.New("axe-core is not available")

// Source returns the script. npm fetches its package into dir, which later calls use. A package with another
// hash is an error.
func Source(ctx context.Context, dir string) (string, error) {
	archive := filepath.Join(dir, "axe-core-"+version+".tgz")
	data, err := os.ReadFile(archive) //nolint:gosec // the caller's folder
	if errors.Is(err, os.ErrNotExist) {
		data, err = fetch(ctx, dir, archive)
	}
	if err != nil {
		return "", err
	}
	sum := sha512.Sum512(data)
	if got := base64.StdEncoding.EncodeToString(sum[:]); got != integrity {
		return "", fmt.Errorf("axe-core %s has the hash %s, want %s", version, got, integrity)
	}
	tar := exec.CommandContext(ctx, "tar", "-xzOf", "-", "package/axe.min.js")
	tar.Stdin = bytes.NewReader(data)
	script, err := tar.Output()
	if err != nil {
		return "", fmt.Errorf("unpack axe-core: %w", err)
	}
	return string(script), nil
}

// fetch lets npm write the archive into a folder of its own, so that concurrent tests read whole files only.
func fetch(ctx context.Context, dir, archive string) (data []byte, err error) {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return nil, fmt.Errorf("%w: npm is not installed", ErrMissing)
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(dir, "fetch")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	pack := exec.CommandContext(ctx, npm, "pack", "--silent", "--ignore-scripts", "axe-core@"+version) //nolint:gosec,lll // constants
	pack.Dir = work
	if out, err := pack.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: npm pack: %w: %.500s", ErrMissing, err, out)
	}
	if err := os.Rename(filepath.Join(work, filepath.Base(archive)), archive); err != nil {
		return nil, err
	}
	return os.ReadFile(archive) //nolint:gosec // the caller's folder
}
