package ledger_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/ledgergen"
)

// newYear is a ledger that a year of business has left.
func newYear(t *testing.T, purchases int) *testLedger {
	t.Helper()
	l := newLedger(t)
	if err := ledgergen.Fill(t.Context(), l.conn, purchases); err != nil {
		t.Fatal(err)
	}
	return l
}

func daysAgo(n int) time.Time { return time.Now().AddDate(0, 0, -n) }

// exec runs a statement by hand.
func (l *testLedger) exec(sql string, args ...any) {
	l.t.Helper()
	if _, err := l.conn.Exec(l.t.Context(), sql, args...); err != nil {
		l.t.Fatalf("%s: %v", sql, err)
	}
}

func (l *testLedger) prune(p purchase.Pruning) purchase.Pruned {
	l.t.Helper()
	done, err := l.Prune(l.t.Context(), p, func(purchase.Pruned) {})
	if err != nil {
		l.t.Fatal(err)
	}
	return done
}

// orphans are the rows that tell of a purchase that is not there.
func (l *testLedger) orphans() int {
	l.t.Helper()
	return ask[int](l, `SELECT (SELECT count(*) FROM attempts a WHERE NOT EXISTS (SELECT FROM purchases p WHERE p.checkout_session_id = a.checkout_session_id))
		+ (SELECT count(*) FROM stripe_events e WHERE NOT EXISTS (SELECT FROM purchases p WHERE p.checkout_session_id = e.checkout_session_id))`)
}

// What ended before the age leaves with its attempts and events, and nothing else does; what the figures' ranges show is the same as before.
func TestPrune(t *testing.T) {
	l := newYear(t, 6000)
	p := purchase.Pruning{Before: daysAgo(90)}
	// Two that ended long ago, and that Stripe spoke of yesterday: it may do so again.
	l.exec(`INSERT INTO stripe_events (event_id, type, checkout_session_id, livemode, received_at, disposition)
		SELECT 'evt_late_' || row_number() OVER (), 'checkout.session.completed', checkout_session_id, livemode, now() - interval '1 day', 'duplicate'
		FROM (SELECT checkout_session_id, livemode FROM purchases WHERE status = 'delivered' ORDER BY purchased_at LIMIT 2) p`)
	// An event without its purchase, and one whose purchase died.
	l.exec(`INSERT INTO stripe_events (event_id, type, checkout_session_id, livemode, received_at, disposition) VALUES ('evt_left', 'checkout.session.completed', 'cs_gone', true, $1, 'duplicate')`, daysAgo(100))
	const goes = `status IN ('delivered', 'skipped', 'payment_failed') AND COALESCE(finished_at, updated_at) < $1
		AND NOT EXISTS (SELECT FROM stripe_events e WHERE e.checkout_session_id = p.checkout_session_id AND e.received_at >= $1)`
	want := ask[int](l, `SELECT count(*) FROM purchases p WHERE `+goes, p.Before)
	events := ask[int](l, `SELECT count(*) FROM stripe_events e JOIN purchases p USING (checkout_session_id) WHERE `+goes, p.Before) + 1
	attempts := ask[int](l, `SELECT count(*) FROM attempts a JOIN purchases p USING (checkout_session_id) WHERE `+goes, p.Before)
	stays := ask[int](l, `SELECT count(*) FROM purchases p WHERE NOT (`+goes+`)`, p.Before)
	month, err := l.Summary(t.Context(), daysAgo(30), nil)
	if err != nil {
		t.Fatal(err)
	}

	counted, err := l.CountPrunable(t.Context(), p)
	if err != nil || counted.Purchases() != want || len(counted.Groups) < 4 {
		t.Errorf("counted %+v, %v; want %d", counted, err, want)
	}
	steps := 0
	done, err := l.Prune(t.Context(), p, func(purchase.Pruned) { steps++ })
	if err != nil || done.Purchases() != want || done.Events != events || done.Attempts != attempts || want < 3000 || steps < want/500 {
		t.Errorf("pruned %+v in %d steps, %v; want %d purchases, %d events, %d attempts", done, steps, err, want, events, attempts)
	}
	if diff := cmp.Diff(counted.Groups, done.Groups); diff != "" {
		t.Errorf("(-counted +pruned):\n%s", diff)
	}
	if n := ask[int](l, `SELECT count(*) FROM purchases`); n != stays || l.orphans() != 0 {
		t.Errorf("%d purchases are left of %d, and %d orphans", n, stays, l.orphans())
	}
	if n := ask[int](l, `SELECT count(*) FROM stripe_events WHERE event_id LIKE 'evt_late_%'`); n != 2 {
		t.Errorf("of what Stripe spoke of yesterday %d are left", n)
	}

	after, err := l.Summary(t.Context(), daysAgo(30), nil)
	if diff := cmp.Diff(month, after, cmpopts.SortSlices(func(a, b purchase.Group) bool { return a.Count < b.Count })); diff != "" || err != nil {
		t.Errorf("the month's figures (-before +after), %v:\n%s", err, diff)
	}
	l.rollupIsTheLedger(t, nil, time.Time{})
	if n := ask[int](l, `SELECT (SELECT count(*) FROM rollup_delays WHERE n = 0 AND at < $1) + (SELECT count(*) FROM rollup_hours WHERE paid = 0 AND accepted = 0 AND hour < $1)`, p.Before); n != 0 {
		t.Errorf("the rollup keeps %d rows that count nothing", n)
	}
	if again := l.prune(p); again.Purchases()+again.Events+again.Attempts != 0 {
		t.Errorf("once more: %+v", again)
	}
}

// Dead, rejected and unpaid ones leave by name alone.
func TestPruneByName(t *testing.T) {
	l := newYear(t, 3000)
	l.exec(`UPDATE purchases SET status = 'awaiting_payment', finished_at = NULL WHERE checkout_session_id IN (SELECT checkout_session_id FROM purchases WHERE status = 'payment_failed' ORDER BY created_at LIMIT 5)`)
	p := purchase.Pruning{Before: daysAgo(90)}
	l.prune(p)
	for _, status := range purchase.PrunableByName() {
		before := ask[int](l, `SELECT count(*) FROM purchases WHERE status = $1 AND COALESCE(finished_at, updated_at) < $2`, status, p.Before)
		staying, err := l.CountEnded(t.Context(), []purchase.Status{status}, p.Before)
		if err != nil || before == 0 || staying.Purchases() != before {
			t.Errorf("%d %s ended, %+v stay, %v", before, status, staying, err)
		}
		p.Also = []purchase.Status{status}
		if done := l.prune(p); done.Purchases() != before {
			t.Errorf("pruned by name: %+v of %d", done, before)
		}
	}
	if l.orphans() != 0 {
		t.Error("there are orphans")
	}
	l.rollupIsTheLedger(t, nil, time.Time{})
}

// Attempts may have an age of their own: those of finished purchases alone.
func TestPruneAttempts(t *testing.T) {
	l := newYear(t, 3000)
	p := purchase.Pruning{Before: daysAgo(300), Attempts: daysAgo(10)}
	counted, err := l.CountPrunable(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	done := l.prune(p)
	if done.Attempts != counted.Attempts || done.Attempts < 2000 {
		t.Errorf("pruned %d attempts, counted %d", done.Attempts, counted.Attempts)
	}
	left := ask[string](l, `SELECT COALESCE(string_agg(DISTINCT p.status, ', ' ORDER BY p.status), 'none') FROM attempts a JOIN purchases p USING (checkout_session_id) WHERE a.at < $1`, p.Attempts)
	if left != "dead, retrying" {
		t.Errorf("old attempts are left of: %s", left)
	}
	if n := ask[int](l, `SELECT count(*) FROM attempts WHERE at >= $1`, p.Attempts); n == 0 {
		t.Error("the young ones are gone")
	}
}

// A row that somebody works on is passed by, and not waited for; so is nobody else kept from his.
func TestPruneWaitsForNobody(t *testing.T) {
	l := newYear(t, 1000)
	p := purchase.Pruning{Before: daysAgo(90)}
	counted, err := l.CountPrunable(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := l.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM purchases WHERE checkout_session_id IN (SELECT checkout_session_id FROM purchases WHERE status = 'delivered' ORDER BY purchased_at LIMIT 3) FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done, err := l.Prune(ctx, p, func(purchase.Pruned) {})
	if err != nil || done.Purchases() != counted.Purchases()-3 {
		t.Errorf("beside a lock on three: %d of %d, %v", done.Purchases(), counted.Purchases(), err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if done := l.prune(p); done.Purchases() != 3 {
		t.Errorf("afterwards: %+v", done)
	}
}

// Broken off, it says what it did; what is left is whole, and goes the next time.
func TestPruneBrokenOff(t *testing.T) {
	l := newYear(t, 3000)
	p := purchase.Pruning{Before: daysAgo(60)}
	counted, err := l.CountPrunable(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	first, err := l.Prune(ctx, p, func(done purchase.Pruned) {
		if done.Purchases() >= 1000 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || first.Purchases() < 1000 || first.Purchases() >= counted.Purchases() {
		t.Errorf("broken off: %d of %d, %v", first.Purchases(), counted.Purchases(), err)
	}
	if l.orphans() != 0 {
		t.Error("half of something was pruned")
	}
	if second := l.prune(p); first.Purchases()+second.Purchases() != counted.Purchases() {
		t.Errorf("%d and %d of %d", first.Purchases(), second.Purchases(), counted.Purchases())
	}
}

// An event of what was not yet pruned is known for good.
func TestPruneKeepsDeduplication(t *testing.T) {
	l := newLedger(t)
	for id, days := range map[string]int{"a": 36, "b": 200} {
		r := receipt("evt_"+id, "cs_"+id, purchase.StatusPending, "")
		r.Received, r.Purchase.At = daysAgo(days), daysAgo(days)
		l.record(r)
	}
	l.exec(`UPDATE purchases SET status = 'delivered', finished_at = purchased_at`)
	if done := l.prune(purchase.Pruning{Before: daysAgo(40)}); done.Purchases() != 1 || done.Events != 1 {
		t.Errorf("%+v", done)
	}
	for _, event := range []string{"evt_a", "evt_other"} {
		if got := l.record(receipt(event, "cs_a", purchase.StatusPending, "")); got.Disposition != purchase.Duplicate {
			t.Errorf("%s: %s", event, got.Disposition)
		}
	}
}
