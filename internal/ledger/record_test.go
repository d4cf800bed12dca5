package ledger_test

import (
	"testing"

	"purchase-relay/internal/purchase"
)

// One event id that comes with a second session loses no sale: that session is recorded, under the other's
// lock or not, in one transaction or in two, with a row of its own among the events. What is repeated stays a
// duplicate.
func TestRecord_EventIDOfAnotherSession(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	first := receipt("evt_1", "cs_1", purchase.StatusPending, "")
	second := receipt("evt_1", "cs_2", purchase.StatusPending, "")
	second.Purchase.Email = "other@example.com"
	if r := l.must(first, purchase.Processed); r.Conflict != "" {
		t.Errorf("first session: conflict with %q", r.Conflict)
	}
	if r := l.must(second, purchase.Processed); r.Conflict != "cs_1" || !r.ProfileCreated {
		t.Errorf("second session: %+v, want a conflict with cs_1 and a profile", r)
	}
	unpaid := receipt("evt_1", "cs_3", purchase.StatusAwaitingPayment, "")
	if r := l.must(unpaid, purchase.AwaitingPayment); r.Conflict != "cs_1" {
		t.Errorf("third session: %+v, want a conflict with cs_1", r)
	}
	for _, again := range []purchase.Receipt{first, second, unpaid, second} {
		l.must(again, purchase.Duplicate)
	}
	want := "cs_1 pending, cs_2 pending, cs_3 awaiting_payment"
	got := ask[string](l, `
		SELECT string_agg(checkout_session_id || ' ' || status, ', ' ORDER BY checkout_session_id) FROM purchases`)
	if got != want {
		t.Errorf("purchases: %s, want %s", got, want)
	}
	want = "evt_1 cs_1 processed, evt_1.cs_2 cs_2 processed, evt_1.cs_3 cs_3 awaiting_payment"
	got = ask[string](l, `
		SELECT string_agg(concat_ws(' ', event_id, checkout_session_id, disposition), ', ' ORDER BY event_id)
		FROM stripe_events`)
	if got != want {
		t.Errorf("events: %s, want %s", got, want)
	}
}

// An invoice under an event id that is known from a checkout is the first payment all the same.
func TestRecord_EventIDOfAnotherInvoice(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.must(trialOf(1), purchase.Processed)
	paid := invoiceOf(1, 1)
	paid.Event.ID = trialOf(1).Event.ID
	if r := l.must(paid, purchase.Processed); r.Conflict != "cs_1" || r.FirstPayment != "in_1_1" {
		t.Errorf("recorded %+v, want the first payment in_1_1 and a conflict with cs_1", r)
	}
	l.must(paid, purchase.Duplicate)
	l.firstPaymentIs(1, "in_1_1")
}
