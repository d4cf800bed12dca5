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

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/intake"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/stripe"
	"purchase-relay/internal/testkit/stripegen"
)

var _ intake.Objects = (*stripe.API)(nil)

func decode(t *testing.T, body []byte) purchase.Event {
	t.Helper()
	e, err := webhook("whsec_a").Decode(body)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// Fetched, a thin event is read as its snapshot: the session and the invoice of every API version.
func TestAPI_FetchReadsAsASnapshot(t *testing.T) {
	t.Parallel()
	c := stripegen.NewCheckout().Live()
	c.Tax, c.Shipping, c.ExpandedEmail = 100, 200, "other@example.com"
	bodies := map[string][2][]byte{"session": {c.Event(), c.Thin()}}
	for _, version := range []string{"2020-08-27", "2025-06-30.basil"} {
		i := c.Invoices(7*24*time.Hour, 30*24*time.Hour, 2)[1]
		i.APIVersion, i.Tax, i.Shipping = version, 300, 400
		bodies["invoice "+version] = [2][]byte{i.Event(), i.Thin()}
	}
	list := stripegen.NewAPI()
	api := serve(t, list)
	for name, b := range bodies {
		if err := list.Add(b[0]); err != nil {
			t.Fatal(err)
		}
		want := decode(t, b[0])
		got, err := api.Fetch(t.Context(), decode(t, b[1]))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want.ID, want.Thin, want.Related = got.ID, true, got.Related
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// The key goes to STRIPE_API_URL alone, with the account of the event's context, and nowhere that an event
// chooses.
func TestAPI_FetchAsksStripeAlone(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	var last atomic.Pointer[http.Request]
	api := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		last.Store(r)
		_, _ = w.Write([]byte(`{"id":"cs_1","object":"checkout.session","mode":"payment"}`))
	}))
	related := purchase.Related{ID: "cs_1", Type: "checkout.session", URL: "/v1/checkout/sessions/cs"}
	e := purchase.Event{ID: "evt_1", Type: purchase.TypeCompleted, Thin: true, Related: related}
	for account, want := range map[string]string{"": "", "acct_1": "acct_1"} {
		e.Account = account
		if got, err := api.Fetch(t.Context(), e); err != nil || got.Checkout.ID != "cs_1" {
			t.Errorf("account %q: %+v, %v", account, got, err)
		}
		r := last.Load()
		if r.Method != http.MethodGet || r.URL.String() != related.URL {
			t.Errorf("account %q: asked %s %s, want GET %s", account, r.Method, r.URL, related.URL)
		}
		bearer, of := r.Header.Get("Authorization"), r.Header.Get("Stripe-Account")
		if bearer != "Bearer rk_test_hunter2" || of != want {
			t.Errorf("account %q: asked with %q for %q", account, bearer, of)
		}
	}
	e.Account = ""
	before := asked.Load()
	for _, url := range []string{
		"", "/", "/v1", "/v1/", "/v2/core/events/evt_1", "v1/checkout/sessions/cs_1", "https://evil.example/v1/x",
		"//evil.example/v1/x", "/v1//evil.example", "/v1/../admin", "/v1/./x", "/v1/x/..", "/v1/%2e%2e/admin",
		"/v1/x%2Fy", "/v1/x?expand[]=customer", "/v1/x#y", "/v1/@evil.example", "/v1/x:80", "\\v1\\x",
		"/v1/x\r\nHost: evil.example", "/v1/x y", "/v1/" + strings.Repeat("a/", 600) + "a",
	} {
		e.Related.URL = url
		got, err := api.Fetch(t.Context(), e)
		if !errors.Is(err, purchase.ErrReference) || got.Checkout != nil {
			t.Errorf("%q: %+v, %v, want ErrReference", url, got, err)
		}
	}
	for name, change := range map[string]func(e *purchase.Event){
		"no id":          func(e *purchase.Event) { e.Related.ID = "" },
		"an odd id":      func(e *purchase.Event) { e.Related.ID = "cs.1" },
		"another type":   func(e *purchase.Event) { e.Related.Type = "invoice" },
		"a foreign type": func(e *purchase.Event) { e.Type = "customer.updated" },
		"an odd account": func(e *purchase.Event) { e.Account = "?" },
	} {
		wrong := e
		wrong.Related = related
		change(&wrong)
		if _, err := api.Fetch(t.Context(), wrong); !errors.Is(err, purchase.ErrReference) {
			t.Errorf("%s: %v, want ErrReference", name, err)
		}
	}
	if n := asked.Load(); n != before {
		t.Errorf("%d requests for unusable references, want none", n-before)
	}
}

// Whatever comes back instead of the object is an error that says what to do and nothing of what was sent.
func TestAPI_FetchRefusals(t *testing.T) {
	t.Parallel()
	answer := func(status int, body string, headers ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(headers); i += 2 {
				w.Header().Set(headers[i], headers[i+1])
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the key was sent elsewhere: %s", r.URL)
	}))
	t.Cleanup(elsewhere.Close)
	const said = `{"error":{"type":"invalid_request_error","message":"hunter2 buyer@example.com"}}`
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		says    string
	}{
		"a wrong key":        {answer(401, said), "STRIPE_API_KEY is not known"},
		"no right":           {answer(403, said), "STRIPE_API_KEY may not read"},
		"the other mode":     {answer(404, said, "Request-Id", "req_1"), "another account) (request req_1)"},
		"too many":           {answer(429, said), "too many requests"},
		"a fault":            {answer(500, said), "answered 500"},
		"a gateway":          {answer(502, "<html>hunter2 buyer@example.com"), "answered 502"},
		"no content":         {answer(204, ""), "answered 204"},
		"HTML":               {answer(200, "<html>hunter2 buyer@example.com"), "cannot be read"},
		"half an object":     {answer(200, `{"id":"cs_1","object":"checkout.session","mo`), "cannot be read"},
		"nothing":            {answer(200, ""), "cannot be read"},
		"deep":               {answer(200, strings.Repeat("[", 1000)+strings.Repeat("]", 1000)), "cannot be read"},
		"a list":             {answer(200, `[]`), "another object"},
		"an error called ok": {answer(200, said), "another object"},
		"another id":         {answer(200, `{"id":"cs_2","object":"checkout.session"}`), "another object"},
		"another object":     {answer(200, `{"id":"cs_1","object":"invoice"}`), "another object"},
		"no object's type":   {answer(200, `{"id":"cs_1"}`), "another object"},
		"huge":               {answer(200, `{"id":"cs_1","a":"`+strings.Repeat("x", 1<<20)+`"}`), "more than 1 MiB"},
		"endless": {func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}, "more than 1 MiB"},
		"cut": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte(`{"id":"cs_1"`))
		}, "broke its answer off"},
		"a cut connection": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "cannot be reached"},
		"a redirect":       {answer(302, "", "Location", elsewhere.URL+"/v1/x"), "redirect"},
		"a redirect home":  {answer(307, "", "Location", "/v1/x"), "redirect"},
		"a redirect kept":  {answer(308, "", "Location", "//evil.example/"), "redirect"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			related := purchase.Related{ID: "cs_1", Type: "checkout.session", URL: "/v1/checkout/sessions/cs_1"}
			e := purchase.Event{ID: "evt_1", Type: purchase.TypeCompleted, Thin: true, Related: related}
			got, err := serve(t, tc.handler).Fetch(t.Context(), e)
			var refused *stripe.Refusal
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), tc.says) || got.Checkout != nil {
				t.Fatalf("%+v, %v, want a refusal with %q", got, err, tc.says)
			}
			if said := err.Error(); strings.Contains(said, "hunter2") || strings.Contains(said, "@") {
				t.Errorf("the error has what was sent: %v", said)
			}
		})
	}
	closed := stripe.NewAPI(stripe.APIConfig{Key: "rk_test_hunter2", URL: "http://127.0.0.1:1"})
	_, err := closed.Fetch(t.Context(), decode(t, stripegen.NewCheckout().Thin()))
	if err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("nobody listens: %v", err)
	}
}

// A fetch ends with its context, also in the middle of an answer.
func TestAPI_FetchEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for _, begun := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		api := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if begun {
				_, _ = w.Write([]byte(`{"id":`))
				_ = http.NewResponseController(w).Flush()
			}
			cancel()
			<-r.Context().Done()
		}))
		_, err := api.Fetch(ctx, decode(t, stripegen.NewCheckout().Thin()))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("begun %v: %v, want context canceled", begun, err)
		}
	}
}

// The list of events does not follow a redirect either.
func TestAPI_EventsRefuseRedirects(t *testing.T) {
	t.Parallel()
	var elsewhere atomic.Int32
	count := func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }
	other := httptest.NewServer(http.HandlerFunc(count))
	t.Cleanup(other.Close)
	api := serve(t, http.RedirectHandler(other.URL+"/v1/events", http.StatusFound))
	for _, err := range api.Events(t.Context(), time.Now().Add(-time.Hour), time.Now(), "") {
		if err == nil || !strings.Contains(err.Error(), "redirect") {
			t.Errorf("error %v, want one about the redirect", err)
		}
	}
	if n := elsewhere.Load(); n > 0 {
		t.Errorf("%d requests followed a redirect, want none", n)
	}
}

// Stripe's own address is the default.
func TestNewAPI_DefaultAddress(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // nothing leaves this machine
	api := stripe.NewAPI(stripe.APIConfig{Key: secret.String("rk_test_hunter2")})
	_, err := api.Fetch(ctx, decode(t, stripegen.NewCheckout().Thin()))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context canceled", err)
	}
}

func TestDecode_Thin(t *testing.T) {
	t.Parallel()
	c := stripegen.NewCheckout().Live()
	c.Account = "acct_1"
	got := decode(t, c.Thin())
	url := "/v1/checkout/sessions/" + c.SessionID
	want := purchase.Event{
		ID: got.ID, Type: purchase.TypeCompleted, Created: c.Created, Livemode: true, Thin: true, Account: "acct_1",
		Related: purchase.Related{ID: c.SessionID, Type: "checkout.session", URL: url},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	for text, at := range map[string]time.Time{
		"2026-11-28T03:30:00.999Z":  time.Date(2026, 11, 28, 3, 30, 0, 0, time.UTC),
		"2026-11-28T03:30:00+02:00": time.Date(2026, 11, 28, 1, 30, 0, 0, time.UTC),
		"0001-01-01T00:00:00Z":      {},
		"yesterday":                 {},
		"":                          {},
	} {
		const body = `{"id":"evt_1","object":"v2.core.event","type":"v1.invoice.paid","created":%q,"related_object":[]}`
		e := decode(t, fmt.Appendf(nil, body, text))
		if !e.Created.Equal(at) || e.Type != purchase.TypeInvoicePaid || e.Related != (purchase.Related{}) {
			t.Errorf("created %q: %+v, want %v", text, e, at)
		}
	}
}

func TestDecode_Account(t *testing.T) {
	t.Parallel()
	for fields, want := range map[string]string{
		`"a":1`:                                 "",
		`"account":null`:                        "",
		`"account":""`:                          "",
		`"context":null,"account":"acct_1"`:     "acct_1",
		`"account":"acct_1"`:                    "acct_1",
		`"context":"acct_2"`:                    "acct_2",
		`"context":"org_1/acct_2"`:              "acct_2",
		`"context":"acct_2","account":"acct_1"`: "acct_1",
		`"account":7`:                           "?",
		`"account":{"id":"acct_1"}`:             "?",
		`"account":"acct 1"`:                    "?",
		`"context":"org_1/"`:                    "?",
	} {
		if e := decode(t, []byte(`{"id":"evt_1","type":"t",`+fields+`}`)); e.Account != want {
			t.Errorf("%s: account %q, want %q", fields, e.Account, want)
		}
	}
}

// Taxes, shipping and discount are read where the API's versions have them; what is not there is unknown.
func TestDecode_Parts(t *testing.T) {
	t.Parallel()
	for body, want := range map[string][2]*int64{
		`"total_taxes":[{"amount":3},{"amount":4}]`:                      {new(int64(7)), nil},
		`"total_taxes":[],"tax":9`:                                       {new(int64(0)), nil},
		`"total_taxes":null,"total_tax_amounts":[{"amount":5}],"tax":9`:  {new(int64(5)), nil},
		`"tax":9,"shipping_cost":{"amount_subtotal":8,"amount_total":9}`: {new(int64(9)), new(int64(8))},
		`"tax":null,"shipping_cost":null`:                                {nil, nil},
		`"tax":"9","total_taxes":[{"amount":"x"},7]`:                     {new(int64(0)), nil},
		`"total_taxes":[{"amount":9223372036854775807},{"amount":1}]`:    {new(int64(9223372036854775807)), nil},
	} {
		i := decode(t, []byte(`{"id":"evt_1","type":"invoice.paid","data":{"object":{`+body+`}}}`)).Invoice
		if diff := cmp.Diff(want, [2]*int64{i.Tax, i.Shipping}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", body, diff)
		}
	}
	for body, want := range map[string][3]*int64{
		`"total_details":{"amount_discount":1,"amount_tax":2,"amount_shipping":3}`: {new(int64(1)), new(int64(2)), new(int64(3))},
		`"total_details":{"amount_discount":null,"amount_tax":"2"}`:                {},
		`"total_details":null`: {},
		`"total_details":[1]`:  {},
	} {
		c := decode(t, []byte(`{"id":"evt_1","type":"t","data":{"object":{`+body+`}}}`)).Checkout
		if diff := cmp.Diff(want, [3]*int64{c.Discount, c.Tax, c.Shipping}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", body, diff)
		}
	}
	c := stripegen.NewCheckout()
	c.ExpandedEmail = "x@example.com"
	got := decode(t, c.Event()).Checkout
	if got.ExpandedEmail != "x@example.com" || got.Customer != c.Customer {
		t.Errorf("an expanded customer: %q, %q", got.Customer, got.ExpandedEmail)
	}
}

func FuzzDecodeThin(f *testing.F) {
	f.Add(stripegen.NewCheckout().Thin())
	f.Add([]byte(`{"id":"e","type":"v1.","object":"v2.core.event"}`))
	f.Add([]byte(`{"id":"e","type":"v1.invoice.paid","object":"v2.x","related_object":{"url":"/v1/x/../y"}}`))
	api := stripe.NewAPI(stripe.APIConfig{Key: "rk_test_x", URL: "http://127.0.0.1:1"})
	ctx, cancel := context.WithCancel(f.Context())
	cancel()
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := webhook("whsec_a").Decode(body)
		if err != nil || !e.Thin {
			return
		}
		_, err = api.Fetch(ctx, e)
		refused := new(stripe.Refusal)
		url := e.Related.URL
		switch usable := strings.HasPrefix(url, "/v1/") && !strings.ContainsAny(url, ".%?#:@\\ "); {
		case errors.Is(err, purchase.ErrReference):
		case !usable || !errors.As(err, &refused):
			t.Errorf("%q: %v, want ErrReference", e.Related.URL, err)
		}
	})
}
