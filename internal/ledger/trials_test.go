package ledger_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/ledgertest"
	"purchase-relay/internal/testkit/permute"
)

const oneDay = 24 * time.Hour

// A trial, its first invoice and two renewals are recorded in every order, sequentially or concurrently, and
// then again: the first invoice alone becomes the purchase, with the trial's match keys.
func TestRecord_TrialInEveryOrder(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	trial := 0
	for _, order := range permute.Of(4) {
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
			var group sync.WaitGroup
			for i, r := range receipts {
				record := func() {
					var err error
					if recorded[i], err = l.Record(context.Background(), r); err != nil {
						t.Error(err)
					}
				}
				if concurrent {
					group.Go(record)
				} else {
					record()
				}
			}
			group.Wait()
			first, reported := fmt.Sprintf("in_%d_1", trial), 0
			for _, r := range recorded {
				if r.FirstPayment == first {
					reported++
				}
			}
			if reported != 1 {
				t.Errorf("%v, concurrent = %t: reported %d times, want once", order, concurrent, reported)
			}
			for _, r := range receipts {
				again, err := l.Record(t.Context(), r)
				if err != nil || again.Disposition != purchase.Duplicate && again.Disposition != purchase.Ignored {
					t.Errorf("%v: repeat of %s = %s, %v, want a duplicate", order, r.Event.ID, again.Disposition, err)
				}
			}
			l.firstPaymentIs(trial, first)
		}
	}
	if n := ask[int](l, `SELECT count(*) FROM purchases`); n != 2*trial {
		t.Errorf("purchases of %d trials = %d, want two each", trial, n)
	}
	l.convertHeld(0, 0)
}

// convertHeld converts held invoices and checks their number.
func (l *testLedger) convertHeld(holdFor time.Duration, want int) {
	l.T.Helper()
	if n, err := l.ConvertHeld(l.T.Context(), holdFor); err != nil || n != want {
		l.T.Errorf("ConvertHeld(%s) = %d, %v, want %d", holdFor, n, err, want)
	}
}

// storedPurchase is a purchases row, with zero values for null.
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
	l.T.Helper()
	err := l.Conn.QueryRow(l.T.Context(), `
		SELECT status, reason, kind, COALESCE(trial_session_id, ''), COALESCE(profile_id::text, ''), amount_minor,
			COALESCE(currency, ''), purchased_at, envelope, COALESCE(match_keys, 0), finished_at IS NOT NULL
		FROM purchases WHERE checkout_session_id = $1`, id).Scan(
		&p.status, &p.reason, &p.kind, &p.trial, &p.profile, &p.amount,
		&p.currency, &p.paid, &p.envelope, &p.matchKeys, &p.finished)
	if err != nil {
		l.T.Fatalf("purchase %s: %v", id, err)
	}
	return p
}

// firstPaymentIs checks the first payment of a trial.
func (l *testLedger) firstPaymentIs(trial int, id string) {
	l.T.Helper()
	p, session := l.stored(id), fmt.Sprintf("cs_%d", trial)
	if p.kind != purchase.KindFirstPayment || p.trial != session || p.status != purchase.StatusPending ||
		p.amount != 2999 || p.profile == "" {
		l.T.Errorf("first payment = %+v, want a pending one of 2999 of %s", p, session)
	}
	sent, err := message.DecodeEnvelope(p.envelope)
	if err != nil {
		l.T.Fatal(err)
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
		l.T.Errorf("envelope (-want +got):\n%s", diff)
	}
	const keys = 1 | 4 | purchase.LateClickMask // the click is eight days old
	if p.matchKeys != keys {
		l.T.Errorf("match keys = %b, want %b", p.matchKeys, keys)
	}
	if trial := l.stored(session); trial.kind != purchase.KindTrial || trial.envelope != nil {
		l.T.Errorf("trial = %+v, want one without an envelope", trial)
	}
	const link = `SELECT purchase_id FROM trials WHERE checkout_session_id = $1 AND envelope IS NULL`
	if first := ask[string](l, link, session); first != id {
		l.T.Errorf("first payment of the trial = %q, want %q", first, id)
	}
}

// The first invoice was never paid. The earliest paid one becomes the first payment when the hold expires.
func TestConvertHeld_FirstInvoiceNeverPaid(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.Must(invoiceOf(1, 3), purchase.Held)
	l.Must(trialOf(1), purchase.Processed)
	l.Must(invoiceOf(1, 2), purchase.Held)
	l.convertHeld(purchase.InvoiceHoldTime, 0)
	l.convertHeld(0, 1)
	l.convertHeld(0, 0)
	l.Must(invoiceOf(1, 1), purchase.Ignored)
	l.firstPaymentIs(1, "in_1_2")
}

// The first payment of a buyer without consent, of staff and of a forgotten buyer is recorded but never sent,
// and no match key is kept.
func TestRecord_WithheldFirstPayment(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	reasons := []purchase.Reason{purchase.ReasonNoConsent, purchase.ReasonInternal, purchase.ReasonForgotten}
	for i, reason := range reasons {
		n := i + 1
		r := trialOf(n)
		if n < 3 {
			r.Purchase.Withheld, r.Purchase.Keys = reason, purchase.MatchKeys{}
		}
		l.Must(r, purchase.Processed)
		l.Exec(`UPDATE trials SET envelope = NULL, profile_id = gen_random_uuid()
			WHERE checkout_session_id = 'cs_3'`)
		invoice := invoiceOf(n, 1)
		invoice.Claim = true
		recorded := l.Must(invoice, purchase.Processed)
		if recorded.Message != nil || !recorded.Claimed.IsZero() || recorded.LateClick {
			t.Errorf("%s: recorded = %+v, want nothing to publish", reason, recorded)
		}
		id := invoice.Purchase.ID
		p := l.stored(id)
		if p.status != purchase.StatusSkipped || p.reason != reason || p.envelope != nil || !p.finished {
			t.Errorf("%s: row = %+v, want it skipped without an envelope", reason, p)
		}
		if n, err := l.Replay(t.Context(), maintenance.Selection{ID: id}, func(int) {}); n != 0 || err == nil {
			t.Errorf("%s: Replay = %d, %v, want an error", reason, n, err)
		}
		l.Must(invoiceOf(n, 2), purchase.Ignored)
	}
	if n := ask[int](l, `SELECT count(*) FROM trials WHERE envelope IS NOT NULL`); n != 0 {
		t.Errorf("trials with match keys = %d, want 0", n)
	}
}

// A trial that is sent as its own event has no value and is not counted as paid. The ledger keeps its amount.
// Its first payment is sent as a purchase.
func TestRecord_SentTrial(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	r := trialOf(1)
	r.Purchase.Status, r.Purchase.Reason = purchase.StatusPending, purchase.ReasonNone
	r.Purchase.EventName = "StartTrial"
	r.Claim = true
	sent, err := message.DecodeEnvelope(l.Must(r, purchase.Processed).Message)
	if err != nil || sent.Event != "StartTrial" || sent.EventID != "cs_1" || sent.AmountMinor != nil ||
		sent.Currency != "" {
		t.Errorf("trial's envelope = %+v, %v, want StartTrial of cs_1 without a value", sent, err)
	}
	if p := l.stored("cs_1"); p.amount != 0 || p.currency != "usd" {
		t.Errorf("amount = %d %s, want 0 usd", p.amount, p.currency)
	}
	summary := func() report.Summary {
		t.Helper()
		s, err := l.Summary(t.Context(), ledgertest.Since(base.AddDate(0, 0, -1)), nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := summary(); s.Paid != 0 || len(s.Values) != 0 || s.Coverage.Of != 1 {
		t.Errorf("summary of a trial = %+v, want nothing paid", s)
	}
	if recorded := l.Must(invoiceOf(1, 1), purchase.Processed); !recorded.LateClick {
		t.Error("LateClick = false, want true")
	}
	sent, err = message.DecodeEnvelope(l.stored("in_1_1").envelope)
	if err != nil || sent.Event != "" || sent.Version != 1 {
		t.Errorf("first payment's envelope = %+v, %v, want the default event", sent, err)
	}
	if s := summary(); s.Paid != 1 || s.Values[0].PaidMinor != 2999 {
		t.Errorf("summary of a first payment = %+v, want one paid", s)
	}
}

// A converted trial is pruned like its purchases. A trial that may still convert is kept as long as the
// longest trial.
func TestPrune_Trials(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.Must(trialOf(1), purchase.Processed)
	l.Must(invoiceOf(1, 1), purchase.Processed)
	l.Must(trialOf(2), purchase.Processed)
	l.Must(invoiceOf(3, 2), purchase.Held) // without a trial
	l.Exec(`UPDATE trials SET held_at = $1 WHERE subscription_id = 'sub_3'`, base)
	prune := func(before time.Time, want int) {
		t.Helper()
		pruned, err := l.Prune(t.Context(), maintenance.Pruning{Before: before}, func(maintenance.Pruned) {})
		if err != nil || pruned.Trials != want {
			t.Errorf("Prune(%s) = %d trials, %v, want %d", before, pruned.Trials, err, want)
		}
	}
	prune(base.Add(-oneDay), 0)
	prune(base.AddDate(0, 2, 0), 2) // sub_1 and sub_3
	// The pending first payment and its event are kept, so nothing is recorded twice.
	l.Must(invoiceOf(1, 1), purchase.Duplicate)
	l.Must(invoiceOf(1, 2), purchase.Held)
	l.Must(invoiceOf(2, 1), purchase.Processed)
	l.Must(trialOf(4), purchase.Processed)
	l.Exec(`UPDATE trials SET held_at = $1 WHERE held_at > $1`, base)
	prune(base.AddDate(1, 0, 0), 2)
	prune(base.AddDate(3, 0, 0), 1)
}

// Trials of a forgotten buyer are deleted. Later events of their subscriptions make no purchase.
func TestForget_Trials(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for n := 1; n <= 3; n++ {
		l.Must(trialOf(n), purchase.Processed)
	}
	l.Must(invoiceOf(2, 1), purchase.Processed)
	for n := 1; n <= 2; n++ {
		email := fmt.Sprintf("buyer%d@example.com", n)
		person, err := l.Forget(t.Context(), email)
		if err != nil {
			t.Fatal(err)
		}
		if _, done, err := l.Unlink(t.Context(), email, person); err != nil || !done {
			t.Fatalf("Unlink = %t, %v, want true", done, err)
		}
	}
	if left := ask[string](l, `SELECT string_agg(subscription_id, ' ') FROM trials`); left != "sub_3" {
		t.Errorf("trials left = %s, want sub_3", left)
	}
	l.Must(trialOf(1), purchase.Duplicate)
	l.Must(invoiceOf(1, 1), purchase.Held)
	l.Must(invoiceOf(2, 2), purchase.Held)
	n := ask[int](l, `SELECT count(*) FROM purchases WHERE kind = 'first_payment' AND status <> 'skipped'`)
	if n != 0 {
		t.Errorf("first payments of forgotten buyers = %d, want 0", n)
	}
}

// inEveryOrder records receipts twice in every order and checks the id of the first payment: want, with N
// replaced by the trial's number.
func (l *testLedger) inEveryOrder(want string, receiptsOf func(trial int) []purchase.Receipt) {
	l.T.Helper()
	trial := 100
	for _, order := range permute.Of(len(receiptsOf(0))) {
		trial++
		receipts := receiptsOf(trial)
		for range 2 {
			for _, n := range order {
				if _, err := l.Record(l.T.Context(), receipts[n]); err != nil {
					l.T.Fatal(err)
				}
			}
		}
		got := ask[string](l, `SELECT COALESCE(string_agg(checkout_session_id, ' '), 'none') FROM purchases
			WHERE kind = 'first_payment' AND stripe_subscription_id = $1`, fmt.Sprintf("sub_%d", trial))
		if want := strings.ReplaceAll(want, "N", fmt.Sprint(trial)); got != want {
			l.T.Errorf("order %v: first payment = %s, want %s", order, got, want)
		}
	}
}

// The invoice of a trial that was ended early has no period. It is held for the trial and converts with it.
func TestRecord_TrialEndedEarly(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	early := invoiceOf(1, 1)
	early.Purchase.PeriodStart = time.Time{} // purchase.Invoice.PreviousPeriodStart
	l.Must(early, purchase.Held)
	l.Must(trialOf(1), purchase.Processed)
	l.firstPaymentIs(1, "in_1_1")
}

// A first period that is free by discount converts like a trial, but its row is no trial.
func TestRecord_DiscountedFirstPeriod(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.inEveryOrder("in_N_1", func(trial int) []purchase.Receipt {
		free := trialOf(trial)
		free.Purchase.Kind = purchase.KindCheckout
		return []purchase.Receipt{free, invoiceOf(trial, 1), invoiceOf(trial, 2)}
	})
	if n := ask[int](l, `SELECT count(*) FROM purchases WHERE kind = 'trial'`); n != 0 {
		t.Errorf("trials = %d, want 0", n)
	}
	n := ask[int](l, `SELECT count(*) FROM purchases
		WHERE kind = 'checkout' AND (status, reason) <> ('skipped', 'no_payment')`)
	if n != 0 {
		t.Errorf("checkouts that are not skipped (no_payment) = %d, want 0", n)
	}
}

// The checkout of a paid trial (a small amount now, the plan's price later) is the sale. Later invoices never
// become sales.
func TestRecord_PaidTrialIsOneSale(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.inEveryOrder("none", func(trial int) []purchase.Receipt {
		sold := paid(fmt.Sprintf("evt_%d", trial), fmt.Sprintf("cs_%d", trial))
		sold.Purchase.Subscription = fmt.Sprintf("sub_%d", trial)
		return []purchase.Receipt{sold, invoiceOf(trial, 1), invoiceOf(trial, 2)}
	})
	l.convertHeld(0, 0)
}
