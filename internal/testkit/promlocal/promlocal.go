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

// Ensure returns the folder with prometheus and promtool. Where they are missing and root may use apt-get, it
// announces that on out and unpacks Debian's package into the user's cache: an installed one would start a
// server of its own. Elsewhere the error is aptget.ErrMissing.
func Ensure(ctx context.Context, out io.Writer) (bin string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache of Prometheus: %w", err)
	}
	dir := filepath.Join(cache, "purchase-relay", "prometheus")
	find := func() (string, error) {
		promtool, err := exec.LookPath("promtool")
		if err != nil {
			promtool, err = exec.LookPath(filepath.Join(dir, "usr", "bin", "promtool"))
		}
		return filepath.Dir(promtool), err
	}
	unpack := fmt.Sprintf(`work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT && mkdir -p %[1]q && cd "$work" &&
		apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb %[1]q`, dir)
	return aptget.Program{
		Name: "Prometheus", Find: find, Remedy: "apt-get install prometheus",
		Commands: []string{"apt-get update -qq", unpack},
	}.Ensure(ctx, out)
}

// Start runs the Prometheus in bin at a loopback address with a configuration file. Its data and its log are
// in dir.
func Start(bin, config, addr, dir string) (*process.Process, error) {
	return process.Start(process.Command{
		Path: filepath.Join(bin, "prometheus"), Env: os.Environ(), Log: filepath.Join(dir, "prometheus.log"),
		Args: []string{
			"--config.file=" + config, "--web.listen-address=" + addr,
			"--storage.tsdb.path=" + filepath.Join(dir, "tsdb"),
		},
	})
}
