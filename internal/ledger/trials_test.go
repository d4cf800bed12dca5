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
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

const oneDay = 24 * time.Hour

// A trial, its first invoice and two renewals are recorded in every order, one by one or concurrently, and
// each once more: the first invoice becomes the purchase, with the trial's match keys, and nothing else does.
func TestRecord_TrialInEveryOrder(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	trial := 0
	for order := range orders(4) {
		for _, concurrent := range []bool{false, true} {
			trial++
			var receipts []purchase.Receipt
			for _, n := range order {
				if n == 0 {
					receipts = append(receipts, trialOf(trial))
				} else {
					receipts = append(receipts, invoiceOf(trial, n))
				}
			}
			recorded := make([]purchase.Recorded, len(receipts))
			var all sync.WaitGroup
			for i, r := range receipts {
				record := func() {
					var err error
					if recorded[i], err = l.Record(context.Background(), r); err != nil {
						t.Error(err)
					}
				}
				if concurrent {
					all.Go(record)
				} else {
					record()
				}
			}
			all.Wait()
			first, reported := fmt.Sprintf("in_%d_1", trial), 0
			for _, r := range recorded {
				if r.FirstPayment == first {
					reported++
				}
			}
			if reported != 1 {
				t.Errorf("%v, concurrent %v: reported %d times, want once", order, concurrent, reported)
			}
			for _, r := range receipts {
				again, err := l.Record(t.Context(), r)
				if err != nil || again.Disposition != purchase.Duplicate && again.Disposition != purchase.Ignored {
					t.Errorf("%v: %s again is %s, %v", order, r.Event.ID, again.Disposition, err)
				}
			}
			l.firstPaymentIs(trial, first)
		}
	}
	if n := ask[int](l, `SELECT count(*) FROM purchases`); n != 2*trial {
		t.Errorf("%d rows of %d trials, want two each", n, trial)
	}
	if n, err := l.ConvertHeld(t.Context(), 0); n != 0 || err != nil {
		t.Errorf("%d invoices were held, %v, want none", n, err)
	}
}

// storedPurchase is a row of purchases; what is null is empty.
type storedPurchase struct {
	status         purchase.Status
	reason         purchase.Reason
	kind           purchase.Kind
	trial, profile string
	amount         int64
	currency       string
	paid           time.Time
	envelope       []byte
	matchKeys      int16
	finished       bool
}

// stored reads a purchase's row.
func (l *testLedger) stored(id string) (p storedPurchase) {
	l.t.Helper()
	err := l.conn.QueryRow(l.t.Context(), `
		SELECT status, reason, kind, COALESCE(trial_session_id, ''), COALESCE(profile_id::text, ''), amount_minor,
			COALESCE(currency, ''), purchased_at, envelope, COALESCE(match_keys, 0), finished_at IS NOT NULL
		FROM purchases WHERE checkout_session_id = $1`, id).Scan(
		&p.status, &p.reason, &p.kind, &p.trial, &p.profile, &p.amount,
		&p.currency, &p.paid, &p.envelope, &p.matchKeys, &p.finished)
	if err != nil {
		l.t.Fatalf("purchase %s: %v", id, err)
	}
	return p
}

// firstPaymentIs checks a trial's purchase.
func (l *testLedger) firstPaymentIs(trial int, id string) {
	l.t.Helper()
	p, session := l.stored(id), fmt.Sprintf("cs_%d", trial)
	if p.kind != purchase.KindFirstPayment || p.trial != session || p.status != purchase.StatusPending ||
		p.amount != 2999 || p.profile == "" {
		l.t.Errorf("first payment: %+v", p)
	}
	sent, err := message.DecodeEnvelope(p.envelope)
	if err != nil {
		l.t.Fatal(err)
	}
	want := message.Envelope{
		Version: 1, EventID: id, Livemode: true, PurchasedAt: p.paid.Unix(),
		AmountMinor: new(int64(2999)), Currency: "usd",
		Keys: purchase.MatchKeys{
			Email: purchase.HashEmail(fmt.Sprintf("buyer%d@example.com", trial)), TTCLID: "E.C.P.abc",
			ExternalID: purchase.HashExternalID(p.profile),
		},
	}
	if diff := cmp.Diff(want, sent); diff != "" {
		l.t.Errorf("envelope (-want +got):\n%s", diff)
	}
	if p.matchKeys != 1|4|purchase.LateClickMask { // the click is eight days old
		l.t.Errorf("match keys = %b", p.matchKeys)
	}
	if began := l.stored(session); began.kind != purchase.KindTrial || began.envelope != nil {
		l.t.Errorf("trial: %+v", began)
	}
	const link = `SELECT purchase_id FROM trials WHERE checkout_session_id = $1 AND envelope IS NULL`
	if first := ask[string](l, link, session); first != id {
		l.t.Errorf("first payment of the trial = %q, want %q", first, id)
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

// The invoice that looks back on the trial was never paid. The first paid one becomes the first payment when
// the hold expires.
func TestConvertHeld_FirstInvoiceNeverPaid(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.must(invoiceOf(1, 3), purchase.Held)
	l.must(trialOf(1), purchase.Processed)
	l.must(invoiceOf(1, 2), purchase.Held)
	for i, tc := range []struct {
		holdFor time.Duration
		want    int
	}{{purchase.InvoiceHoldTime, 0}, {0, 1}, {0, 0}} {
		if n, err := l.ConvertHeld(t.Context(), tc.holdFor); n != tc.want || err != nil {
			t.Fatalf("pass %d: converted %d, %v, want %d", i, n, err, tc.want)
		}
	}
	l.must(invoiceOf(1, 1), purchase.Ignored)
	l.firstPaymentIs(1, "in_1_2")
}

// The first payment of a buyer who did not consent, is staff or was forgotten is recorded and never sent; no
// match key is kept.
func TestRecord_WithheldFirstPayment(t *testing.T) {
	t.Parallel()
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
		l.exec(`UPDATE trials SET envelope = NULL, profile_id = gen_random_uuid()
			WHERE checkout_session_id = 'cs_3'`)
		i := invoiceOf(n, 1)
		i.Claim = true
		recorded := l.must(i, purchase.Processed)
		if recorded.Message != nil || !recorded.Claimed.IsZero() || recorded.LateClick {
			t.Errorf("%s: recorded %+v, want nothing to publish", reason, recorded)
		}
		id := i.Purchase.ID
		p := l.stored(id)
		if p.status != purchase.StatusSkipped || p.reason != reason || p.envelope != nil || !p.finished {
			t.Errorf("%s: %+v", reason, p)
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

// A trial that is sent as an event of its own is not counted as paid, and its first payment is no trial.
func TestRecord_SentTrial(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	r := trialOf(1)
	r.Purchase.Status, r.Purchase.Reason = purchase.StatusPending, purchase.ReasonNone
	r.Purchase.EventName = "StartTrial"
	r.Claim = true
	sent, err := message.DecodeEnvelope(l.must(r, purchase.Processed).Message)
	if err != nil || sent.Event != "StartTrial" || sent.EventID != "cs_1" {
		t.Errorf("the trial: %+v, %v", sent, err)
	}
	summary := func() report.Summary {
		t.Helper()
		s, err := l.Summary(t.Context(), base.AddDate(0, 0, -1), nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := summary(); s.Paid != 0 || len(s.Values) != 0 || s.Coverage.Of != 1 {
		t.Errorf("summary of a trial = %+v, want nothing paid", s)
	}
	if recorded := l.must(invoiceOf(1, 1), purchase.Processed); !recorded.LateClick {
		t.Error("the late click id is not reported")
	}
	sent, err = message.DecodeEnvelope(l.stored("in_1_1").envelope)
	if err != nil || sent.Event != "" || sent.Version != 1 {
		t.Errorf("first payment: %+v, %v", sent, err)
	}
	if s := summary(); s.Paid != 1 || s.Values[0].PaidMinor != 2999 {
		t.Errorf("summary of a first payment = %+v, want one paid", s)
	}
}

// A converted trial is pruned with its purchases. A trial that may still become a sale is kept as long as the
// longest trial lasts.
func TestPrune_Trials(t *testing.T) {
	t.Parallel()
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
	// The first payment's purchase is not delivered yet, and stays; its event is known, and nothing is made
	// twice.
	l.must(invoiceOf(1, 1), purchase.Duplicate)
	l.must(invoiceOf(1, 2), purchase.Held)
	l.must(invoiceOf(2, 1), purchase.Processed)
	l.must(trialOf(4), purchase.Processed)
	l.exec(`UPDATE trials SET held_at = $1 WHERE held_at > $1`, base)
	if first, second := gone(base.AddDate(1, 0, 0)), gone(base.AddDate(3, 0, 0)); first != 2 || second != 1 {
		t.Errorf("%d went after a year, %d after three", first, second)
	}
}

// No trial of a forgotten person is left, and later events of the subscription make no purchase.
func TestForget_Trials(t *testing.T) {
	t.Parallel()
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
	n := ask[int](l, `SELECT count(*) FROM purchases WHERE kind = 'first_payment' AND status <> 'skipped'`)
	if n != 0 {
		t.Errorf("%d first payments of forgotten people", n)
	}
}

// inEveryOrder records receipts in every order, each once more afterwards, and checks the id of the first
// payment: want, with the trial's number for N.
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
		got := ask[string](l, `SELECT COALESCE(string_agg(checkout_session_id, ' '), 'none') FROM purchases
			WHERE kind = 'first_payment' AND stripe_subscription_id = $1`, fmt.Sprintf("sub_%d", trial))
		if want := strings.ReplaceAll(want, "N", fmt.Sprint(trial)); got != want {
			l.t.Errorf("order %v: first payment %s, want %s", order, got, want)
		}
	}
}

// The invoice that ends a trial early looks back on no period. It is held for the trial, and converts with
// it.
func TestRecord_TrialEndedEarly(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	early := invoiceOf(1, 1)
	early.Purchase.PeriodStart = time.Time{} // purchase.Invoice.PreviousPeriodStart
	l.must(early, purchase.Held)
	l.must(trialOf(1), purchase.Processed)
	l.firstPaymentIs(1, "in_1_1")
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
	n := ask[int](l, `SELECT count(*) FROM purchases
		WHERE kind = 'checkout' AND (status, reason) <> ('skipped', 'no_payment')`)
	if n != 0 {
		t.Errorf("%d discounted checkouts are not skipped (no_payment)", n)
	}
}

// A paid trial (a little now, the plan's price later) is sold by its checkout: the later invoice never
// becomes a sale.
func TestRecord_PaidTrialIsSoldOnce(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.inEveryOrder("none", func(trial int) []purchase.Receipt {
		sold := receipt(fmt.Sprintf("evt_%d", trial), fmt.Sprintf("cs_%d", trial), purchase.StatusPending, "")
		sold.Purchase.Subscription = fmt.Sprintf("sub_%d", trial)
		return []purchase.Receipt{sold, invoiceOf(trial, 1), invoiceOf(trial, 2)}
	})
	if n, err := l.ConvertHeld(t.Context(), 0); n != 0 || err != nil {
		t.Errorf("%d held invoices became sales, error %v", n, err)
	}
}

// A trial's event has no value, whatever Stripe says that its checkout cost; the ledger keeps that.
func TestRecord_TrialHasNoValue(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	r := trialOf(1)
	r.Purchase.Status, r.Purchase.Reason = purchase.StatusPending, purchase.ReasonNone
	r.Purchase.EventName = "StartTrial"
	r.Purchase.Currency, r.Claim = "usd", true
	sent, err := message.DecodeEnvelope(l.must(r, purchase.Processed).Message)
	if err != nil || sent.AmountMinor != nil || sent.Currency != "" {
		t.Errorf("envelope %+v, error %v, want neither amount nor currency", sent, err)
	}
	if p := l.stored("cs_1"); p.amount != 0 || p.currency != "usd" {
		t.Errorf("purchase of %d %s, want 0 usd", p.amount, p.currency)
	}
}
