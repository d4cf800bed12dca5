package stripe_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
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

// The two are made for each other, and know nothing of each other.
var (
	_ backfill.List    = (*stripe.API)(nil)
	_ backfill.Refusal = (*stripe.Refusal)(nil)
)

func serve(t *testing.T, h http.Handler) *stripe.API {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return stripe.NewAPI(stripe.APIConfig{Key: "rk_test_hunter2", URL: server.URL + "/", Types: purchase.Rules{}.Types()})
}

// Pages are turned, the time's ends belong to it, other types are left out, and an event is read as from a webhook, an old account's too.
func TestAPI_Events(t *testing.T) {
	list := stripegen.NewAPI()
	began := time.Unix(1_750_000_000, 0)
	var wanted []string
	for i := range 250 {
		c := stripegen.NewCheckout()
		c.Created = began.Add(time.Duration(i) * time.Second)
		if i == 77 {
			c.Type = "checkout.session.expired"
		}
		body := strings.Replace(string(c.Event()), `"request": {`, `"request": "req_old", "unread": {`, 1)
		if err := list.Add([]byte(body)); err != nil {
			t.Fatal(err)
		}
		if i != 77 && i >= 10 && i <= 240 {
			wanted = append([]string{c.EventID}, wanted...)
		}
	}
	api := serve(t, list)
	var got []string
	for e, err := range api.Events(t.Context(), began.Add(10*time.Second), began.Add(240*time.Second), "") {
		if err != nil {
			t.Fatal(err)
		}
		if e.Checkout == nil || e.Checkout.PaymentStatus != "paid" || e.Type != purchase.TypeCompleted || e.Created.Before(began) {
			t.Fatalf("%+v", e)
		}
		got = append(got, e.ID)
	}
	if fmt.Sprint(got) != fmt.Sprint(wanted) || list.Stats().Requests != 3 {
		t.Errorf("%d events of %d in %d requests", len(got), len(wanted), list.Stats().Requests)
	}
	for e, err := range api.Events(t.Context(), began, began.Add(time.Hour), wanted[150]) {
		if err != nil || e.ID != wanted[151] {
			t.Errorf("after %s: %s, %v", wanted[150], e.ID, err)
		}
		break
	}
}

// What Stripe, or the way there, refuses says whether to wait and what to do, and never what was sent.
func TestAPI_EventsRefusals(t *testing.T) {
	answer := func(status int, body string, headers ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Request-Id", "req_1")
			for i := 0; i < len(headers); i += 2 {
				w.Header().Set(headers[i], headers[i+1])
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	const said = `{"error":{"type":"invalid_request_error","message":"hunter2 buyer@example.com","code":%q,"param":%q}}`
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		passing bool
		wait    time.Duration
		gone    bool
		says    string
	}{
		"too fast":          {answer(429, fmt.Sprintf(said, "rate_limit", ""), "Retry-After", "7"), true, 7 * time.Second, false, "too many requests"},
		"too fast, no time": {answer(429, fmt.Sprintf(said, "rate_limit", "")), true, 0, false, "429"},
		"a fault":           {answer(500, `{"error":{"type":"api_error","message":"hunter2"}}`), true, 0, false, "answered 500 (request req_1)"},
		"a gateway":         {answer(502, "<html>hunter2 buyer@example.com"), true, 0, false, "cannot be read"},
		"no list":           {answer(200, `{"data":[{"object":"buyer@example.com"}]}`), true, 0, false, "cannot be read"},
		"a wrong key":       {answer(401, fmt.Sprintf(said, "", "")), false, 0, false, "STRIPE_API_KEY is not known"},
		"no right":          {answer(403, fmt.Sprintf(said, "", "")), false, 0, false, "the right to read events"},
		"a wrong question":  {answer(400, fmt.Sprintf(said, "parameter_unknown", "kinds")), false, 0, false, "code parameter_unknown about kinds"},
		"a cursor gone":     {answer(400, fmt.Sprintf(said, "resource_missing", "starting_after")), false, 0, true, "resource_missing"},
		"a cut connection":  {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, true, 0, false, "cannot be reached"},
	} {
		listed := 0
		var err error
		for _, e := range serve(t, tc.handler).Events(t.Context(), time.Now().Add(-time.Hour), time.Now(), "evt_1") {
			listed++
			err = e
		}
		var refused *stripe.Refusal
		if listed != 1 || !errors.As(err, &refused) {
			t.Errorf("%s: %d, %v", name, listed, err)
			continue
		}
		wait, passing := refused.Passing()
		if wait != tc.wait || passing != tc.passing || refused.Gone() != tc.gone || !strings.Contains(err.Error(), tc.says) ||
			strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "@") {
			t.Errorf("%s: %v (wait %s, passing %v, gone %v)", name, err, wait, passing, refused.Gone())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range serve(t, answer(200, "{}")).Events(ctx, time.Now().Add(-time.Hour), time.Now(), "") {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted: %v", err)
		}
	}
}

// A redirect would carry the key to whoever it names, and an answer without a list must not look like an
// empty one.
func TestAPI_DoesNotFollowRedirects(t *testing.T) {
	t.Parallel()
	var followed atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		followed.Add(1)
		_, _ = w.Write([]byte(`{"object":"list","data":[],"has_more":false,"url":"/v1/events"}`))
	}))
	t.Cleanup(elsewhere.Close)
	for _, status := range []int{301, 302, 303, 307, 308, 300, 304} {
		api := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", elsewhere.URL+r.URL.Path)
			w.WriteHeader(status)
		}))
		var err error
		for _, e := range api.Events(t.Context(), time.Now().Add(-time.Hour), time.Now(), "") {
			err = e
		}
		refused := new(stripe.Refusal)
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "redirect") {
			t.Errorf("%d: error = %v, want a refusal that names the redirect", status, err)
			continue
		}
		if _, passing := refused.Passing(); passing {
			t.Errorf("%d: is asked again, want not", status)
		}
	}
	if n := followed.Load(); n != 0 {
		t.Errorf("%d redirects were followed, want 0", n)
	}
}

// A request has the key as bearer token, and no telemetry of earlier ones.
func TestAPI_SendsNoTelemetry(t *testing.T) {
	asked := make(chan *http.Request, 2)
	api := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r
		w.Header().Set("Request-Id", "req_1")
		_, _ = w.Write([]byte(`{"object":"list","data":[null],"has_more":false}`))
	}))
	for range 2 {
		for e, err := range api.Events(t.Context(), time.Unix(1000, 5), time.Unix(2000, 5), "") {
			t.Errorf("%+v, %v", e, err)
		}
		r := <-asked
		q := r.URL.Query()
		if r.Header.Get("Authorization") != "Bearer rk_test_hunter2" || r.Header.Get("X-Stripe-Client-Telemetry") != "" || r.URL.Path != "/v1/events" ||
			q.Get("created[gte]") != "1000" || q.Get("created[lte]") != "2000" || q.Get("limit") != "100" || q.Get("types[2]") == "" || len(q) != 6 {
			t.Errorf("%s %v", r.URL, r.Header)
		}
	}
}

func TestAPIConfig(t *testing.T) {
	for _, tc := range []struct {
		key, url           string
		live, unrestricted bool
		wrong              string
	}{
		{"rk_live_x", "", true, false, ""},
		{"sk_test_x", "http://127.0.0.1:8086", false, true, ""},
		{"rk_live_x", "https://stripe.example", true, false, ""},
		{"rk_live_x", "http://127.0.0.1:8086", true, false, "not https"},
		{"rk_test_x", "127.0.0.1:8086", false, false, "STRIPE_API_URL is no address"},
		{"rk_test_x", "ftp://x", false, false, "STRIPE_API_URL is no address"},
		{"whsec_hunter2", "", false, false, "does not look like"},
		{"rk_", "", false, false, "does not look like"},
	} {
		c := stripe.APIConfig{Key: secret.String(tc.key), URL: tc.url}
		got := strings.Join(c.Problems(), "\n")
		if c.Livemode() != tc.live || c.Unrestricted() != tc.unrestricted || (got == "") != (tc.wrong == "") || !strings.Contains(got, tc.wrong) || strings.Contains(got, "hunter2") {
			t.Errorf("%s %s: %s", tc.key, tc.url, got)
		}
	}
}
