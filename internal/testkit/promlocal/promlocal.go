// Package promlocal runs a Prometheus on loopback for the tests of the alert rules.
package promlocal

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"purchase-relay/internal/testkit/aptget"
	"purchase-relay/internal/testkit/process"
)

// Tools holds the paths of the two programs.
type Tools struct{ Prometheus, Promtool string }

// Ensure finds the programs. Where they are missing and root may use apt-get, it announces that on out and
// unpacks Debian's package into the user's cache: an installed one would start a server of its own. Elsewhere
// the error is aptget.ErrMissing.
func Ensure(ctx context.Context, out io.Writer) (t Tools, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return t, fmt.Errorf("find the cache of Prometheus: %w", err)
	}
	dir := filepath.Join(cache, "purchase-relay", "prometheus")
	find := func() (path string, err error) {
		for _, bin := range []string{"", filepath.Join(dir, "usr", "bin")} { // "": the PATH
			if t.Prometheus, err = exec.LookPath(filepath.Join(bin, "prometheus")); err == nil {
				t.Promtool, err = exec.LookPath(filepath.Join(bin, "promtool"))
			}
			if err == nil {
				break
			}
		}
		return t.Prometheus, err
	}
	const unpack = `work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT && mkdir -p "$0" && cd "$work" &&
		apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb "$0"`
	_, err = aptget.Program{
		Name: "Prometheus", Find: find, Remedy: "apt-get install prometheus",
		Commands: [][]string{{"apt-get", "update", "-qq"}, {"sh", "-c", unpack, dir}},
	}.Ensure(ctx, out)
	return t, err
}

// Start runs Prometheus at a loopback address with a configuration file. Its data and its log are in dir.
func (t Tools) Start(config, addr, dir string) (*process.Process, error) {
	return process.Start(process.Command{
		Path: t.Prometheus, Env: os.Environ(), Log: filepath.Join(dir, "prometheus.log"),
		Args: []string{
			"--config.file=" + config, "--web.listen-address=" + addr,
			"--storage.tsdb.path=" + filepath.Join(dir, "tsdb"),
		},
	})
}
