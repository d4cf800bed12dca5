package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/maintenance"
	reports "purchase-relay/internal/ops/report"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/ledgergen"
	"purchase-relay/internal/testkit/try"
)

// million measures webhooks on a ledger of years and on an empty one.
func million(ctx context.Context, b *bench) {
	young, old := b.startIngestAlone(ctx, "empty"), b.startOnLargeLedger(ctx)
	b.warmUp(ctx, young.addr, old.addr)
	small := b.webhooks("webhooks, a young ledger", young.addr)
	large := b.webhooks(fmt.Sprintf("webhooks, %d purchases on the ledger", b.million), old.addr)
	b.turns(ctx)
	large.against("a young ledger", small.Figure).atLeast(0.95)
}

// startOnLargeLedger runs ingest on a ledger with b.million purchases, which is filled once a run.
func (b *bench) startOnLargeLedger(ctx context.Context) *system {
	if b.large == "" {
		url := b.database(ctx, "years")
		b.announce("filling a ledger with %d purchases", b.million)
		conn := try.Must(pgx.Connect(ctx, url))
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		try.Check(ledgergen.Fill(ctx, conn, b.million, ledgergen.Year))
		// In production the dashboard's figures are folded every two seconds, not after a million changes.
		db := try.Must(ledger.Open(ctx, secret.String(url)))
		defer db.Close()
		try.Must(reports.New(db).Fold(ctx))
		b.large = url
	}
	return b.startIngest(ctx, b.large, nil)
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
		b.row("GET "+path, "ms", took[warmUp:]...).atMost(100)
	}
}

// sqlPast lets a purchase's outcome and its webhook be as old as its payment.
const sqlPast = `
CREATE FUNCTION past_outcome() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN NEW.finished_at := least(NEW.finished_at, NEW.purchased_at); RETURN NEW; END';
CREATE TRIGGER past BEFORE UPDATE ON public.purchases FOR EACH ROW
    WHEN (NEW.finished_at IS NOT NULL) EXECUTE FUNCTION past_outcome();
CREATE FUNCTION past_webhook() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN NEW.received_at := least(NEW.received_at, NEW.created_at); RETURN NEW; END';
CREATE TRIGGER past BEFORE INSERT ON public.stripe_events FOR EACH ROW EXECUTE FUNCTION past_webhook();`

// growth delivers a year's purchases, prunes those older than 35 days, and delivers as many again: tables
// must stop growing, and webhooks must not become slower.
func growth(ctx context.Context, b *bench) {
	y := &year{bench: b, full: make(map[string]series)}
	y.young, y.old = b.startIngestAlone(ctx, "growth_young"), b.startIngestAlone(ctx, "growth")
	for _, s := range []*system{y.young, y.old} {
		execute(ctx, s.ledger, sqlPast)
	}
	y.pass(ctx, max(1, b.million/5)) // a million would take an hour
	y.inspect(ctx, "full")
	removed := y.prune(ctx)
	y.inspect(ctx, "pruned")
	y.pass(ctx, removed)
	y.inspect(ctx, "as many written again")
	for _, name := range []string{"rollup_totals", "rollup_sales", "rollup_statuses", "profiles"} {
		b.row(name+", updates without an index write", "%", query[float64](ctx, y.old.ledger, `
			SELECT COALESCE(100.0 * n_tup_hot_upd / NULLIF(n_tup_upd, 0), 0)::float8
			FROM pg_stat_user_tables WHERE relname = $1`, name))
	}
}

// year is a ledger on which a year passes within minutes, and one that stays young.
type year struct {
	*bench
	old, young *system
	full       map[string]series // KiB of a row in each table of the full ledger
}

// pass delivers n purchases of a year, month by month. One in five is of a customer who bought in the same
// month.
func (y *year) pass(ctx context.Context, n int) {
	const months = 12
	try.Check(y.Scoped(func() {
		s := y.startPipeline(ctx, y.old.ledger, 0, unlimited)
		for month := range months {
			y.announce("month %d of %d", month+1, months)
			tokens := newTokens(max(5, n/months) * 4 / 5)
			for digit, customers := range map[string][]string{"0": tokens, "1": tokens[:len(tokens)/4]} {
				k := paid()
				k.checkout = order(digit)
				k.checkout.Created = time.Now().AddDate(0, month-months, 0)
				send(ctx, k.newLoad(s.addr, 64, customers))
			}
			s.awaitDelivery(ctx)
			execute(ctx, s.ledger, "VACUUM (ANALYZE)") // autovacuum has a month in production
		}
	}))
}

// inspect measures webhooks on both ledgers and the tables of the old one. when describes its state.
func (y *year) inspect(ctx context.Context, when string) {
	vacuumed := func(name string, s *system) *measurement {
		return y.responses(name, "/s", func() load {
			execute(ctx, y.old.ledger, "VACUUM") // no autovacuum meanwhile
			return y.fullSpeed(s.addr, 64)
		})
	}
	young, old := vacuumed("webhooks, a young ledger", y.young), vacuumed("webhooks, "+when, y.old)
	y.turns(ctx)
	old.against("a young ledger", young.Figure)
	for _, name := range []string{"purchases", "stripe_events", "attempts", "profiles"} {
		mib := query[float64](ctx, y.old.ledger, "SELECT pg_total_relation_size($1) / 1048576.0", "public."+name)
		rows := query[int](ctx, y.old.ledger, "SELECT count(*) FROM public."+name)
		y.row(name+", "+when, "MiB", mib).note("%d rows", rows)
		size := y.row(name+", a row, "+when, "KiB", mib*1024/float64(max(rows, 1)))
		if full, known := y.full[name]; known {
			size.against("full", full)
		} else {
			y.full[name] = size.Figure
		}
	}
}

// prune starts `ingest prune` for a round's webhooks and interrupts it, in turns with webhooks without it. At
// last the command runs to its end. prune returns how many purchases were removed.
func (y *year) prune(ctx context.Context) (removed int) {
	before := time.Now().Add(-maintenance.MinPruneAge - time.Second)
	countOld := func() int {
		return query[int](ctx, y.old.ledger, sqlCount+" WHERE finished_at < $1", before)
	}
	removed = countOld()
	var took time.Duration
	prune := func(ctx context.Context) (log []byte) {
		began := time.Now()
		//nolint:gosec // our own binary
		command := exec.CommandContext(ctx, y.dir+"/ingest",
			"prune", "--yes", "--older-than", before.UTC().Format(time.RFC3339Nano))
		command.Env = []string{"DATABASE_URL=" + y.old.ledger}
		log, _ = command.CombinedOutput() // interrupted in the rounds; what it leaves is counted below
		took += time.Since(began)
		return log
	}
	without := y.webhooks("webhooks, no prune", y.old.addr)
	during := y.measurement("webhooks, during a prune", "/s")
	during.run = func(ctx context.Context) {
		l := y.fullSpeed(y.old.addr, 64)
		pruning, interrupt := context.WithCancel(ctx)
		var running sync.WaitGroup
		running.Go(func() { prune(pruning) })
		defer running.Wait()
		defer interrupt()
		during.record(send(ctx, l))
	}
	y.turns(ctx)
	during.against("no prune", without.Figure)
	y.announce("pruning to the end")
	log := prune(ctx)
	if left := countOld(); left > 0 || removed == 0 {
		try.Check(fmt.Errorf("of %d old purchases %d are left\n%s", removed, left, log))
	}
	y.row("pruned", "/s", float64(removed)/took.Seconds()).
		note("%d purchases in %.0f s, in part beside webhooks at full speed", removed, took.Seconds())
	return removed
}

// size measures the binaries as they are shipped: an image is one of them and the certificate authorities.
func size(_ context.Context, b *bench) {
	for _, name := range []string{"ingest", "tiktok-worker"} {
		info := try.Must(os.Stat(b.dir + "/" + name))
		b.row(name+", static and stripped", "MB", float64(info.Size())/1e6).atMost(25)
	}
}
