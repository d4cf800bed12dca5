package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
)

// The rows of the webhook's table of answers, with null fields of every kind: what is answered, where the purchase ends, and
// what TikTok holds of it.
func TestEveryEvent(t *testing.T) {
	t.Parallel()
	const both, subscriptionOnly = "CHECKOUT_MODES=subscription,payment", "CHECKOUT_MODES=subscription"
	type want struct {
		answer string // the webhook's status
		ends   string // status and reason on the ledger; "": not there
		value  string // value and currency at TikTok; "" with an end of delivered: sent without both
	}
	delivered := want{"processed", "delivered", "29.99 USD"}
	rows := []struct {
		name   string
		change func(c *stripegen.Checkout)
		both   want
		only   want // with CHECKOUT_MODES=subscription
	}{
		{"a paid subscription", func(*stripegen.Checkout) {}, delivered, delivered},
		{"a test purchase", func(c *stripegen.Checkout) {
			c.Livemode, c.SessionID = false, stripegen.ID("cs_test_", 40)
		}, delivered, delivered},
		{"a single payment", func(c *stripegen.Checkout) { c.Mode, c.Subscription = "payment", "" }, delivered, want{"ignored", "", ""}},
		{"a card kept for later", func(c *stripegen.Checkout) {
			c.Mode, c.PaymentStatus, c.AmountTotal, c.Currency, c.Subscription = "setup", "no_payment_required", nil, nil, ""
		}, want{"ignored", "", ""}, want{"ignored", "", ""}},
		{"another type", func(c *stripegen.Checkout) { c.Type = "checkout.session.expired" }, want{"ignored", "", ""}, want{"ignored", "", ""}},
		{"a trial", func(c *stripegen.Checkout) {
			c.PaymentStatus, c.AmountTotal = "no_payment_required", new(int64(0))
		}, want{"processed", "skipped no_payment", ""}, want{"processed", "skipped no_payment", ""}},
		{"unpaid", func(c *stripegen.Checkout) { c.PaymentStatus = "unpaid" }, want{"awaiting_payment", "awaiting_payment", ""}, want{"awaiting_payment", "awaiting_payment", ""}},
		{"paid later, its event first", func(c *stripegen.Checkout) {
			c.Type = "checkout.session.async_payment_succeeded"
		}, delivered, delivered},
		{"not paid later", func(c *stripegen.Checkout) {
			c.Type, c.PaymentStatus = "checkout.session.async_payment_failed", "unpaid"
		}, want{"processed", "payment_failed", ""}, want{"processed", "payment_failed", ""}},
		{"the address prefilled only", func(c *stripegen.Checkout) { c.Email, c.CustomerEmail = nil, c.Email }, delivered, delivered},
		{"no address", func(c *stripegen.Checkout) { c.Email = nil }, want{"rejected", "rejected invalid_email", ""}, want{"rejected", "rejected invalid_email", ""}},
		{"an address that is none", func(c *stripegen.Checkout) {
			c.Email = new("buyer at example")
		}, want{"rejected", "rejected invalid_email", ""}, want{"rejected", "rejected invalid_email", ""}},
		{"no details, no address", func(c *stripegen.Checkout) { c.NoDetails = true }, want{"rejected", "rejected invalid_email", ""}, want{"rejected", "rejected invalid_email", ""}},
		{"no details, an address", func(c *stripegen.Checkout) { c.NoDetails, c.CustomerEmail = true, c.Email }, delivered, delivered},
		{"no currency", func(c *stripegen.Checkout) { c.Currency = nil }, want{"processed", "delivered", ""}, want{"processed", "delivered", ""}},
		{"no amount", func(c *stripegen.Checkout) { c.AmountTotal = nil }, want{"processed", "delivered", ""}, want{"processed", "delivered", ""}},
		{"no name, phone, country, customer, metadata", func(c *stripegen.Checkout) {
			c.Name, c.Phone, c.Country, c.Customer, c.Subscription, c.Metadata = nil, nil, "", "", "", nil
		}, delivered, delivered},
		{"no decimals", func(c *stripegen.Checkout) { c.AmountTotal, c.Currency = new(int64(800)), new("jpy") }, want{"processed", "delivered", "800 JPY"}, want{"processed", "delivered", "800 JPY"}},
		{"a full discount that Stripe calls paid", func(c *stripegen.Checkout) {
			c.AmountTotal, c.Discount = new(int64(0)), 2999
		}, want{"processed", "skipped no_payment", ""}, want{"processed", "skipped no_payment", ""}},
		{"a version of the future", func(c *stripegen.Checkout) { c.APIVersion = "2031-01-01.zinnia" }, delivered, delivered},
	}
	for _, modes := range []string{both, subscriptionOnly} {
		t.Run(modes, func(t *testing.T) {
			s := newStack(t, modes, "TIKTOK_TEST_MODE=send", "TIKTOK_TEST_EVENT_CODE=TEST1")
			for _, row := range rows {
				c := stripegen.NewCheckout().Live()
				c.Created = c.Created.Add(-time.Hour)
				row.change(&c)
				want := row.both
				if modes == subscriptionOnly {
					want = row.only
				}
				answer := s.send(c)
				if answer.Status != http.StatusOK || answer.Body != `{"status":"`+want.answer+`"}` {
					t.Errorf("%s: answered %d %s", row.name, answer.Status, answer.Body)
					continue
				}
				s.endsAs(row.name, c, want.ends)
				if want.ends != "delivered" {
					continue
				}
				e := s.event(c.SessionID)
				b := bodyOf(t, e)
				value := strings.TrimSpace(b.Properties.Value.String() + " " + b.Properties.Currency)
				email := c.Email
				if email == nil || c.NoDetails {
					email = c.CustomerEmail
				}
				if value != want.value || b.EventTime != c.Created.Unix() || b.User["email"] != sha(strings.ToLower(*email)) || (e.TestEventCode == "") != c.Livemode {
					t.Errorf("%s: TikTok has %s (%+v)", row.name, e.Body, e)
				}
			}
			n := 0
			for _, e := range s.sim.Received() {
				n += e.Copies
			}
			if delivered := query[int](s, `SELECT count(*) FROM purchases WHERE status = 'delivered'`); n != delivered {
				t.Errorf("TikTok has %d events for %d purchases", n, delivered)
			}
		})
	}
}

// endsAs waits until a purchase stands as it should; "" says that the ledger does not know it.
func (s *stack) endsAs(name string, c stripegen.Checkout, want string) {
	s.t.Helper()
	if want == "" {
		if n := query[int](s, `SELECT count(*) FROM purchases WHERE checkout_session_id = $1`, c.SessionID); n != 0 {
			s.t.Errorf("%s: it is on the ledger", name)
		}
		return
	}
	var r row
	s.await(name+" to be "+want, func() bool {
		r = s.purchase(c.SessionID)
		return strings.TrimSpace(r.Status+" "+r.Reason) == want
	})
	profile := query[bool](s, `SELECT profile_id IS NOT NULL FROM purchases WHERE checkout_session_id = $1`, c.SessionID)
	if paid := strings.HasPrefix(want, "delivered") || strings.HasPrefix(want, "skipped"); profile != paid {
		s.t.Errorf("%s: %s, and a profile: %v", name, want, profile)
	}
}

// What Stripe tells of one session, some of it under two event ids, in every order: the answers follow what stood before,
// the end is always the same, and one event reaches TikTok at most.
func TestEveryOrder(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	type telling struct {
		kind, paymentStatus string
		email               bool
		rank                int // of the state that it proposes
		answer              string
	}
	unpaid := telling{"checkout.session.completed", "unpaid", true, 1, "awaiting_payment"}
	failed := telling{"checkout.session.async_payment_failed", "unpaid", true, 2, "processed"}
	nameless := telling{"checkout.session.async_payment_succeeded", "paid", false, 3, "rejected"}
	paid := telling{"checkout.session.async_payment_succeeded", "paid", true, 5, "processed"}
	ends := map[int]string{1: "awaiting_payment", 2: "payment_failed", 3: "rejected invalid_email", 5: "delivered"}
	customer, email := "cus_one", "one.customer@example.com" // all sessions are of one customer
	sessions, sales := 0, 0
	for _, story := range [][]telling{
		{unpaid, paid}, {unpaid, failed}, {failed, paid}, {unpaid, failed, paid}, {unpaid, unpaid, paid, paid}, {unpaid, nameless, paid}, {nameless, failed},
	} {
		for order := range permutations(len(story)) {
			c := stripegen.NewCheckout().Live()
			c.Customer = customer
			sessions++
			var told []string
			highest := 0
			for i, n := range order {
				step, event := story[n], c
				event.EventID, event.Type, event.PaymentStatus = stripegen.ID("evt_", 24), step.kind, step.paymentStatus
				event.Created = c.Created.Add(time.Duration(n) * time.Minute)
				event.Email = nil
				if step.email {
					event.Email = &email
				}
				want := "duplicate"
				if step.rank > highest {
					highest, want = step.rank, step.answer
				}
				told = append(told, step.kind+" "+step.paymentStatus)
				for _, want := range []string{want, "duplicate"} { // each event comes twice
					if answer := s.send(event); answer.Status != http.StatusOK || answer.Body != `{"status":"`+want+`"}` {
						t.Errorf("%v, event %d: answered %d %s, want %s", told, i, answer.Status, answer.Body, want)
					}
				}
			}
			s.endsAs(fmt.Sprint(told), c, ends[highest])
			if highest == 5 {
				sales++
				if e := s.event(c.SessionID); e.Copies != 1 || e.Variants != 1 {
					t.Errorf("%v: %d copies in %d bodies", told, e.Copies, e.Variants)
				}
			}
		}
	}
	if n := len(s.sim.Received()); n != sales {
		t.Errorf("TikTok has %d events for %d sales", n, sales)
	}
	if n := query[int](s, `SELECT count(*) FROM profiles`); n != 1 {
		t.Errorf("%d profiles of one customer", n)
	}
	if n := query[int](s, `SELECT count(*) FROM purchases`); n != sessions {
		t.Errorf("%d purchases for %d sessions", n, sessions)
	}
}

// permutations yields every order of n things.
func permutations(n int) func(yield func([]int) bool) {
	return func(yield func([]int) bool) {
		order := make([]int, 0, n)
		var extend func() bool
		extend = func() bool {
			if len(order) == n {
				return yield(slices.Clone(order))
			}
			for i := range n {
				if slices.Contains(order, i) {
					continue
				}
				order = append(order, i)
				if !extend() {
					return false
				}
				order = order[:len(order)-1]
			}
			return true
		}
		extend()
	}
}

// Older and stranger shapes of Stripe's JSON around a good session: each still makes one purchase.
func TestShapesOfOlderAccounts(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	for name, change := range map[string]func(event, object map[string]any){
		"request is a text":  func(event, _ map[string]any) { event["request"] = "req_123" },
		"metadata is a list": func(_, object map[string]any) { object["metadata"] = []any{} },
		"metadata is null":   func(_, object map[string]any) { object["metadata"] = nil },
		"metadata holds other types": func(_, object map[string]any) {
			object["metadata"] = map[string]any{"ttclid": 7, "ttp": nil, "client_ip": []any{}}
		},
		"customer and subscription are objects": func(_, object map[string]any) {
			object["customer"], object["subscription"] = map[string]any{"id": "cus_1"}, map[string]any{"id": "sub_1"}
		},
		"no version":         func(event, _ map[string]any) { delete(event, "api_version") },
		"created is missing": func(event, _ map[string]any) { delete(event, "created") },
		"created is a text":  func(event, _ map[string]any) { event["created"] = "2026-01-02T03:04:05Z" },
		"a number past 2^53": func(_, object map[string]any) { object["amount_subtotal"] = json.Number("9007199254740993123") },
	} {
		c := stripegen.NewCheckout().Live()
		var event map[string]any
		if err := json.Unmarshal(c.Event(), &event); err != nil {
			t.Fatal(err)
		}
		object := event["data"].(map[string]any)["object"].(map[string]any)
		change(event, object)
		body, err := json.Marshal(event)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := s.sender.Send(t.Context(), body)
		if err != nil || answer.Body != `{"status":"processed"}` {
			t.Errorf("%s: %+v, %v", name, answer, err)
			continue
		}
		s.awaitStatus(c.SessionID, "delivered")
		if b := bodyOf(t, s.event(c.SessionID)); b.Properties.Value.String() != "29.99" || b.EventTime < c.Created.Add(-5*365*24*time.Hour).Unix() {
			t.Errorf("%s: TikTok has %+v", name, b)
		}
	}
}

// Stripe's delivery as it is: late, twice, out of order, each event again until it is taken. Every sale is one profile, one
// row and one event at TikTok.
func TestDisorderedDelivery(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	disorder := stripegen.Disorder{Seed: uint64(time.Now().UnixNano()), Every: 5 * time.Millisecond, Delay: 500 * time.Millisecond, Reorder: 0.3, Duplicates: 0.3}
	t.Logf("seed %d", disorder.Seed)
	sold := map[string]bool{}
	var bodies [][]byte
	for i := range 150 {
		c := stripegen.NewCheckout().Live()
		switch i % 3 {
		case 0:
			bodies = append(bodies, c.Event())
			sold[c.SessionID] = true
		case 1:
			c = c.Delayed("konbini")
			bodies = append(bodies, c.Event(), c.AsyncSucceeded(time.Minute).Event())
			sold[c.SessionID] = true
		default:
			c = c.Delayed("sepa_debit")
			bodies = append(bodies, c.Event(), c.AsyncFailed(time.Minute).Event())
		}
	}
	plan, _ := disorder.Plan(bodies)
	answers := map[string]int{}
	pace := stripegen.Pace{Concurrency: 16, Attempts: 50, Wait: 20 * time.Millisecond}
	if err := s.sender.Play(t.Context(), slices.Values(plan), pace, func(_ stripegen.Arrival, a stripegen.Answer) { answers[fmt.Sprint(a.Status)]++ }); err != nil {
		t.Fatal(err)
	}
	if answers["200"] != len(plan) {
		t.Errorf("answers: %v to %d events", answers, len(plan))
	}
	s.await("all sales to be delivered", func() bool {
		return query[int](s, `SELECT count(*) FROM purchases WHERE status = 'delivered'`) == len(sold)
	})
	if n := query[int](s, `SELECT count(*) FROM purchases WHERE status = 'payment_failed'`); n != 150-len(sold) {
		t.Errorf("%d failed payments, want %d", n, 150-len(sold))
	}
	for _, e := range s.sim.Received() {
		if !sold[e.EventID] || e.Copies != 1 {
			t.Errorf("%s: %d copies", e.EventID, e.Copies)
		}
	}
	if n := query[int](s, `SELECT count(*) FROM profiles`); n != len(sold) {
		t.Errorf("%d profiles for %d customers", n, len(sold))
	}
}
