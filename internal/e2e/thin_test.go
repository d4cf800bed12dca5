package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
)

// says posts a signed body once and compares the answer.
func (s *stack) says(body []byte, status int, want string) {
	s.t.Helper()
	answer, err := s.sender.Send(s.t.Context(), body)
	if err != nil || answer.Status != status || !strings.Contains(answer.Body, want) {
		s.t.Errorf("answer = %+v, %v, want %d %s", answer, err, status, want)
	}
}

// onceAtTikTok waits for the purchases to be delivered, and fails unless TikTok has each once and nothing
// else.
func (s *stack) onceAtTikTok(ids ...string) {
	s.t.Helper()
	for _, id := range ids {
		s.awaitStatus(id, "delivered")
		s.event(id)
	}
	if n := len(s.sim.Received()); n != len(ids) {
		s.t.Errorf("TikTok has %d events, want %d", n, len(ids))
	}
}

// A thin event is a sale like its snapshot: alone, before it, after it, and for an invoice. Where Stripe's
// API is away, Stripe is told to send it again, and the sale comes then. The key is in no answer, log or
// metric.
func TestThinEvents_AreSalesWithAKey(t *testing.T) {
	t.Parallel()
	list := stripegen.NewAPI()
	api := "STRIPE_API_URL=" + listen(t, list)
	s := newStack(t, "STRIPE_API_KEY=rk_test_hunter2", api, "FIRST_PAYMENT=true")
	alone, before := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	after, later := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	trial := stripegen.NewCheckout().Live().Trial()
	trial.Created = trial.Created.AddDate(0, 0, -9)
	paid := trial.Invoices(7*24*time.Hour, 30*24*time.Hour, 2)[1]
	unlisted := stripegen.NewCheckout().Live()
	for _, body := range [][]byte{
		alone.Event(), before.Event(), after.Event(), later.Event(), trial.Event(), paid.Event(),
	} {
		if err := list.Add(body); err != nil {
			t.Fatal(err)
		}
	}
	s.says(alone.Thin(), http.StatusOK, `"processed"`)
	s.says(before.Thin(), http.StatusOK, `"processed"`)
	s.says(before.Event(), http.StatusOK, `"duplicate"`)
	s.says(after.Event(), http.StatusOK, `"processed"`)
	s.says(after.Thin(), http.StatusOK, `"duplicate"`)
	s.says(paid.Thin(), http.StatusOK, `"held"`)
	s.says(trial.Thin(), http.StatusOK, `"processed"`)
	s.says(paid.Event(), http.StatusOK, `"duplicate"`)
	s.says(unlisted.Thin(), http.StatusServiceUnavailable, "Stripe's API is unavailable")
	list.Fail(2, http.StatusInternalServerError)
	s.says(later.Thin(), http.StatusServiceUnavailable, "Stripe's API is unavailable")
	s.says(later.Thin(), http.StatusServiceUnavailable, "Stripe's API is unavailable")
	s.says(later.Thin(), http.StatusOK, `"processed"`)
	s.onceAtTikTok(alone.SessionID, before.SessionID, after.SessionID, later.SessionID, paid.InvoiceID)
	if n := s.ingestFigure(`purchase_relay_webhooks_total{result="stripe_unavailable",type="thin"}`); n != 3 {
		t.Errorf("%v thin events counted as unavailable, want 3", n)
	}
	_, metrics := get(s.admin + "/metrics")
	if said := strings.Join(s.ingest.lines(), "\n") + metrics; strings.Contains(said, "hunter2") {
		t.Error("the key is in the log or in the metrics")
	}
}

// Without a key a thin event is refused with the remedy, and so stays at Stripe; one of another type is none
// of ours.
func TestThinEvents_AreRefusedWithoutAKey(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := stripegen.NewCheckout().Live()
	s.says(c.Thin(), http.StatusBadRequest, "choose snapshot payloads")
	other := strings.Replace(string(c.Thin()), "v1.checkout.session.completed", "v1.customer.created", 1)
	s.says([]byte(other), http.StatusOK, `"ignored"`)
	if n := s.ingest.said("Thin event without STRIPE_API_KEY"); n != 1 {
		t.Errorf("%d error lines, want 1", n)
	}
	if n := query[int](s, `SELECT count(*) FROM purchases`); n != 0 {
		t.Errorf("%d purchases, want none", n)
	}
}

// Sales of connected accounts count where CONNECT_ACCOUNTS names the account, and nowhere else.
func TestConnectedAccounts(t *testing.T) {
	t.Parallel()
	s := newStack(t, "CONNECT_ACCOUNTS=acct_1Ours,acct_2Ours")
	own, first := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	second, foreign := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	first.Account, second.Account, foreign.Account = "acct_1Ours", "acct_2Ours", "acct_1"
	s.says(foreign.Event(), http.StatusOK, `"ignored"`)
	for _, c := range []stripegen.Checkout{own, first, second} {
		s.says(c.Event(), http.StatusOK, `"processed"`)
	}
	s.onceAtTikTok(own.SessionID, first.SessionID, second.SessionID)
	const series = `purchase_relay_webhooks_total{result="other_account",type="checkout.session.completed"}`
	if n := s.ingestFigure(series); n != 1 {
		t.Errorf("%v events counted as another account's, want 1", n)
	}
	if n := query[int](s, `SELECT count(*) FROM profiles`); n != 3 {
		t.Errorf("%d profiles, want 3", n)
	}
}

// What an event means, with the real binaries: no money is no sale, a discount is no trial, a time of the
// future is now, and the value is net.
func TestMeaningOfEvents(t *testing.T) {
	t.Parallel()
	s := newStack(t, "TRIAL_EVENT_NAME=StartTrial", "FIRST_PAYMENT=true", "VALUE=net",
		"CHECKOUT_MODES=subscription,payment", "TIKTOK_TEST_MODE=send", "TIKTOK_TEST_EVENT_CODE=TEST12345")
	order := stripegen.NewCheckout().Live().Trial()
	order.Mode, order.Subscription = "payment", ""
	s.says(order.Event(), http.StatusOK, `"processed"`)

	discounted := stripegen.NewCheckout().Live().Free()
	discounted.Created = discounted.Created.AddDate(0, 0, -31)
	second := discounted.Invoices(30*24*time.Hour, 30*24*time.Hour, 2)[1]
	second.Tax, second.Shipping = 499, 500
	s.says(discounted.Event(), http.StatusOK, `"processed"`)
	s.says(second.Event(), http.StatusOK, `"processed"`)

	early := stripegen.NewCheckout().Live().Trial()
	early.Created = early.Created.AddDate(0, 0, -3)
	invoices := early.Invoices(7*24*time.Hour, 30*24*time.Hour, 2)
	ended := invoices[1].EndsTrial(early.Created.Add(48 * time.Hour))
	s.says(early.Event(), http.StatusOK, `"processed"`)
	s.says(invoices[1].Manual(early.Created.Add(24*time.Hour), 500).Event(), http.StatusOK, `"ignored"`)
	s.says(ended.Event(), http.StatusOK, `"processed"`)

	ahead := stripegen.NewCheckout()
	ahead.Created = ahead.Created.Add(2 * time.Hour)
	ahead.Tax = 999
	s.says(ahead.Event(), http.StatusOK, `"processed"`)

	s.onceAtTikTok(second.InvoiceID, early.SessionID, ended.InvoiceID, ahead.SessionID)
	for _, id := range []string{order.SessionID, discounted.SessionID} {
		if r := s.purchase(id); r.Status != "skipped" || r.Reason != "no_payment" {
			t.Errorf("%s is %s (%s), want skipped (no_payment)", id, r.Status, r.Reason)
		}
	}
	for id, want := range map[string]string{
		second.InvoiceID: "20.00", ended.InvoiceID: "29.99", ahead.SessionID: "20.00", early.SessionID: "",
	} {
		got := bodyOf(t, s.event(id)).Properties
		if got.Value.String() != want || (got.Currency == "") != (want == "") {
			t.Errorf("%s: %s %s, want %s", id, got.Value, got.Currency, want)
		}
	}
	if e := s.event(early.SessionID); e.Event != "StartTrial" {
		t.Errorf("the trial is sent as %s, want StartTrial", e.Event)
	}
	if at := s.event(ahead.SessionID).EventTime; at > time.Now().Unix() {
		t.Errorf("event_time %d is %d s ahead", at, at-time.Now().Unix())
	}
}
