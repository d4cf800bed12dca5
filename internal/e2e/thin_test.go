package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
)

// Purchases and first payments after a trial arrive as thin events, as snapshots or as both, in random order,
// each event one to three times, while a fifth of Stripe's API fails in every way. Stripe repeats what is not
// answered 200: each is delivered once, with its own value.
func TestThinEvents_RandomFaultsLoseNothing(t *testing.T) {
	t.Parallel()
	api := stripegen.NewAPI()
	s := newStack(t, "STRIPE_API_KEY=rk_test_hunter2", "STRIPE_API_URL="+listen(t, api), "FIRST_PAYMENT=true")
	random := newRandom(t)
	values := map[string]string{} // by event_id
	var bodies [][]byte
	add := func(snapshot, thin []byte) {
		t.Helper()
		if err := api.Add(snapshot); err != nil {
			t.Fatal(err)
		}
		for _, body := range [][][]byte{{thin}, {snapshot}, {snapshot, thin}}[random.IntN(3)] {
			for range 1 + random.IntN(3) {
				bodies = append(bodies, body)
			}
		}
	}
	sales, trials, thinEvents := scale(80, 1000), 0, 0
	for i := range sales {
		amount := int64(1000 + i)
		value := fmt.Sprintf("%d.%02d", amount/100, amount%100)
		c := stripegen.NewCheckout().Live()
		c.Created = c.Created.AddDate(0, 0, -9)
		if i%4 != 0 {
			c.AmountTotal = &amount
			add(c.Event(), c.Thin())
			values[c.SessionID] = value
			continue
		}
		trials++
		c = c.Trial()
		invoice := c.Invoices(7*24*time.Hour, 30*24*time.Hour, 2)[1]
		invoice.AmountPaid = amount
		add(c.Event(), c.Thin())
		add(invoice.Event(), invoice.Thin())
		values[invoice.InvoiceID] = value
	}
	for _, body := range bodies {
		if bytes.Contains(body, []byte(`"v2.core.event"`)) {
			thinEvents++
		}
	}
	random.Shuffle(len(bodies), func(i, j int) { bodies[i], bodies[j] = bodies[j], bodies[i] })
	api.FailShare(0.2, random.Uint64())
	start := time.Now()
	answers := s.deliver(arrivals(bodies...))
	stats := api.Stats()
	t.Logf("%d events, %d of them thin, in %s: %v; Stripe's API: %+v",
		len(bodies), thinEvents, time.Since(start).Round(time.Millisecond), answers, stats)
	if stats.Failed < stats.Requests/10 || stats.Requests < thinEvents {
		t.Errorf("Stripe's API: %+v, want at least %d requests and a tenth failed", stats, thinEvents)
	}
	s.awaitNone(`purchases WHERE status IN ('pending', 'published', 'retrying')`)
	s.checkOnlyDelivered(slices.Collect(maps.Keys(values))...)
	for _, e := range s.sim.Received() {
		p := bodyOf(t, e).Properties
		if got, want := p.Value.String()+" "+p.Currency, values[e.EventID]+" USD"; got != want {
			t.Errorf("%s: value = %s, want %s", e.EventID, got, want)
		}
	}
	for status, want := range map[string]int{"delivered": sales, "skipped": trials} {
		if n := s.count(status); n != want {
			t.Errorf("%d purchases are %s, want %d", n, status, want)
		}
	}
	for _, table := range []string{"purchases", "profiles"} {
		want := map[string]int{"purchases": sales + trials, "profiles": sales}[table]
		if n := s.rows(table); n != want {
			t.Errorf("%s has %d rows, want %d", table, n, want)
		}
	}
	_, metrics := httpGet(s.admin + "/metrics")
	if text := s.ingest.log() + metrics; strings.Contains(text, "hunter2") || strings.Contains(text, "@") {
		t.Error("the log or the metrics contain the key or an address")
	}
}

// Without a key a thin event is rejected with the remedy, so that Stripe keeps it. One of another type is
// ignored.
func TestThinEvents_AreRejectedWithoutKey(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := stripegen.NewCheckout().Live()
	s.post(c.Thin(), http.StatusBadRequest, "choose snapshot payloads")
	other := strings.Replace(string(c.Thin()), "v1.checkout.session.completed", "v1.customer.created", 1)
	s.post([]byte(other), http.StatusOK, `"ignored"`)
	s.checkLogged(s.ingest, "Thin event without STRIPE_API_KEY", 1)
	if n := s.rows("purchases"); n != 0 {
		t.Errorf("purchases = %d, want none", n)
	}
}

func TestConnect_CountsNamedAccountsOnly(t *testing.T) {
	t.Parallel()
	s := newStack(t, "CONNECT_ACCOUNTS=acct_1Ours,acct_2Ours")
	own, first := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	second, foreign := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	first.Account, second.Account, foreign.Account = "acct_1Ours", "acct_2Ours", "acct_1"
	s.post(foreign.Event(), http.StatusOK, `"ignored"`)
	for _, c := range []stripegen.Checkout{own, first, second} {
		s.post(c.Event(), http.StatusOK, `"processed"`)
	}
	s.checkOnlyDelivered(own.SessionID, first.SessionID, second.SessionID)
	const series = `purchase_relay_webhooks_total{result="other_account",type="checkout.session.completed"}`
	if n := s.metric(s.admin, series); n != 1 {
		t.Errorf("%v events counted as another account's, want 1", n)
	}
	if n := s.rows("profiles"); n != 3 {
		t.Errorf("profiles = %d, want 3", n)
	}
}

// No money is no sale, a discount is no trial, a future time becomes now, and the value is net.
func TestPurchase_TrialAndValueRules(t *testing.T) {
	t.Parallel()
	s := newStack(t, "TRIAL_EVENT_NAME=StartTrial", "FIRST_PAYMENT=true", "VALUE=net",
		"CHECKOUT_MODES=subscription,payment", "TIKTOK_TEST_MODE=send", "TIKTOK_TEST_EVENT_CODE=TEST12345")
	order := stripegen.NewCheckout().Live().Trial()
	order.Mode, order.Subscription = "payment", ""
	s.post(order.Event(), http.StatusOK, `"processed"`)

	discounted := stripegen.NewCheckout().Live().Free()
	discounted.Created = discounted.Created.AddDate(0, 0, -31)
	second := discounted.Invoices(30*24*time.Hour, 30*24*time.Hour, 2)[1]
	second.Tax, second.Shipping = 499, 500
	s.post(discounted.Event(), http.StatusOK, `"processed"`)
	s.post(second.Event(), http.StatusOK, `"processed"`)

	early := stripegen.NewCheckout().Live().Trial()
	early.Created = early.Created.AddDate(0, 0, -3)
	invoices := early.Invoices(7*24*time.Hour, 30*24*time.Hour, 2)
	ended := invoices[1].EndsTrial(early.Created.Add(48 * time.Hour))
	s.post(early.Event(), http.StatusOK, `"processed"`)
	s.post(invoices[1].Manual(early.Created.Add(24*time.Hour), 500).Event(), http.StatusOK, `"ignored"`)
	s.post(ended.Event(), http.StatusOK, `"processed"`)

	ahead := stripegen.NewCheckout()
	ahead.Created = ahead.Created.Add(2 * time.Hour)
	ahead.Tax = 999
	s.post(ahead.Event(), http.StatusOK, `"processed"`)

	s.checkOnlyDelivered(second.InvoiceID, early.SessionID, ended.InvoiceID, ahead.SessionID)
	s.checkPurchase(order.SessionID, "skipped", "no_payment")
	s.checkPurchase(discounted.SessionID, "skipped", "no_payment")
	for id, want := range map[string]string{
		second.InvoiceID: "20.00", ended.InvoiceID: "29.99", ahead.SessionID: "20.00", early.SessionID: "",
	} {
		got := bodyOf(t, s.event(id)).Properties
		if got.Value.String() != want || (got.Currency == "") != (want == "") {
			t.Errorf("%s: value = %s %s, want %q", id, got.Value, got.Currency, want)
		}
	}
	if e := s.event(early.SessionID); e.Event != "StartTrial" {
		t.Errorf("the trial's event = %s, want StartTrial", e.Event)
	}
	if lead := time.Until(time.Unix(s.event(ahead.SessionID).EventTime, 0)); lead > 0 {
		t.Errorf("event_time is %s ahead, want a past time", lead)
	}
}
