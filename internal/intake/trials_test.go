package intake_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/intake"
	"purchase-relay/internal/purchase"
)

func invoice(change func(e *purchase.Event)) purchase.Event {
	e := purchase.Event{
		ID: "evt_2", Type: purchase.TypeInvoicePaid, Created: received.Add(-time.Hour).Truncate(time.Second), Livemode: true,
		Invoice: &purchase.Invoice{ID: "in_1", Subscription: "sub_1", Customer: "cus_1", AmountPaid: new(int64(2999)), Currency: "USD", PeriodStart: received.AddDate(0, 0, -7)},
	}
	change(&e)
	return e
}

func TestProposeInvoice(t *testing.T) {
	rules := intake.Rules{Modes: map[string]bool{"subscription": true}, FirstPayment: true}
	p, ours, err := intake.Propose(invoice(func(*purchase.Event) {}), rules, received)
	if err != nil || !ours || p.ID != "in_1" || p.Kind != purchase.KindFirstPayment || p.Status != purchase.StatusPending || p.Subscription != "sub_1" || *p.AmountMinor != 2999 ||
		p.Currency != "usd" || p.PeriodStart.IsZero() || !p.Livemode || p.At.After(received.Add(-time.Minute)) {
		t.Errorf("a first payment: %+v, %v, %v", p, ours, err)
	}
	for name, change := range map[string]func(e *purchase.Event){
		"of nothing":             func(e *purchase.Event) { e.Invoice.AmountPaid = new(int64(0)) },
		"of less than nothing":   func(e *purchase.Event) { e.Invoice.AmountPaid = new(int64(-1)) },
		"of an unknown sum":      func(e *purchase.Event) { e.Invoice.AmountPaid = nil },
		"of no subscription":     func(e *purchase.Event) { e.Invoice.Subscription = "" },
		"of a hostile one":       func(e *purchase.Event) { e.Invoice.Subscription = "sub.>" },
		"a subscription's first": func(e *purchase.Event) { e.Invoice.Reason = "subscription_create" },
		"made by hand":           func(e *purchase.Event) { e.Invoice.Reason = "manual" },
		"of single items":        func(e *purchase.Event) { e.Invoice.Reason = "automatic_pending_invoice_item_invoice" },
	} {
		if _, ours, err := intake.Propose(invoice(change), rules, received); ours || err != nil {
			t.Errorf("%s: ours %v, %v", name, ours, err)
		}
	}
	for name, change := range map[string]func(e *purchase.Event){
		"no invoice": func(e *purchase.Event) { e.Invoice = nil }, "no id": func(e *purchase.Event) { e.Invoice.ID = "" }, "a dot in the id": func(e *purchase.Event) { e.Invoice.ID = "in.1" },
	} {
		if _, _, err := intake.Propose(invoice(change), rules, received); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	rules.FirstPayment = false
	if _, ours, err := intake.Propose(invoice(func(*purchase.Event) {}), rules, received); ours || err != nil {
		t.Errorf("without FIRST_PAYMENT: ours %v, %v", ours, err)
	}
}

// What a trial, a buyer without consent and the merchant's own staff end as, under every combination of the rules.
func TestRules(t *testing.T) {
	for name, tc := range map[string]struct {
		trial            bool
		event            string // TRIAL_EVENT_NAME
		consent          string
		email            string
		want             string // status and reason
		keys, kept, told bool   // match keys, kept for the first payment, as an event of its own
	}{
		"a sale":                        {consent: "yes", want: "pending ", keys: true},
		"a sale without consent":        {consent: "no", want: "skipped no_consent"},
		"to staff":                      {consent: "yes", email: "a@staff.example", want: "skipped internal"},
		"to staff without consent":      {consent: "no", email: "a@staff.example", want: "skipped no_consent"},
		"a trial":                       {trial: true, consent: "yes", want: "skipped no_payment", keys: true, kept: true},
		"a trial without consent":       {trial: true, consent: "no", want: "skipped no_payment", kept: true},
		"a trial that is told":          {trial: true, event: "StartTrial", consent: "yes", want: "pending ", keys: true, kept: true, told: true},
		"a trial that must not be told": {trial: true, event: "StartTrial", consent: "no", want: "skipped no_consent", kept: true},
		"a trial of staff":              {trial: true, event: "StartTrial", consent: "yes", email: "a@staff.example", want: "skipped internal", kept: true},
	} {
		rules := intake.Rules{
			Modes: map[string]bool{"subscription": true}, Consent: purchase.Consent{Key: "consent", Required: true}, Staff: purchase.Domains{"staff.example"},
			TrialEvent: tc.event, FirstPayment: true,
		}
		p, ours, err := intake.Propose(event(func(e *purchase.Event) {
			e.Checkout.Metadata = map[string]string{"consent": tc.consent, "ttclid": "E.C.P.abc", "content_id": "42", "limited_data_use": "true"}
			if tc.trial {
				e.Checkout.PaymentStatus, e.Checkout.AmountTotal = "no_payment_required", new(int64(0))
			}
			if tc.email != "" {
				e.Checkout.Email = tc.email
			}
		}), rules, received)
		if err != nil || !ours || string(p.Status)+" "+string(p.Reason) != tc.want || p.Trial != tc.kept || (p.EventName != "") != tc.told {
			t.Errorf("%s: %s %s, kept %v, told as %q, %v", name, p.Status, p.Reason, p.Trial, p.EventName, err)
		}
		if (p.Keys != purchase.MatchKeys{}) != tc.keys || (p.Content != nil) != tc.keys || p.LimitedDataUse != tc.keys || (p.Withheld == "") != tc.keys {
			t.Errorf("%s: keys %+v, content %v, withheld %q", name, p.Keys, p.Content, p.Withheld)
		}
	}
}

// held converts as many as it is told to.
type held struct {
	answers []int // -1 is an error
	asked   []time.Duration
}

func (h *held) ConvertHeld(_ context.Context, patience time.Duration) (int, error) {
	h.asked = append(h.asked, patience)
	if n := len(h.asked); n > len(h.answers) || h.answers[n-1] == 0 {
		return 0, nil
	} else if h.answers[n-1] < 0 {
		return 0, errors.New("connection refused")
	}
	return h.answers[len(h.asked)-1], nil
}

// Invoices that wait are looked at again and again, whatever an earlier look came to; the relay is woken for what became a purchase.
func TestKeepConverted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, woken := &held{answers: []int{0, -1, 2}}, 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := intake.KeepConverted(h, func() { woken++ }, zap.NewNop())(ctx); err != nil {
			t.Error(err)
		}
		if len(h.asked) < 4 || h.asked[0] != purchase.HeldFor || woken != 1 {
			t.Errorf("asked %v, woke %d", h.asked, woken)
		}
	})
}
