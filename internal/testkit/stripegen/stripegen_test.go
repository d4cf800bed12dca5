package stripegen_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stripe/stripe-go/v76/webhook"

	"purchase-relay/internal/testkit/stripegen"
)

func TestSignatureIsStripes(t *testing.T) {
	body := stripegen.NewCheckout().Event()
	if err := webhook.ValidatePayload(body, stripegen.Sign(body, "whsec_x", time.Now()), "whsec_x"); err != nil {
		t.Error(err)
	}
	if err := webhook.ValidatePayload(body, stripegen.Sign(body, "whsec_other", time.Now()), "whsec_x"); err == nil {
		t.Error("another secret's signature was accepted")
	}
}

func TestEventHasStripesShape(t *testing.T) {
	c := stripegen.NewCheckout()
	c.Currency, c.AmountTotal, c.Customer = nil, nil, ""
	var event struct {
		ID   string `json:"id"`
		Data struct {
			Object map[string]any `json:"object"`
		} `json:"data"`
	}
	if err := json.Unmarshal(c.Event(), &event); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"currency", "amount_total", "customer", "customer_email", "client_reference_id"} {
		if value, there := event.Data.Object[key]; !there || value != nil {
			t.Errorf("%s = %v, want null", key, value)
		}
	}
	if event.ID != c.EventID || event.Data.Object["id"] != c.SessionID {
		t.Errorf("ids: %s, %v", event.ID, event.Data.Object["id"])
	}
}

func TestDeliverRepeatsUntilTaken(t *testing.T) {
	calls := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || webhook.ValidatePayload(body, r.Header.Get("Stripe-Signature"), "whsec_x") != nil {
			t.Error("a repeat was not signed")
		}
		if calls++; calls < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	s := stripegen.Sender{URL: server.URL, Secret: "whsec_x"}
	if answer, err := s.Deliver(t.Context(), stripegen.NewCheckout().Event(), 5, time.Millisecond); err != nil || answer.Status != 200 || calls != 3 {
		t.Errorf("%+v, %v after %d calls", answer, err, calls)
	}
}

// A session that is paid with a delayed method: two events that differ in what Stripe changes and in nothing else.
func TestDelayedPaymentIsTwoEventsOfOneSession(t *testing.T) {
	parse := func(c stripegen.Checkout) (event, session map[string]any) {
		if err := json.Unmarshal(c.Event(), &event); err != nil {
			t.Fatal(err)
		}
		return event, event["data"].(map[string]any)["object"].(map[string]any)
	}
	first := stripegen.NewCheckout().Delayed("konbini")
	began, unpaid := parse(first)
	if began["type"] != "checkout.session.completed" || unpaid["payment_status"] != "unpaid" || !slices.Equal(unpaid["payment_method_types"].([]any), []any{"konbini"}) {
		t.Errorf("first %v: %v", began["type"], unpaid)
	}
	for kind, c := range map[string]struct {
		second stripegen.Checkout
		status string
	}{
		"checkout.session.async_payment_succeeded": {first.AsyncSucceeded(72 * time.Hour), "paid"},
		"checkout.session.async_payment_failed":    {first.AsyncFailed(72 * time.Hour), "unpaid"},
	} {
		ended, session := parse(c.second)
		if ended["type"] != kind || ended["id"] == began["id"] || ended["created"] != began["created"].(float64)+72*3600 || session["payment_status"] != c.status {
			t.Errorf("%s: %v %v %v after %v, %v", kind, ended["type"], ended["id"], ended["created"], began["created"], session["payment_status"])
		}
		session["payment_status"] = "unpaid"
		if diff := cmp.Diff(unpaid, session); diff != "" {
			t.Errorf("%s: %s", kind, diff)
		}
	}
}
