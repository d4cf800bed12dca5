package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"purchase-relay/internal/testkit/nodehandler"
)

// node measures the usual handler beside ours, on the same Postgres: TikTok is awaited there, and waits here.
func node(ctx context.Context, b *bench) error {
	b.tell("installing the Node handler's packages")
	command, version, err := nodehandler.Install(ctx, filepath.Join(b.dir, "node"))
	if errors.Is(err, nodehandler.ErrMissing) {
		b.report.skip(err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	if err := b.pg.CreateDatabase(ctx, "node", ""); err != nil {
		return err
	}
	tiktok, err := b.startSimulator(ctx, b.latency)
	if err != nil {
		return err
	}
	defer tiktok.stop()
	addrs, err := freeAddrs(1)
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(addrs[0])
	if err != nil {
		return err
	}
	handler, err := b.start(ctx, []string{
		"NODE_ENV=production", "PORT=" + port, "DATABASE_URL=" + b.pg.URL("node"), "STRIPE_WEBHOOK_SECRET=" + signingSecret, "TIKTOK_API_URL=" + tiktok.url(),
		"TIKTOK_ACCESS_TOKEN=local-token", "TIKTOK_PIXEL_ID=LOCALPIXEL",
	}, command[0], command[1:]...)
	if err != nil {
		return err
	}
	defer handler.stop()
	if err := await(ctx, "the Node handler to listen", handler, func() bool { return listens(ctx, addrs[0]) }); err != nil {
		return err
	}
	ledger, err := b.database(ctx, "beside_node")
	if err != nil {
		return err
	}
	in, err := b.startIngest(ctx, ledger, "")
	if err != nil {
		return err
	}
	defer in.stop()
	var warm, theirs, ours shot
	for _, addr := range []string{addrs[0], in.public} { // a just-in-time compiler needs its time
		b.tell("warming")
		if _, err := warm.take(ctx, b.fresh().plan(addr, 64, b.duration)); err != nil {
			return err
		}
	}
	err = b.turns(ctx,
		contender{"the Node handler", func(ctx context.Context) error {
			_, err := theirs.take(ctx, b.fresh().plan(addrs[0], 64, b.duration))
			return err
		}},
		contender{"ingest", func(ctx context.Context) error {
			_, err := ours.take(ctx, b.fresh().plan(in.public, 64, b.duration))
			return err
		}},
	)
	if err != nil {
		return err
	}
	_, peak := memory(handler.cmd.Process.Pid)
	b.report.add("webhooks, the usual Node handler", "/s", theirs.rate, theirs.latencies())
	b.report.add("webhooks, ingest", "/s", ours.rate, against("the Node handler", ours.rate, theirs.rate), atLeast(15), ours.latencies())
	if peak > 0 {
		b.report.add("resident memory of the Node handler, peak", "MiB", series{peak}, note(fmt.Sprintf("Node %s, one process", version)))
	}
	return nil
}
