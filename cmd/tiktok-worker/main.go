// Command tiktok-worker takes purchases from NATS JetStream and delivers them to TikTok's Events API. It holds no
// database credentials and sees no plain e-mail address.
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
