package intake_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
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
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/stripe"
	"purchase-relay/internal/testkit/stripegen"
)

const key = "whsec_intake"

// endpoint is a handler with its service, log and metrics.
type endpoint struct {
	t         *testing.T
	ledger    *ledger
	publisher *publisher
	log       *observer.ObservedLogs
	metrics   *prometheus.Registry
	handler   *intake.Handler
	public    http.Handler
}

// newEndpoint returns an endpoint whose ledger records every purchase. The test fails if its log, its metrics
// or a response contains a secret or an e-mail address.
func newEndpoint(t *testing.T, rules purchase.Rules, objects intake.Objects) *endpoint {
	t.Helper()
	core, log := observer.New(zapcore.DebugLevel)
	recorded := purchase.Recorded{Disposition: purchase.Processed, ProfileID: "p1"}
	e := &endpoint{
		t: t, ledger: &ledger{recorded: recorded}, publisher: &publisher{}, log: log,
		metrics: prometheus.NewRegistry(),
	}
	rules.Modes = map[string]bool{"subscription": true}
	service := intake.NewService(intake.Config{
		Ledger: e.ledger, Rules: rules, Objects: objects, Publisher: e.publisher, Now: time.Now,
	}, zap.New(core), e.metrics)
	webhook := stripe.NewWebhook([]secret.String{key}, time.Now)
	e.handler = intake.NewHandler(webhook, service, zap.New(core), e.metrics)
	e.public = e.handler.Public(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "alive")
	}))
	t.Cleanup(func() {
		for _, entry := range log.All() {
			e.clean("log line "+entry.Message, fmt.Sprint(entry.ContextMap()))
		}
		metrics, err := testutil.CollectAndFormat(e.metrics, expfmt.TypeTextPlain)
		if err != nil {
			t.Error(err)
		}
		e.clean("metrics", string(metrics))
	})
	return e
}

// clean checks that a text has no secret and no e-mail address.
func (e *endpoint) clean(place, text string) {
	e.t.Helper()
	if strings.Contains(text, "hunter2") || strings.Contains(text, "@") {
		e.t.Errorf("%s = %s, want no secret or address", place, text)
	}
}

func (e *endpoint) request(method, path string, body []byte) *httptest.ResponseRecorder {
	e.t.Helper()
	req := httptest.NewRequestWithContext(e.t.Context(), method, path, strings.NewReader(string(body)))
	req.Header.Set("Stripe-Signature", stripegen.Sign(body, key, time.Now()))
	resp := httptest.NewRecorder()
	e.public.ServeHTTP(resp, req)
	e.clean("response", fmt.Sprint(resp.Header(), resp.Body))
	return resp
}

// post posts an event and checks the response's status and that it contains every text.
func (e *endpoint) post(body []byte, status int, texts ...string) {
	e.t.Helper()
	resp := e.request(http.MethodPost, "/webhooks/stripe", body)
	for _, text := range append(texts, "") {
		if resp.Code != status || !strings.Contains(resp.Body.String(), text) {
			e.t.Errorf("response = %d %s, want %d with %q", resp.Code, resp.Body, status, text)
		}
	}
	if after := resp.Header().Get("Retry-After"); (after != "") != (status == http.StatusServiceUnavailable) {
		e.t.Errorf("Retry-After = %q with status %d", after, status)
	}
}

// nothingRecorded checks that the ledger got no receipt.
func (e *endpoint) nothingRecorded() {
	e.t.Helper()
	if n := len(e.ledger.receipts); n > 0 {
		e.t.Errorf("%d receipts, want none", n)
	}
}

// counted checks a value of webhooks_total.
func (e *endpoint) counted(eventType, result string, want int) {
	e.t.Helper()
	text, err := testutil.CollectAndFormat(e.metrics, expfmt.TypeTextPlain, "purchase_relay_webhooks_total")
	line := fmt.Sprintf("purchase_relay_webhooks_total{result=%q,type=%q} %d\n", result, eventType, want)
	if err != nil || !strings.Contains(string(text), line) {
		e.t.Errorf("metrics lack %s, error %v:\n%s", line, err, text)
	}
}

// logged checks the number of lines with a message and a level.
func (e *endpoint) logged(message string, level zapcore.Level, want int) {
	e.t.Helper()
	if n := e.log.FilterMessage(message).FilterLevelExact(level).Len(); n != want {
		e.t.Errorf("%d lines %q at %s, want %d: %v", n, message, level, want, e.log.All())
	}
}

// ledger is an intake.Ledger with a fixed result.
type ledger struct {
	recorded purchase.Recorded
	err      error
	blocks   bool // until the context ends
	panics   bool
	receipts []purchase.Receipt
}

func (l *ledger) Record(ctx context.Context, r purchase.Receipt) (purchase.Recorded, error) {
	l.receipts = append(l.receipts, r)
	if l.panics {
		panic("of buyer@example.com")
	}
	if l.blocks {
		<-ctx.Done()
		return purchase.Recorded{}, ctx.Err()
	}
	return l.recorded, l.err
}

func TestHandler_Responses(t *testing.T) {
	t.Parallel()
	c := stripegen.NewCheckout()
	unpaid, trial, noEmail, invoice := c, c, c, c
	unpaid.PaymentStatus, trial.PaymentStatus = "unpaid", "no_payment_required"
	noEmail.NoDetails, invoice.Type = true, "invoice.paid"
	created := purchase.Recorded{Disposition: purchase.Processed, ProfileID: "p1", ProfileCreated: true}
	updated := purchase.Recorded{Disposition: purchase.Processed, ProfileID: "p1"}
	for name, tc := range map[string]struct {
		checkout stripegen.Checkout
		recorded purchase.Recorded
		logged   string
		woken    int
	}{
		"paid":      {c, created, "Profile created", 1},
		"returning": {c, updated, "Profile updated", 1},
		"trial":     {trial, updated, "PROVISIONING COMPLETE", 0},
		"unpaid":    {unpaid, purchase.Recorded{Disposition: purchase.AwaitingPayment}, "Awaiting payment", 0},
		"no email":  {noEmail, purchase.Recorded{Disposition: purchase.Rejected}, "Invalid email", 0},
		"known":     {c, purchase.Recorded{Disposition: purchase.Duplicate}, "Duplicate event", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEndpoint(t, purchase.Rules{}, nil)
			e.ledger.recorded = tc.recorded
			e.post(tc.checkout.Event(), http.StatusOK, `{"status":"`+string(tc.recorded.Disposition)+`"}`)
			if e.log.FilterMessage(tc.logged).Len() != 1 || e.publisher.woken != tc.woken {
				t.Errorf("woken %d times, want %d; log = %v", e.publisher.woken, tc.woken, e.log.All())
			}
		})
	}
	e := newEndpoint(t, purchase.Rules{}, nil)
	e.post(invoice.Event(), http.StatusOK, `{"status":"ignored"}`)
	e.nothingRecorded()
}

func TestHandler_LedgerUnavailable(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t, purchase.Rules{}, nil)
	e.ledger.err = errors.New("connection refused")
	e.post(stripegen.NewCheckout().Event(), http.StatusServiceUnavailable, "ledger is unavailable")
	e.logged("Failed to create profile", zapcore.ErrorLevel, 1)
	if e.publisher.woken > 0 {
		t.Errorf("woken %d times, want 0", e.publisher.woken)
	}
}

// The buyer waits for this response.
func TestHandler_LedgerSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEndpoint(t, purchase.Rules{}, nil)
		e.ledger.blocks = true
		began := time.Now()
		e.post(stripegen.NewCheckout().Event(), http.StatusServiceUnavailable)
		if took := time.Since(began); took != intake.RecordTimeout {
			t.Errorf("response after %s, want %s", took, intake.RecordTimeout)
		}
	})
}

// After a panic Stripe sends the event again, and the log has the place but no data.
func TestHandler_Panic(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t, purchase.Rules{}, nil)
	e.ledger.panics = true
	e.post(stripegen.NewCheckout().Event(), http.StatusInternalServerError)
	e.logged("Webhook handler panicked", zapcore.ErrorLevel, 1)
	if e.publisher.woken > 0 {
		t.Errorf("woken %d times, want 0", e.publisher.woken)
	}
}

// Each invalid signature is counted; their log lines are rate-limited.
func TestHandler_InvalidSignatures(t *testing.T) {
	t.Parallel()
	const requests = 500
	for _, signature := range []string{"", "t=1,v1=00"} {
		e := newEndpoint(t, purchase.Rules{}, nil)
		for range requests {
			body := strings.NewReader("{}")
			req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/webhooks/stripe", body)
			req.Header.Set("Stripe-Signature", signature)
			resp := httptest.NewRecorder()
			e.handler.ServeHTTP(resp, req)
			if resp.Code != http.StatusBadRequest {
				t.Fatalf("signature %q: status = %d, want 400", signature, resp.Code)
			}
		}
		e.counted("none", "invalid_signature", requests)
		if n := e.log.FilterMessage("Invalid signature").Len(); n < 10 || n > 50 {
			t.Errorf("%d log lines for %d requests, want 10 to 50", n, requests)
		}
		if at := e.handler.LastWebhook(); !at.IsZero() {
			t.Errorf("LastWebhook = %v, want zero", at)
		}
	}
}

func TestHandler_LastWebhookCountsIgnoredEvents(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t, purchase.Rules{}, nil)
	e.post([]byte(`{"id":"evt_1","type":"customer.updated","data":{"object":{}}}`), http.StatusOK)
	if e.handler.LastWebhook().IsZero() {
		t.Error("LastWebhook = zero, want the time of the ignored event")
	}
}

// fetcher is an intake.Objects.
type fetcher func(ctx context.Context, e purchase.Event) (purchase.Event, error)

func (f fetcher) Fetch(ctx context.Context, e purchase.Event) (purchase.Event, error) {
	return f(ctx, e)
}

// standIn returns Stripe's stand-in with the object of an event, and its client. FetchTimeout, which a busy
// machine may exceed, does not end the client's requests.
func standIn(t *testing.T, body []byte) (*stripegen.API, intake.Objects) {
	t.Helper()
	list := stripegen.NewAPI()
	if err := list.Add(body); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(list)
	t.Cleanup(server.Close)
	api := stripe.NewAPI(stripe.APIConfig{Key: "rk_test_hunter2", URL: server.URL})
	return list, fetcher(func(ctx context.Context, event purchase.Event) (purchase.Event, error) {
		return api.Fetch(context.WithoutCancel(ctx), event)
	})
}

func TestHandler_ThinEventEqualsSnapshot(t *testing.T) {
	t.Parallel()
	c := stripegen.NewCheckout().Live()
	unpaid := stripegen.NewCheckout().Delayed("konbini")
	failed := unpaid.AsyncFailed(time.Minute)
	setup := stripegen.NewCheckout()
	setup.Mode = "setup"
	trialed := stripegen.NewCheckout().Live()
	trialed.Created = trialed.Created.AddDate(0, 0, -8) // an invoice in the future would get the time of receipt
	in := trialed.Invoices(7*24*time.Hour, 30*24*time.Hour, 2)[1]
	for name, tc := range map[string]struct {
		snapshot, thin []byte
		want           string // disposition; nothing is recorded if it is ignored
	}{
		"paid":             {c.Event(), c.Thin(), "processed"},
		"unpaid":           {unpaid.Event(), unpaid.Thin(), "awaiting_payment"},
		"failed":           {failed.Event(), failed.Thin(), "processed"},
		"mode not counted": {setup.Event(), setup.Thin(), "ignored"},
		"first payment":    {in.Event(), in.Thin(), "processed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rules := purchase.Rules{FirstPayment: true, TrialEvent: "StartTrial"}
			_, api := standIn(t, tc.snapshot)
			snapshot, thin := newEndpoint(t, rules, nil), newEndpoint(t, rules, api)
			snapshot.ledger.recorded.Disposition = purchase.Disposition(tc.want)
			thin.ledger.recorded.Disposition = purchase.Disposition(tc.want)
			snapshot.post(tc.snapshot, http.StatusOK, tc.want)
			thin.post(tc.thin, http.StatusOK, tc.want)
			thin.counted("thin", tc.want, 1)
			if tc.want == "ignored" {
				thin.nothingRecorded()
				return
			}
			want, got := snapshot.ledger.receipts[0], thin.ledger.receipts[0]
			if diff := cmp.Diff(want.Purchase, got.Purchase); diff != "" {
				t.Errorf("purchase (-want +got):\n%s", diff)
			}
			if g, w := got.Event, want.Event; g.Type != w.Type || !g.Created.Equal(w.Created) {
				t.Errorf("event = %s at %v, want %s at %v", g.Type, g.Created, w.Type, w.Created)
			}
		})
	}
}

// Without an API key a thin event is rejected, not ignored: the sale would be lost.
func TestHandler_RejectsThinEventWithoutKey(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t, purchase.Rules{}, nil)
	if thin := e.handler.RejectedThin(); thin.Count != 0 {
		t.Errorf("rejected thin events = %+v before one came, want none", thin)
	}
	c, began := stripegen.NewCheckout(), time.Now()
	for _, body := range [][]byte{c.Thin(), c.AsyncSucceeded(time.Minute).Thin()} {
		e.post(body, http.StatusBadRequest, "choose snapshot payloads", "STRIPE_API_KEY")
	}
	if thin := e.handler.RejectedThin(); thin.Count != 2 || thin.First.Before(began) ||
		!thin.Latest.After(thin.First) {
		t.Errorf("rejected thin events = %+v, want 2 since %s", thin, began)
	}
	e.counted("thin", "no_api_key", 2)
	e.logged("Thin event without STRIPE_API_KEY", zapcore.ErrorLevel, 2)
	// Other types, and invoices without FIRST_PAYMENT, are ignored.
	other := strings.Replace(string(c.Thin()), "checkout.session.completed", "customer.updated", 1)
	invoice := string(c.Invoices(time.Hour, time.Hour, 1)[0].Thin())
	for _, body := range []string{other, invoice, strings.Replace(other, "v1.customer", "v2.core", 1)} {
		e.post([]byte(body), http.StatusOK, `{"status":"ignored"}`)
	}
	e.counted("thin", "ignored", 3)
	e.nothingRecorded()
}

// If the object cannot be fetched, for whatever reason, nothing is recorded, and Stripe's retry is the sale.
func TestHandler_ThinEventFetchFails(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault  stripegen.Fault
		logged string
	}{
		"unknown key":  {http.StatusUnauthorized, "STRIPE_API_KEY is unknown"},
		"other mode":   {http.StatusNotFound, "other mode or account"},
		"server error": {http.StatusInternalServerError, "returned 500"},
		"other object": {stripegen.WrongObject, "not the requested object"},
		"cut":          {stripegen.Cut, "read Stripe's response"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := stripegen.NewCheckout().Live()
			list, api := standIn(t, c.Event())
			e := newEndpoint(t, purchase.Rules{}, api)
			list.Fail(1, tc.fault)
			thin := c.Thin()
			e.post(thin, http.StatusServiceUnavailable, `{"error":"Stripe's API is unavailable"}`)
			e.nothingRecorded()
			e.counted("thin", "stripe_unavailable", 1)
			e.logged("Thin event fetch failed", zapcore.ErrorLevel, 1)
			line := e.log.FilterMessage("Thin event fetch failed").FilterFieldKey("remedy").All()
			if len(line) != 1 || !strings.Contains(fmt.Sprint(line[0].ContextMap()["error"]), tc.logged) {
				t.Errorf("log = %v, want %q with a remedy", line, tc.logged)
			}
			e.post(thin, http.StatusOK, `{"status":"processed"}`)
			if n := len(e.ledger.receipts); n != 1 || e.ledger.receipts[0].Purchase.ID != c.SessionID {
				t.Errorf("receipts after the retry = %+v, want one of %s", e.ledger.receipts, c.SessionID)
			}
			if n := list.Stats().Requests; n != 2 {
				t.Errorf("%d requests to Stripe's API, want 2", n)
			}
		})
	}
}

// A reference that cannot be fetched is rejected without a request: the key goes nowhere. 400 and not 503,
// because no retry succeeds; Stripe's dashboard shows the failure for days.
func TestHandler_RejectsThinEventWithInvalidReference(t *testing.T) {
	t.Parallel()
	c := stripegen.NewCheckout().Live()
	c.Account = "acct_1Connected"
	all, err := purchase.ParseAccounts([]string{"all"})
	if err != nil {
		t.Fatal(err)
	}
	list, api := standIn(t, c.Event())
	path := "/v1/checkout/sessions/" + c.SessionID
	thin := string(c.Thin())
	related := thin[strings.Index(thin, `"related_object"`):strings.Index(thin, `"type": "v1.`)]
	for name, change := range map[string][2]string{
		"other host":            {path, "https://evil.example" + path},
		"URL is an address":     {path, "buyer@example.com"},
		"URL is an object":      {`"` + path + `"`, `{}`},
		"null":                  {related, `"related_object": null,`},
		"missing":               {related, ""},
		"list":                  {related, `"related_object": [],`},
		"empty":                 {related, `"related_object": {},`},
		"object of another":     {`"checkout.session"`, `"invoice"`},
		"account is an object":  {`"acct_1Connected"`, `{"id": "acct_1Connected", "email": "buyer@example.com"}`},
		"account is a number":   {`"acct_1Connected"`, `7`},
		"account is an address": {`"acct_1Connected"`, `"buyer@example.com"`},
	} {
		t.Run(name, func(t *testing.T) {
			body := strings.Replace(thin, change[0], change[1], 1)
			if body == thin {
				t.Fatalf("the event lacks %s", change[0])
			}
			e := newEndpoint(t, purchase.Rules{Accounts: all}, api)
			e.post([]byte(body), http.StatusBadRequest, `{"error":"thin event has no valid related_object"}`)
			e.nothingRecorded()
			e.counted("thin", "malformed", 1)
			e.logged("Malformed event", zapcore.ErrorLevel, 1)
		})
	}
	if n := list.Stats().Requests; n != 0 {
		t.Errorf("%d requests to Stripe's API, want none", n)
	}
}

// The object's own mode counts where the event has none; an unusable time becomes that of the receipt.
func TestHandler_ThinEventLacksFields(t *testing.T) {
	t.Parallel()
	c := stripegen.NewCheckout().Live()
	c.Created = c.Created.Add(-time.Hour)
	const live = `"livemode": true,`
	quoted := func(at time.Time, layout string) string { return `"` + at.Format(layout) + `"` }
	created := quoted(c.Created, "2006-01-02T15:04:05.000Z07:00")
	for name, tc := range map[string]struct {
		from, to string
		at       time.Time // zero: of the receipt
	}{
		"unchanged":                {"", "", c.Created},
		"no livemode":              {live, "", c.Created},
		"livemode is null":         {live, `"livemode": null,`, c.Created},
		"livemode is a string":     {live, `"livemode": "true",`, c.Created},
		"no context":               {`"context": null,`, "", c.Created},
		"created is null":          {created, `null`, time.Time{}},
		"created is an object":     {created, `{"seconds":1}`, time.Time{}},
		"created after 9999":       {created, `253402300800`, time.Time{}},
		"created in Unix seconds":  {created, fmt.Sprint(c.Created.Unix()), c.Created},
		"created in milliseconds":  {created, fmt.Sprint(c.Created.UnixMilli()), time.Time{}},
		"created in nanoseconds":   {created, quoted(c.Created, "2006-01-02T15:04:05.000000001Z"), c.Created},
		"an event of another kind": {`"v2.core.event"`, `"v2.core.event.next"`, c.Created},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body := strings.Replace(string(c.Thin()), tc.from, tc.to, 1)
			if tc.from != "" && !strings.Contains(string(c.Thin()), tc.from) {
				t.Fatalf("the event lacks %s", tc.from)
			}
			_, api := standIn(t, c.Event())
			e := newEndpoint(t, purchase.Rules{}, api)
			e.post([]byte(body), http.StatusOK, `{"status":"processed"}`)
			if len(e.ledger.receipts) != 1 {
				t.Fatalf("%d receipts, want 1", len(e.ledger.receipts))
			}
			receipt := e.ledger.receipts[0]
			if tc.at.IsZero() {
				tc.at = receipt.Received.UTC().Truncate(time.Second)
			}
			if p := receipt.Purchase; p.ID != c.SessionID || !p.Livemode || !p.At.Equal(tc.at) {
				t.Errorf("purchase = %s, live %t, at %s, want %s, live, at %s",
					p.ID, p.Livemode, p.At, c.SessionID, tc.at)
			}
		})
	}
}

// The buyer waits for this response.
func TestHandler_ThinEventFetchSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slow := fetcher(func(ctx context.Context, event purchase.Event) (purchase.Event, error) {
			<-ctx.Done()
			return event, ctx.Err()
		})
		e := newEndpoint(t, purchase.Rules{}, slow)
		began := time.Now()
		e.post(stripegen.NewCheckout().Thin(), http.StatusServiceUnavailable, "Stripe's API is unavailable")
		if took := time.Since(began); took != intake.FetchTimeout {
			t.Errorf("response after %s, want %s", took, intake.FetchTimeout)
		}
		e.logged("Thin event fetch failed", zapcore.ErrorLevel, 1)
	})
}

// A foreign account's event is neither recorded nor fetched.
func TestHandler_IgnoresForeignAccount(t *testing.T) {
	t.Parallel()
	c := stripegen.NewCheckout().Live()
	c.Account = "acct_1Connected"
	organisation := strings.Replace(string(c.Thin()), `"acct_1Connected"`, `"org_1/acct_1Connected"`, 1)
	unknown := strings.Replace(string(c.Event()), `"acct_1Connected"`, `{"id":"buyer@example.com"}`, 1)
	never := fetcher(func(_ context.Context, event purchase.Event) (purchase.Event, error) {
		t.Error("fetched")
		return event, nil
	})
	for _, body := range []string{string(c.Event()), string(c.Thin()), organisation, unknown} {
		e := newEndpoint(t, purchase.Rules{}, never)
		e.post([]byte(body), http.StatusOK, `{"status":"ignored"}`)
		e.nothingRecorded()
		eventType := "thin"
		if !strings.Contains(body, "v2.core.event") {
			eventType = "checkout.session.completed"
		}
		e.counted(eventType, "other_account", 1)
		e.logged("Event of another account ignored", zapcore.InfoLevel, 1)
	}
	accounts, err := purchase.ParseAccounts([]string{"acct_1Connected"})
	if err != nil {
		t.Fatal(err)
	}
	_, api := standIn(t, c.Event())
	for _, body := range []string{string(c.Event()), string(c.Thin()), organisation} {
		e := newEndpoint(t, purchase.Rules{Accounts: accounts}, api)
		e.post([]byte(body), http.StatusOK, `{"status":"processed"}`)
	}
}

func TestHandler_PublicPaths(t *testing.T) {
	t.Parallel()
	body := stripegen.NewCheckout().Event()
	for _, tc := range []struct {
		method, path string
		status       int
		logged       string // the path in the log; "": none
	}{
		{http.MethodPost, "/webhooks/stripe", http.StatusOK, ""},
		{http.MethodPost, "/webhooks/stripe/", http.StatusOK, ""},
		{http.MethodGet, "/webhooks/stripe/", http.StatusMethodNotAllowed, ""},
		{http.MethodGet, "/healthz", http.StatusOK, ""},
		{http.MethodHead, "/healthz", http.StatusOK, ""},
		{http.MethodPost, "/healthz", http.StatusMethodNotAllowed, ""},
		{http.MethodPost, "/webhook/stripe", http.StatusNotFound, "/webhook/stripe"},
		{http.MethodPost, "/webhooks/stripe//", http.StatusNotFound, "/webhooks/stripe//"},
		{http.MethodPost, "//webhooks/stripe", http.StatusNotFound, "//webhooks/stripe"},
		{http.MethodPost, "/Webhooks/Stripe", http.StatusNotFound, "/Webhooks/Stripe"},
		{http.MethodGet, "/", http.StatusNotFound, "/"},
		{http.MethodGet, "/metrics", http.StatusNotFound, "/metrics"},
		{http.MethodGet, "/x?email=buyer@example.com", http.StatusNotFound, "/x"},
		{http.MethodGet, "/buyer%40example.com", http.StatusNotFound, "[not a plain path]"},
		{http.MethodGet, "/%1b%5b2J", http.StatusNotFound, "[not a plain path]"},
		{http.MethodGet, "/" + strings.Repeat("a", 5000), http.StatusNotFound, "/" + strings.Repeat("a", 99)},
		{"BREW", "/pot", http.StatusNotFound, "/pot"},
	} {
		e := newEndpoint(t, purchase.Rules{}, nil)
		resp := e.request(tc.method, "http://shop.example"+tc.path, body)
		if resp.Code != tc.status {
			t.Errorf("%s %s: status = %d, want %d", tc.method, tc.path, resp.Code, tc.status)
		}
		if tc.logged == "" {
			e.logged("Unknown path", zapcore.WarnLevel, 0)
			e.counted("none", "not_found", 0)
			continue
		}
		e.counted("none", "not_found", 1)
		e.logged("Unknown path", zapcore.WarnLevel, 1)
		if got := e.log.FilterMessage("Unknown path").All()[0].ContextMap()["path"]; got != tc.logged {
			t.Errorf("%s: logged path = %q, want %q", tc.path, got, tc.logged)
		}
	}
	e := newEndpoint(t, purchase.Rules{}, nil)
	for range 500 {
		e.request(http.MethodGet, "/wp-login.php", nil)
	}
	e.counted("none", "not_found", 500)
	if n := e.log.FilterMessage("Unknown path").Len(); n < 10 || n > 50 {
		t.Errorf("%d log lines for 500 requests, want 10 to 50", n)
	}
}

// A second session under an event id is recorded, and the conflict is logged once.
func TestHandler_LogsEventIDConflict(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t, purchase.Rules{}, nil)
	e.ledger.recorded.Conflict = "cs_first"
	c := stripegen.NewCheckout()
	e.post(c.Event(), http.StatusOK, "processed")
	e.logged("Event id repeated with another session", zapcore.WarnLevel, 1)
	e.ledger.recorded.Disposition = purchase.Duplicate
	e.post(c.Event(), http.StatusOK, "duplicate")
	e.logged("Event id repeated with another session", zapcore.WarnLevel, 1)
}

// A sent trial has no value by design.
func TestHandler_DoesNotCountTrialWithoutValue(t *testing.T) {
	t.Parallel()
	const metric = "purchase_relay_purchases_without_value_total"
	unknown := stripegen.NewCheckout()
	unknown.AmountTotal = nil
	for want, c := range map[string]stripegen.Checkout{"0": stripegen.NewCheckout().Trial(), "1": unknown} {
		e := newEndpoint(t, purchase.Rules{TrialEvent: "StartTrial"}, nil)
		e.post(c.Event(), http.StatusOK, "processed")
		text, err := testutil.CollectAndFormat(e.metrics, expfmt.TypeTextPlain, metric)
		if err != nil || !strings.Contains(string(text), metric+" "+want) {
			t.Errorf("metric = %s, error = %v, want %s", text, err, want)
		}
	}
}
