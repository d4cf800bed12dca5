// Command local runs the whole product on this machine, without containers: a private Postgres, NATS in this process, a
// simulator of TikTok, and the two real binaries as processes of their own. It sends one signed sample purchase, prints
// its way, and stays until Ctrl-C.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "\nlocal:", err)
		os.Exit(1)
	}
}
