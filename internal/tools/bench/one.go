package main

import (
	"context"
	"net/http"
	"time"

	"purchase-relay/internal/testkit/stripegen"
)

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
    JOIN public.attempts USING (checkout_session_id)
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
