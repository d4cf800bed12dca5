// Command testdeps installs what the tests use besides Go, as far as root may: Postgres, and optionally
// Prometheus, Chromium and axe-core. `make test` runs it first: `go test` does not show what a passing test
// printed.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"purchase-relay/internal/testkit/chromium"
	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/promlocal"
	"purchase-relay/internal/testkit/try"
)

func main() { try.Main("testdeps", install) }

func install(ctx context.Context) error {
	if err := pglocal.Ensure(ctx, os.Stdout); err != nil {
		return err
	}
	_, missing := promlocal.Ensure(ctx, os.Stdout)
	_, noBrowser := chromium.Ensure(ctx, os.Stdout)
	if skipped := errors.Join(missing, noBrowser, installAxe(ctx)); skipped != nil {
		_, _ = fmt.Fprintln(os.Stdout, "testdeps: tests are skipped:", skipped)
	}
	return nil
}

// installAxe installs axe-core, unless the version in its lock file is installed. npm compares the lock's
// hash.
func installAxe(ctx context.Context) error {
	npm := func(args ...string) error {
		args = append(args, "--prefix", "internal/tools/testdeps/testdata/axe")
		out, err := exec.CommandContext(ctx, "npm", args...).CombinedOutput() //nolint:gosec // constants
		if err != nil {
			return fmt.Errorf("npm %s: %w: %.500s", args[0], err, out)
		}
		return nil
	}
	if npm("ls") == nil {
		return nil
	}
	return npm("ci", "--ignore-scripts", "--no-audit", "--no-fund")
}
