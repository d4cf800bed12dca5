// Command chaos breaks everything around the product and counts afterwards. Two ingests and three workers,
// the real binaries, run as processes beside a real Postgres, a real nats-server and the strict simulator of
// TikTok. Purchases are sent as Stripe sends them, each until it is accepted. Faults, drawn from a seed,
// kill, freeze, wipe, fill, cut and silence one part after the other, often several at the same time. When
// all faults have ended, everything must finish without an operator:
//
//   - every webhook that was answered 200 is on the ledger, with its profile and the right status;
//   - every paid purchase has ended, and every delivered one is at TikTok;
//   - nothing is at TikTok that was not paid, and each event_id has one body there, however often it was repeated;
//   - no outcome was counted twice, nothing panicked or raced, no program ended by itself, and each replica
//     works alone.
//
// It builds the binaries that it breaks.
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
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}
