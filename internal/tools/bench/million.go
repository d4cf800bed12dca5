package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	reports "purchase-relay/internal/ops/report"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/ledgergen"
)

// years is the name of the database that holds the large ledger; largeLedger makes it.
const years = "years"

// largeLedger returns a ledger with b.million purchases; it is filled once a run, whichever section asks first.
func (b *bench) largeLedger(ctx context.Context) (url string, err error) {
	if b.large != "" {
		return b.large, nil
	}
	if url, err = b.database(ctx, years); err != nil {
		return "", err
	}
	b.tell("filling a ledger with %d purchases", b.million)
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	began := time.Now()
	if err := ledgergen.Fill(ctx, conn, b.million); err != nil {
		return "", err
	}
	if err := fold(ctx, url); err != nil {
		return "", err
	}
	var size string
	if err := conn.QueryRow(ctx, "SELECT pg_size_pretty(pg_database_size(current_database()))").Scan(&size); err != nil {
		return "", err
	}
	b.report.Settings = append(b.report.Settings, fact{"large ledger", fmt.Sprintf("%d purchases, %s, filled in %.0f s", b.million, size, time.Since(began).Seconds())})
	b.large = url
	return url, nil
}

// fold brings the dashboard's figures to where years of use leave them: folded every two seconds, not a million changes at once.
func fold(ctx context.Context, url string) error {
	db, err := ledger.Open(ctx, secret.Text(url))
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = reports.New(db).Fold(ctx)
	return err
}

// million measures webhooks on a ledger of years and on an empty one.
func million(ctx context.Context, b *bench) error {
	large, err := b.largeLedger(ctx)
	if err != nil {
		return err
	}
	empty, err := b.database(ctx, "empty")
	if err != nil {
		return err
	}
	onEmpty, err := b.startIngest(ctx, empty, "")
	if err != nil {
		return err
	}
	defer onEmpty.stop()
	onLarge, err := b.startIngest(ctx, large, "")
	if err != nil {
		return err
	}
	defer onLarge.stop()
	// The first run on either reads pages and grows pools: it is not measured.
	var warm, small, big shot
	take := func(s *shot, in *ingest) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			_, err := s.take(ctx, b.fresh().plan(in.public, 64, b.duration))
			return err
		}
	}
	for _, in := range []*ingest{onEmpty, onLarge} {
		b.tell("warming")
		if err := take(&warm, in)(ctx); err != nil {
			return err
		}
	}
	if err := b.turns(ctx, contender{"an empty ledger", take(&small, onEmpty)}, contender{"a ledger of years", take(&big, onLarge)}); err != nil {
		return err
	}
	b.report.add("webhooks, a young ledger", "/s", small.rate, small.latencies())
	b.report.add(fmt.Sprintf("webhooks, %d purchases on the ledger", b.million), "/s", big.rate,
		against("a young ledger", big.rate, small.rate), atLeast(0.9), big.latencies())
	return nil
}
