package main

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	reports "purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/ledgergen"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/try"
	"purchase-relay/internal/testkit/wait"
)

// million measures webhooks on a ledger of years and on an empty one.
func million(ctx context.Context, b *bench) {
	young, old := b.startIngestAlone(ctx, "empty"), b.startOnLargeLedger(ctx)
	var small, large loadSeries
	for _, in := range []*ingest{young, old} { // the first load reads pages and fills pools
		b.announce("warming up")
		new(loadSeries).run(ctx, b.fullSpeed(in.addr, 64))
	}
	b.turns(ctx,
		small.measurement(b, "an empty ledger", young.addr, 64),
		large.measurement(b, "a ledger of years", old.addr, 64))
	small.report(b, "webhooks, a young ledger")
	large.report(b, fmt.Sprintf("webhooks, %d purchases on the ledger", b.million)).
		against("a young ledger", small.rate).atLeast(0.95)
}

// startOnLargeLedger runs ingest on a ledger with b.million purchases, which is filled once a run.
func (b *bench) startOnLargeLedger(ctx context.Context) *ingest {
	if b.large != "" {
		return b.startIngest(ctx, b.large, "")
	}
	url := b.database(ctx, "years")
	b.announce("filling a ledger with %d purchases", b.million)
	began := time.Now()
	conn := try.Must(pgx.Connect(ctx, url))
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	try.Check(ledgergen.Fill(ctx, conn, b.million))
	// In production the dashboard's figures are folded every two seconds, not after a million changes.
	db := try.Must(ledger.Open(ctx, secret.String(url)))
	defer db.Close()
	try.Must(reports.New(db).Fold(ctx))
	size := query[string](ctx, url, "SELECT pg_size_pretty(pg_database_size(current_database()))")
	b.report.Settings = append(b.report.Settings, fact{
		"large ledger",
		fmt.Sprintf("%d purchases, %s, filled in %.0f s", b.million, size, time.Since(began).Seconds()),
	})
	b.large = url
	return b.startIngest(ctx, b.large, "")
}

// dashboard measures complete responses of each page, and of each filter's first page, on the large ledger.
func dashboard(ctx context.Context, b *bench) {
	in := b.startOnLargeLedger(ctx)
	day := time.Now().UTC().AddDate(0, 0, -9).Format(time.DateOnly)
	for _, path := range []string{
		"/", "/?range=7d&mode=live", "/?range=24h&mode=test", "/api/v1/summary",
		"/purchases", "/purchases?mode=live", "/purchases?mode=test", "/purchases?status=delivered",
		"/purchases?status=dead", "/purchases?status=pending", "/purchases?status=skipped&mode=test",
		"/?range=yesterday", "/purchases?range=30d&sales=all", "/purchases?range=30d&sales=not_accepted",
		"/purchases?reason=no_consent", "/purchases?kind=trial", "/purchases?code=40002", "/purchases?code=0",
		"/purchases?code=12345",
		"/purchases?status=delivered&code=50002", "/purchases?day=" + day, "/purchases?status=dead&day=" + day,
		"/purchases?q=cs_live_a1b2", "/purchases?q=a1b2c3", "/purchases?q=20260101000000AB", "/dead", "/attention",
	} {
		b.announce("GET %s", path)
		const warmUp, requests = 3, 20
		var took series
		for range warmUp + requests {
			began := time.Now()
			try.Must(fetch(ctx, http.MethodGet, "http://"+in.admin+path, ""))
			took = append(took, time.Since(began).Seconds()*1000)
		}
		b.report.add("GET "+path, "ms", took[warmUp:]).atMost(100)
	}
}

// growth writes and settles a year's purchases with the product's own code, prunes those older than 35 days,
// and writes as many again: tables must stop growing, and webhooks must not become slower.
func growth(ctx context.Context, b *bench) {
	configure := func(action string) {
		execute(ctx, b.pg.URL("postgres"), "ALTER SYSTEM "+action)
		execute(ctx, b.pg.URL("postgres"), "SELECT pg_reload_conf()")
	}
	configure("SET autovacuum_naptime = '2s'") // a year passes within minutes
	b.OnEnd(func() error { return b.Scoped(func() { configure("RESET autovacuum_naptime") }) })
	y := &year{b: b, rowSizes: make(map[string]series)}
	y.young, y.old = b.startIngestAlone(ctx, "growth_young"), b.startIngestAlone(ctx, "growth")
	y.db = try.Must(ledger.Open(ctx, secret.String(y.old.ledger)))
	defer y.db.Close()

	y.pass(ctx, "a", b.million)
	y.inspect(ctx, "full")
	removed := y.prune(ctx)
	y.inspect(ctx, "pruned")
	y.pass(ctx, "b", removed)
	y.inspect(ctx, "as many written again")
	for _, name := range []string{"rollup_totals", "rollup_sales", "rollup_statuses", "profiles"} {
		hot := query[float64](ctx, y.old.ledger, `
			SELECT COALESCE(100.0 * n_tup_hot_upd / NULLIF(n_tup_upd, 0), 0)::float8
			FROM pg_stat_user_tables WHERE relname = $1`, name)
		b.report.add(name+", updates without an index write", "%", series{hot})
	}
}

// year is a ledger on which a year passes within minutes, and one that stays young.
type year struct {
	b          *bench
	db         *ledger.DB // the old one's
	old, young *ingest
	rowSizes   map[string]series // KiB of a row in each table of the full ledger
}

// pass records n purchases as webhooks do, and settles them as the recorder does, evenly over a year.
func (y *year) pass(ctx context.Context, name string, n int) {
	y.b.announce("writing and settling %d purchases", n)
	const writers, batch = 128, 500 // as under load: commits are shared, outcomes are settled together
	first := time.Now().Add(-365 * 24 * time.Hour)
	interval := 364 * 24 * time.Hour / time.Duration(max(n, 1))
	for from := 0; from < n; from += batch {
		var ids []string
		var outcomes []message.Outcome
		var group errgroup.Group
		group.SetLimit(writers)
		for i := from; i < min(n, from+batch); i++ {
			id, at := fmt.Sprintf("cs_live_a1%s%048d", name, i), first.Add(time.Duration(i)*interval)
			receipt := receiptOf(id, fmt.Sprintf("evt_%s%024d", name, i), i, at)
			group.Go(func() error {
				_, err := y.db.Record(ctx, receipt)
				return err
			})
			ids = append(ids, id)
			outcomes = append(outcomes, message.Outcome{
				EventID: id, Generation: 1, Result: purchase.StatusDelivered,
				At: at.Add(300 * time.Millisecond), Taken: at.Add(5 * time.Millisecond),
				Sequence: uint64(i + 1),
				Attempt: &message.Attempt{
					ID: fmt.Sprintf("%s-%d", name, i), At: at.Add(280 * time.Millisecond), TookMS: 120,
					Class: purchase.ClassDelivered, Code: new(0), RequestID: fmt.Sprintf("%032d", i),
				},
			})
		}
		try.Check(group.Wait())
		if unknown := try.Must(y.db.Settle(ctx, outcomes)); len(unknown) > 0 {
			try.Check(fmt.Errorf("settle: %d unknown purchases", len(unknown)))
		}
		// Settle dates the end by the ledger's clock.
		const sqlAge = "UPDATE public.purchases SET finished_at = purchased_at WHERE checkout_session_id = ANY($1)"
		execute(ctx, y.old.ledger, sqlAge, ids)
	}
}

// receiptOf is a webhook about a customer, one in five of whom returns.
func receiptOf(session, event string, i int, at time.Time) purchase.Receipt {
	p := samplePurchase(session, at)
	p.Status, p.Mode = purchase.StatusPending, "subscription"
	p.Customer, p.Subscription = fmt.Sprintf("cus_%014d", i), "sub_"+event
	p.Email = fmt.Sprintf("buyer.%d@example.com", i-i%5*(i%2))
	p.Keys.Email = purchase.HashEmail(p.Email)
	return purchase.Receipt{
		Event:    purchase.Event{ID: event, Type: purchase.TypeCompleted, Created: at, Livemode: true},
		Received: at, Purchase: p,
	}
}

// inspect measures webhooks on both ledgers, with autovacuum at rest (a year's vacuums do not happen in a
// minute), and the tables of the old one. when describes its state.
func (y *year) inspect(ctx context.Context, when string) {
	var old, young loadSeries
	atRest := func(name string, s *loadSeries, in *ingest) measurement {
		return measurement{name, func(ctx context.Context) {
			y.awaitAutovacuum(ctx)
			s.run(ctx, y.b.fullSpeed(in.addr, 64))
		}}
	}
	y.b.turns(ctx, atRest("the young ledger", &young, y.young), atRest("the old ledger", &old, y.old))
	old.report(y.b, "webhooks, "+when).against("a young ledger", young.rate)
	for _, name := range []string{"purchases", "stripe_events", "attempts", "profiles"} {
		f := query[[]float64](ctx, y.old.ledger, `
			SELECT ARRAY[pg_total_relation_size(relid) / 1048576.0, pg_indexes_size(relid) / 1048576.0,
				(SELECT count(*) FROM public.`+name+`), n_dead_tup, autovacuum_count]::float8[]
			FROM pg_stat_user_tables WHERE relname = $1`, name)
		mib, indexes, live, dead, vacuums := f[0], f[1], f[2], f[3], f[4]
		y.b.report.add(name+", "+when, "MiB", series{mib}).
			note("%.0f of it indexes; %.0f rows, %.0f dead; %.0f autovacuums", indexes, live, dead, vacuums)
		rowSize := series{mib * 1024 / max(live, 1)}
		row := y.b.report.add(name+", a row, "+when, "KiB", rowSize)
		if full, known := y.rowSizes[name]; known {
			row.against("full", full)
		} else {
			y.rowSizes[name] = rowSize
		}
	}
}

// awaitAutovacuum waits until the room of removed rows is usable again and no autovacuum runs.
func (y *year) awaitAutovacuum(ctx context.Context) {
	y.b.announce("waiting for autovacuum")
	done := wait.Until(ctx, waitLimit, time.Second, func() bool {
		return query[int](ctx, y.old.ledger, `
			SELECT (SELECT count(*) FROM pg_stat_user_tables
				WHERE relname IN ('purchases', 'stripe_events', 'attempts') AND n_dead_tup > 100 + n_live_tup / 10)
			+ (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'autovacuum worker')`) == 0
	})
	if !done {
		try.Check(fmt.Errorf("autovacuum did not finish within %s", waitLimit))
	}
}

// prune interrupts `ingest prune` after each round, and starts it again, so that webhooks are measured in
// turns with and without it. At last the command runs to its end. prune returns how many purchases were
// removed.
func (y *year) prune(ctx context.Context) (removed int) {
	before := time.Now().Add(-maintenance.MinPruneAge - time.Second)
	countOld := func() int {
		return query[int](ctx, y.old.ledger, sqlCount+" WHERE finished_at < $1", before)
	}
	removed = countOld()
	command := process.Command{
		Path: filepath.Join(y.b.dir, "ingest"), Env: []string{"DATABASE_URL=" + y.old.ledger},
		Args: []string{"prune", "--yes", "--older-than", before.UTC().Format(time.RFC3339Nano)},
		Log:  filepath.Join(y.b.dir, "prune.log"),
	}
	var without, during loadSeries
	var took time.Duration
	y.b.turns(ctx,
		without.measurement(y.b, "no prune", y.old.addr, 64),
		measurement{"during a prune", func(ctx context.Context) {
			plan, began := y.b.fullSpeed(y.old.addr, 64), time.Now()
			prune := try.Must(process.Start(command))
			defer prune.Kill()
			during.run(ctx, plan)
			_ = prune.Stop(stopGrace) // interrupted
			took += time.Since(began)
		}})
	y.b.announce("pruning to the end")
	began := time.Now()
	prune := try.Must(process.Start(command))
	defer prune.Kill()
	select {
	case <-prune.Ended():
	case <-ctx.Done():
		try.Check(ctx.Err())
	}
	took += time.Since(began)
	if left := countOld(); left > 0 || removed == 0 {
		try.Check(fmt.Errorf("of %d old purchases %d are left; the log ends with:\n%s",
			removed, left, process.Tail(command.Log)))
	}
	during.report(y.b, "webhooks, during a prune").against("no prune", without.rate)
	y.b.report.add("pruned", "/s", series{float64(removed) / took.Seconds()}).
		note("%d purchases in %.0f s, in part beside webhooks at full speed", removed, took.Seconds())
	return removed
}
