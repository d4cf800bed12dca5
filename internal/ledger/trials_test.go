package ledger_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/purchase"
)

const oneDay = 24 * time.Hour

// In every order in which Stripe may send a trial, its first invoice and two renewals, one by one or all at once, and each again
// afterwards: the first invoice is the purchase, with the trial's match keys, and nothing else is.
func TestTrialInEveryOrder(t *testing.T) {
	l := newLedger(t)
	trial := 0
	for order := range orders(4) {
		for _, together := range []bool{false, true} {
			trial++
			var receipts []purchase.Receipt
			for _, n := range order {
				if n == 0 {
					receipts = append(receipts, trialOf(trial))
				} else {
					receipts = append(receipts, invoiceOf(trial, n))
				}
			}
			told := make([]purchase.Recorded, len(receipts))
			var all sync.WaitGroup
			for i, r := range receipts {
				one := func() {
					recorded, err := l.Record(context.Background(), r)
					if err != nil {
						t.Error(err)
					}
					told[i] = recorded
				}
				if together {
					all.Go(one)
				} else {
					one()
				}
			}
			all.Wait()
			if n := len(slices.DeleteFunc(told, func(r purchase.Recorded) bool { return r.FirstPayment != fmt.Sprintf("in_%d_1", trial) })); n != 1 {
				t.Errorf("%v, together %v: told of %d times", order, together, n)
			}
			for _, r := range receipts {
				if again, err := l.Record(t.Context(), r); err != nil || again.Disposition != purchase.Duplicate && again.Disposition != purchase.Ignored {
					t.Errorf("%v: %s again is %s, %v", order, r.Event.ID, again.Disposition, err)
				}
			}
			l.firstPaymentIs(trial, fmt.Sprintf("in_%d_1", trial))
		}
	}
	if n := ask[int](l, `SELECT count(*) FROM purchases`); n != 2*trial {
		t.Errorf("%d rows of %d trials", n, trial)
	}
	if n, err := l.ConvertHeld(t.Context(), 0); n != 0 || err != nil {
		t.Errorf("%d were held, %v", n, err)
	}
}

// firstPaymentIs looks at a trial's purchase.
func (l *testLedger) firstPaymentIs(trial int, id string) {
	l.t.Helper()
	row, err := l.Get(l.t.Context(), id)
	if err != nil {
		l.t.Fatal(err)
	}
	session := fmt.Sprintf("cs_%d", trial)
	if row.Kind != purchase.KindFirstPayment || *row.TrialSession != session || row.Status != purchase.StatusPending || *row.AmountMinor != 2999 || row.ProfileID == nil {
		l.t.Errorf("the first payment: %+v", row)
	}
	sent, err := message.DecodeEnvelope(row.Envelope)
	if err != nil {
		l.t.Fatal(err)
	}
	keys := purchase.MatchKeys{Email: purchase.HashEmail(fmt.Sprintf("buyer%d@example.com", trial)), TTCLID: "E.C.P.abc", ExternalID: purchase.HashExternalID(*row.ProfileID)}
	want := message.Envelope{Version: 1, EventID: id, Livemode: true, PurchasedAt: row.PurchasedAt.Unix(), AmountMinor: new(int64(2999)), Currency: "usd", Keys: keys}
	if diff := cmp.Diff(want, sent); diff != "" {
		l.t.Errorf("what is sent (-want +got):\n%s", diff)
	}
	if mask := ask[int16](l, `SELECT match_keys FROM purchases WHERE checkout_session_id = $1`, id); mask != 1|4|purchase.LateClick {
		l.t.Errorf("match keys %b: the click is eight days old", mask)
	}
	if began, err := l.Get(l.t.Context(), session); err != nil || began.FirstPayment == nil || *began.FirstPayment != id || began.Kind != purchase.KindTrial || began.Envelope != nil {
		l.t.Errorf("the trial: %+v, %v", began, err)
	}
	if ask[bool](l, `SELECT envelope IS NOT NULL FROM trials WHERE checkout_session_id = $1`, session) {
		l.t.Error("the trial's match keys are kept although nothing waits for them")
	}
}

func orders(n int) func(yield func([]int) bool) {
	return func(yield func([]int) bool) {
		var extend func(order []int) bool
		extend = func(order []int) bool {
			if len(order) == n {
				return yield(order)
			}
			for i := range n {
				if !slices.Contains(order, i) && !extend(append(slices.Clone(order), i)) {
					return false
				}
			}
			return true
		}
		extend(nil)
	}
}

// Where the invoice that looks back on the trial was never paid, the first one that was is the first payment: after a time in which
// the other could still have come.
func TestFirstInvoiceNeverPaid(t *testing.T) {
	l := newLedger(t)
	l.must(invoiceOf(1, 3), purchase.Held)
	l.must(trialOf(1), purchase.Processed)
	l.must(invoiceOf(1, 2), purchase.Held)
	if n, err := l.ConvertHeld(t.Context(), purchase.HeldFor); n != 0 || err != nil {
		t.Fatalf("at once: %d, %v", n, err)
	}
	if n, err := l.ConvertHeld(t.Context(), 0); n != 1 || err != nil {
		t.Fatalf("afterwards: %d, %v", n, err)
	}
	if n, err := l.ConvertHeld(t.Context(), 0); n != 0 || err != nil {
		t.Fatalf("again: %d, %v", n, err)
	}
	l.must(invoiceOf(1, 1), purchase.Ignored)
	l.firstPaymentIs(1, "in_1_2")
}

// A buyer who did not consent, or is staff, or was forgotten, has a first payment on the ledger that is never sent; no match key is kept.
func TestFirstPaymentWithheld(t *testing.T) {
	l := newLedger(t)
	for n, reason := range map[int]purchase.Reason{
		1: purchase.ReasonNoConsent, 2: purchase.ReasonInternal,
		3: purchase.ReasonForgotten,
	} {
		r := trialOf(n)
		if n < 3 {
			r.Purchase.Withheld, r.Purchase.Keys = reason, purchase.MatchKeys{}
		}
		l.must(r, purchase.Processed)
		if _, err := l.conn.Exec(t.Context(), `UPDATE trials SET envelope = NULL, profile_id = gen_random_uuid() WHERE checkout_session_id = 'cs_3'`); err != nil {
			t.Fatal(err)
		}
		i := invoiceOf(n, 1)
		i.Claim = true
		if recorded := l.must(i, purchase.Processed); recorded.Message != nil || !recorded.Claimed.IsZero() || recorded.LateClick {
			t.Errorf("%s: something is to be published: %+v", reason, recorded)
		}
		id := i.Purchase.ID
		row, err := l.Get(t.Context(), id)
		if err != nil || row.Status != purchase.StatusSkipped || row.Reason != reason || row.Envelope != nil || row.Finished == nil {
			t.Errorf("%s: %+v, %v", reason, row, err)
		}
		if n, err := l.Replay(t.Context(), maintenance.Selection{ID: id}, func(int) {}); n != 0 || err == nil {
			t.Errorf("%s: replayed %d, %v", reason, n, err)
		}
		l.must(invoiceOf(n, 2), purchase.Ignored)
	}
	if n := ask[int](l, `SELECT count(*) FROM trials WHERE envelope IS NOT NULL`); n != 0 {
		t.Errorf("the match keys of %d are kept", n)
	}
}

// A trial that is sent as an event of its own has no part in what was paid, and its first payment is no trial.
func TestTrialThatIsSent(t *testing.T) {
	l := newLedger(t)
	r := trialOf(1)
	r.Purchase.Status, r.Purchase.Reason, r.Purchase.EventName = purchase.StatusPending, purchase.ReasonNone, "StartTrial"
	r.Claim = true
	sent, err := message.DecodeEnvelope(l.must(r, purchase.Processed).Message)
	if err != nil || sent.Event != "StartTrial" || sent.EventID != "cs_1" {
		t.Errorf("the trial: %+v, %v", sent, err)
	}
	if s, err := l.Summary(t.Context(), base.AddDate(0, 0, -1), nil); err != nil || s.Paid != 0 || len(s.Values) != 0 || s.Coverage.Of != 1 {
		t.Errorf("a trial counts as paid: %+v, %v", s, err)
	}
	if recorded := l.must(invoiceOf(1, 1), purchase.Processed); !recorded.LateClick {
		t.Error("the late click id is not told of")
	}
	row, err := l.Get(t.Context(), "in_1_1")
	if err != nil {
		t.Fatal(err)
	}
	if sent, err := message.DecodeEnvelope(row.Envelope); err != nil || sent.Event != "" || sent.Version != 1 {
		t.Errorf("the first payment: %+v, %v", sent, err)
	}
	if s, err := l.Summary(t.Context(), base.AddDate(0, 0, -1), nil); err != nil || s.Paid != 1 || s.Values[0].PaidMinor != 2999 {
		t.Errorf("the first payment does not count: %+v, %v", s, err)
	}
}

// What joins a trial and its first payment goes with them; a trial that may still become a sale stays for as long as the longest lasts.
func TestPruneTrials(t *testing.T) {
	l := newLedger(t)
	l.must(trialOf(1), purchase.Processed)
	l.must(invoiceOf(1, 1), purchase.Processed)
	l.must(trialOf(2), purchase.Processed)
	l.must(invoiceOf(3, 2), purchase.Held) // of a subscription without a trial
	l.exec(`UPDATE trials SET held_at = $1 WHERE subscription_id = 'sub_3'`, base)
	gone := func(before time.Time) int {
		t.Helper()
		done, err := l.Prune(t.Context(), maintenance.Pruning{Before: before}, func(maintenance.Pruned) {})
		if err != nil {
			t.Fatal(err)
		}
		return done.Trials
	}
	if n := gone(base.Add(-oneDay)); n != 0 {
		t.Errorf("%d went before their time", n)
	}
	if n := gone(base.AddDate(0, 2, 0)); n != 2 {
		t.Errorf("%d went, want the converted one and the one without a trial", n)
	}
	// The first payment's purchase is not delivered yet, and stays; its event is known, and nothing is made twice.
	l.must(invoiceOf(1, 1), purchase.Duplicate)
	l.must(invoiceOf(1, 2), purchase.Held)
	l.must(invoiceOf(2, 1), purchase.Processed)
	l.must(trialOf(4), purchase.Processed)
	l.exec(`UPDATE trials SET held_at = $1 WHERE held_at > $1`, base)
	if first, second := gone(base.AddDate(1, 0, 0)), gone(base.AddDate(3, 0, 0)); first != 2 || second != 1 {
		t.Errorf("%d went after a year, %d after three", first, second)
	}
}

// Of a person that is forgotten no trial is left, and what Stripe still says of the subscription makes no purchase.
func TestForgetTrials(t *testing.T) {
	l := newLedger(t)
	for n := 1; n <= 3; n++ {
		l.must(trialOf(n), purchase.Processed)
	}
	l.must(invoiceOf(2, 1), purchase.Processed)
	for n := 1; n <= 2; n++ {
		email := fmt.Sprintf("buyer%d@example.com", n)
		seen, err := l.Forget(t.Context(), email)
		if err != nil {
			t.Fatal(err)
		}
		if done, err := l.Unlink(t.Context(), email, seen); err != nil || !done {
			t.Fatalf("%t, %v", done, err)
		}
	}
	if left := ask[string](l, `SELECT string_agg(subscription_id, ' ') FROM trials`); left != "sub_3" {
		t.Errorf("left: %s", left)
	}
	l.must(trialOf(1), purchase.Duplicate)
	l.must(invoiceOf(1, 1), purchase.Held)
	l.must(invoiceOf(2, 2), purchase.Held)
	if n := ask[int](l, `SELECT count(*) FROM purchases WHERE kind = 'first_payment' AND status <> 'skipped'`); n != 0 {
		t.Errorf("%d first payments of forgotten people", n)
	}
}

// inEveryOrder records receipts in every order, and all once more: want, with the trial's number for N, is
// the id of the first payment that is on the ledger afterwards.
func (l *testLedger) inEveryOrder(want string, receiptsOf func(trial int) []purchase.Receipt) {
	l.t.Helper()
	trial := 100
	for order := range orders(len(receiptsOf(0))) {
		trial++
		receipts := receiptsOf(trial)
		for range 2 {
			for _, n := range order {
				if _, err := l.Record(l.t.Context(), receipts[n]); err != nil {
					l.t.Fatal(err)
				}
			}
		}
		got := ask[string](l, `SELECT COALESCE(string_agg(checkout_session_id, ' '), 'none') FROM purchases WHERE kind = 'first_payment' AND stripe_subscription_id = $1`,
			fmt.Sprintf("sub_%d", trial))
		if want := strings.ReplaceAll(want, "N", fmt.Sprint(trial)); got != want {
			l.t.Errorf("order %v: first payment %s, want %s", order, got, want)
		}
	}
}

// A trial that was ended early converts by the invoice that ended it, at once and in every order; later ones
// are renewals.
func TestRecord_TrialEndedEarly(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.inEveryOrder("in_N_early", func(trial int) []purchase.Receipt {
		early := invoiceOf(trial, 1)
		early.Event.ID, early.Purchase.ID = fmt.Sprintf("evt_%d_early", trial), fmt.Sprintf("in_%d_early", trial)
		early.Purchase.PeriodStart = time.Time{} // purchase.Invoice.LooksBackTo
		early.Purchase.At = base.Add(3 * oneDay)
		renewal := invoiceOf(trial, 2)
		renewal.Purchase.PeriodStart, renewal.Purchase.At = base.Add(3*oneDay), base.Add(34*oneDay)
		return []purchase.Receipt{trialOf(trial), early, renewal}
	})
}

// A first period that a discount makes free converts as a trial does; its own row is no trial.
func TestRecord_DiscountedFirstPeriod(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.inEveryOrder("in_N_1", func(trial int) []purchase.Receipt {
		free := trialOf(trial)
		free.Purchase.Kind = purchase.KindCheckout
		return []purchase.Receipt{free, invoiceOf(trial, 1), invoiceOf(trial, 2)}
	})
	if n := ask[int](l, `SELECT count(*) FROM purchases WHERE kind = 'trial'`); n != 0 {
		t.Errorf("%d trials, want none", n)
	}
	if n := ask[int](l, `SELECT count(*) FROM purchases WHERE kind = 'checkout' AND (status, reason) <> ('skipped', 'no_payment')`); n != 0 {
		t.Errorf("%d discounted checkouts are more than skipped (no_payment)", n)
	}
}

// A paid trial (a little now, the plan's price later) is sold by its checkout: the later invoice never
// becomes a sale.
func TestRecord_PaidTrialIsSoldOnce(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.inEveryOrder("none", func(trial int) []purchase.Receipt {
		sold := receipt(fmt.Sprintf("evt_%d", trial), fmt.Sprintf("cs_%d", trial), purchase.StatusPending, purchase.ReasonNone)
		sold.Purchase.Subscription = fmt.Sprintf("sub_%d", trial)
		return []purchase.Receipt{sold, invoiceOf(trial, 1), invoiceOf(trial, 2)}
	})
	if n, err := l.ConvertHeld(t.Context(), 0); n != 0 || err != nil {
		t.Errorf("%d held invoices became sales, error %v", n, err)
	}
}

// By a clock of Stripe's that is ahead of ours (a test clock) a trial's invoice is still its first: both are
// of that clock.
func TestRecord_TrialByATestClock(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.inEveryOrder("in_N_1", func(trial int) []purchase.Receipt {
		began, first := trialOf(trial), invoiceOf(trial, 1)
		began.Purchase.PeriodStart = base.AddDate(0, 3, 0)
		first.Purchase.PeriodStart = base.AddDate(0, 3, 0)
		return []purchase.Receipt{began, first}
	})
}

// A trial's event has no value, whatever Stripe says that its checkout cost; the ledger keeps that.
func TestRecord_TrialHasNoValue(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	r := trialOf(1)
	r.Purchase.Status, r.Purchase.Reason, r.Purchase.EventName = purchase.StatusPending, purchase.ReasonNone, "StartTrial"
	r.Purchase.Currency, r.Claim = "usd", true
	sent, err := message.DecodeEnvelope(l.must(r, purchase.Processed).Message)
	if err != nil || sent.AmountMinor != nil || sent.Currency != "" {
		t.Errorf("envelope %+v, error %v, want neither amount nor currency", sent, err)
	}
	if row, err := l.Get(t.Context(), "cs_1"); err != nil || *row.AmountMinor != 0 || *row.Currency != "usd" {
		t.Errorf("entry %+v, error %v, want 0 usd", row, err)
	}
}
