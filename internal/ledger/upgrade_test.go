package ledger_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/pglocal/pgtest"
	"purchase-relay/migrations"
)

// A ledger from before trials were told apart, half of it folded: its trials and strong keys are counted, no purchase is lost, and an
// older binary that still runs can record, and cannot fold away what it does not know.
func TestUpgradeToTrials(t *testing.T) {
	url := pgtest.Database(t)
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	old := stdlib.OpenDB(*config)
	t.Cleanup(func() { _ = old.Close() })
	provider, err := goose.NewProvider(goose.DialectPostgres, old, migrations.FS, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.UpTo(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	must := func(sql string) {
		t.Helper()
		if _, err := old.ExecContext(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	// As an older binary records: a sale with both strong keys, one with neither, a trial, a waiting one.
	record := func(suffix string) {
		t.Helper()
		must(`INSERT INTO purchases (checkout_session_id, status, reason, mode, livemode, amount_minor, currency, purchased_at, match_keys, finished_at) VALUES
			('cs_both` + suffix + `', 'delivered', '', 'subscription', true, 2999, 'usd', '2026-01-02 03:04:05Z', 1 | 4 | 64, '2026-01-02 03:04:06Z'),
			('cs_none` + suffix + `', 'dead', 'refused', 'payment', true, 100, 'usd', '2026-01-02 03:04:05Z', 8, now()),
			('cs_trial` + suffix + `', 'skipped', 'no_payment', 'subscription', true, 0, 'usd', '2026-01-02 03:04:05Z', NULL, now()),
			('cs_wait` + suffix + `', 'awaiting_payment', '', 'subscription', true, 5, 'usd', NULL, NULL, NULL)`)
	}
	record("")
	const olderFold = `INSERT INTO rollup_totals (daily, at, livemode, status, reason, code, currency, n, minor, keyed, key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page)
		SELECT daily, CASE WHEN daily THEN date_trunc('day', hour, 'UTC') ELSE hour END, livemode, status, reason, code, currency, n, minor, keyed, key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page
		FROM rollup_changes CROSS JOIN (VALUES (false), (true)) g (daily)`
	must(olderFold)
	must(`INSERT INTO rollup_statuses SELECT livemode, status, reason, code, n FROM rollup_changes`)
	must(`INSERT INTO rollup_hours SELECT hour, livemode, COALESCE(sum(n) FILTER (WHERE status IN ('delivered', 'dead')), 0), COALESCE(sum(n) FILTER (WHERE status = 'delivered'), 0) FROM rollup_changes GROUP BY 1, 2`)
	must(`DELETE FROM rollup_changes`)
	record("_2")

	if n, err := ledger.Migrate(t.Context(), secret.Text(url)); err != nil || n < 1 {
		t.Fatalf("migrate: %d, %v", n, err)
	}
	db, err := ledger.Open(t.Context(), secret.Text(url))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	reports := report.New(db)
	holds := func(sales int) {
		t.Helper()
		s, err := reports.Summary(t.Context(), base.AddDate(0, 0, -1), nil)
		if err != nil {
			t.Fatal(err)
		}
		with := [purchase.MatchKeyKinds]int{sales, 0, sales, sales, 0, 0, sales}
		want := report.Coverage{Of: 2 * sales, With: with, Strong: sales}
		if diff := cmp.Diff(want, s.Coverage); diff != "" || s.Paid != 2*sales || s.Accepted != sales || s.Values[0].PaidMinor != int64(3099*sales) {
			t.Errorf("of %d sales: %+v\n%s", 2*sales, s, diff)
		}
		days, err := reports.Coverage(t.Context(), base, nil)
		if diff := cmp.Diff([]report.DayCoverage{{At: base.Truncate(24 * time.Hour), Coverage: want}}, days); err != nil || diff != "" {
			t.Errorf("by days: %v\n%s", err, diff)
		}
	}
	holds(2)
	record("_3") // an older binary beside the newer one
	holds(3)
	refused := new(pgconn.PgError)
	if _, err := old.ExecContext(t.Context(), olderFold); !errors.As(err, &refused) || refused.Code != "23502" {
		t.Errorf("an older binary folds away what it does not know: %v", err)
	}
	if _, err := reports.Fold(t.Context()); err != nil {
		t.Fatal(err)
	}
	holds(3)
	for id, want := range map[string]purchase.Kind{"cs_trial": purchase.KindTrial, "cs_trial_2": purchase.KindTrial, "cs_both": purchase.KindCheckout} {
		if e, err := reports.Get(t.Context(), id); err != nil || e.Kind != want {
			t.Errorf("%s: %s, %v", id, e.Kind, err)
		}
	}
}
