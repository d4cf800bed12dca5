package stripegen_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"purchase-relay/internal/testkit/stripegen"
)

// A list has no secrets, and destinations have a URL only if it is asked for.
func TestAPI_ListsEndpoints(t *testing.T) {
	t.Parallel()
	const shop, destinations = "https://shop.example/", "/v2/core/event_destinations"
	api := stripegen.NewAPI()
	for _, destination := range []bool{false, true} {
		api.AddEndpoint(stripegen.Endpoint{ID: "we_1", URL: shop, Secret: "whsec_x", Destination: destination})
	}
	for path, withURL := range map[string]bool{
		"/v1/webhook_endpoints": true, destinations: false,
		destinations + "?include[0]=webhook_endpoint.url": true,
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody)
		r.Header.Set("Authorization", "Bearer rk_test_x")
		r.Header.Set("Stripe-Version", "2026-08-26.dahlia")
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		body := w.Body.String()
		if w.Code != http.StatusOK || !strings.Contains(body, `"we_1"`) ||
			strings.Contains(body, shop) != withURL || strings.Contains(body, "secret") {
			t.Errorf("%s = %d %s, want an endpoint without secret, with URL: %t", path, w.Code, body, withURL)
		}
	}
}

func TestAPI_RejectsEndpointRequests(t *testing.T) {
	t.Parallel()
	const path, destinations = "/v1/webhook_endpoints", "/v2/core/event_destinations"
	good := "url=https://shop.example/&enabled_events[0]=checkout.session.completed"
	const unknown, missing, types = "parameter_unknown", "parameter_missing", "enabled_events[0]"
	for name, tc := range map[string]struct{ request, body, code, param string }{
		"limit":         {"GET " + path + "?limit=101", "", unknown, "limit"},
		"cursor":        {"GET " + path + "?starting_after=we_x", "", "resource_missing", "starting_after"},
		"filter":        {"GET " + path + "?url=x", "", unknown, "url"},
		"no version":    {"GET " + destinations, "", "", ""},
		"include":       {"GET " + destinations + "?include[0]=x", "", unknown, "include[0]"},
		"no URL":        {"POST " + path, "enabled_events[0]=*", missing, "url"},
		"FTP":           {"POST " + path, strings.Replace(good, "https", "ftp", 1), unknown, "url"},
		"no types":      {"POST " + path, "url=https://shop.example/", missing, types},
		"thin type":     {"POST " + path, strings.Replace(good, "=check", "=v1.check", 1), unknown, types},
		"other payload": {"POST " + path, good + "&event_payload=thin", unknown, "event_payload"},
	} {
		t.Run(name, func(t *testing.T) {
			api := stripegen.NewAPI()
			refused(t, do(t, api, tc.request, tc.body), http.StatusBadRequest, tc.code, tc.param)
			if n := len(api.Endpoints()); n != 0 {
				t.Errorf("%d endpoints, want none", n)
			}
		})
	}
}

func TestAPI_CreatesEndpoints(t *testing.T) {
	t.Parallel()
	api := stripegen.NewAPI()
	form := url.Values{
		"url": {"https://shop.example/webhooks/stripe"}, "enabled_events[0]": {"invoice.paid"},
		"enabled_events[1]": {"checkout.session.completed"},
	}
	for range 16 {
		w := do(t, api, "POST /v1/webhook_endpoints", form.Encode())
		e := api.Endpoints()[0]
		want := []string{"checkout.session.completed", "invoice.paid"}
		if !strings.Contains(w.Body.String(), `"secret": "`+e.Secret+`"`) || !slices.Equal(e.Types, want) {
			t.Fatalf("created = %d %s, want %+v", w.Code, w.Body, e)
		}
	}
	refused(t, do(t, api, "POST /v1/webhook_endpoints", form.Encode()), http.StatusBadRequest, "", "")
}
