package main

import (
	"context"
	"net/http"
	"os"
	"time"

	"purchase-relay/internal/testkit/try"
)

// whole measures webhooks with and without the rest of the pipeline on the same cores.
func whole(ctx context.Context, b *bench) {
	pg := b.newPgbench(ctx, "whole_baseline")
	alone := b.startIngestAlone(ctx, "alone")
	p := b.startPipeline(ctx, "whole", nil, nil)
	usages := []*usage{
		newUsage("ingest", p.ingest.PID()), newUsage("tiktok-worker", p.worker.PID()),
		newUsage("Postgres", b.pg.Pid()), newUsage("nats-server", p.nats.PID()),
		newUsage("TikTok simulator", p.tiktok.PID()), newUsage("load generator", os.Getpid()),
	}
	var transaction, without, with loadSeries
	var sustained, delivered series
	b.turns(ctx,
		pg.measurement(b, "pgbench, 64 clients", pg.transaction, 64, &transaction),
		without.measurement(b, "webhooks alone", alone.addr, 64),
		measurement{"the whole way", func(ctx context.Context) {
			plan, before := b.fullSpeed(p.ingest.addr, 64), with.answered
			for _, u := range usages {
				u.begin()
			}
			began := time.Now()
			with.run(ctx, plan)
			answered := with.answered - before
			undelivered := query[int](ctx, p.ingest.ledger, sqlUndelivered)
			for _, u := range usages {
				resident, _ := memory(u.pid)
				u.resident = append(u.resident, resident)
			}
			p.awaitDelivery(ctx)
			sustained = append(sustained, float64(answered)/time.Since(began).Seconds())
			delivered = append(delivered, 100*float64(answered-undelivered)/float64(answered))
			for _, u := range usages {
				u.end(answered)
			}
		}})
	p.verify(ctx)

	r := b.report
	r.add("pgbench, the same rows, 64 clients", "/s", transaction.rate)
	without.report(b, "webhooks alone, 64 connections")
	with.report(b, "webhooks, the whole way running").against("pgbench", transaction.rate).atLeast(1)
	r.add("the whole way, sustained", "/s", sustained).against("webhooks alone", without.rate).atLeast(0.6).
		note("first webhook to last outcome; %.0f %% delivered at the last webhook", delivered.median())
	picture := bar{title: "The processor's time for one purchase, all parts on one machine", unit: "µs"}
	for _, u := range usages {
		if u.each.median() > 0 { // else there is no /proc
			r.add("processor of "+u.name+", each purchase", "µs", u.each)
			picture.add(u.name, u.each)
		}
	}
	b.pictures = append(b.pictures, picture)
	for _, u := range usages {
		_, peak := memory(u.pid)
		if u.name == "Postgres" || u.name == "load generator" || peak == 0 {
			continue // the memory that Postgres' processes share would count several times
		}
		row := r.add("resident memory of "+u.name+", peak", "MiB", series{peak}).
			note("%.0f MiB at rest, %.0f MiB at the end of a round", u.atRest, u.resident.median())
		if u.name == "ingest" || u.name == "tiktok-worker" {
			row.atMost(64)
		}
	}
}

// outage measures the webhook's latency at an even pace, while TikTok or NATS is down and while both are up.
func outage(ctx context.Context, b *bench) {
	// Short retries, so that a round begins without undelivered purchases of the one before.
	p := b.startPipeline(ctx, "outage", nil, []string{"RETRY_INITIAL=100ms", "RETRY_MAX=1s"})
	faults := "http://" + p.tiktok.addr + "/faults"
	var up, tiktok, nats loadSeries
	const pause = 5 * time.Millisecond
	send := func(ctx context.Context, s *loadSeries) { s.run(ctx, b.paced(p.ingest.addr, 8, pause)) }
	b.turns(ctx,
		measurement{"both up", func(ctx context.Context) {
			send(ctx, &up)
			p.awaitDelivery(ctx)
		}},
		measurement{"TikTok down", func(ctx context.Context) {
			try.Must(fetch(ctx, http.MethodPost, faults, `{"status":503}`))
			send(ctx, &tiktok)
			try.Must(fetch(ctx, http.MethodDelete, faults, ""))
			p.awaitDelivery(ctx)
		}},
		measurement{"NATS down", func(ctx context.Context) {
			p.nats.stop()
			send(ctx, &nats)
			p.nats.start(ctx)
			p.awaitDelivery(ctx)
		}})
	p.verify(ctx)
	add := func(name string, s *loadSeries) *row {
		return b.report.add("a webhook's median, "+name, "ms", s.median).note("p99 %s ms", number(s.p99.median()))
	}
	add("both up", &up)
	add("TikTok down", &tiktok).against("up", up.median).atMost(1.1)
	add("NATS down", &nats).against("up", up.median).atMost(1.1)
}
