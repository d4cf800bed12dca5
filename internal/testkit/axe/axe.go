// Package axe fetches axe-core, which finds faults of accessibility in pages, for tests in a real browser.
package axe

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
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
	return unpack(data, integrity)
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

// unpack checks an archive's hash and returns the script in it.
func unpack(archive []byte, integrity string) (string, error) {
	sum := sha512.Sum512(archive)
	if got := base64.StdEncoding.EncodeToString(sum[:]); got != integrity {
		return "", fmt.Errorf("axe-core %s has the hash %s, want %s", version, got, integrity)
	}
	zipped, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return "", fmt.Errorf("unpack axe-core: %w", err)
	}
	for files := tar.NewReader(zipped); ; {
		header, err := files.Next()
		if err != nil {
			return "", fmt.Errorf("find axe.min.js in axe-core: %w", err)
		}
		if header.Name == "package/axe.min.js" {
			script, err := io.ReadAll(files)
			return string(script), err
		}
	}
}
