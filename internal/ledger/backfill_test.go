package ledger_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/purchase"
)

// A dry run returns what Record then does, and writes nothing.
func TestRecord_DryRun(t *testing.T) {
	l := newLedger(t)
	l.record(receipt("evt_1", "cs_1", purchase.StatusPending, ""))
	for _, tc := range []struct {
		r    purchase.Receipt
		want purchase.Disposition
	}{
		{receipt("evt_1", "cs_1", purchase.StatusPending, ""), purchase.Duplicate},
		{receipt("evt_2", "cs_1", purchase.StatusPending, ""), purchase.Duplicate},
		{receipt("evt_3", "cs_2", purchase.StatusAwaitingPayment, ""), purchase.AwaitingPayment},
		{receipt("evt_4", "cs_2", purchase.StatusPending, ""), purchase.Processed},
		{receipt("evt_5", "cs_3", purchase.StatusRejected, purchase.ReasonInvalidEmail), purchase.Rejected},
	} {
		dry := tc.r
		dry.DryRun, dry.Claim = true, true
		for range 2 {
			l.must(dry, tc.want)
		}
		if n := ask[int](l, `SELECT count(*) FROM stripe_events WHERE event_id = $1`, tc.r.Event.ID); n == 1 != (tc.r.Event.ID == "evt_1") {
			t.Errorf("%s was recorded", tc.r.Event.ID)
		}
		if d := l.record(tc.r).Disposition; d != tc.want {
			t.Errorf("%s: %s happened", tc.r.Event.ID, d)
		}
	}
}

func TestBackfillIsRemembered(t *testing.T) {
	l := newLedger(t)
	if b, err := l.Backfill(t.Context(), "command"); err != nil || !b.Until.IsZero() {
		t.Errorf("before any: %+v, %v", b, err)
	}
	b := purchase.Backfill{Origin: "command", Since: base, Until: base.Add(time.Hour)}
	for _, change := range []func(){
		func() {},
		func() {
			b.Cursor, b.Reached, b.Counts = "evt_1", base, purchase.BackfillCounts{Known: 1, New: 2, Ignored: 3, Rejected: 4, Malformed: 5}
		},
		func() { b.Finished = base.Add(2 * time.Hour) },
	} {
		change()
		if err := l.PutBackfill(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		got, err := l.Backfill(t.Context(), "command")
		if diff := cmp.Diff(b, got, cmp.Comparer(time.Time.Equal)); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
	}
	if other, err := l.Backfill(t.Context(), "check"); err != nil || !other.Until.IsZero() {
		t.Errorf("another's: %+v, %v", other, err)
	}
}

// Only what was paid counts, once a purchase, in its mode and time; what a webhook brought does not.
func TestCaughtUp(t *testing.T) {
	l := newLedger(t)
	for _, r := range []purchase.Receipt{
		receipt("evt_1", "cs_webhook", purchase.StatusPending, ""), receipt("evt_2", "cs_caught", purchase.StatusPending, ""), receipt("evt_3", "cs_caught", purchase.StatusPending, ""),
		receipt("evt_4", "cs_unpaid", purchase.StatusAwaitingPayment, ""), receipt("evt_5", "cs_trial", purchase.StatusSkipped, purchase.ReasonNoPayment), receipt("evt_6", "cs_test", purchase.StatusPending, ""),
		receipt("evt_7", "cs_old", purchase.StatusPending, ""), receipt("evt_8", "cs_sent_trial", purchase.StatusPending, ""),
		receipt("evt_9", "cs_rejected_trial", purchase.StatusRejected, purchase.ReasonInvalidEmail),
	} {
		if strings.HasSuffix(r.Purchase.ID, "_trial") {
			r.Purchase.Kind = purchase.KindTrial
		}
		if r.Purchase.ID != "cs_webhook" {
			r.Source = purchase.SourceBackfill
		}
		r.Purchase.Livemode = r.Purchase.ID != "cs_test"
		if r.Purchase.ID == "cs_old" {
			r.Purchase.At = base.AddDate(0, -2, 0)
		}
		l.record(r)
	}
	for _, tc := range []struct {
		since    time.Time
		livemode *bool
		want     int
	}{{base, nil, 2}, {base, new(true), 1}, {base, new(false), 1}, {base.Add(time.Minute), nil, 0}, {base.AddDate(-1, 0, 0), nil, 3}} {
		n, last, err := l.CaughtUp(t.Context(), tc.since, tc.livemode)
		if err != nil || n != tc.want || (n > 0) != last.Equal(base.Add(time.Second)) {
			t.Errorf("since %s: %d, last %s, %v", tc.since, n, last, err)
		}
	}
}

// A first payment whose invoice came by catch-up counts, also where it had to wait for its trial.
func TestCaughtUp_CountsHeldFirstPayments(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for _, r := range []purchase.Receipt{invoiceOf(1, 1), invoiceOf(2, 1)} { // of the second no trial ever comes
		r.Source = purchase.SourceBackfill
		if d := l.record(r).Disposition; d != purchase.Held {
			t.Fatalf("%s: %s, want held", r.Purchase.ID, d)
		}
	}
	l.record(trialOf(1))
	if n, _, err := l.CaughtUp(t.Context(), base.AddDate(0, 0, -1), nil); err != nil || n != 1 {
		t.Errorf("caught up = %d, %v, want 1", n, err)
	}
}

// The ledger's side of a reconciliation: checkouts of a mode and time, and those that are asked for by their ids.
func TestStandings(t *testing.T) {
	l := newLedger(t)
	for i, id := range []string{"cs_in", "cs_before", "cs_payment", "cs_test", "in_invoice", "cs_unpaid", "cs_sent_trial"} {
		r := receipt("evt_"+id, id, purchase.StatusPending, "")
		if id == "cs_unpaid" {
			r = receipt("evt_"+id, id, purchase.StatusAwaitingPayment, "")
		}
		switch i {
		case 1:
			r.Purchase.At = base.Add(-time.Hour)
		case 2:
			r.Purchase.Mode = "payment"
		case 3:
			r.Purchase.Livemode = false
		case 4:
			r.Purchase.Kind, r.Purchase.Mode = "", "setup"
		case 6:
			r.Purchase.Kind = purchase.KindTrial
		}
		l.record(r)
	}
	ids := func(chosen []string) (got []string) {
		t.Helper()
		scope := purchase.Scope{
			Since:    base,
			Until:    base.Add(time.Minute),
			Livemode: true,
			Modes:    []string{"subscription"},
		}
		list, err := l.Standings(t.Context(), scope, chosen)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			got = append(got, s.ID+" "+string(s.Status))
			if s.ID != "cs_unpaid" && (*s.AmountMinor != 2999 || s.Currency != "usd") {
				t.Errorf("%+v", s)
			}
		}
		return got
	}
	if diff := cmp.Diff([]string{"cs_in pending"}, ids(nil)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"cs_in pending", "cs_before pending"}, ids([]string{"cs_in", "cs_before", "cs_before", "cs_test", "cs_unheard_of"})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"cs_in pending", "cs_unpaid awaiting_payment"}, ids([]string{"cs_unpaid"})); diff != "" {
		t.Error(diff)
	}
}

func TestReconciliationIsKept(t *testing.T) {
	l := newLedger(t)
	if r, err := l.Reconciliation(t.Context(), true); err != nil || !r.Made.IsZero() {
		t.Errorf("before any: %+v, %v", r, err)
	}
	for i := range 2 {
		r := purchase.Reconciliation{Made: base.Add(time.Duration(i) * time.Hour), Since: base, Until: base, Livemode: true, Days: []purchase.ReconciledDay{{
			Day: base, Currency: "USD", Paid: purchase.Takings{Count: i, Minor: 1 << 53}, Differ: map[purchase.Difference][]string{purchase.Missing: {"cs_1"}},
		}}}
		if err := l.PutReconciliation(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		got, err := l.Reconciliation(t.Context(), true)
		if diff := cmp.Diff(r, got); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
	}
	if r, err := l.Reconciliation(t.Context(), false); err != nil || !r.Made.IsZero() {
		t.Errorf("the other mode's: %+v, %v", r, err)
	}
}
