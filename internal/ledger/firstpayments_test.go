package ledger_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"purchase-relay/internal/purchase"
)

// A reconciliation predicts the first payments that a backfill makes of the same events, whichever of them
// the ledger has received before.
func TestFirstPayments_PredictBackfill(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		var listed []purchase.Receipt // by Stripe
		var subscriptions []string
		for range rapid.IntRange(1, 3).Draw(rt, "subscriptions") {
			n++
			subscriptions = append(subscriptions, fmt.Sprintf("sub_%d", n))
			if rapid.IntRange(0, 3).Draw(rt, "trial") > 0 {
				r := trialOf(n)
				if rapid.Bool().Draw(rt, "sent") {
					r.Purchase.Status, r.Purchase.Reason = purchase.StatusPending, ""
					r.Purchase.EventName = "StartTrial"
				}
				if rapid.IntRange(0, 3).Draw(rt, "consent") == 0 {
					r.Purchase.Withheld = purchase.ReasonNoConsent
				}
				listed = append(listed, r)
			}
			for i := range 3 {
				if rapid.Bool().Draw(rt, "paid") {
					listed = append(listed, invoiceOf(n, i+1))
				}
			}
		}
		slices.SortStableFunc(listed, func(a, b purchase.Receipt) int {
			return a.Event.Created.Compare(b.Event.Created)
		})
		var trials, invoices []purchase.Purchase
		for _, r := range listed {
			if r.Purchase.Trial {
				trials = append(trials, r.Purchase)
			} else {
				invoices = append(invoices, r.Purchase)
			}
		}
		for _, r := range rapid.Permutation(listed).Draw(rt, "order") {
			if rapid.Bool().Draw(rt, "received") {
				l.MustRecord(r)
			}
		}
		held := ask[string](l, `SELECT COALESCE(string_agg(invoice_id, ' '), '') FROM trials
			WHERE subscription_id = ANY($1) AND purchase_id IS NULL`, subscriptions)
		got, err := l.FirstPayments(t.Context(), trials, invoices)
		if err != nil {
			rt.Fatal(err)
		}
		for _, r := range listed {
			l.MustRecord(r)
		}
		const firstPayments = `
			SELECT COALESCE(string_agg(COALESCE(purchase_id, invoice_id), ' '), '') FROM trials
			WHERE subscription_id = ANY($1) AND (purchase_id IS NOT NULL
				OR checkout_session_id IS NOT NULL AND NOT invoice_id = ANY(string_to_array($2, ' ')))`
		want := strings.Fields(ask[string](l, firstPayments, subscriptions, held))
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			rt.Fatalf("held before %q: first payments (-backfilled +predicted):\n%s", held, diff)
		}
	})
	if none, err := l.FirstPayments(t.Context(), nil, nil); err != nil || none != nil {
		t.Errorf("FirstPayments of nothing = %v, %v, want nil", none, err)
	}
}

// A trial that was recorded while FIRST_PAYMENT was off is a duplicate for a backfill, so its invoice is no
// first payment.
func TestFirstPayments_LeaveOutDuplicateTrials(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	r := trialOf(1)
	r.Purchase.Trial = false
	l.MustRecord(r)
	trials, invoices := []purchase.Purchase{trialOf(1).Purchase}, []purchase.Purchase{invoiceOf(1, 1).Purchase}
	got, err := l.FirstPayments(t.Context(), trials, invoices)
	if err != nil || got != nil {
		t.Errorf("FirstPayments = %v, %v, want none", got, err)
	}
}
