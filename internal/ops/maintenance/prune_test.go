package maintenance_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/ledgergen"
	"purchase-relay/internal/testkit/ledgertest"
	"purchase-relay/internal/testkit/pglocal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

var base = ledgertest.Base()

// newYear returns a ledger with a year of purchases.
func newYear(t *testing.T, purchases int) *ledgertest.Ledger {
	t.Helper()
	l := ledgertest.New(t)
	if err := ledgergen.Fill(t.Context(), l.Conn, purchases, ledgergen.Year); err != nil {
		t.Fatal(err)
	}
	return l
}

func daysAgo(n int) time.Time { return time.Now().AddDate(0, 0, -n) }

func prune(l *ledgertest.Ledger, p maintenance.Pruning) maintenance.Pruned {
	l.T.Helper()
	done, err := l.Prune(l.T.Context(), p, func(maintenance.Pruned) {})
	if err != nil {
		l.T.Fatal(err)
	}
	return done
}

// orphans counts attempts and events without a purchase.
func orphans(l *ledgertest.Ledger) int {
	l.T.Helper()
	return ledgertest.Ask[int](l, `SELECT (SELECT count(*) FROM attempts a WHERE NOT EXISTS (SELECT
		FROM purchases p WHERE p.checkout_session_id = a.checkout_session_id))
		+ (SELECT count(*) FROM stripe_events e WHERE NOT EXISTS (SELECT FROM purchases p
		WHERE p.checkout_session_id = e.checkout_session_id))`)
}

// The last month's totals are the same as before.
func TestPrune_DeletesOldEndedPurchases(t *testing.T) {
	t.Parallel()
	l := newYear(t, 6000)
	p := maintenance.Pruning{Before: daysAgo(90)}
	// Two that ended long ago, and that Stripe spoke of yesterday: it may do so again.
	l.Exec(`INSERT INTO stripe_events (event_id, type, checkout_session_id, livemode, received_at, disposition)
		SELECT 'evt_late_' || row_number() OVER (), 'checkout.session.completed', checkout_session_id, livemode,
			now() - interval '1 day', 'duplicate'
		FROM (SELECT checkout_session_id, livemode FROM purchases WHERE status = 'delivered'
		ORDER BY purchased_at LIMIT 2) p`)
	// An event without its purchase, and one whose purchase died.
	l.Exec(
		`INSERT INTO stripe_events (event_id, type, checkout_session_id, livemode, received_at, disposition)
			VALUES ('evt_left', 'checkout.session.completed', 'cs_gone', true, $1, 'duplicate')`,
		daysAgo(100))
	const goes = `status IN ('delivered', 'skipped', 'payment_failed') AND COALESCE(finished_at, updated_at) < $1
		AND NOT EXISTS (SELECT FROM stripe_events e WHERE e.checkout_session_id = p.checkout_session_id
		AND e.received_at >= $1)`
	want := ledgertest.Ask[int](l, `SELECT count(*) FROM purchases p WHERE `+goes, p.Before)
	events := ledgertest.Ask[int](l, `SELECT count(*) FROM stripe_events e
		JOIN purchases p USING (checkout_session_id) WHERE `+goes, p.Before) + 1
	attempts := ledgertest.Ask[int](l,
		`SELECT count(*) FROM attempts a JOIN purchases p USING (checkout_session_id) WHERE `+goes, p.Before)
	stays := ledgertest.Ask[int](l, `SELECT count(*) FROM purchases p WHERE NOT (`+goes+`)`, p.Before)
	lastMonth := ledgertest.Since(daysAgo(30)) // the same for both: it begins with a quarter hour
	month, err := l.Summary(t.Context(), lastMonth, nil)
	if err != nil {
		t.Fatal(err)
	}

	counted, err := l.CountPrunable(t.Context(), p)
	if err != nil || counted.Purchases() != want || len(counted.Groups) < 4 {
		t.Errorf("counted %+v, %v; want %d", counted, err, want)
	}
	steps := 0
	done, err := l.Prune(t.Context(), p, func(maintenance.Pruned) { steps++ })
	if err != nil || done.Purchases() != want || done.Events != events || done.Attempts != attempts ||
		want < 3000 || steps < want/500 {
		t.Errorf("pruned %+v in %d steps, %v; want %d purchases, %d events, %d attempts", done, steps, err, want,
			events, attempts)
	}
	if diff := cmp.Diff(counted.Groups, done.Groups); diff != "" {
		t.Errorf("(-counted +pruned):\n%s", diff)
	}
	if n := ledgertest.Ask[int](l, `SELECT count(*) FROM purchases`); n != stays || orphans(l) != 0 {
		t.Errorf("purchases left = %d, want %d; orphans = %d, want 0", n, stays, orphans(l))
	}
	if n := ledgertest.Ask[int](l, `SELECT count(*) FROM stripe_events
		WHERE event_id LIKE 'evt_late_%'`); n != 2 {
		t.Errorf("late events left = %d, want 2", n)
	}

	after, err := l.Summary(t.Context(), lastMonth, nil)
	byCount := cmpopts.SortSlices(func(a, b report.Group) bool { return a.Count < b.Count })
	if diff := cmp.Diff(month, after, byCount); diff != "" ||
		err != nil {
		t.Errorf("the month's totals, error %v (-before +after):\n%s", err, diff)
	}
	l.CheckRollup(t, nil, ledgertest.Since(time.Time{}))
	if n := ledgertest.Ask[int](l, `SELECT (SELECT count(*) FROM rollup_delays WHERE n = 0 AND at < $1)
		+ (SELECT count(*) FROM rollup_sales WHERE paid = 0 AND at < $1)
		+ (SELECT count(*) FROM rollup_keys WHERE keyed = 0 AND at < $1)`, p.Before); n != 0 {
		t.Errorf("rollup rows with a count of 0 = %d, want 0", n)
	}
	if again := prune(l, p); again.Purchases()+again.Events+again.Attempts != 0 {
		t.Errorf("second prune = %+v, want nothing", again)
	}
}

func TestPrune_ByName(t *testing.T) {
	t.Parallel()
	l := newYear(t, 3000)
	l.Exec(`UPDATE purchases SET status = 'awaiting_payment', finished_at = NULL
		WHERE checkout_session_id IN (SELECT checkout_session_id FROM purchases WHERE status = 'payment_failed'
		ORDER BY created_at LIMIT 5)`)
	p := maintenance.Pruning{Before: daysAgo(90)}
	prune(l, p)
	for _, status := range maintenance.PrunableByName() {
		before := ledgertest.Ask[int](l,
			`SELECT count(*) FROM purchases WHERE status = $1 AND COALESCE(finished_at, updated_at) < $2`, status,
			p.Before)
		staying, err := l.CountEnded(t.Context(), []purchase.Status{status}, p.Before)
		if err != nil || before == 0 || staying.Purchases() != before {
			t.Errorf("%d %s ended, %+v stay, %v", before, status, staying, err)
		}
		p.Also = []purchase.Status{status}
		if done := prune(l, p); done.Purchases() != before {
			t.Errorf("pruned by name: %+v of %d", done, before)
		}
	}
	if orphans(l) != 0 {
		t.Errorf("orphans = %d, want 0", orphans(l))
	}
	l.CheckRollup(t, nil, ledgertest.Since(time.Time{}))
}

// Only attempts of finished purchases are deleted. An only attempt is no row: it stays with its purchase.
func TestPrune_Attempts(t *testing.T) {
	t.Parallel()
	l := newYear(t, 3000)
	p := maintenance.Pruning{Before: daysAgo(300), Attempts: daysAgo(10)}
	counted, err := l.CountPrunable(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	done := prune(l, p)
	if done.Attempts != counted.Attempts || done.Attempts < 100 {
		t.Errorf("pruned %d attempts, counted %d", done.Attempts, counted.Attempts)
	}
	left := ledgertest.Ask[string](l,
		`SELECT COALESCE(string_agg(DISTINCT p.status, ', ' ORDER BY p.status), 'none') FROM attempts a
			JOIN purchases p USING (checkout_session_id) WHERE a.at < $1`,
		p.Attempts)
	if left != "dead, retrying" {
		t.Errorf("statuses with old attempts = %s", left)
	}
	if n := ledgertest.Ask[int](l, `SELECT count(*) FROM attempts WHERE at >= $1`, p.Attempts); n == 0 {
		t.Error("recent attempts were deleted")
	}
}

func TestPrune_SkipsLockedRows(t *testing.T) {
	t.Parallel()
	l := newYear(t, 1000)
	p := maintenance.Pruning{Before: daysAgo(90)}
	counted, err := l.CountPrunable(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	l.Exec(`BEGIN`)
	l.Exec(`SELECT FROM purchases WHERE checkout_session_id IN (SELECT checkout_session_id FROM purchases
		WHERE status = 'delivered' ORDER BY purchased_at LIMIT 3) FOR UPDATE`)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // a slow step is followed by a longer rest
	defer cancel()
	done, err := l.Prune(ctx, p, func(maintenance.Pruned) {})
	if err != nil || done.Purchases() != counted.Purchases()-3 {
		t.Errorf("three rows locked: pruned %d of %d, %v", done.Purchases(), counted.Purchases(), err)
	}
	l.Exec(`ROLLBACK`)
	if done := prune(l, p); done.Purchases() != 3 {
		t.Errorf("after unlock: pruned = %+v, want 3", done)
	}
}

func TestPrune_Canceled(t *testing.T) {
	t.Parallel()
	l := newYear(t, 3000)
	p := maintenance.Pruning{Before: daysAgo(60)}
	counted, err := l.CountPrunable(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	first, err := l.Prune(ctx, p, func(done maintenance.Pruned) {
		if done.Purchases() >= 1000 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || first.Purchases() < 1000 ||
		first.Purchases() >= counted.Purchases() {
		t.Errorf("canceled: pruned %d of %d, %v", first.Purchases(), counted.Purchases(), err)
	}
	if orphans(l) != 0 {
		t.Errorf("orphans = %d, want 0", orphans(l))
	}
	if second := prune(l, p); first.Purchases()+second.Purchases() != counted.Purchases() {
		t.Errorf("pruned %d, then %d, want %d in all", first.Purchases(), second.Purchases(), counted.Purchases())
	}
}

// Repeated events of the purchases that stay are duplicates.
func TestPrune_KeepsDeduplication(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	for id, days := range map[string]int{"a": 36, "b": 200} {
		r := ledgertest.Receipt("evt_"+id, "cs_"+id, purchase.StatusPending, "")
		r.Received, r.Purchase.At = daysAgo(days), daysAgo(days)
		l.MustRecord(r)
	}
	l.Exec(`UPDATE purchases SET status = 'delivered', finished_at = purchased_at`)
	if done := prune(l, maintenance.Pruning{Before: daysAgo(40)}); done.Purchases() != 1 || done.Events != 1 {
		t.Errorf("pruned = %+v", done)
	}
	for _, event := range []string{"evt_a", "evt_other"} {
		got := l.MustRecord(ledgertest.Receipt(event, "cs_a", purchase.StatusPending, ""))
		if got.Disposition != purchase.Duplicate {
			t.Errorf("%s: disposition = %s, want duplicate", event, got.Disposition)
		}
	}
}

func TestPruning_CheckEnforcesMinimumAges(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	days := func(n int) time.Time { return now.AddDate(0, 0, -n) }
	for name, tc := range map[string]struct {
		p  maintenance.Pruning
		ok bool
	}{
		"35 days":            {maintenance.Pruning{Before: days(35)}, true},
		"34 days":            {maintenance.Pruning{Before: days(34)}, false},
		"attempts of a week": {maintenance.Pruning{Before: days(90), Attempts: days(7)}, true},
		"attempts of 6 days": {maintenance.Pruning{Before: days(90), Attempts: days(6)}, false},
		"dead ones by name":  {maintenance.Pruning{Before: days(90), Also: maintenance.PrunableByName()}, true},
		"in-flight status": {
			maintenance.Pruning{Before: days(90), Also: []purchase.Status{purchase.StatusRetrying}}, false,
		},
		"unknown status":       {maintenance.Pruning{Before: days(90), Also: []purchase.Status{"old"}}, false},
		"a time still to come": {maintenance.Pruning{Before: now.Add(time.Hour)}, false},
	} {
		if err := tc.p.Check(now); (err == nil) != tc.ok {
			t.Errorf("%s: error = %v", name, err)
		}
	}
}

func TestPruning_NeverIncludesInFlightStatuses(t *testing.T) {
	t.Parallel()
	all := maintenance.Pruning{Also: maintenance.PrunableByName()}
	if left := all.Unnamed(); len(left) > 0 {
		t.Errorf("unnamed = %v, want none", left)
	}
	prunable := make(map[purchase.Status]bool)
	for _, s := range all.Statuses() {
		prunable[s] = true
	}
	for _, s := range purchase.Statuses() {
		onItsWay := s == purchase.StatusPending || s == purchase.StatusPublished || s == purchase.StatusRetrying
		if prunable[s] == onItsWay {
			t.Errorf("%s: prunable = %t", s, prunable[s])
		}
	}
	some := maintenance.Pruning{Also: []purchase.Status{purchase.StatusDead}}
	want := []purchase.Status{purchase.StatusRejected, purchase.StatusAwaitingPayment}
	if diff := cmp.Diff(want, some.Unnamed()); diff != "" {
		t.Error(diff)
	}
}

func TestPruned_AddSumsGroups(t *testing.T) {
	t.Parallel()
	var p maintenance.Pruned
	p.Add(purchase.StatusSkipped, "test_purchase", 1)
	p.Add(purchase.StatusSkipped, "no_payment", 2)
	p.Add(purchase.StatusDelivered, "", 3)
	p.Add(purchase.StatusSkipped, "no_payment", 4)
	want := []report.Group{
		{Status: "delivered", Count: 3},
		{Status: "skipped", Reason: "no_payment", Count: 6},
		{Status: "skipped", Reason: "test_purchase", Count: 1},
	}
	if diff := cmp.Diff(want, p.Groups); diff != "" || p.Purchases() != 10 {
		t.Errorf("%d in all\n%s", p.Purchases(), diff)
	}
}

// A year of TikTok's counts: those of the last months stay, and so do today's.
func TestPrune_Counts(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	l.Exec(`INSERT INTO tiktok_counts (pixel_id, event, day, total, browser, server, attributed, asked_at)
		SELECT 'C4', event, d::date, 1, 0, 1, 0, now()
		FROM generate_series(current_date - 364, current_date, interval '1 day') d,
			unnest(ARRAY['SHOPPING', 'PAGE_VIEW', 'ADD_TO_CART']) event`)
	prune(l, maintenance.Pruning{Before: daysAgo(90)})
	oldest := ledgertest.Ask[int](l, `SELECT (now() AT TIME ZONE 'UTC')::date - min(day) FROM tiktok_counts`)
	if n := ledgertest.Ask[int](l, `SELECT count(*) FROM tiktok_counts`); n != 3*91 || oldest != 90 {
		t.Errorf("%d counts, the oldest %d days old, want 273 and 90", n, oldest)
	}
}
