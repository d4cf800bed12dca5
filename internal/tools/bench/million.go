package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	reports "purchase-relay/internal/ops/report"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/ledgergen"
	"purchase-relay/internal/testkit/try"
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
		against("a young ledger", small.rate).atLeast(0.9)
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
	db := try.Must(ledger.Open(ctx, secret.Text(url)))
	defer db.Close()
	try.Must(reports.New(db).Fold(ctx))
	size := query[string](ctx, url, "SELECT pg_size_pretty(pg_database_size(current_database()))")
	b.report.Settings = append(b.report.Settings, fact{"large ledger",
		fmt.Sprintf("%d purchases, %s, filled in %.0f s", b.million, size, time.Since(began).Seconds())})
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
		"/purchases?code=40002", "/purchases?code=0", "/purchases?code=12345",
		"/purchases?status=delivered&code=50002", "/purchases?day=" + day, "/purchases?status=dead&day=" + day,
		"/dead", "/attention",
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

// size measures the binaries as they are shipped: an image is one of them and the certificate authorities.
func size(_ context.Context, b *bench) {
	for _, name := range []string{"ingest", "tiktok-worker"} {
		info := try.Must(os.Stat(filepath.Join(b.dir, name)))
		b.report.add(name+", static and stripped", "MB", series{float64(info.Size()) / 1e6}).atMost(25)
	}
}
