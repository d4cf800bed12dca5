package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/try"
)

const (
	peerLatency = 50 * time.Millisecond // of TikTok's simulator, ± 50 %
	// At 50 ms an answer they could deliver 4,000 a second, more than the peer takes. Other numbers were not
	// measured.
	peerWorkers = "200"
)

// peer measures the same job written with River, on the same Postgres: webhooks alone, and all the way to the
// recorded outcome.
func peer(ctx context.Context, b *bench) {
	b.announce("building the peer")
	program := filepath.Join(b.dir, "riverpeer")
	args := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", program, "."}
	build := exec.CommandContext(ctx, "go", args...) //nolint:gosec // our own sources
	build.Dir = filepath.Join(b.root, "internal/tools/bench/riverpeer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		try.Check(ctx.Err())
		b.report.skip(fmt.Sprintf("the peer cannot be built here: %v: %.300s", err, out))
		return
	}
	tiktok := b.startSimulator(ctx, peerLatency)
	river := func(name, workers string) (s *server, ledger string) {
		ledger, addr := b.database(ctx, name), try.Must(freeport.Addr())
		execute(ctx, ledger, "ALTER TABLE public.purchases DISABLE TRIGGER USER") // as for pgbench
		return b.serve(ctx, addr, []string{
			"DATABASE_URL=" + ledger, "ADDR=" + addr, "STRIPE_WEBHOOK_SECRET=" + signingSecret,
			"TIKTOK_API_URL=" + tiktok.url(), "TIKTOK_ACCESS_TOKEN=local-token", "TIKTOK_PIXEL_ID=LOCALPIXEL",
			"WORKERS=" + workers,
		}, program), ledger
	}
	theirsAlone, _ := river("peer_alone", "0")
	theirsWhole, theirLedger := river("peer_whole", peerWorkers)
	oursAlone := b.startIngestAlone(ctx, "beside_peer")
	latency := b.latency
	b.latency = peerLatency
	ours := b.startPipeline(ctx, "beside_peer_whole", nil, nil)
	b.latency = latency

	var theirWebhooks, ourWebhooks loadSeries
	theirs := wholeWay{usages: []*usage{newUsage("peer", theirsWhole.PID()), newUsage("Postgres", b.pg.Pid())}}
	mine := wholeWay{usages: []*usage{
		newUsage("ingest", ours.ingest.PID()), newUsage("tiktok-worker", ours.worker.PID()),
		newUsage("nats-server", ours.nats.PID()), newUsage("Postgres", b.pg.Pid()),
	}}
	b.turns(ctx,
		theirWebhooks.measurement(b, "the peer's webhooks", theirsAlone.addr, 64),
		ourWebhooks.measurement(b, "webhooks", oursAlone.addr, 64),
		measurement{"the peer's whole way", func(ctx context.Context) {
			theirs.run(ctx, b, theirsWhole, theirLedger)
		}},
		measurement{"the whole way", func(ctx context.Context) {
			mine.run(ctx, b, ours.ingest.server, ours.ingest.ledger)
		}})
	ours.verify(ctx)
	delivered := query[int](ctx, theirLedger, sqlCount+" WHERE status = 'delivered'")
	if accepted := tiktok.stats(ctx).Accepted; delivered != accepted || delivered != theirs.load.answered {
		try.Check(fmt.Errorf("peer: %d answered, %d delivered, TikTok accepted %d",
			theirs.load.answered, delivered, accepted))
	}

	theirWebhooks.report(b, "webhooks, the peer with River")
	ourWebhooks.report(b, "webhooks, ingest").against("the peer", theirWebhooks.rate).atLeast(4.5)
	b.report.add("the whole way, the peer", "/s", theirs.rate).note("%s workers", peerWorkers)
	b.report.add("the whole way", "/s", mine.rate).against("the peer", theirs.rate).atLeast(10)
	peerTime := theirs.usages[0].each.plus(theirs.usages[1].each)
	b.report.add("processor of the peer and Postgres, each purchase", "µs", peerTime)
	b.report.add("processor of ingest, worker, nats-server and Postgres", "µs",
		mine.usages[0].each.plus(mine.usages[1].each).plus(mine.usages[2].each).plus(mine.usages[3].each)).
		against("the peer", peerTime)
}

// wholeWay measures from the first webhook to the last recorded outcome.
type wholeWay struct {
	load   loadSeries
	rate   series // purchases a second
	usages []*usage
}

func (w *wholeWay) run(ctx context.Context, b *bench, s *server, ledger string) {
	before := w.load.answered
	plan := b.fullSpeed(s.addr, 64)
	end, began := meter(w.usages...), time.Now()
	w.load.run(ctx, plan)
	s.await(ctx, "wait for every purchase to be delivered", func() bool {
		return query[int](ctx, ledger, sqlUndelivered) == 0
	})
	answered := w.load.answered - before
	w.rate = append(w.rate, float64(answered)/time.Since(began).Seconds())
	end(answered)
}
