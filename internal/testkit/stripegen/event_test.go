package stripegen_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stripe/stripe-go/v76"
	"github.com/tidwall/gjson"

	"purchase-relay/internal/testkit/stripegen"
)

// parse decodes an event and its object with Stripe's own types.
func parse(t *testing.T, body []byte, object any) (e stripe.Event) {
	t.Helper()
	if err := json.Unmarshal(body, &e); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(e.Data.Raw, object); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestCheckout_ParsesAsStripeTypes(t *testing.T) {
	t.Parallel()
	base := stripegen.NewCheckout()
	delayed := base.Delayed("konbini")
	const completed = "checkout.session.completed"
	for name, tc := range map[string]struct {
		checkout stripegen.Checkout
		kind     string
		status   stripe.CheckoutSessionPaymentStatus
		method   string
		amount   int64
		live     bool
		after    time.Duration
	}{
		"paid":    {base, completed, "paid", "card", 2999, false, 0},
		"live":    {base.Live(), completed, "paid", "card", 2999, true, 0},
		"trial":   {base.Trial(), completed, "no_payment_required", "card", 0, false, 0},
		"free":    {base.Free(), completed, "paid", "card", 0, false, 0},
		"delayed": {delayed, completed, "unpaid", "konbini", 2999, false, 0},
		"delayed, paid": {
			delayed.AsyncSucceeded(time.Hour), "checkout.session.async_payment_succeeded", "paid", "konbini", 2999,
			false, time.Hour,
		},
		"delayed, failed": {
			delayed.AsyncFailed(time.Hour), "checkout.session.async_payment_failed", "unpaid", "konbini", 2999,
			false, time.Hour,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var s stripe.CheckoutSession
			c := tc.checkout
			e := parse(t, c.Event(), &s)
			if e.ID != c.EventID || string(e.Type) != tc.kind || e.Livemode != tc.live ||
				e.Created != base.Created.Add(tc.after).Unix() {
				t.Errorf("event = %+v", e)
			}
			if s.ID != c.SessionID || s.Livemode != tc.live || s.PaymentStatus != tc.status ||
				s.PaymentMethodTypes[0] != tc.method || s.AmountTotal != tc.amount || s.Currency != "usd" ||
				s.Created != base.Created.Add(-time.Minute).Unix() || s.Subscription.ID != base.Subscription ||
				s.CustomerDetails.Email != *base.Email || s.CustomerDetails.Address.Country != "US" {
				t.Errorf("session = %+v", s)
			}
			if diff := cmp.Diff(base.Metadata, s.Metadata); diff != "" {
				t.Errorf("metadata (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCheckout_SendsNulls(t *testing.T) {
	t.Parallel()
	c := stripegen.NewCheckout()
	c.Currency, c.AmountTotal, c.Customer, c.NoDetails = nil, nil, "", true
	object := gjson.GetBytes(c.Event(), "data.object")
	for _, key := range []string{
		"currency", "amount_total", "customer", "customer_details", "customer_email", "locale",
	} {
		if got := object.Get(key).Raw; got != "null" {
			t.Errorf("%s = %s, want null", key, got)
		}
	}
}

func TestInvoice_ParsesAsStripeTypes(t *testing.T) {
	t.Parallel()
	c := stripegen.NewCheckout()
	const week = 7 * 24 * time.Hour
	invoices := c.Invoices(week, 2*week, 3)
	for n, want := range []struct {
		reason       stripe.InvoiceBillingReason
		paid         int64
		start, after time.Duration
	}{
		{"subscription_create", 0, 0, 0},
		{"subscription_cycle", 2999, 0, week},
		{"subscription_cycle", 2999, week, 3 * week},
	} {
		var i stripe.Invoice
		e := parse(t, invoices[n].Event(), &i)
		if e.Type != "invoice.paid" || i.ID != invoices[n].InvoiceID || i.BillingReason != want.reason ||
			i.AmountPaid != want.paid || i.PeriodStart != c.Created.Add(want.start).Unix() ||
			i.PeriodEnd != c.Created.Add(want.after).Unix() {
			t.Errorf("invoice %d of event %s = %+v", n, e.Type, i)
		}
	}
	for version, path := range map[string]string{
		"2020-08-27": "subscription", "2025-06-30.basil": "parent.subscription_details.subscription",
	} {
		invoices[1].APIVersion = version
		if got := gjson.GetBytes(invoices[1].Event(), "data.object."+path).String(); got != c.Subscription {
			t.Errorf("%s: subscription = %q, want %q", version, got, c.Subscription)
		}
	}
}
