package stripegen_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"purchase-relay/internal/testkit/stripegen"
)

func TestAPI_ListsEndpoints(t *testing.T) {
	t.Parallel()
	api := stripegen.NewAPI()
	for i := range 25 {
		id := fmt.Sprint("ed_", i)
		api.AddEndpoint(stripegen.Endpoint{ID: id, URL: "https://shop.example/", Destination: true})
	}
	for i := range 3 {
		api.AddEndpoint(stripegen.Endpoint{ID: fmt.Sprint("we_", i), URL: "https://shop.example/"})
	}
	var page struct {
		Data []struct {
			ID      string
			Secret  *string
			Webhook struct{ URL *string } `json:"webhook_endpoint"`
		}
		HasMore bool    `json:"has_more"`
		Next    *string `json:"next_page_url"`
	}
	read := func(path string) (ids []string) {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody)
		r.Header.Set("Authorization", "Bearer rk_test_x")
		r.Header.Set("Stripe-Version", "2026-08-26.dahlia")
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		page.Next, page.Data = nil, nil
		if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%s = %d %s, error = %v", path, w.Code, w.Body, err)
		}
		for _, e := range page.Data {
			ids = append(ids, e.ID)
		}
		return ids
	}
	got := read("/v1/webhook_endpoints?limit=2")
	if !slices.Equal(got, []string{"we_2", "we_1"}) || !page.HasMore {
		t.Errorf("first page = %v, more = %t, want we_2, we_1, true", got, page.HasMore)
	}
	got = read("/v1/webhook_endpoints?limit=2&starting_after=we_1")
	if !slices.Equal(got, []string{"we_0"}) || page.HasMore || page.Data[0].Secret != nil {
		t.Errorf("second page = %v, more = %t, want we_0 without secret, false", got, page.HasMore)
	}
	got = read("/v2/core/event_destinations?include[0]=webhook_endpoint.url")
	if len(got) != 20 || page.Next == nil || page.Data[0].Webhook.URL == nil {
		t.Fatalf("destinations = %v, next = %v, want 20 with URLs and a next page", got, page.Next)
	}
	if got = read(*page.Next); len(got) != 5 || page.Next != nil || page.Data[0].Webhook.URL == nil {
		t.Errorf("next destinations = %v, next = %v, want 5 with URLs and no next page", got, page.Next)
	}
	if read("/v2/core/event_destinations"); page.Data[0].Webhook.URL != nil {
		t.Error("destination has a URL that was not asked for")
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
