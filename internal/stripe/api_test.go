package stripe_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"purchase-relay/internal/ops/backfill"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/stripe"
	"purchase-relay/internal/testkit/stripegen"
)

var (
	_ backfill.List    = (*stripe.API)(nil)
	_ backfill.Refusal = (*stripe.APIError)(nil)
)

const testKey = "rk_test_hunter2"

// serve returns an API whose server is h.
func serve(t *testing.T, h http.Handler) *stripe.API {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	types := purchase.Rules{}.Types()
	return stripe.NewAPI(stripe.APIConfig{Key: testKey, URL: server.URL + "/", Types: types})
}

// respond returns a handler with a fixed response. headers alternates names and values.
func respond(status int, body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Request-Id", "req_1")
		for pair := range slices.Chunk(headers, 2) {
			w.Header().Set(pair[0], pair[1])
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

func abort(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// clean fails if an error contains the key or personal data, or not want.
func clean(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil {
		t.Fatalf("error = nil, want %q", want)
	}
	text := err.Error()
	if !strings.Contains(text, want) || strings.Contains(text, "hunter2") || strings.Contains(text, "@") {
		t.Errorf("error = %q, want %q without secret", text, want)
	}
}

// lastHour lists the events of the last hour and returns their number and the last error.
func lastHour(ctx context.Context, api *stripe.API) (n int, last error) {
	for _, err := range api.Events(ctx, time.Now().Add(-time.Hour), time.Now(), "evt_1") {
		n, last = n+1, err
	}
	return n, last
}

// The list spans pages, includes both ends, excludes other types, and decodes events like a webhook.
func TestAPI_Events(t *testing.T) {
	list := stripegen.NewAPI()
	began := time.Unix(1_750_000_000, 0)
	var want []string
	for i := range 250 {
		c := stripegen.NewCheckout()
		c.Created = began.Add(time.Duration(i) * time.Second)
		if i == 77 {
			c.Type = "checkout.session.expired"
		}
		oldAccount := strings.Replace(string(c.Event()), `"request": {`, `"request": "req_old", "unread": {`, 1)
		if err := list.Add([]byte(oldAccount)); err != nil {
			t.Fatal(err)
		}
		if i != 77 && i >= 10 && i <= 240 {
			want = append([]string{c.EventID}, want...)
		}
	}
	api := serve(t, list)
	var got []string
	for e, err := range api.Events(t.Context(), began.Add(10*time.Second), began.Add(240*time.Second), "") {
		if err != nil {
			t.Fatal(err)
		}
		c := e.Checkout
		if c == nil || c.PaymentStatus != "paid" || e.Type != purchase.TypeCompleted || e.Created.Before(began) {
			t.Fatalf("event = %+v, want a paid checkout", e)
		}
		got = append(got, e.ID)
	}
	if n := list.Stats().Requests; !slices.Equal(got, want) || n != 3 {
		t.Errorf("%d events in %d requests, want %d in 3", len(got), n, len(want))
	}
	for e, err := range api.Events(t.Context(), began, began.Add(time.Hour), want[150]) {
		if err != nil || e.ID != want[151] {
			t.Errorf("event after %s = %s, error = %v, want %s", want[150], e.ID, err, want[151])
		}
		break
	}
}

// An error reports whether and when to retry, and contains nothing of the request or the response.
func TestAPI_EventsErrors(t *testing.T) {
	stripeError := func(code, param string) string {
		return fmt.Sprintf(`{"error":{"type":"invalid_request_error","message":"hunter2 buyer@example.com",`+
			`"code":%q,"param":%q}}`, code, param)
	}
	const unexpected = "unexpected content"
	for name, tc := range map[string]struct {
		handler    http.HandlerFunc
		retryable  bool
		wait       time.Duration
		cursorGone bool
		want       string
	}{
		"rate limit": {
			respond(429, stripeError("rate_limit", ""), "Retry-After", "7"),
			true, 7 * time.Second, false, "rate limit",
		},
		"rate limit without a time": {respond(429, stripeError("rate_limit", "")), true, 0, false, "429"},
		"server error": {
			respond(500, `{"error":{"type":"api_error","message":"hunter2"}}`), true, 0, false, "500 (request req_1)",
		},
		"gateway":            {respond(502, "<html>hunter2 buyer@example.com"), true, 0, false, unexpected},
		"not a list":         {respond(200, `{"data":[{"object":"a@b.example"}]}`), true, 0, false, unexpected},
		"unknown key":        {respond(401, stripeError("", "")), false, 0, false, "STRIPE_API_KEY is unknown"},
		"missing permission": {respond(403, stripeError("", "")), false, 0, false, "lacks read permission"},
		"invalid request": {
			respond(400, stripeError("parameter_unknown", "kinds")), false, 0, false,
			"code parameter_unknown, parameter kinds",
		},
		"cursor gone": {
			respond(400, stripeError("resource_missing", "starting_after")), false, 0, true, "resource_missing",
		},
		"cut connection": {abort, true, 0, false, "call Stripe's API"},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := lastHour(t.Context(), serve(t, tc.handler))
			failure := new(stripe.APIError)
			if n != 1 || !errors.As(err, &failure) {
				t.Fatalf("%d results, error = %v, want an APIError", n, err)
			}
			wait, retryable := failure.Retryable()
			if wait != tc.wait || retryable != tc.retryable || failure.CursorGone() != tc.cursorGone {
				t.Errorf("wait = %s, retryable = %t, cursor gone = %t", wait, retryable, failure.CursorGone())
			}
			clean(t, err, tc.want)
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lastHour(ctx, serve(t, respond(200, "{}"))); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want context canceled", err)
	}
}

// A redirect would send the key to another server, and a redirect without a list is not an empty list.
func TestAPI_DoesNotFollowRedirects(t *testing.T) {
	t.Parallel()
	var followed atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		followed.Add(1)
		_, _ = w.Write([]byte(`{"object":"list","data":[],"has_more":false,"url":"/v1/events"}`))
	}))
	t.Cleanup(other.Close)
	for _, status := range []int{301, 302, 303, 307, 308, 300, 304} {
		_, err := lastHour(t.Context(), serve(t, respond(status, "", "Location", other.URL+"/v1/events")))
		failure := new(stripe.APIError)
		if !errors.As(err, &failure) || !strings.Contains(err.Error(), "redirect") {
			t.Errorf("%d: error = %v, want an APIError about a redirect", status, err)
			continue
		}
		if _, retryable := failure.Retryable(); retryable {
			t.Errorf("%d: retryable = true, want false", status)
		}
	}
	if n := followed.Load(); n != 0 {
		t.Errorf("%d followed redirects, want 0", n)
	}
}

// A request has the key as bearer token, and no telemetry about earlier ones.
func TestAPI_SendsNoTelemetry(t *testing.T) {
	requests := make(chan *http.Request, 2)
	api := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests <- r
		respond(200, `{"object":"list","data":[null],"has_more":false}`)(w, r)
	}))
	for range 2 {
		for e, err := range api.Events(t.Context(), time.Unix(1000, 5), time.Unix(2000, 5), "") {
			t.Errorf("event = %+v, error = %v, want an empty list", e, err)
		}
		r := <-requests
		telemetry := r.Header.Get("X-Stripe-Client-Telemetry")
		if r.Header.Get("Authorization") != "Bearer "+testKey || telemetry != "" || r.URL.Path != "/v1/events" {
			t.Errorf("request = %s %v", r.URL, r.Header)
		}
		q := r.URL.Query()
		for name, want := range map[string]string{"created[gte]": "1000", "created[lte]": "2000", "limit": "100"} {
			if got := q.Get(name); got != want {
				t.Errorf("parameter %s = %q, want %q", name, got, want)
			}
		}
		if q.Get("types[2]") == "" || len(q) != 6 {
			t.Errorf("query = %v, want three types and six parameters", q)
		}
	}
}

func TestAPIConfig(t *testing.T) {
	for _, tc := range []struct {
		key, url           string
		live, unrestricted bool
		problem            string
	}{
		{"rk_live_x", "", true, false, ""},
		{"sk_test_x", "http://127.0.0.1:8086", false, true, ""},
		{"rk_live_x", "https://stripe.example", true, false, ""},
		{"rk_live_x", "http://127.0.0.1:8086", true, false, "not https"},
		{"rk_test_x", "127.0.0.1:8086", false, false, "STRIPE_API_URL is not an http(s) URL"},
		{"rk_test_x", "ftp://x", false, false, "STRIPE_API_URL is not an http(s) URL"},
		{"whsec_hunter2", "", false, false, "does not look like"},
		{"rk_", "", false, false, "does not look like"},
	} {
		c := stripe.APIConfig{Key: secret.String(tc.key), URL: tc.url}
		if c.Livemode() != tc.live || c.Unrestricted() != tc.unrestricted {
			t.Errorf("%s: livemode = %t, unrestricted = %t", tc.key, c.Livemode(), c.Unrestricted())
		}
		got := strings.Join(c.Problems(), "\n")
		if (got == "") != (tc.problem == "") || !strings.Contains(got, tc.problem) ||
			strings.Contains(got, "hunter2") {
			t.Errorf("%s %s: problems = %q, want %q", tc.key, tc.url, got, tc.problem)
		}
	}
}
