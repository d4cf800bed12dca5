// Command composetest rehearses docker-compose.yml: it brings the stack up under a project name and ports of its own, sends purchases,
// scales the workers, kills containers, restarts NATS and Postgres, takes everything down and up again, and counts.
// Without a container engine it says so and ends well.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Environ(), os.Stdout)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "composetest:", err)
		os.Exit(1)
	}
}
