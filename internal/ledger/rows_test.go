package ledger_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"purchase-relay/internal/purchase"
)

// An unreadable envelope of one trial does not block the invoices of others. Its invoice is held and
// converted once the envelope is readable.
func TestConvertHeld_SkipsUnreadableEnvelope(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string][]byte{
		"newer version": []byte(`{"version":99,"event_id":{}}`),
		"truncated":     []byte(`{"version":1,"event_i`),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t)
			skips := l.Skips()
			for n := 1; n <= 3; n++ {
				l.Must(trialOf(n), purchase.Processed)
				l.Must(invoiceOf(n, 2), purchase.Held) // for the first one
			}
			good := ask[[]byte](l, `SELECT envelope FROM trials WHERE subscription_id = 'sub_1'`)
			l.Exec(`UPDATE trials SET envelope = $1, held_at = held_at - interval '1 hour'
				WHERE subscription_id = 'sub_1'`, damage)
			l.convertHeld(0, 2)
			if got, want := skips(), []string{"trials sub_1"}; !slices.Equal(got, want) {
				t.Errorf("skipped = %v, want %v", got, want)
			}
			l.Must(invoiceOf(1, 1), purchase.Held)
			l.convertHeld(purchase.InvoiceHoldTime, 0)
			if got, want := skips(), []string{"trials sub_1"}; !slices.Equal(got, want) {
				t.Errorf("skipped = %v, want %v", got, want)
			}
			l.Exec(`UPDATE trials SET envelope = $1 WHERE subscription_id = 'sub_1'`, good)
			l.convertHeld(purchase.InvoiceHoldTime, 1) // the first invoice need not be held any longer
			l.firstPaymentIs(1, "in_1_1")
		})
	}
}

// An unreadable row fails only the webhooks that need it, not the others of the batch.
func TestRecord_UnreadableRowFailsItsOwnWebhook(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.Must(trialOf(1), purchase.Processed)
	l.Exec(`UPDATE trials SET started_at = 'infinity'`)
	var group sync.WaitGroup
	for i := range 40 {
		group.Go(func() {
			r, unreadable := paid(fmt.Sprintf("evt_%d", i), fmt.Sprintf("cs_%d", 100+i)), i%10 == 0
			if unreadable {
				r = invoiceOf(1, 1+i/10)
			}
			if _, err := l.Record(t.Context(), r); (err != nil) != unreadable {
				t.Errorf("webhook %d: error = %v, want an error: %t", i, err, unreadable)
			}
		})
	}
	group.Wait()
}
