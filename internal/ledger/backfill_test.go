package ledger_test

import (
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
