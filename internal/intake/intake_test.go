package intake_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/intake"
	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/stripe"
	"purchase-relay/internal/testkit/stripegen"
)

var received = time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)

func event(change func(e *purchase.Event)) purchase.Event {
	amount := int64(2999)
	e := purchase.Event{
		ID: "evt_1", Type: purchase.TypeCompleted, Created: received.Add(-time.Minute).Truncate(time.Second), Livemode: true,
		Checkout: &purchase.Checkout{
			ID: "cs_1", Mode: "subscription", PaymentStatus: "paid", AmountTotal: &amount, Currency: "USD", Customer: "cus_1",
			Subscription: "sub_1", Email: " Buyer@Example.com", Phone: "+12133734253",
		},
	}
	change(&e)
	return e
}

// onward counts who was woken, and keeps what it was offered while it is ready.
type onward struct {
	ready bool

	mu      sync.Mutex
	woken   int
	offered []message.Claim
}

func (o *onward) Ready() bool { return o.ready }

func (o *onward) Wake() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.woken++
}

func (o *onward) Offer(c message.Claim) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.offered = append(o.offered, c)
}

// ledger answers what it is told to.
type ledger struct {
	recorded purchase.Recorded
	err      error
	hold     bool
	panics   bool
	got      []purchase.Receipt
}

func (l *ledger) Record(ctx context.Context, r purchase.Receipt) (purchase.Recorded, error) {
	l.got = append(l.got, r)
	if l.panics {
		panic("of buyer@example.com")
	}
	if l.hold {
		<-ctx.Done()
		return purchase.Recorded{}, ctx.Err()
	}
	return l.recorded, l.err
}

const key = "whsec_intake"

func post(t *testing.T, l *ledger, body []byte) (resp *httptest.ResponseRecorder, log *observer.ObservedLogs, woken int) {
	t.Helper()
	return postTo(t, l, &onward{}, body)
}

func postTo(t *testing.T, l *ledger, o *onward, body []byte) (resp *httptest.ResponseRecorder, log *observer.ObservedLogs, woken int) {
	t.Helper()
	core, log := observer.New(zapcore.DebugLevel)
	h := intake.NewHandler(stripe.NewWebhook([]secret.Text{key}, time.Now), l, purchase.Rules{Modes: map[string]bool{"subscription": true}}, o, time.Now,
		zap.New(core), prometheus.NewRegistry())
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/webhooks/stripe", strings.NewReader(string(body)))
	req.Header.Set("Stripe-Signature", stripegen.Sign(body, key, time.Now()))
	resp = httptest.NewRecorder()
	h.ServeHTTP(resp, req)
	for _, entry := range log.All() {
		for k, v := range entry.ContextMap() {
			if s, ok := v.(string); ok && strings.Contains(s, "@") {
				t.Errorf("an address in the log: %s %s=%s", entry.Message, k, s)
			}
		}
	}
	return resp, log, o.woken
}

// While the relay is ready, a purchase is claimed where it is recorded, and offered after the commit; else it waits on the ledger.
func TestPurchasesArePassedOn(t *testing.T) {
	c := stripegen.NewCheckout().Live()
	at := received
	for _, ready := range []bool{true, false} {
		o, l := &onward{ready: ready}, &ledger{recorded: purchase.Recorded{Disposition: purchase.Processed, ProfileID: "p1"}}
		if ready {
			l.recorded.Message, l.recorded.Claimed = []byte("message"), at
		}
		_, _, woken := postTo(t, l, o, c.Event())
		if l.got[0].Claim != ready || (woken == 0) != ready || (len(o.offered) == 1) != ready {
			t.Errorf("ready %v: claimed %v, woke %d, offered %v", ready, l.got[0].Claim, woken, o.offered)
		}
		if ready {
			want := message.Claim{ID: c.SessionID, Livemode: true, Generation: 1, FirstPublished: at, Envelope: []byte("message")}
			if diff := cmp.Diff(want, o.offered[0]); diff != "" {
				t.Error(diff)
			}
		}
	}
}

func TestAnswers(t *testing.T) {
	c := stripegen.NewCheckout()
	unpaid, trial, noEmail, invoice := c, c, c, c
	unpaid.PaymentStatus, trial.PaymentStatus, noEmail.NoDetails, invoice.Type = "unpaid", "no_payment_required", true, "invoice.paid"
	for name, tc := range map[string]struct {
		checkout stripegen.Checkout
		recorded purchase.Recorded
		want     string
		says     string
		wakes    int
	}{
		"paid":      {c, purchase.Recorded{Disposition: purchase.Processed, ProfileID: "p1", ProfileCreated: true}, "processed", "Profile created", 1},
		"returning": {c, purchase.Recorded{Disposition: purchase.Processed, ProfileID: "p1"}, "processed", "Profile updated", 1},
		"trial":     {trial, purchase.Recorded{Disposition: purchase.Processed, ProfileID: "p1"}, "processed", "PROVISIONING COMPLETE", 0},
		"unpaid":    {unpaid, purchase.Recorded{Disposition: purchase.AwaitingPayment}, "awaiting_payment", "Awaiting payment", 0},
		"no email":  {noEmail, purchase.Recorded{Disposition: purchase.Rejected}, "rejected", "Invalid email", 0},
		"known":     {c, purchase.Recorded{Disposition: purchase.Duplicate}, "duplicate", "Duplicate event", 0},
	} {
		resp, log, woken := post(t, &ledger{recorded: tc.recorded}, tc.checkout.Event())
		if want := `{"status":"` + tc.want + "\"}\n"; resp.Code != http.StatusOK || resp.Body.String() != want {
			t.Errorf("%s: %d %s", name, resp.Code, resp.Body)
		}
		if log.FilterMessage(tc.says).Len() != 1 || woken != tc.wakes {
			t.Errorf("%s: said %v, woke %d", name, log.All(), woken)
		}
	}
	l := &ledger{}
	if resp, _, _ := post(t, l, invoice.Event()); resp.Code != http.StatusOK || !strings.Contains(resp.Body.String(), "ignored") || len(l.got) > 0 {
		t.Errorf("another type: %d %s, %d recorded", resp.Code, resp.Body, len(l.got))
	}
}

func TestLedgerAway(t *testing.T) {
	resp, log, woken := post(t, &ledger{err: errors.New("connection refused")}, stripegen.NewCheckout().Event())
	if resp.Code != http.StatusServiceUnavailable || resp.Header().Get("Retry-After") == "" || woken > 0 {
		t.Errorf("%d %v", resp.Code, resp.Header())
	}
	if log.FilterMessage("Failed to create profile").Len() != 1 {
		t.Errorf("log: %v", log.All())
	}
}

// Stripe sends the event again, and the log says where it happened, not with whose data.
func TestPanicIsAnAnswer(t *testing.T) {
	resp, log, woken := post(t, &ledger{panics: true}, stripegen.NewCheckout().Event())
	if resp.Code != http.StatusInternalServerError || woken > 0 || log.FilterMessage("A webhook panicked").FilterLevelExact(zapcore.ErrorLevel).Len() != 1 {
		t.Errorf("%d, log %v", resp.Code, log.All())
	}
	for _, entry := range log.All() {
		if strings.Contains(fmt.Sprint(entry.ContextMap()), "buyer@") {
			t.Errorf("an address in the log: %v", entry)
		}
	}
}

// A slow ledger is not waited for longer than five seconds: the buyer waits for this answer.
func TestLedgerSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		resp, _, _ := post(t, &ledger{hold: true}, stripegen.NewCheckout().Event())
		if took := time.Since(began); resp.Code != http.StatusServiceUnavailable || took != intake.RecordTimeout {
			t.Errorf("%d after %s", resp.Code, took)
		}
	})
}

// A flood of forged webhooks is counted whole, and logged in part.
func TestFlood(t *testing.T) {
	core, log := observer.New(zapcore.DebugLevel)
	reg := prometheus.NewRegistry()
	h := intake.NewHandler(stripe.NewWebhook([]secret.Text{key}, time.Now), &ledger{}, purchase.Rules{Modes: map[string]bool{"subscription": true}}, &onward{}, time.Now, zap.New(core), reg)
	for range 500 {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/webhooks/stripe", strings.NewReader("{}"))
		h.ServeHTTP(httptest.NewRecorder(), req)
	}
	if n := log.FilterMessage("Invalid signature").Len(); n < 10 || n > 50 {
		t.Errorf("%d lines", n)
	}
	const want = `purchase_relay_webhooks_total{result="invalid_signature",type="none"} 500`
	if text, err := testutil.CollectAndFormat(reg, expfmt.TypeTextPlain, "purchase_relay_webhooks_total"); err != nil || !strings.Contains(string(text), want) {
		t.Errorf("%s, %v", text, err)
	}
	if !h.LastWebhook().IsZero() {
		t.Error("a stranger's request counts as Stripe's")
	}
	body := []byte(`{"id":"evt_1","type":"customer.updated","data":{"object":{}}}`)
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/webhooks/stripe", strings.NewReader(string(body)))
	req.Header.Set("Stripe-Signature", stripegen.Sign(body, key, time.Now()))
	h.ServeHTTP(httptest.NewRecorder(), req)
	if h.LastWebhook().IsZero() {
		t.Error("an event that is ignored does not count as heard of")
	}
}
