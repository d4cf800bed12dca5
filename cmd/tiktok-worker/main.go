// Command tiktok-worker delivers purchases from NATS JetStream to TikTok's Events API. It has no database
// credentials and receives only hashed e-mail addresses.
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
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	stop()
	os.Exit(service.ExitCode(err, os.Stderr))
}
