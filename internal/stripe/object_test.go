package stripe_test

import (
	"bytes"
	"context"
	"encoding/json"
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

// A fetched thin event equals its snapshot, for sessions and invoices of each API version.
func TestAPI_FetchEqualsSnapshot(t *testing.T) {
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

// An event cannot direct the key to another server or resource.
func TestAPI_FetchValidatesReference(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	var last atomic.Pointer[http.Request]
	api := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		last.Store(r)
		_, _ = w.Write([]byte(`{"id":"cs_1","object":"checkout.session","mode":"payment"}`))
	}))
	related := purchase.Related{ID: "cs_1", Type: "checkout.session", URL: "/v1/checkout/sessions/cs"}
	e := purchase.Event{ID: "evt_1", Type: purchase.TypeCompleted, Thin: true, Related: related}
	for account, want := range map[string]string{"": "", "acct_1": "acct_1"} {
		e.Account = account
		if got, err := api.Fetch(t.Context(), e); err != nil || got.Checkout.ID != "cs_1" {
			t.Errorf("account %q: event = %+v, error = %v, want cs_1", account, got, err)
		}
		r := last.Load()
		if r.Method != http.MethodGet || r.URL.String() != related.URL {
			t.Errorf("account %q: request = %s %s, want GET %s", account, r.Method, r.URL, related.URL)
		}
		bearer, header := r.Header.Get("Authorization"), r.Header.Get("Stripe-Account")
		if bearer != "Bearer "+testKey || header != want {
			t.Errorf("account %q: authorization = %q, account = %q, want %q", account, bearer, header, want)
		}
	}
	e.Account = ""
	before := requests.Load()
	for _, url := range []string{
		"", "/", "/v1", "/v1/", "/v2/core/events/evt_1", "v1/checkout/sessions/cs_1", "https://evil.example/v1/x",
		"//evil.example/v1/x", "@evil.example/v1/x", "/v1//evil.example", "/v1/../admin", "/v1/./x", "/v1/x/..",
		"/v1/%2e%2e/admin", "/v1/x%2Fy", "/v1/x?expand[]=customer", "/v1/x#y", "/v1/@evil.example", "/v1/x:80",
		"\\v1\\x", "/v1/x\r\nHost: evil.example", "/v1/x y", "/v1/" + strings.Repeat("a/", 600) + "a",
	} {
		e.Related.URL = url
		got, err := api.Fetch(t.Context(), e)
		if !errors.Is(err, purchase.ErrReference) || got.Checkout != nil {
			t.Errorf("URL %q: event = %+v, error = %v, want ErrReference", url, got, err)
		}
	}
	for name, change := range map[string]func(e *purchase.Event){
		"no id":        func(e *purchase.Event) { e.Related.ID = "" },
		"invalid id":   func(e *purchase.Event) { e.Related.ID = "cs.1" },
		"other type":   func(e *purchase.Event) { e.Related.Type = "invoice" },
		"unknown type": func(e *purchase.Event) { e.Type = "customer.updated" },
		"bad account":  func(e *purchase.Event) { e.Account = "?" },
	} {
		invalid := e
		invalid.Related = related
		change(&invalid)
		if _, err := api.Fetch(t.Context(), invalid); !errors.Is(err, purchase.ErrReference) {
			t.Errorf("%s: error = %v, want ErrReference", name, err)
		}
	}
	if n := requests.Load(); n != before {
		t.Errorf("%d requests for invalid references, want none", n-before)
	}
}

// An error contains nothing of the request or the response.
func TestAPI_FetchErrors(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("request to another server: %s", r.URL)
	}))
	t.Cleanup(other.Close)
	const stripeError = `{"error":{"type":"invalid_request_error","message":"hunter2 buyer@example.com"}}`
	const html, huge = "<html>hunter2 buyer@example.com", 1 << 20
	const unexpected, otherObject = "unexpected content", "not the requested object"
	const tooLarge = "larger than 1 MiB"
	deep := strings.Repeat("[", 1000) + strings.Repeat("]", 1000)
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"unknown key":        {respond(401, stripeError), "STRIPE_API_KEY is unknown"},
		"missing permission": {respond(403, stripeError), "STRIPE_API_KEY lacks read permission"},
		"other mode":         {respond(404, stripeError), "(other mode or account) (request req_1)"},
		"rate limit":         {respond(429, stripeError), "rate limit"},
		"server error":       {respond(500, stripeError), "returned 500"},
		"gateway":            {respond(502, html), "returned 502"},
		"no content":         {respond(204, ""), "returned 204"},
		"HTML":               {respond(200, html), unexpected},
		"cut object":         {respond(200, `{"id":"cs_1","object":"checkout.session","mo`), unexpected},
		"empty":              {respond(200, ""), unexpected},
		"deep":               {respond(200, deep), unexpected},
		"list":               {respond(200, `[]`), otherObject},
		"error with 200":     {respond(200, stripeError), otherObject},
		"other id":           {respond(200, `{"id":"cs_2","object":"checkout.session"}`), otherObject},
		"two ids":            {respond(200, `{"id":"cs_1","object":"checkout.session","id":"cs_2"}`), otherObject},
		"other type":         {respond(200, `{"id":"cs_1","object":"invoice"}`), otherObject},
		"no type":            {respond(200, `{"id":"cs_1"}`), otherObject},
		"huge":               {respond(200, `{"id":"cs_1","a":"`+strings.Repeat("x", huge)+`"}`), tooLarge},
		"endless": {func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}, tooLarge},
		"cut response":      {respond(200, `{"id":"cs_1"`, "Content-Length", "1000"), "read Stripe's response"},
		"cut connection":    {abort, "call Stripe's API"},
		"redirect":          {respond(302, "", "Location", other.URL+"/v1/x"), "redirect"},
		"relative redirect": {respond(307, "", "Location", "/v1/x"), "redirect"},
		"redirect, 308":     {respond(308, "", "Location", "//evil.example/"), "redirect"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			related := purchase.Related{ID: "cs_1", Type: "checkout.session", URL: "/v1/checkout/sessions/cs_1"}
			e := purchase.Event{ID: "evt_1", Type: purchase.TypeCompleted, Thin: true, Related: related}
			got, err := serve(t, tc.handler).Fetch(t.Context(), e)
			if !errors.As(err, new(*stripe.APIError)) || got.Checkout != nil {
				t.Fatalf("event = %+v, error = %v, want an APIError", got, err)
			}
			clean(t, err, tc.want)
		})
	}
	closed := stripe.NewAPI(stripe.APIConfig{Key: testKey, URL: "http://127.0.0.1:1"})
	_, err := closed.Fetch(t.Context(), decode(t, stripegen.NewCheckout().Thin()))
	clean(t, err, "call Stripe's API")
}

// The context also ends a response that has begun.
func TestAPI_FetchEndsWithContext(t *testing.T) {
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
			t.Errorf("begun %t: error = %v, want context canceled", begun, err)
		}
	}
}

func TestNewAPI_DefaultURL(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // no request to Stripe
	api := stripe.NewAPI(stripe.APIConfig{Key: testKey})
	_, err := api.Fetch(ctx, decode(t, stripegen.NewCheckout().Thin()))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want context canceled", err)
	}
}

func TestWebhook_DecodeThin(t *testing.T) {
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
		const body = `{"id":"evt_1","object":"v2.core.event","type":"v1.invoice.paid","created":%q,` +
			`"related_object":[]}`
		e := decode(t, fmt.Appendf(nil, body, text))
		if !e.Created.Equal(at) || e.Type != purchase.TypeInvoicePaid || e.Related != (purchase.Related{}) {
			t.Errorf("created %q: event = %+v, want %v", text, e, at)
		}
	}
}

func TestWebhook_DecodeAccount(t *testing.T) {
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
			t.Errorf("%s: account = %q, want %q", fields, e.Account, want)
		}
	}
}

// The fields of taxes, shipping and discount depend on the API version.
func TestWebhook_DecodeParts(t *testing.T) {
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
		`"total_details":{"amount_discount":1,"amount_tax":2,"amount_shipping":3}`: {
			new(int64(1)), new(int64(2)), new(int64(3)),
		},
		`"total_details":{"amount_discount":null,"amount_tax":"2"}`: {},
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
		t.Errorf("customer = %q, e-mail = %q, want those of %+v", got.Customer, got.ExpandedEmail, c)
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
		url := e.Related.URL
		switch usable := strings.HasPrefix(url, "/v1/") && !strings.ContainsAny(url, ".%?#:@\\ "); {
		case errors.Is(err, purchase.ErrReference):
		case !usable || !errors.As(err, new(*stripe.APIError)):
			t.Errorf("URL %q: error = %v, want ErrReference", url, err)
		}
	})
}

// Whatever Stripe's API answers, the error is an APIError without a part of the answer, or the object is the
// requested one.
func FuzzFetch(f *testing.F) {
	c := stripegen.NewCheckout()
	related := purchase.Related{ID: "cs_1", Type: "checkout.session", URL: "/v1/checkout/sessions/cs_1"}
	object := `{"id":"cs_1","object":"checkout.session","metadata":{"secret":"hunter2"}`
	f.Add(200, []byte(object+"}"))
	f.Add(200, []byte(object))
	f.Add(200, []byte(object+`,"id":"cs_2"}`))
	f.Add(200, []byte(object+`,"amount_total":1e99,"created":-1,"customer":{"email":7},"total_details":[]}`))
	f.Add(200, bytes.ReplaceAll(c.Event(), []byte(c.SessionID), []byte("cs_1")))
	f.Add(404, []byte(`{"error":{"code":"resource_missing","message":"hunter2"}}`))
	f.Add(307, []byte("<html>"))
	status, body := 0, []byte(nil)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write(body)
	}))
	f.Cleanup(server.Close)
	api := stripe.NewAPI(stripe.APIConfig{Key: "rk_test_hunter3", URL: server.URL})
	e := purchase.Event{ID: "evt_1", Type: purchase.TypeCompleted, Thin: true, Related: related}
	f.Fuzz(func(t *testing.T, answered int, answer []byte) {
		status, body = answered, answer
		if status < 200 || status > 599 {
			status = http.StatusOK
		}
		got, err := api.Fetch(t.Context(), e)
		switch {
		case err == nil && (status != 200 || !json.Valid(answer)):
			t.Errorf("%d %q: error = nil, want one", status, answer)
		case err == nil && (got.Checkout == nil || got.Checkout.ID != related.ID):
			t.Errorf("%q: checkout = %+v, want %s", answer, got.Checkout, related.ID)
		case err != nil && (!errors.As(err, new(*stripe.APIError)) || got.Checkout != nil):
			t.Errorf("%d %q: checkout = %+v, error = %v, want an APIError alone", status, answer, got.Checkout, err)
		case err != nil && strings.Contains(err.Error(), "hunter"):
			t.Errorf("%d %q: error = %v, want nothing of the answer", status, answer, err)
		}
	})
}
