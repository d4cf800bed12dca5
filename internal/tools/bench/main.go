// Command bench measures the product on this machine. Each figure is measured in turns with its baseline, in
// the same run: machines differ, ratios less so. The binaries run as processes of their own, with a private
// Postgres that syncs to disk, a real nats-server and the simulator of TikTok.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
