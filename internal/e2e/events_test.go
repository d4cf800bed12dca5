package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/permute"
	"purchase-relay/internal/testkit/stripegen"
)

// Each row is an event with its answer, the state that its purchase reaches, and the value that TikTok gets.
func TestWebhook_EveryEvent(t *testing.T) {
	t.Parallel()
	const both, subscriptionOnly = "CHECKOUT_MODES=subscription,payment", "CHECKOUT_MODES=subscription"
	type want struct {
		answer string
		state  string // status and reason on the ledger; "": no row
		value  string // value and currency at TikTok; "": sent without both
	}
	delivered, ignored := want{"processed", "delivered", "29.99 USD"}, want{"ignored", "", ""}
	noValue, noPayment := want{"processed", "delivered", ""}, want{"processed", "skipped no_payment", ""}
	rejected := want{"rejected", "rejected invalid_email", ""}
	awaiting, failed := want{"awaiting_payment", "awaiting_payment", ""}, want{"processed", "payment_failed", ""}
	yen := want{"processed", "delivered", "800 JPY"}
	type checkout = stripegen.Checkout
	rows := []struct {
		name   string
		want   want
		change func(c *checkout)
	}{
		{"paid subscription", delivered, func(*checkout) {}},
		{"test purchase", delivered, func(c *checkout) {
			c.Livemode, c.SessionID = false, stripegen.ID("cs_test_", 40)
		}},
		{"single payment", delivered, func(c *checkout) { c.Mode, c.Subscription = "payment", "" }},
		{"setup of a card", ignored, func(c *checkout) {
			c.Mode, c.PaymentStatus, c.Subscription = "setup", "no_payment_required", ""
			c.AmountTotal, c.Currency = nil, nil
		}},
		{"another type", ignored, func(c *checkout) { c.Type = "checkout.session.expired" }},
		{"trial", noPayment, func(c *checkout) {
			c.PaymentStatus, c.AmountTotal = "no_payment_required", new(int64(0))
		}},
		{"unpaid", awaiting, func(c *checkout) { c.PaymentStatus = "unpaid" }},
		{"delayed payment succeeded, first event", delivered, func(c *checkout) {
			c.Type = "checkout.session.async_payment_succeeded"
		}},
		{"delayed payment failed", failed, func(c *checkout) {
			c.Type, c.PaymentStatus = "checkout.session.async_payment_failed", "unpaid"
		}},
		{"prefilled address only", delivered, func(c *checkout) { c.Email, c.CustomerEmail = nil, c.Email }},
		{"no address", rejected, func(c *checkout) { c.Email = nil }},
		{"invalid address", rejected, func(c *checkout) { c.Email = new("buyer at example") }},
		{"no details, no address", rejected, func(c *checkout) { c.NoDetails = true }},
		{"no details, an address", delivered, func(c *checkout) { c.NoDetails, c.CustomerEmail = true, c.Email }},
		{"no currency", noValue, func(c *checkout) { c.Currency = nil }},
		{"no amount", noValue, func(c *checkout) { c.AmountTotal = nil }},
		{"no name, phone, country, customer, metadata", delivered, func(c *checkout) {
			c.Name, c.Phone, c.Country, c.Customer, c.Subscription, c.Metadata = nil, nil, "", "", "", nil
		}},
		{"no decimals", yen, func(c *checkout) { c.AmountTotal, c.Currency = new(int64(800)), new("jpy") }},
		{"full discount with status paid", noPayment, func(c *checkout) {
			c.AmountTotal, c.Discount = new(int64(0)), 2999
		}},
		{"future API version", delivered, func(c *checkout) { c.APIVersion = "2031-01-01.zinnia" }},
	}
	for _, modes := range []string{both, subscriptionOnly} {
		t.Run(modes, func(t *testing.T) {
			s := newStack(t, modes, "TIKTOK_TEST_MODE=send", "TIKTOK_TEST_EVENT_CODE=TEST1")
			for _, row := range rows {
				c := stripegen.NewCheckout().Live()
				c.Created = c.Created.Add(-time.Hour)
				row.change(&c)
				want := row.want
				if modes == subscriptionOnly && c.Mode == "payment" {
					want = ignored
				}
				if !s.post(c.Event(), http.StatusOK, `{"status":"`+want.answer+`"}`) {
					t.Errorf("%s: wrong answer", row.name)
					continue
				}
				s.awaitState(row.name, c, want.state)
				if want.state != "delivered" {
					continue
				}
				e := s.event(c.SessionID)
				b := bodyOf(t, e)
				email := c.Email
				if email == nil || c.NoDetails {
					email = c.CustomerEmail
				}
				value := strings.TrimSpace(b.Properties.Value.String() + " " + b.Properties.Currency)
				if value != want.value {
					t.Errorf("%s: value = %q, want %q", row.name, value, want.value)
				}
				if b.EventTime != c.Created.Unix() || b.User["email"] != sha(strings.ToLower(*email)) ||
					(e.TestEventCode == "") != c.Livemode {
					t.Errorf("%s: wrong time, address or test event code: %s (%+v)", row.name, e.Body, e)
				}
			}
			copies := 0
			for _, e := range s.sim.Received() {
				copies += e.Copies
			}
			if delivered := s.count("delivered"); copies != delivered {
				t.Errorf("TikTok received %d events, want %d", copies, delivered)
			}
		})
	}
}

// awaitState waits until a purchase has a status and a reason. "" means that it has no row.
func (s *stack) awaitState(name string, c stripegen.Checkout, want string) {
	s.t.Helper()
	if want == "" {
		if n := s.rows(`purchases WHERE checkout_session_id = $1`, c.SessionID); n != 0 {
			s.t.Errorf("%s: the ledger has a purchase, want none", name)
		}
		return
	}
	s.await(name+" to be "+want, func() bool {
		r := s.purchase(c.SessionID)
		return strings.TrimSpace(r.Status+" "+r.Reason) == want
	})
	profiles := s.rows(`purchases WHERE checkout_session_id = $1 AND profile_id IS NOT NULL`, c.SessionID)
	paid := strings.HasPrefix(want, "delivered") || strings.HasPrefix(want, "skipped")
	if (profiles == 1) != paid {
		s.t.Errorf("%s: %s with a profile: %v, want %v", name, want, profiles == 1, paid)
	}
}

// Stripe's events about one session arrive in every order, each twice: answers depend on the state before,
// the last state is always the same, and TikTok gets at most one event.
func TestWebhook_EveryOrderEndsTheSame(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	type eventStep struct {
		eventType, paymentStatus string
		email                    *string
		rank                     int // a purchase's state rises only
		answer                   string
	}
	email := "one.customer@example.com" // all sessions are of one customer
	unpaid := eventStep{"checkout.session.completed", "unpaid", &email, 1, "awaiting_payment"}
	failed := eventStep{"checkout.session.async_payment_failed", "unpaid", &email, 2, "processed"}
	noEmail := eventStep{"checkout.session.async_payment_succeeded", "paid", nil, 3, "rejected"}
	paid := eventStep{"checkout.session.async_payment_succeeded", "paid", &email, 5, "processed"}
	states := map[int]string{
		1: "awaiting_payment", 2: "payment_failed", 3: "rejected invalid_email", 5: "delivered",
	}
	sessions := 0
	var sales []string
	for _, steps := range [][]eventStep{
		{unpaid, paid},
		{unpaid, failed},
		{failed, paid},
		{unpaid, failed, paid},
		{unpaid, unpaid, paid, paid},
		{unpaid, noEmail, paid},
		{noEmail, failed},
	} {
		for _, order := range permute.Of(len(steps)) {
			c := stripegen.NewCheckout().Live()
			c.Customer = "cus_one"
			sessions++
			var sent []string
			highest := 0
			for i, n := range order {
				step, event := steps[n], c
				event.EventID, event.Email = stripegen.ID("evt_", 24), step.email
				event.Type, event.PaymentStatus = step.eventType, step.paymentStatus
				event.Created = c.Created.Add(time.Duration(n) * time.Minute)
				want := "duplicate"
				if step.rank > highest {
					highest, want = step.rank, step.answer
				}
				sent = append(sent, step.eventType+" "+step.paymentStatus)
				for _, want := range []string{want, "duplicate"} { // each event arrives twice
					if !s.post(event.Event(), http.StatusOK, `{"status":"`+want+`"}`) {
						t.Errorf("%v, event %d: wrong answer", sent, i)
					}
				}
			}
			s.awaitState(fmt.Sprint(sent), c, states[highest])
			if highest == paid.rank {
				sales = append(sales, c.SessionID)
			}
		}
	}
	s.checkOnlyDelivered(sales...)
	if n := s.rows("profiles"); n != 1 {
		t.Errorf("profiles = %d, want 1", n)
	}
	if n := s.rows("purchases"); n != sessions {
		t.Errorf("purchases = %d, want %d", n, sessions)
	}
}

// Stripe delivers late, twice, out of order, and again until an event is answered 200. Every sale is one
// profile, one row and one event at TikTok.
func TestWebhook_DisorderedDelivery(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	disorder := stripegen.Disorder{
		Seed: newRandom(t).Uint64(), Every: 5 * time.Millisecond, Delay: 500 * time.Millisecond,
		Reorder: 0.3, Duplicates: 0.3,
	}
	var sales []string
	var bodies [][]byte
	n := scale(60, 150)
	for i := range n {
		c := stripegen.NewCheckout().Live()
		switch i % 3 {
		case 0:
			bodies = append(bodies, c.Event())
			sales = append(sales, c.SessionID)
		case 1:
			c = c.Delayed("konbini")
			bodies = append(bodies, c.Event(), c.AsyncSucceeded(time.Minute).Event())
			sales = append(sales, c.SessionID)
		default:
			c = c.Delayed("sepa_debit")
			bodies = append(bodies, c.Event(), c.AsyncFailed(time.Minute).Event())
		}
	}
	plan, _ := disorder.Plan(bodies)
	s.deliver(slices.Values(plan))
	s.checkOnlyDelivered(sales...)
	if failed := s.count("payment_failed"); failed != n-len(sales) {
		t.Errorf("failed payments = %d, want %d", failed, n-len(sales))
	}
	if n := s.rows("profiles"); n != len(sales) {
		t.Errorf("profiles = %d, want %d", n, len(sales))
	}
}
