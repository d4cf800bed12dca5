package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/try"
)

// webhooks measures ingest alone, without NATS: nothing is delivered.
func webhooks(ctx context.Context, b *bench) {
	pg := b.newPgbench(ctx, "baseline")
	in := b.startIngestAlone(ctx, "webhooks")
	null := b.startNull()

	var transaction, single, statement, known, duplicates, forged, ceiling loadSeries
	ofIngest := newUsage("ingest", in.PID())
	ofPostgres, ofBaseline := newUsage("Postgres", b.pg.Pid()), newUsage("Postgres", b.pg.Pid())
	measurements := []measurement{
		pg.measurement(b, "pgbench, 64 clients", pg.transaction, 64, &transaction, ofBaseline),
		pg.measurement(b, "pgbench, one client", pg.transaction, 1, &single),
		pg.measurement(b, "pgbench, 64 clients, one statement", pg.statement, 64, &statement),
	}
	connections := []int{1, 16, 64, 256}
	webhooks := make([]loadSeries, len(connections))
	for i, conns := range connections {
		var usages []*usage
		if conns == 64 {
			usages = []*usage{ofIngest, ofPostgres}
		}
		name := fmt.Sprintf("webhooks, %d connections", conns)
		measurements = append(measurements, webhooks[i].measurement(b, name, in.addr, conns, usages...))
	}
	b.turns(ctx, append(measurements,
		measurement{"duplicates", func(ctx context.Context) {
			events := newEvents(order(), 1000)
			known.run(ctx, events.plan(in.addr, 64))
			duplicates.run(ctx, b.repeated(events, in.addr))
		}},
		measurement{"forged", func(ctx context.Context) {
			events := newEvents(order(), 1000)
			plan := b.repeated(events, in.addr)
			plan.Append, plan.Want = events.forged, http.StatusBadRequest
			forged.run(ctx, plan)
		}},
		measurement{"the load generator's ceiling", func(ctx context.Context) {
			ceiling.run(ctx, b.repeated(newEvents(order(), 1000), null))
		}})...)
	answered := known.answered
	for _, s := range webhooks {
		answered += s.answered
	}
	if recorded := query[int](ctx, in.ledger, sqlCount); recorded != answered {
		try.Check(fmt.Errorf("%d webhooks were answered 200, %d purchases are on the ledger", answered, recorded))
	}

	r := b.report
	r.add("pgbench, the same rows, 64 clients", "/s", transaction.rate).
		note("a transaction each: begin, three statements, commit")
	r.add("pgbench, all rows in one statement, 64 clients", "/s", statement.rate).
		note("the fastest way to commit them one by one")
	for i, conns := range connections {
		webhooks[i].report(b, fmt.Sprintf("webhooks, all new, %d connections", conns)).
			against("pgbench", transaction.rate)
	}
	r.add("processor of ingest, each webhook", "µs", ofIngest.each).note("64 connections")
	r.add("processor of Postgres, each webhook", "µs", ofPostgres.each).against("for pgbench", ofBaseline.each)
	r.add("pgbench's median, one client", "ms", single.median)
	r.add("a webhook's median, one connection", "ms", webhooks[0].median).
		against("pgbench's", single.median).atMost(1.5)
	duplicates.report(b, "duplicates, 64 connections")
	forged.report(b, "forged signatures, 64 connections")
	ceiling.report(b, "the load generator's ceiling: net/http without work")
}

// startNull serves a handler that reads a webhook and does nothing.
func (b *bench) startNull() (addr string) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{"status":"processed"}`)
	}))
	b.OnEnd(func() error {
		server.Close()
		return nil
	})
	return server.Listener.Addr().String()
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
	p := b.startPipeline(ctx, "one", nil, []string{unlimited})
	ignored := order()
	ignored.Type = "invoice.paid"
	steps := []struct {
		name          string
		addr          string
		checkout      stripegen.Checkout
		forged, known bool
	}{
		{name: "HTTP, both sides of it", addr: b.startNull(), checkout: order()},
		{name: "the body, its signature, a log line", addr: p.ingest.addr, checkout: order(), forged: true},
		{name: "decoding", addr: p.ingest.addr, checkout: ignored},
		{name: "look-up of a known event", addr: p.ingest.addr, checkout: order(), known: true},
		{name: "event, profile, purchase, commit", addr: p.ingest.addr, checkout: order()},
	}
	webhooks := make([]loadSeries, len(steps))
	var measurements []measurement
	for i, step := range steps {
		measurements = append(measurements, measurement{step.name, func(ctx context.Context) {
			const pause = 10 * time.Millisecond
			events := newEvents(step.checkout, int(b.duration/pause)+1)
			plan := events.plan(step.addr, 1)
			if step.known {
				new(loadSeries).run(ctx, plan)
				p.awaitDelivery(ctx)
			}
			if step.forged {
				plan.Append, plan.Want = events.forged, http.StatusBadRequest
			}
			plan.Every = pause
			webhooks[i].run(ctx, plan)
			p.awaitDelivery(ctx)
		}})
	}
	stages := make([]series, 4)
	b.turns(ctx, append(measurements, measurement{"deliveries", func(ctx context.Context) {
		since := query[time.Time](ctx, p.ingest.ledger, "SELECT now()")
		const pause = 50 * time.Millisecond // until the one before has been delivered
		new(loadSeries).run(ctx, b.paced(p.ingest.addr, 1, pause))
		p.awaitDelivery(ctx)
		for i, median := range query[[]float64](ctx, p.ingest.ledger, sqlStages, since) {
			stages[i] = append(stages[i], median)
		}
	}})...)

	webhook, delivery := bar{title: "One webhook", unit: "ms"}, bar{title: "One delivery", unit: "ms"}
	before := make(series, b.rounds)
	for i, step := range steps {
		end := webhooks[i].median
		b.report.add(step.name, "ms", end.minus(before)).
			note("a webhook that ends here: %s ms", number(end.median()))
		webhook.add(step.name, end.minus(before))
		before = end
	}
	for i, name := range []string{
		"received, committed, claimed by the relay",
		"published, fetched, on its way to TikTok",
		"TikTok's answer",
		"its outcome queued, fetched, on the ledger",
	} {
		b.report.add(name, "ms", stages[i])
		delivery.add(name, stages[i])
	}
	b.pictures = append(b.pictures, webhook, delivery)
}

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
			end, began := meter(usages...), time.Now()
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
			end(answered)
		}})
	p.verify(ctx)

	r := b.report
	r.add("pgbench, the same rows, 64 clients", "/s", transaction.rate)
	without.report(b, "webhooks alone, 64 connections")
	with.report(b, "webhooks, the whole way running").against("pgbench", transaction.rate)
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
	ours := usages[0].each.plus(usages[1].each).plus(usages[2].each)
	r.add("processor of ingest, worker and Postgres, each purchase", "µs", ours).atMost(200)
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
