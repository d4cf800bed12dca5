package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/wait"
)

// grown are the tables that grow with purchases.
func grown() []string { return []string{"purchases", "stripe_events", "attempts", "profiles"} }

// growth writes purchases through the product's own code, ends them, prunes all that is older than 35 days, and writes as many as left once
// more: tables stop growing, and webhooks do not become slower.
func growth(ctx context.Context, b *bench) (err error) {
	url, err := b.database(ctx, "growth")
	if err != nil {
		return err
	}
	// Autovacuum looks often here: a year is gone through in minutes.
	if err := exec1(ctx, b.pg.URL("postgres"), "ALTER SYSTEM SET autovacuum_naptime = '2s'"); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, exec1(ctx, b.pg.URL("postgres"), "ALTER SYSTEM RESET autovacuum_naptime"), exec1(ctx, b.pg.URL("postgres"), "SELECT pg_reload_conf()"))
	}()
	if err := exec1(ctx, b.pg.URL("postgres"), "SELECT pg_reload_conf()"); err != nil {
		return err
	}
	empty, err := b.database(ctx, "growth_young")
	if err != nil {
		return err
	}
	young, err := b.startIngest(ctx, empty, "")
	if err != nil {
		return err
	}
	defer young.stop()
	in, err := b.startIngest(ctx, url, "") // it folds the figures
	if err != nil {
		return err
	}
	defer in.stop()
	db, err := ledger.Open(ctx, secret.Text(url))
	if err != nil {
		return err
	}
	defer db.Close()
	y := &year{b: b, db: db, in: in, young: young, ledger: url}
	if err := os.Symlink(filepath.Join(b.dir, "ingest"), y.program()); err != nil { // with a log of its own
		return err
	}

	if err := y.pass(ctx, "a", b.million); err != nil {
		return err
	}
	full, err := y.besideYoung(ctx)
	if err != nil {
		return err
	}
	before, err := y.tables(ctx)
	if err != nil {
		return err
	}
	pruning, gone, took, err := y.prune(ctx)
	if err != nil {
		return err
	}
	pruned, err := y.besideYoung(ctx)
	if err != nil {
		return err
	}
	after, err := y.tables(ctx)
	if err != nil {
		return err
	}
	if err := y.pass(ctx, "b", gone); err != nil {
		return err
	}
	again, err := y.besideYoung(ctx)
	if err != nil {
		return err
	}
	refilled, err := y.tables(ctx)
	if err != nil {
		return err
	}

	r := b.report
	full.add(r, fmt.Sprintf("webhooks, %d purchases were written and ended", b.million), "a young ledger")
	pruning.add(r, "webhooks, while it is pruned", "not pruned")
	pruned.add(r, "webhooks, pruned", "a young ledger")
	again.add(r, "webhooks, as many written again", "a young ledger")
	r.add("pruned", "/s", series{float64(gone) / took.Seconds()}, note(fmt.Sprintf("%d purchases of %d in %.0f s, in part beside webhooks at full speed", gone, b.million, took.Seconds())))
	for i, name := range grown() {
		r.add(name+", full", "MiB", series{before[i].mib}, before[i].told())
		r.add(name+", pruned", "MiB", series{after[i].mib}, after[i].told())
		r.add(name+", as many written again", "MiB", series{refilled[i].mib}, refilled[i].told())
		r.add(name+", a row, as many written again", "KiB", series{refilled[i].each()}, against("full", series{refilled[i].each()}, series{before[i].each()}))
	}
	for _, name := range []string{"rollup_totals", "rollup_hours", "rollup_statuses", "profiles"} {
		hot, err := query[float64](ctx, url, `SELECT COALESCE(100.0 * n_tup_hot_upd / NULLIF(n_tup_upd, 0), 0)::float8 FROM pg_stat_user_tables WHERE relname = $1`, name)
		if err != nil {
			return err
		}
		r.add(name+", updates that wrote no index", "%", series{hot})
	}
	return nil
}

// year passes quickly here.
type year struct {
	b         *bench
	db        *ledger.DB
	in, young *ingest // on the ledger of a year, and on one that stays young
	ledger    string
}

// pair are webhooks here, and those that they are compared with, in turn.
type pair struct{ here, there shot }

func (p *pair) add(r *report, name, baseline string) {
	r.add(name, "/s", p.here.rate, against(baseline, p.here.rate, p.there.rate), p.here.latencies())
}

// besideYoung measures webhooks on both ledgers in turn, with autovacuum at rest: a year's vacuums are no minute's.
func (y *year) besideYoung(ctx context.Context) (p pair, err error) {
	take := func(s *shot, in *ingest) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			if err := y.vacuumed(ctx); err != nil {
				return err
			}
			_, err := s.take(ctx, y.b.fresh().plan(in.public, 64, y.b.duration))
			return err
		}
	}
	return p, y.b.turns(ctx, contender{"a young ledger", take(&p.there, y.young)}, contender{"the year's", take(&p.here, y.in)})
}

const (
	writers    = 128 // so that commits are shared, as under load
	endedAtOne = 500 // outcomes that are recorded together
)

// pass lets a year go by: n purchases are recorded as webhooks are, then ended as the recorder ends them, evenly over the year.
func (y *year) pass(ctx context.Context, name string, n int) error {
	y.b.tell("%d purchases are written and ended", n)
	first := time.Now().Add(-365 * 24 * time.Hour)
	apart := 364 * 24 * time.Hour / time.Duration(max(n, 1))
	at := func(i int) time.Time { return first.Add(time.Duration(i) * apart) }
	id := func(i int) string { return fmt.Sprintf("cs_live_a1%s%048d", name, i) }
	for from := 0; from < n; from += endedAtOne {
		to := min(n, from+endedAtOne)
		var all sync.WaitGroup
		errs := make([]error, writers)
		for w := range writers {
			all.Go(func() {
				for i := from + w; i < to && errs[w] == nil; i += writers {
					_, errs[w] = y.db.Record(ctx, receiptOf(id(i), fmt.Sprintf("evt_%s%024d", name, i), i, at(i)))
				}
			})
		}
		all.Wait()
		outcomes := make([]message.Outcome, 0, to-from)
		for i := from; i < to; i++ {
			outcomes = append(outcomes, message.Outcome{
				EventID: id(i), Generation: 1, Result: purchase.StatusDelivered, At: at(i).Add(300 * time.Millisecond), Taken: at(i).Add(5 * time.Millisecond), Sequence: uint64(i + 1), //nolint:gosec // counts up from 0
				Attempt: &message.Attempt{ID: fmt.Sprintf("%s-%d", name, i), At: at(i).Add(280 * time.Millisecond), TookMS: 120, Class: purchase.ClassDelivered, Code: new(0), RequestID: fmt.Sprintf("%032d", i)},
			})
		}
		unknown, err := y.db.Settle(ctx, outcomes)
		if err = errors.Join(append(errs, err)...); err != nil || len(unknown) > 0 {
			return fmt.Errorf("write and end: %d unknown: %w", len(unknown), err)
		}
		// Ends are dated by the ledger: these ended when they were paid.
		ids := make([]string, 0, to-from)
		for i := from; i < to; i++ {
			ids = append(ids, id(i))
		}
		const age = `WITH aged AS (UPDATE public.purchases SET finished_at = purchased_at
			WHERE checkout_session_id = ANY($1) RETURNING 1) SELECT count(*) FROM aged`
		if _, err := query[int](ctx, y.ledger, age, ids); err != nil {
			return fmt.Errorf("age what ended: %w", err)
		}
	}
	return nil
}

// receiptOf is a webhook's about a customer of whom one in five comes back.
func receiptOf(session, event string, i int, at time.Time) purchase.Receipt {
	amount := int64(2999)
	email := fmt.Sprintf("buyer.%d@example.com", i-i%5*(i%2))
	return purchase.Receipt{
		Event: purchase.Event{ID: event, Type: purchase.TypeCompleted, Created: at, Livemode: true}, Received: at,
		Purchase: purchase.Purchase{
			ID: session, Status: purchase.StatusPending, Mode: "subscription", Livemode: true, AmountMinor: &amount, Currency: "usd", At: at, Email: email,
			Customer: fmt.Sprintf("cus_%014d", i), Subscription: "sub_" + event,
			Keys: purchase.MatchKeys{
				Email: purchase.HashEmail(email), Phone: purchase.HashPhone("+12133734253"), TTCLID: "E.C.P.CvQBtqmX5aKjG8yWAg", TTP: "2Yg0kBqZSvyMxOvBWjTFhBLe1sR",
				IP: "203.0.113.7", UserAgent: "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15", PageURL: "https://shop.example/checkout",
			},
		},
	}
}

func (y *year) program() string { return filepath.Join(y.b.dir, "prune") }

// prune runs the command, breaks it off and begins it again, so that webhooks can be measured beside it and without it in turn; at last it
// runs to its end. It returns how many purchases were removed, in how much of its time.
func (y *year) prune(ctx context.Context) (beside pair, gone int, took time.Duration, err error) {
	const old = `SELECT count(*) FROM public.purchases WHERE finished_at < $1`
	since := time.Now().Add(-maintenance.LeastPruneAge - time.Second)
	if gone, err = query[int](ctx, y.ledger, old, since); err != nil {
		return beside, 0, 0, err
	}
	var p *program
	begin := func() (time.Time, error) {
		p, err = y.b.start([]string{"DATABASE_URL=" + y.ledger}, y.program(), "prune", "--yes", "--older-than", since.UTC().Format(time.RFC3339Nano))
		return time.Now(), err
	}
	take := func(ctx context.Context, s *shot) error {
		_, err := s.take(ctx, y.b.fresh().plan(y.in.public, 64, y.b.duration))
		return err
	}
	err = y.b.turns(ctx, contender{"not pruned", func(ctx context.Context) error { return take(ctx, &beside.there) }}, contender{"pruned beside it", func(ctx context.Context) error {
		began, err := begin()
		if err != nil {
			return err
		}
		err = take(ctx, &beside.here)
		p.stop()
		took += time.Since(began)
		return err
	}})
	if err != nil {
		return beside, 0, 0, err
	}
	y.b.tell("pruning to the end")
	began, err := begin()
	if err != nil {
		return beside, 0, 0, err
	}
	defer p.stop()
	select {
	case <-p.Ended():
	case <-time.After(30 * time.Minute):
		return beside, 0, 0, errors.New("the pruning does not end")
	case <-ctx.Done():
		return beside, 0, 0, ctx.Err()
	}
	took += time.Since(began)
	left, err := query[int](ctx, y.ledger, old, since)
	if err == nil && (left > 0 || gone == 0) {
		err = fmt.Errorf("of %d old purchases %d are left; its log ends with:\n%s", gone, left,
			process.Tail(filepath.Join(y.b.dir, "prune.log")))
	}
	return beside, gone, took, err
}

// table is one's size, with its indexes.
type table struct {
	mib, indexes        float64
	live, dead, vacuums int64
}

// each is what a row takes, in KiB.
func (t *table) each() float64 { return t.mib * 1024 / float64(max(t.live, 1)) }

func (t *table) told() func(*row) {
	return note(fmt.Sprintf("%.0f of it indexes; %d rows, %d dead, autovacuum came %d times", t.indexes, t.live, t.dead, t.vacuums))
}

// tables looks at those that grow.
func (y *year) tables(ctx context.Context) (list []table, err error) {
	conn, err := pgx.Connect(ctx, y.ledger)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, name := range grown() {
		var t table
		err := conn.QueryRow(ctx, `SELECT pg_total_relation_size(relid) / 1048576.0::float8, pg_indexes_size(relid) / 1048576.0::float8, 
			(SELECT count(*) FROM public.`+name+`), n_dead_tup, autovacuum_count FROM pg_stat_user_tables WHERE relname = $1`, name).Scan(&t.mib, &t.indexes, &t.live, &t.dead, &t.vacuums)
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", name, err)
		}
		list = append(list, t)
	}
	return list, nil
}

// vacuumed waits until autovacuum, by itself, has made the room of what left usable again, and is at rest.
func (y *year) vacuumed(ctx context.Context) error {
	y.b.tell("waiting for autovacuum")
	var failure error
	done := wait.Until(ctx, patience, time.Second, func() bool {
		left, err := query[int](ctx, y.ledger, `SELECT (SELECT count(*) FROM pg_stat_user_tables WHERE relname IN ('purchases', 'stripe_events', 'attempts') AND n_dead_tup > 100 + n_live_tup / 10)
			+ (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'autovacuum worker')`)
		failure = err
		return err != nil || left == 0
	})
	if !done {
		return errors.Join(errors.New("autovacuum did not finish"), ctx.Err())
	}
	return failure
}
