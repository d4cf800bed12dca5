package ledger_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/ledgertest"
	"purchase-relay/migrations"
)

// nextMigration represents the first migration after a release: a new total in the rollup. Its column in
// rollup_totals has no default, so that an older binary cannot fold without it.
const nextMigration = `-- +goose Up
ALTER TABLE purchases ADD COLUMN next_version text;
ALTER TABLE rollup_changes ADD COLUMN next_figure bigint NOT NULL DEFAULT 0;
ALTER TABLE rollup_totals ADD COLUMN next_figure bigint NOT NULL DEFAULT 0;
ALTER TABLE rollup_totals ALTER COLUMN next_figure DROP DEFAULT;
`

// migrateNext migrates the ledger to the next version's schema.
func (l *testLedger) migrateNext() {
	l.T.Helper()
	files := fstest.MapFS{fmt.Sprintf("%04d_next.sql", migrations.Level+1): {Data: []byte(nextMigration)}}
	config, err := pgx.ParseConfig(l.URL)
	if err != nil {
		l.T.Fatal(err)
	}
	conn := stdlib.OpenDB(*config)
	defer func() { _ = conn.Close() }()
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		l.T.Fatal(err)
	}
	if results, err := provider.Up(l.T.Context()); err != nil || len(results) != 1 {
		l.T.Fatalf("next migration: %d applied, %v", len(results), err)
	}
}

// The schema is migrated while this binary runs, with half of the changes folded. Totals stay complete, and
// the binary still records and reads, but cannot fold without the new total.
func TestUpgrade_OlderBinaryKeepsRunning(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	// A sale with both strong keys, one with neither, a trial, an unpaid one.
	record := func(suffix string) {
		t.Helper()
		l.Exec(`INSERT INTO purchases (checkout_session_id, status, reason, kind, mode, livemode, amount_minor,
				currency, purchased_at, match_keys, finished_at, sent_minor)
			SELECT id || $1, status, reason, kind, 'subscription', true, amount, 'usd', paid, keys,
				paid + interval '1 second', CASE status WHEN 'delivered' THEN amount END
			FROM (VALUES
				('cs_both', 'delivered', '', 'checkout', 2999, '2026-01-02 03:04:05Z'::timestamptz, 1 | 4 | 64),
				('cs_none', 'dead', 'refused', 'checkout', 100, '2026-01-02 03:04:05Z', 8),
				('cs_trial', 'skipped', 'no_payment', 'trial', 0, '2026-01-02 03:04:05Z', NULL),
				('cs_wait', 'awaiting_payment', '', 'checkout', 5, NULL, NULL)
			) v (id, status, reason, kind, amount, paid, keys)`, suffix)
	}
	check := func(sales int) {
		t.Helper()
		s, err := l.Summary(t.Context(), ledgertest.Since(base.AddDate(0, 0, -1)), nil)
		if err != nil {
			t.Fatal(err)
		}
		with := [purchase.MatchKeyKinds]int{sales, 0, sales, sales, 0, 0, sales}
		want := report.Coverage{Of: 2 * sales, With: with, Strong: sales}
		if diff := cmp.Diff(want, s.Coverage); diff != "" || s.Paid != 2*sales || s.Accepted != sales ||
			s.Values[0].PaidMinor != int64(3099*sales) {
			t.Errorf("summary of %d sales = %+v\n%s", 2*sales, s, diff)
		}
		days, err := l.Coverage(t.Context(), ledgertest.Since(base), nil)
		wantDays := []report.DayCoverage{{At: base.Truncate(report.Quarter), Coverage: want}}
		if diff := cmp.Diff(wantDays, days); err != nil || diff != "" {
			t.Errorf("coverage by day (-want +got), error %v:\n%s", err, diff)
		}
	}
	record("")
	if _, err := l.Fold(t.Context()); err != nil {
		t.Fatal(err)
	}
	record("_2")
	l.migrateNext()
	if err := l.CheckSchema(t.Context()); err != nil {
		t.Errorf("check the next version's schema: %v", err)
	}
	check(2)
	record("_3")
	l.Must(receipt("evt_4", "cs_4", purchase.StatusAwaitingPayment, ""), purchase.AwaitingPayment)
	check(3)
	pgErr := new(pgconn.PgError)
	if _, err := l.Fold(t.Context()); !errors.As(err, &pgErr) || pgErr.Code != "23502" {
		t.Errorf("Fold by an older binary = %v, want a not-null violation", err)
	}
	check(3)
}
