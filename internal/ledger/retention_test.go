package ledger_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// figures is what the rollup shows, and the changes that wait to be folded.
func (l *testLedger) figures() string {
	l.t.Helper()
	s, err := l.Summary(l.t.Context(), base.Add(-time.Hour), nil)
	if err != nil {
		l.t.Fatal(err)
	}
	return fmt.Sprintf("%+v", s)
}

// Two days after the delivery a message is dropped, in small steps. Its figures, and which kinds of keys it
// held, stay.
func TestDropEnvelopes_DropsDeliveredAlone(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for _, status := range purchase.Statuses() {
		id := "cs_" + string(status)
		r := receipt("evt_"+id, id, purchase.StatusPending, "")
		r.Purchase.Keys.IP, r.Purchase.Keys.UserAgent, r.Purchase.Keys.City = "203.0.113.7", "browser of ada", "turin"
		l.must(r, purchase.Processed)
		l.exec(`UPDATE purchases SET status = $1, reason = CASE $1 WHEN 'skipped' THEN 'not_configured' ELSE '' END,
			finished_at = now() - interval '49 hours'
			WHERE checkout_session_id = $2`, string(status), id)
	}
	for i := range 5 {
		id := fmt.Sprintf("cs_young_%d", i)
		l.buy(id)
		l.exec(`UPDATE purchases SET status = 'delivered', finished_at = now() - interval '47 hours'
			WHERE checkout_session_id = $1`, id)
	}
	for i := range 5 {
		id := fmt.Sprintf("cs_old_%d", i)
		l.buy(id)
		l.exec(`UPDATE purchases SET status = 'delivered', finished_at = now() - interval '3 days'
			WHERE checkout_session_id = $1`, id)
	}
	if _, err := l.Fold(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := l.figures()
	var steps []int
	for n := -1; n != 0; {
		var err error
		if n, err = l.DropEnvelopes(t.Context(), purchase.EnvelopeAge, 4); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, n)
	}
	if diff := cmp.Diff([]int{4, 2, 0}, steps); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	left := ask[string](l, `SELECT string_agg(checkout_session_id, ' ' ORDER BY checkout_session_id)
		FROM purchases WHERE envelope IS NULL`)
	if want := "cs_delivered cs_old_0 cs_old_1 cs_old_2 cs_old_3 cs_old_4"; left != want {
		t.Errorf("without a message: %s, want %s", left, want)
	}
	row := ask[string](l, `SELECT p::text FROM purchases p WHERE checkout_session_id = 'cs_delivered'`)
	for _, trace := range []string{"203.0.113.7", "browser of ada", "turin"} {
		if holds(row, trace) {
			t.Errorf("the row still holds %q", trace)
		}
	}
	if n := ask[int](l, `SELECT count(*) FROM rollup_changes`); n != 0 {
		t.Errorf("%d changes of the figures, want 0", n)
	}
	if after := l.figures(); after != before {
		t.Errorf("figures = %s, want %s", after, before)
	}
	l.rollupIsTheLedger(t, nil, time.Time{})
	_, history, err := l.Entry(t.Context(), "cs_delivered")
	if err != nil || history.Envelope != nil || history.KeyMask == nil {
		t.Fatalf("history = %+v, %v, want a mask without an envelope", history, err)
	}
	if diff := cmp.Diff([]string{"E-mail", "IP", "User agent", "Address"},
		purchase.KeyNames(*history.KeyMask)); diff != "" {
		t.Errorf("kinds of keys (-want +got):\n%s", diff)
	}
	// A repeated outcome, and a repeated event, find the row as before.
	if _, err := l.Settle(t.Context(), []message.Outcome{outcome("cs_delivered", 1, purchase.StatusDelivered,
		"again", base)}); err != nil {
		t.Fatal(err)
	}
	l.must(receipt("evt_again", "cs_delivered", purchase.StatusPending, ""), purchase.Duplicate)
}

// A trial that was sent as an event of its own gives its first payment the keys, also after its own message
// is gone.
func TestDropEnvelopes_KeepsKeysForFirstPayment(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	r := trialOf(1)
	r.Purchase.Status, r.Purchase.Reason, r.Purchase.EventName = purchase.StatusPending, "", "StartTrial"
	l.must(r, purchase.Processed)
	l.settle("cs_1", purchase.StatusDelivered)
	l.exec(`UPDATE purchases SET finished_at = now() - interval '5 days'`)
	if n, err := l.DropEnvelopes(t.Context(), purchase.EnvelopeAge, 100); err != nil || n != 1 {
		t.Fatalf("dropped %d, %v, want 1", n, err)
	}
	l.must(invoiceOf(1, 1), purchase.Processed)
	if got := ask[[]byte](l, `SELECT envelope FROM purchases
		WHERE checkout_session_id = 'in_1_1'`); !bytes.Contains(got, []byte("E.C.P.abc")) {
		t.Errorf("the first payment's message %s lacks the click id", got)
	}
}

// Of several replicas one drops at a time; rows that somebody has are left for later.
func TestDropEnvelopes_LeavesLockedRows(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for _, id := range []string{"cs_1", "cs_2"} {
		l.buy(id)
	}
	l.exec(`UPDATE purchases SET status = 'delivered', finished_at = now() - interval '3 days'`)
	tx, err := l.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM purchases
		WHERE checkout_session_id = 'cs_1' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	if n, err := l.DropEnvelopes(t.Context(), purchase.EnvelopeAge, 100); err != nil || n != 1 {
		t.Errorf("dropped %d, %v, want 1", n, err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := l.DropEnvelopes(t.Context(), purchase.EnvelopeAge, 100); err != nil || n != 1 {
		t.Errorf("dropped %d, %v, want 1", n, err)
	}
}

// A test purchase has a profile of its own, and changes nothing of the live one; both are found by the
// address.
func TestRecord_TestModeHasItsOwnProfile(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	buy := func(id string, live bool, customer string, at time.Time) purchase.Recorded {
		r := receipt("evt_"+id, id, purchase.StatusPending, "")
		r.Event.Livemode, r.Purchase.Livemode, r.Purchase.Customer, r.Purchase.At = live, live, customer, at
		return l.must(r, purchase.Processed)
	}
	test := buy("cs_test_1", false, "cus_test", base)
	live := buy("cs_live_1", true, "cus_live", base)
	if !test.ProfileCreated || !live.ProfileCreated || test.ProfileID == live.ProfileID {
		t.Errorf("test %+v, live %+v, want two profiles", test, live)
	}
	row := func() string {
		return ask[string](l, `SELECT string_agg(p::text, E'\n' ORDER BY livemode) FROM profiles p WHERE livemode`)
	}
	before := row()
	if again := buy("cs_test_2", false, "cus_test_2", base.Add(time.Hour)); again.ProfileID != test.ProfileID ||
		again.CustomerBefore != "cus_test" {
		t.Errorf("test again = %+v, want profile %s and the customer before", again, test.ProfileID)
	}
	if after := row(); after != before {
		t.Errorf("the live profile is\n%s, want\n%s", after, before)
	}
	for query, want := range map[string]int{" BUYER@example.com": 3, test.ProfileID: 3, live.ProfileID: 3} {
		entries, err := l.Entries(t.Context(), purchase.Filter{Query: query, Limit: 10})
		if err != nil || len(entries) != want {
			t.Errorf("%q finds %d, %v, want %d", query, len(entries), err, want)
		}
	}
	if found, err := l.Histories(t.Context(), "buyer@example.com", 10); err != nil || len(found) != 3 {
		t.Errorf("histories: %d, %v, want 3", len(found), err)
	}
	if id, err := l.ProfileByEmail(t.Context(), "buyer@example.com"); err != nil || id != live.ProfileID {
		t.Errorf("profile = %s, %v, want the live one %s", id, err, live.ProfileID)
	}
}

// Another customer id for a known address is reported, within one transaction, too; the profile shows the ids
// of its latest purchase.
func TestRecord_ReportsAnotherCustomer(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for i, tc := range []struct {
		customer string
		at       time.Duration
		before   string
		shown    string
	}{
		{"cus_1", 0, "", "cus_1"},
		{"cus_1", time.Hour, "", "cus_1"},
		{"", 2 * time.Hour, "", "cus_1"}, // a guest
		{"cus_2", 3 * time.Hour, "cus_1", "cus_2"},
		{"cus_3", time.Minute, "cus_2", "cus_2"}, // an older event that comes late
		{"cus_2", 4 * time.Hour, "", "cus_2"},
	} {
		r := receipt(fmt.Sprintf("evt_%d", i), fmt.Sprintf("cs_%d", i), purchase.StatusPending, "")
		r.Purchase.Customer, r.Purchase.At = tc.customer, base.Add(tc.at)
		if got := l.must(r, purchase.Processed); got.CustomerBefore != tc.before {
			t.Errorf("purchase %d: customer before = %q, want %q", i, got.CustomerBefore, tc.before)
		}
		if got := ask[string](l, `SELECT stripe_customer_id FROM profiles`); got != tc.shown {
			t.Errorf("purchase %d: the profile shows %s, want %s", i, got, tc.shown)
		}
	}
}
