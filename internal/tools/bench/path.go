package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"purchase-relay/internal/purchase"
	"purchase-relay/internal/stripe"
	"purchase-relay/internal/testkit/try"
)

// webhooks measures ingest alone, without NATS: nothing is delivered.
func webhooks(ctx context.Context, b *bench) {
	in, pg, null := b.startIngestAlone(ctx, "webhooks"), b.baselineDatabase(ctx, "baseline"), b.startNull()
	ofPgbench := b.usage("Postgres, each transaction of pgbench", b.pg.Process().PID())
	ofPostgres := b.usage("Postgres, each webhook", b.pg.Process().PID())
	ofIngest := b.usage("ingest, each webhook", in.PID())
	transaction := b.pgbench("pgbench, the same rows, 64 clients", "/s", pg, 64, ofPgbench)
	single := b.pgbench("pgbench's median, one client", "ms", pg, 1)
	one := b.responses("a webhook's median, one connection", "ms",
		func() load { return b.fullSpeed(in.addr, 1) })
	all := b.webhooks("webhooks, all new, 64 connections", in.addr, ofIngest, ofPostgres)
	var thousand load
	known := b.responses("webhooks, a thousand new ones", "/s", func() load {
		thousand = paid().newLoad(in.addr, 64, newTokens(1000))
		return thousand
	})
	b.responses("duplicates of these, 64 connections", "/s", func() load { return b.repeated(thousand) })
	b.responses("forged signatures, 64 connections", "/s", func() load {
		return b.repeated(forged().newLoad(in.addr, 64, newTokens(1000)))
	})
	b.responses("the load generator's ceiling: net/http without work", "/s", func() load {
		return b.repeated(paid().newLoad(null, 64, newTokens(1000)))
	})
	b.turns(ctx)
	in.verify(ctx, one, all, known)
	all.against("pgbench", transaction.Figure)
	one.against("pgbench's", single.Figure).atMost(1.5)
	ofPostgres.against("for pgbench", ofPgbench.Figure)
}

// sqlStages are the stages of the purchases received since a time, as medians in milliseconds. All times are
// of this machine's clock.
const sqlStages = `
SELECT ARRAY[
    percentile_cont(0.5) WITHIN GROUP (ORDER BY 1000 * extract(epoch FROM first_published_at - received_at)),
    percentile_cont(0.5) WITHIN GROUP (ORDER BY 1000 * extract(epoch FROM at - first_published_at)),
    percentile_cont(0.5) WITHIN GROUP (ORDER BY took_ms::float8),
    percentile_cont(0.5) WITHIN GROUP (ORDER BY 1000 * extract(epoch FROM p.updated_at - at) - took_ms)]
FROM public.purchases p
    JOIN public.stripe_events USING (checkout_session_id)
    JOIN public.purchase_attempts USING (checkout_session_id)
WHERE p.status = 'delivered' AND received_at >= $1`

// one measures the stages of a single purchase. Each kind of webhook ends one step later than the one
// before: the difference is the step.
func one(ctx context.Context, b *bench) {
	s := b.startPipeline(ctx, b.database(ctx, "one"), usualLatency, unlimited)
	// A webhook comes when the one before has been delivered.
	paced := func(k kind, addr string) load { return b.paced(k, addr, 1, 50*time.Millisecond) }
	null, ignored := b.startNull(), paid()
	ignored.checkout.Type = "invoice.paid"
	steps := []*measurement{
		b.responses("HTTP, both sides of it", "ms", func() load { return paced(paid(), null) }),
		b.responses("the body, its signature, a log line", "ms", func() load { return paced(forged(), s.addr) }),
		b.responses("decoding", "ms", func() load { return paced(ignored, s.addr) }),
		b.responses("look-up of a known event", "ms", func() load {
			known := paced(paid(), s.addr)
			send(ctx, known)
			s.awaitDelivery(ctx)
			return known
		}),
		b.measurement("event, profile, purchase, commit", "ms"),
	}
	stages := []*row{
		b.row("received, committed, claimed by the relay", "ms"),
		b.row("published, fetched, on its way to TikTok", "ms"),
		b.row("TikTok's answer", "ms"),
		b.row("its outcome queued, fetched, on the ledger", "ms"),
	}
	fresh := steps[4]
	fresh.run = func(ctx context.Context) {
		since := query[time.Time](ctx, s.ledger, "SELECT now()")
		fresh.record(send(ctx, paced(paid(), s.addr)))
		s.awaitDelivery(ctx)
		for i, median := range query[[]float64](ctx, s.ledger, sqlStages, since) {
			stages[i].add(median)
		}
	}
	b.turns(ctx)

	before := make(series, b.rounds)
	for _, m := range steps {
		m.note("a webhook that ends here: %s ms", number(m.Figure.median()))
		for i, end := range m.Figure {
			m.Figure[i], before[i] = end-before[i], end
		}
	}
}

// whole measures webhooks with and without the rest of the pipeline on the same cores.
func whole(ctx context.Context, b *bench) {
	s, alone := b.startPipeline(ctx, b.database(ctx, "whole"), usualLatency), b.startIngestAlone(ctx, "alone")
	pg := b.baselineDatabase(ctx, "whole_baseline")
	transaction := b.pgbench("pgbench, the same rows, 64 clients", "/s", pg, 64)
	without := b.webhooks("webhooks alone, 64 connections", alone.addr)
	usages := []*usage{
		b.usage("ingest, worker and Postgres, each purchase", s.PID(), s.worker.PID(), b.pg.Process().PID()),
		b.usage("ingest", s.PID()), b.usage("tiktok-worker", s.worker.PID()),
		b.usage("Postgres", b.pg.Process().PID()),
		b.usage("nats-server", s.nats.PID()), b.usage("TikTok's simulator", s.tiktok.PID()),
		b.usage("the load generator", os.Getpid()),
	}
	with, sustained := b.wholeWay("the whole way", s, usages...)
	b.turns(ctx)
	s.verify(ctx, with)

	usages[0].atMost(200)
	with.against("pgbench", transaction.Figure)
	sustained.against("webhooks alone", without.Figure).atLeast(0.6)
	b.memory("ingest", s.PID()).atMost(64)
	b.memory("tiktok-worker", s.worker.PID()).atMost(64)
}

// memory measures the peaks with many connections and with a backlog. Those of attacks are bounded by tests.
func memory(ctx context.Context, b *bench) {
	url := b.database(ctx, "memory")
	waiting, n := b.startIngest(ctx, url, nil), max(1, b.million/50)
	send(ctx, paid().newLoad(waiting.addr, 256, newTokens(n)))
	b.memory(fmt.Sprintf("ingest, NATS down, %d purchases waiting", n), waiting.PID()).atMost(64)
	waiting.stop()
	s := b.startPipeline(ctx, url, usualLatency, unlimited)
	send(ctx, b.fullSpeed(s.addr, 256))
	s.awaitDelivery(ctx)
	b.memory("ingest, these delivered beside webhooks", s.PID()).atMost(64)
	b.memory("tiktok-worker", s.worker.PID()).atMost(64)
}

// outage measures the webhook's latency at an even pace, while TikTok or NATS is down and while both are up.
func outage(ctx context.Context, b *bench) {
	// Short retries, so that a round begins without undelivered purchases of the one before.
	s := b.startPipeline(ctx, b.database(ctx, "outage"), usualLatency, "RETRY_INITIAL=100ms", "RETRY_MAX=1s")
	paced := func(name string, begin, end func(ctx context.Context)) *measurement {
		m := b.measurement("a webhook's median, "+name, "ms")
		m.run = func(ctx context.Context) {
			begin(ctx)
			m.record(send(ctx, b.paced(paid(), s.addr, 8, 5*time.Millisecond)))
			end(ctx)
			s.awaitDelivery(ctx)
		}
		return m
	}
	nothing := func(context.Context) {}
	fault := func(method string) func(ctx context.Context) {
		return func(ctx context.Context) {
			try.Must(fetch(ctx, method, "http://"+s.tiktok.addr+"/faults", `{"status":503}`))
		}
	}
	up := paced("both up", nothing, nothing)
	tiktok := paced("TikTok down", fault(http.MethodPost), fault(http.MethodDelete))
	nats := paced("NATS down", func(context.Context) { s.nats.stop() }, s.nats.start)
	b.turns(ctx)
	s.verify(ctx, up, tiktok, nats)
	tiktok.against("up", up.Figure).atMost(1.1)
	nats.against("up", up.Figure).atMost(1.1)
}

// drain measures how fast a backlog leaves the outbox for NATS, and NATS for TikTok: in batches and with one
// event a request.
func drain(ctx context.Context, b *bench) {
	outbox := b.row("backlog, from the outbox to NATS", "/s")
	backlog := func(name string, batch, n int) *measurement {
		m := b.measurement(name, "/s")
		m.run = func(ctx context.Context) {
			alone := b.startIngestAlone(ctx, fmt.Sprintf("drain_%d_%d", batch, len(m.Figure)))
			send(ctx, paid().newLoad(alone.addr, 64, newTokens(n)))
			alone.stop()
			// With a slower TikTok batches would save more.
			nats, tiktok := b.startNATS(ctx), b.startSimulator(ctx, 5*time.Millisecond)
			began := time.Now()
			in := b.startIngest(ctx, alone.ledger, nats)
			in.await(ctx, "wait for the backlog to be published", func() bool {
				return query[int](ctx, in.ledger, sqlCount+" WHERE status = 'pending'") == 0
			})
			if batch > 1 {
				outbox.add(float64(n) / time.Since(began).Seconds())
			}
			in.stop()
			began = time.Now()
			worker := b.startWorker(ctx, nats, tiktok, unlimited,
				"WORKER_CONCURRENCY=4", fmt.Sprintf("BATCH_SIZE=%d", batch))
			worker.await(ctx, "wait for the backlog to be delivered", func() bool {
				return simulatorStats(ctx, tiktok).Accepted == n
			})
			m.add(float64(n) / time.Since(began).Seconds())
			m.note("%d purchases, %d requests", n, simulatorStats(ctx, tiktok).Requests)
		}
		return m
	}
	single := backlog("backlog, one event a request", 1, max(1, b.million*3/1000))
	batched := backlog("backlog, up to 500 a request", 500, max(1, b.million/10))
	b.turns(ctx)
	batched.against("one a request", single.Figure).atLeast(30)
}

// samplePurchase is what ingest records for an order.
func samplePurchase() purchase.Purchase {
	event := try.Must(stripe.NewWebhook(nil, time.Now).Decode(order("0").Event()))
	rules := purchase.Rules{Modes: map[string]bool{"subscription": true}}
	p, _, err := purchase.FromEvent(event, rules, time.Now())
	try.Check(err)
	return p
}
