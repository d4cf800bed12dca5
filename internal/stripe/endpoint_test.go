package stripe_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/purchase"
	"purchase-relay/internal/stripe"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/wait"
)

const shop = "https://shop.example/webhooks/stripe"

func TestEndpointURL(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"https://shop.example":                        shop,
		"https://Shop.Example:443/":                   shop,
		"https://shop.example./webhooks/stripe/":      shop,
		"http://shop.example:80":                      "http://shop.example/webhooks/stripe",
		"https://shop.example:8443":                   "https://shop.example:8443/webhooks/stripe",
		"https://shop.example/relay/webhooks/stripe":  "https://shop.example/relay/webhooks/stripe",
		"https://[2001:DB8::1]:443":                   "https://[2001:db8::1]/webhooks/stripe",
		"https://[2001:db8::1]:8443/webhooks/stripe/": "https://[2001:db8::1]:8443/webhooks/stripe",
	} {
		got, err := stripe.EndpointURL(address)
		if err != nil || got != want {
			t.Errorf("EndpointURL(%q) = %q, %v, want %q", address, got, err, want)
		}
	}
	for _, address := range []string{
		"", "shop.example", "ftp://shop.example", "https://", "https:///webhooks/stripe",
		"https://shop.example/hook",
		"https://hunter2@shop.example", "https://shop.example?key=hunter2", "https://shop.example/#hunter2",
		"https://shop example", "https://shop.example/\n", "https://shop.example/webhooks/stripe2",
	} {
		got, err := stripe.EndpointURL(address)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("EndpointURL(%q) = %q, %v, want an error without the address", address, got, err)
		}
	}
}

// Both lists span pages. An endpoint in both is listed once.
func TestAPI_Endpoints(t *testing.T) {
	t.Parallel()
	list := stripegen.NewAPI()
	want := map[string]stripe.Endpoint{}
	add := func(e stripegen.Endpoint, kind string, types ...string) {
		list.AddEndpoint(e)
		want[e.ID] = stripe.Endpoint{
			ID: e.ID, Kind: kind, URL: e.URL, Disabled: e.Disabled, Types: types, Thin: e.Thin,
			APIVersion: e.APIVersion, Livemode: e.Livemode,
		}
	}
	for i := range 120 {
		id, off := fmt.Sprint("we_", i), i%2 == 0
		add(stripegen.Endpoint{ID: id, URL: shop, Types: []string{"*"}, Disabled: off}, stripe.KindWebhook, "*")
	}
	for i := range 45 {
		add(stripegen.Endpoint{
			ID: fmt.Sprint("ed_", i), Destination: true, URL: shop, Thin: true, Livemode: true,
			Types: []string{"v1.invoice.paid", "v2.core.account.updated"},
		}, stripe.KindWebhook, "invoice.paid", "v2.core.account.updated")
	}
	add(stripegen.Endpoint{
		ID: "ed_aws", Destination: true, Type: "amazon_eventbridge", APIVersion: "2026-08-26.dahlia",
	}, stripe.KindEventBridge)
	add(stripegen.Endpoint{ID: "ed_azure", Destination: true, Type: "azure_event_grid"}, stripe.KindEventGrid)
	add(stripegen.Endpoint{ID: "ed_new", Destination: true, Type: "carrier_pigeon"}, stripe.KindOther)
	list.AddEndpoint(stripegen.Endpoint{ID: "we_1", Destination: true, URL: shop}) // listed twice

	found, err := serve(t, list).Endpoints(t.Context())
	if err != nil || found.DestinationsErr != nil {
		t.Fatalf("error = %v, destinations = %v, want nil", err, found.DestinationsErr)
	}
	got := map[string]stripe.Endpoint{}
	for _, e := range found.List {
		got[e.ID] = e
	}
	if diff := cmp.Diff(want, got); diff != "" || len(found.List) != len(want) {
		t.Errorf("%d endpoints, want %d (-want +got):\n%s", len(found.List), len(want), diff)
	}
	if n := list.Stats().Requests; n != 5 {
		t.Errorf("requests = %d, want 5", n)
	}
	if n := len(found.At(shop)); n != 165 {
		t.Errorf("endpoints at %s = %d, want 165", shop, n)
	}
}

func TestEndpoints_At(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		shop: true, shop + "/": true, "https://SHOP.example:443/webhooks/stripe": true, shop + "?v=1": true,
		"http://shop.example/webhooks/stripe": false, "https://shop.example/webhooks": false,
		"https://shop.example.evil/webhooks/stripe": false, "": false, "https://%zz": false, "\x00": false,
	} {
		found := stripe.Endpoints{List: []stripe.Endpoint{{URL: address}}}
		if got := len(found.At(shop)) == 1; got != want {
			t.Errorf("%q is at %s = %t, want %t", address, shop, got, want)
		}
	}
}

// A field of an unexpected type counts as missing; a null object is left out.
func TestAPI_EndpointsOfForeignShapes(t *testing.T) {
	t.Parallel()
	found, err := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := `{"object":"list","has_more":false,"data":[null,{"id":"we_1"},
			{"id":"buyer@example.com","url":5,"status":[],"enabled_events":["a",null,7,"x y"],"livemode":"yes"}]}`
		if r.URL.Path != "/v1/webhook_endpoints" {
			body = `{"data":[null,5,{"id":null},{"id":"ed_1","webhook_endpoint":null,"enabled_events":null}]}`
		}
		_, _ = w.Write([]byte(body))
	})).Endpoints(t.Context())
	want := []stripe.Endpoint{
		{ID: "we_1", Kind: stripe.KindWebhook},
		{ID: "[not an id]", Kind: stripe.KindWebhook, Types: []string{"a", "[not an id]"}},
		{ID: "ed_1", Kind: stripe.KindOther},
	}
	if diff := cmp.Diff(want, found.List); err != nil || found.DestinationsErr != nil || diff != "" {
		t.Errorf("error = %v, %v (-want +got):\n%s", err, found.DestinationsErr, diff)
	}
}

// endpointFaults are the stand-in's faults and what the error contains.
func endpointFaults() map[stripegen.Fault]string {
	return map[stripegen.Fault]string{
		401: "STRIPE_API_KEY is unknown", 403: "permission (", 404: "returned 404", 429: "rate limit exceeded",
		500: "returned 500", stripegen.HTML: "unexpected content", stripegen.WrongObject: "unexpected content",
		stripegen.Cut: "read Stripe's response", stripegen.Huge: "larger than",
		stripegen.Slow: "context canceled",
	}
}

// untilSlow returns a context that ends once the stand-in has the request of the fault Slow.
func untilSlow(t *testing.T, list *stripegen.API, fault stripegen.Fault) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	if fault == stripegen.Slow {
		go func() {
			wait.Until(ctx, time.Minute, 10*time.Millisecond, func() bool { return list.Stats().Failed > 0 })
			cancel()
		}()
	}
	return ctx
}

func TestAPI_EndpointsErrors(t *testing.T) {
	t.Parallel()
	for fault, want := range endpointFaults() {
		if fault == 403 {
			want = "STRIPE_API_KEY lacks read permission (Webhook Endpoints: Read)"
		}
		t.Run(fmt.Sprint(fault), func(t *testing.T) {
			t.Parallel()
			list := stripegen.NewAPI()
			list.AddEndpoint(stripegen.Endpoint{ID: "we_1", URL: shop})
			list.Fail(1, fault)
			found, err := serve(t, list).Endpoints(untilSlow(t, list, fault))
			clean(t, err, want)
			if len(found.List) != 0 {
				t.Errorf("endpoints = %+v, want none with an error", found.List)
			}
		})
	}
}

// Unreadable event destinations leave the webhook endpoints readable.
func TestAPI_EndpointsWithoutDestinations(t *testing.T) {
	t.Parallel()
	for fault, want := range endpointFaults() {
		unavailable := fault == 403 || fault == 404
		if unavailable {
			want = "not available to this key or account (Event Destinations: Read)"
		}
		t.Run(fmt.Sprint(fault), func(t *testing.T) {
			t.Parallel()
			list := stripegen.NewAPI()
			list.AddEndpoint(stripegen.Endpoint{ID: "we_1", URL: shop})
			list.AddEndpoint(stripegen.Endpoint{ID: "ed_1", URL: shop, Destination: true})
			list.FailLater(1, 1, fault)
			found, err := serve(t, list).Endpoints(untilSlow(t, list, fault))
			if err != nil || len(found.List) != 1 || found.List[0].ID != "we_1" {
				t.Fatalf("endpoints = %+v, error = %v, want we_1", found.List, err)
			}
			clean(t, found.DestinationsErr, want)
			if got := errors.Is(found.DestinationsErr, stripe.ErrNoDestinations); got != unavailable {
				t.Errorf("ErrNoDestinations = %t, want %t", got, unavailable)
			}
		})
	}
}

// The key goes nowhere but to the list of event destinations, and an endless list ends.
func TestAPI_EndpointsBoundsPages(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("request to another server: %s", r.URL)
	}))
	t.Cleanup(other.Close)
	const path = "/v2/core/event_destinations"
	empty := `{"object":"list","data":[],"has_more":false}`
	const one = `{"id":"we_1"}`
	endless := `{"object":"list","data":[` + strings.Repeat(one+",", 99) + one + `],"has_more":true}`
	for name, tc := range map[string]struct {
		endpoints, next string
		requests        int
		want            string // in the error of the endpoints or of the destinations
	}{
		"absolute next page":   {empty, other.URL + path + "?page=2", 2, "rejected next_page_url"},
		"next page elsewhere":  {empty, "//evil.example" + path + "?page=2", 2, "rejected next_page_url"},
		"other path":           {empty, "/v1/customers?page=2", 2, "rejected next_page_url"},
		"path below":           {empty, path + "/../../../v1/customers?", 2, "rejected next_page_url"},
		"long":                 {empty, path + "?page=" + strings.Repeat("2", 1000), 2, "rejected next_page_url"},
		"control character":    {empty, path + `?page=\u0000`, 2, "unexpected content"},
		"endless destinations": {empty, path + "?page=2", 21, "more than 20 pages"},
		"endless endpoints":    {endless, "", 11, "more than 1000"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			requests := 0
			found, err := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests++
				body := tc.endpoints
				if r.URL.Path == path {
					body = `{"data":[],"next_page_url":"` + tc.next + `"}`
					if r.Header.Get("Stripe-Version") == "" || r.Header.Get("Authorization") != "Bearer "+testKey {
						t.Errorf("headers = %v, want a version and the key", r.Header)
					}
				}
				_, _ = w.Write([]byte(body))
			})).Endpoints(t.Context())
			clean(t, errors.Join(err, found.DestinationsErr), tc.want)
			if requests != tc.requests {
				t.Errorf("requests = %d, want %d", requests, tc.requests)
			}
		})
	}
	for _, status := range []int{301, 307} {
		redirect := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == path {
				respond(status, "", "Location", other.URL+path)(w, r)
				return
			}
			_, _ = w.Write([]byte(empty))
		})
		found, err := serve(t, redirect).Endpoints(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		clean(t, found.DestinationsErr, "redirect rejected")
	}
}

func TestAPI_CreateEndpoint(t *testing.T) {
	t.Parallel()
	list := stripegen.NewAPI()
	types := purchase.Rules{}.Types()
	id, key, err := serve(t, list).CreateEndpoint(t.Context(), shop, types)
	if err != nil {
		t.Fatal(err)
	}
	e := list.Endpoints()[0]
	if e.ID != id || e.Secret != key.Reveal() || e.URL != shop || len(e.Types) != len(types) {
		t.Errorf("created = %s, endpoint = %+v", id, e)
	}
	if text := fmt.Sprintf("%v %+v %#v", key, key, key); strings.Contains(text, e.Secret) {
		t.Errorf("formatted secret = %q, want it redacted", text)
	}
}

// An error reports whether the endpoint may exist now.
func TestAPI_CreateEndpointErrors(t *testing.T) {
	t.Parallel()
	for fault, want := range endpointFaults() {
		if fault == 403 {
			want = "STRIPE_API_KEY lacks write permission (Webhook Endpoints: Write)"
		}
		t.Run(fmt.Sprint(fault), func(t *testing.T) {
			t.Parallel()
			list := stripegen.NewAPI()
			list.Fail(1, fault)
			ctx := untilSlow(t, list, fault)
			id, key, err := serve(t, list).CreateEndpoint(ctx, shop, []string{"invoice.paid"})
			clean(t, err, want)
			refused := fault > 400 && fault < 500
			if got := errors.Is(err, stripe.ErrMaybeCreated); got == refused || id != "" || key != "" {
				t.Errorf("ErrMaybeCreated = %t, id = %q, want %t without id and secret", got, id, !refused)
			}
		})
	}
	const secret = `{"id":"we_1","object":"webhook_endpoint","secret":%s}`
	for name, body := range map[string]string{
		"no secret": fmt.Sprintf(secret, "null"), "other secret": fmt.Sprintf(secret, `"sk_live_hunter2"`),
		"array": "[]", "number id": `{"id":5,"object":"webhook_endpoint","secret":"whsec_hunter2"}`,
		"other": `{"id":"we_1","object":"customer","secret":"whsec_hunter2"}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, key, err := serve(t, respond(200, body)).CreateEndpoint(t.Context(), shop, []string{"invoice.paid"})
			clean(t, err, "unexpected content")
			if !errors.Is(err, stripe.ErrMaybeCreated) || key != "" {
				t.Errorf("error = %v, want ErrMaybeCreated and no secret", err)
			}
		})
	}
}
