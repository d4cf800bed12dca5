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

	"purchase-relay/internal/contract"
	"purchase-relay/internal/postgres"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
)

// grown are the tables that grow with purchases.
func grown() []string { return []string{"purchases", "stripe_events", "attempts", "profiles"} }

// growth writes purchases through the product's own code, ends them, prunes all that is older than 35 days, and writes as many as left once
// more: tables stop growing, and webhooks do not become slower.
func growth(ctx context.Context, b *bench) (err error) {
	ledger, err := b.database(ctx, "growth")
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
	in, err := b.startIngest(ctx, ledger, "") // it folds the figures
	if err != nil {
		return err
	}
	defer in.stop()
	db, err := postgres.Open(ctx, secret.Text(ledger))
	if err != nil {
		return err
	}
	defer db.Close()
	y := &year{b: b, db: db, in: in, ledger: ledger}

	var young, full, pruning, pruned, again shot
	if err := y.webhooks(ctx, &young, nil); err != nil {
		return err
	}
	if err := y.pass(ctx, "a", b.million); err != nil {
		return err
	}
	if err := y.webhooks(ctx, &full, nil); err != nil {
		return err
	}
	before, err := y.tables(ctx)
	if err != nil {
		return err
	}
	gone, took, err := y.prune(ctx, &pruning)
	if err != nil {
		return err
	}
	if err := y.webhooks(ctx, &pruned, nil); err != nil {
		return err
	}
	after, err := y.tables(ctx)
	if err != nil {
		return err
	}
	if err := y.pass(ctx, "b", gone); err != nil {
		return err
	}
	if err := y.webhooks(ctx, &again, nil); err != nil {
		return err
	}
	refilled, err := y.tables(ctx)
	if err != nil {
		return err
	}

	r := b.report
	r.add("webhooks, a young ledger", "/s", young.rate, young.latencies())
	r.add(fmt.Sprintf("webhooks, %d purchases were written and ended", b.million), "/s", full.rate, against("young", full.rate, young.rate), full.latencies())
	r.add("webhooks, while it is pruned", "/s", pruning.rate, against("not pruned", pruning.rate, full.rate), pruning.latencies())
	r.add("webhooks, pruned", "/s", pruned.rate, against("young", pruned.rate, young.rate), pruned.latencies())
	r.add("webhooks, as many written again", "/s", again.rate, against("young", again.rate, young.rate), again.latencies())
	r.add("pruned", "/s", series{float64(gone) / took.Seconds()}, note(fmt.Sprintf("%d purchases of %d in %.0f s, beside webhooks at full speed", gone, b.million, took.Seconds())))
	for i, name := range grown() {
		r.add(name+", full", "MiB", series{before[i].mib}, before[i].told())
		r.add(name+", pruned", "MiB", series{after[i].mib}, after[i].told())
		r.add(name+", as many written again", "MiB", series{refilled[i].mib}, refilled[i].told())
		r.add(name+", a row, as many written again", "KiB", series{refilled[i].each()}, against("full", series{refilled[i].each()}, series{before[i].each()}))
	}
	for _, name := range []string{"rollup_totals", "rollup_hours", "rollup_statuses", "profiles"} {
		hot, err := query[float64](ctx, ledger, `SELECT COALESCE(100.0 * n_tup_hot_upd / NULLIF(n_tup_upd, 0), 0)::float8 FROM pg_stat_user_tables WHERE relname = $1`, name)
		if err != nil {
			return err
		}
		r.add(name+", updates that wrote no index", "%", series{hot})
	}
	return nil
}

// year passes quickly here.
type year struct {
	b      *bench
	db     *postgres.DB
	in     *ingest
	ledger string
}

// webhooks measures as often as everything is measured, or until over is closed, once at least.
func (y *year) webhooks(ctx context.Context, s *shot, over <-chan struct{}) error {
	for round := range y.b.rounds {
		select {
		case <-over:
			if round > 0 {
				return nil
			}
		default:
		}
		y.b.tell("webhooks, round %d of %d", round+1, y.b.rounds)
		if over == nil {
			if err := y.vacuumed(ctx); err != nil { // a year's vacuums are no minute's
				return err
			}
			if err := y.b.settle(ctx); err != nil {
				return err
			}
		}
		if _, err := s.take(ctx, y.b.fresh().plan(y.in.public, 64, y.b.duration)); err != nil {
			return err
		}
	}
	return nil
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
		outcomes := make([]contract.Outcome, 0, to-from)
		for i := from; i < to; i++ {
			outcomes = append(outcomes, contract.Outcome{
				EventID: id(i), Generation: 1, Result: purchase.StatusDelivered, At: at(i).Add(300 * time.Millisecond), Taken: at(i).Add(5 * time.Millisecond), Sequence: uint64(i + 1), //nolint:gosec // counts up from 0
				Attempt: &contract.Attempt{ID: fmt.Sprintf("%s-%d", name, i), At: at(i).Add(280 * time.Millisecond), TookMS: 120, Class: purchase.ClassDelivered, Code: new(0), RequestID: fmt.Sprintf("%032d", i)},
			})
		}
		unknown, err := y.db.Settle(ctx, outcomes)
		if err = errors.Join(append(errs, err)...); err != nil || len(unknown) > 0 {
			return fmt.Errorf("write and end: %d unknown: %w", len(unknown), err)
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

// prune runs the command beside webhooks at full speed and returns how many purchases it removed.
func (y *year) prune(ctx context.Context, beside *shot) (gone int, took time.Duration, err error) {
	const old = `SELECT count(*) FROM public.purchases WHERE finished_at < $1`
	since := time.Now().Add(-purchase.LeastPruneAge - time.Second)
	before, err := query[int](ctx, y.ledger, old, since)
	if err != nil {
		return 0, 0, err
	}
	program := filepath.Join(y.b.dir, "prune") // with a log of its own
	if err := os.Symlink(filepath.Join(y.b.dir, "ingest"), program); err != nil {
		return 0, 0, err
	}
	y.b.tell("pruning")
	began := time.Now()
	p, err := y.b.start(ctx, []string{"DATABASE_URL=" + y.ledger}, program, "prune", "--yes", "--older-than", since.UTC().Format(time.RFC3339Nano))
	if err != nil {
		return 0, 0, err
	}
	defer p.stop()
	if err := y.webhooks(ctx, beside, p.ended); err != nil {
		return 0, 0, err
	}
	select {
	case <-p.ended:
	case <-time.After(30 * time.Minute):
		return 0, 0, errors.New("the pruning does not end")
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	took = time.Since(began)
	after, err := query[int](ctx, y.ledger, old, since)
	if err == nil && (after > 0 || before == 0) {
		err = fmt.Errorf("of %d old purchases %d are left; its log ends with:\n%s", before, after, tail(p.log))
	}
	return before, took, err
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
	err := await(ctx, "autovacuum", nil, func() bool {
		left, err := query[int](ctx, y.ledger, `SELECT (SELECT count(*) FROM pg_stat_user_tables WHERE relname IN ('purchases', 'stripe_events', 'attempts') AND n_dead_tup > 100 + n_live_tup / 10)
			+ (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'autovacuum worker')`)
		failure = err
		return err != nil || left == 0
	})
	return errors.Join(err, failure)
}
