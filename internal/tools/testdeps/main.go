// Command testdeps installs what the tests use besides Go, as far as root may: Postgres, and optionally
// Prometheus and Chromium. `make test` runs it first: `go test` does not show what a passing test printed.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"purchase-relay/internal/testkit/chromium"
	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/promlocal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := pglocal.Ensure(ctx, os.Stdout)
	if err == nil {
		_, missing := promlocal.Ensure(ctx, os.Stdout)
		_, noBrowser := chromium.Ensure(ctx, os.Stdout)
		if skipped := errors.Join(missing, noBrowser); skipped != nil {
			_, _ = fmt.Fprintln(os.Stdout, "testdeps: tests are skipped:", skipped)
		}
	}
	stop()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "testdeps:", err)
		os.Exit(1)
	}
}
