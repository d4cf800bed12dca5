// Command ingest receives Stripe's webhooks: it verifies and de-duplicates them, provisions the customer,
// records the purchase in Postgres, publishes it to NATS JetStream and records the outcome.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"purchase-relay/internal/service"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout)
	stop()
	os.Exit(service.ExitCode(err, os.Stderr))
}
