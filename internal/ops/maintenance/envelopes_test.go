package maintenance_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/ledgertest"
)

// summaryText returns the summary as text.
func summaryText(l *ledgertest.Ledger) string {
	l.T.Helper()
	s, err := l.Summary(l.T.Context(), ledgertest.Since(base.Add(-time.Hour)), nil)
	if err != nil {
		l.T.Fatal(err)
	}
	return fmt.Sprintf("%+v", s)
}

// Totals and the kinds of match keys stay.
func TestDropEnvelopes_DropsDeliveredAlone(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	for _, status := range purchase.Statuses() {
		id := "cs_" + string(status)
		r := ledgertest.Receipt("evt_"+id, id, purchase.StatusPending, "")
		keys := &r.Purchase.Keys
		keys.IP, keys.UserAgent, keys.City = "203.0.113.7", "browser of ada", "turin"
		l.Must(r, purchase.Processed)
		l.Exec(`UPDATE purchases SET status = $1, reason = CASE $1 WHEN 'skipped' THEN 'not_configured' ELSE '' END,
			finished_at = now() - interval '49 hours'
			WHERE checkout_session_id = $2`, string(status), id)
	}
	for name, hours := range map[string]int{"young": 47, "old": 72} {
		for i := range 5 {
			id := fmt.Sprintf("cs_%s_%d", name, i)
			l.Buy(id)
			l.Exec(`UPDATE purchases SET status = 'delivered', finished_at = now() - make_interval(hours => $1)
				WHERE checkout_session_id = $2`, hours, id)
		}
	}
	if _, err := l.Fold(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := summaryText(l)
	var steps []int
	for n := -1; n != 0; {
		var err error
		if n, err = l.DropEnvelopes(t.Context(), maintenance.EnvelopeAge, 4); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, n)
	}
	if diff := cmp.Diff([]int{4, 2, 0}, steps); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	left := ledgertest.Ask[string](l, `SELECT string_agg(checkout_session_id, ' ' ORDER BY checkout_session_id)
		FROM purchases WHERE envelope IS NULL`)
	if want := "cs_delivered cs_old_0 cs_old_1 cs_old_2 cs_old_3 cs_old_4"; left != want {
		t.Errorf("without a message: %s, want %s", left, want)
	}
	row := ledgertest.Ask[string](l,
		`SELECT p::text FROM purchases p WHERE checkout_session_id = 'cs_delivered'`)
	for _, trace := range []string{"203.0.113.7", "browser of ada", "turin"} {
		if ledgertest.Holds(row, trace) {
			t.Errorf("the row still holds %q", trace)
		}
	}
	if n := ledgertest.Ask[int](l, `SELECT count(*) FROM rollup_changes`); n != 0 {
		t.Errorf("rollup changes = %d, want 0", n)
	}
	if after := summaryText(l); after != before {
		t.Errorf("summary = %s, want %s", after, before)
	}
	l.CheckRollup(t, nil, ledgertest.Since(time.Time{}))
	history, err := l.Get(t.Context(), "cs_delivered")
	if err != nil || history.Envelope != nil || history.KeyMask == nil {
		t.Fatalf("history = %+v, %v, want a mask without an envelope", history, err)
	}
	if diff := cmp.Diff([]string{"E-mail", "IP", "User agent", "Address"},
		purchase.KeyNames(*history.KeyMask)); diff != "" {
		t.Errorf("kinds of keys (-want +got):\n%s", diff)
	}
	// A redelivered outcome and a repeated event change nothing.
	l.MustSettle(ledgertest.Outcome("cs_delivered", 1, purchase.StatusDelivered, "again", base))
	l.Must(ledgertest.Receipt("evt_again", "cs_delivered", purchase.StatusPending, ""), purchase.Duplicate)
}

// A sent trial's message is dropped; its match keys remain for the first payment.
func TestDropEnvelopes_KeepsKeysForFirstPayment(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	r := ledgertest.Trial(1)
	r.Purchase.Status, r.Purchase.Reason, r.Purchase.EventName = purchase.StatusPending, "", "StartTrial"
	l.Must(r, purchase.Processed)
	l.End("cs_1", purchase.StatusDelivered)
	l.Exec(`UPDATE purchases SET finished_at = now() - interval '5 days'`)
	if n, err := l.DropEnvelopes(t.Context(), maintenance.EnvelopeAge, 100); err != nil || n != 1 {
		t.Fatalf("dropped %d, %v, want 1", n, err)
	}
	l.Must(ledgertest.Invoice(1, 1), purchase.Processed)
	if got := ledgertest.Ask[[]byte](l, `SELECT envelope FROM purchases
		WHERE checkout_session_id = 'in_1_1'`); !bytes.Contains(got, []byte("E.C.P.abc")) {
		t.Errorf("the first payment's message %s lacks the click id", got)
	}
}

func TestDropEnvelopes_LeavesLockedRows(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	for _, id := range []string{"cs_1", "cs_2"} {
		l.Buy(id)
	}
	l.Exec(`UPDATE purchases SET status = 'delivered', finished_at = now() - interval '3 days'`)
	l.Exec(`BEGIN`)
	l.Exec(`SELECT FROM purchases WHERE checkout_session_id = 'cs_1' FOR UPDATE`)
	if n, err := l.DropEnvelopes(t.Context(), maintenance.EnvelopeAge, 100); err != nil || n != 1 {
		t.Errorf("dropped %d, %v, want 1", n, err)
	}
	l.Exec(`ROLLBACK`)
	if n, err := l.DropEnvelopes(t.Context(), maintenance.EnvelopeAge, 100); err != nil || n != 1 {
		t.Errorf("dropped %d, %v, want 1", n, err)
	}
}
