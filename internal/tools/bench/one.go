package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/testkit/load"
	"purchase-relay/internal/testkit/stripegen"
)

// sqlStages are a delivered purchase's stages, from the clocks of this one machine, in milliseconds: the medians of those that
// came since a time.
const sqlStages = `
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY 1000 * extract(epoch FROM p.first_published_at - e.received_at)),
       percentile_cont(0.5) WITHIN GROUP (ORDER BY 1000 * extract(epoch FROM a.at - p.first_published_at)),
       percentile_cont(0.5) WITHIN GROUP (ORDER BY a.took_ms::float8),
       percentile_cont(0.5) WITHIN GROUP (ORDER BY 1000 * extract(epoch FROM p.updated_at - a.at) - a.took_ms)
FROM public.purchases p JOIN public.stripe_events e USING (checkout_session_id) JOIN public.attempts a USING (checkout_session_id)
WHERE p.status = 'delivered' AND e.received_at >= $1`

// one measures where the time of a lone purchase goes. Each kind of webhook goes one step further than the one before; the
// difference is the step.
func one(ctx context.Context, b *bench) (err error) {
	l, err := b.startLine(ctx, "one", nil, []string{unlimited})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.stop()) }()
	null, stop, err := startNull()
	if err != nil {
		return err
	}
	defer stop()

	ignored := order()
	ignored.Type = "invoice.paid"
	steps := []struct {
		name  string
		plan  func(e *events) load.Plan
		again bool
		of    stripegen.Checkout
	}{
		{"HTTP, both sides of it", func(e *events) load.Plan { return e.plan(null, 1, 0) }, false, order()},
		{"the body, its signature, a log line", func(e *events) load.Plan {
			p := e.plan(l.in.public, 1, 0)
			p.Append, p.Want = e.forged, http.StatusBadRequest
			return p
		}, false, order()},
		{"decoding", func(e *events) load.Plan { return e.plan(l.in.public, 1, 0) }, false, ignored},
		{"the ledger knows it already", func(e *events) load.Plan { return e.plan(l.in.public, 1, 0) }, true, order()},
		{"event, profile, purchase, commit", func(e *events) load.Plan { return e.plan(l.in.public, 1, 0) }, false, order()},
	}
	const apart = 10 * time.Millisecond
	shots := make([]shot, len(steps))
	var contenders []contender
	for i, step := range steps {
		contenders = append(contenders, contender{step.name, func(ctx context.Context) error {
			e := eventsOf(step.of, int(b.duration/apart)+1)
			plan := step.plan(e)
			if step.again {
				if _, err := load.Run(ctx, plan); err != nil {
					return errors.Join(err, l.arrived(ctx))
				}
			}
			plan.Every = apart
			_, err := shots[i].take(ctx, plan)
			return errors.Join(err, l.arrived(ctx))
		}})
	}
	stages := make([]series, 4)
	names := []string{"received, committed, claimed by the relay", "published, fetched, on its way to TikTok", "TikTok's answer", "its outcome queued, fetched, on the ledger"}
	var webhook shot
	contenders = append(contenders, contender{"deliveries", func(ctx context.Context) error {
		since, err := query[time.Time](ctx, l.in.ledger, "SELECT now()")
		if err != nil {
			return err
		}
		const alone = 50 * time.Millisecond // the one before has been delivered
		plan := newEvents(int(b.duration/alone)+1).plan(l.in.public, 1, 0)
		plan.Every = alone
		if _, err := webhook.take(ctx, plan); err != nil {
			return err
		}
		if err := l.arrived(ctx); err != nil {
			return err
		}
		conn, err := pgx.Connect(ctx, l.in.ledger)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		var took [4]float64
		if err := conn.QueryRow(ctx, sqlStages, since).Scan(&took[0], &took[1], &took[2], &took[3]); err != nil {
			return fmt.Errorf("read the stages: %w", err)
		}
		for i := range stages {
			stages[i] = append(stages[i], took[i])
		}
		return nil
	}})
	if err := b.turns(ctx, contenders...); err != nil {
		return err
	}

	bar := bar{title: "One webhook", unit: "ms"}
	var before series
	for i, step := range steps {
		part := shots[i].median
		if i > 0 {
			part = part.minus(before)
		}
		before = shots[i].median
		bar.parts = append(bar.parts, partOf(step.name, part))
		b.report.add(step.name, "ms", part, note("a webhook that ends here: "+number(shots[i].median.median())+" ms"))
	}
	b.pictures = append(b.pictures, bar)
	bar.title, bar.parts = "One delivery", nil
	for i, name := range names {
		bar.parts = append(bar.parts, partOf(name, stages[i]))
		b.report.add(name, "ms", stages[i])
	}
	b.pictures = append(b.pictures, bar)
	return nil
}
