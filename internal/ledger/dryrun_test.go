package ledger_test

import (
	"testing"

	"purchase-relay/internal/purchase"
)

// A dry run returns what Record then does, and writes nothing.
func TestRecord_DryRun(t *testing.T) {
	t.Parallel()
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
