// Command chaos breaks everything around the product and counts afterwards. It builds two ingests and three
// workers and runs them as processes beside a real Postgres, a real nats-server and the simulator of TikTok.
// Purchases arrive as Stripe sends them, each until it is accepted. Faults drawn from a seed kill, freeze,
// wipe, fill, cut and silence the parts, often several at the same time. After the last fault everything must
// finish without an operator:
//
//   - every webhook that was answered 200 is on the ledger, with its profile and the right status;
//   - every paid purchase has ended, and every delivered one is at TikTok;
//   - TikTok holds nothing unpaid, and one body for each event_id, however often it was repeated;
//   - no outcome was counted twice, nothing panicked or raced, no program exited on its own;
//   - each replica works alone.
package main

import (
	"context"
	"os"

	"purchase-relay/internal/testkit/try"
)

func main() {
	try.Main("chaos", func(ctx context.Context) error { return run(ctx, os.Args[1:], os.Getenv, os.Stdout) })
}
