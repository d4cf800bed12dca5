package stripegen_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stripe/stripe-go/v76"
	"github.com/stripe/stripe-go/v76/event"

	"purchase-relay/internal/testkit/stripegen"
)

// do sends a request with a test key, and as a form if it is a POST.
func do(t *testing.T, api *stripegen.API, request, body string) *httptest.ResponseRecorder {
	t.Helper()
	method, path, _ := strings.Cut(request, " ")
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer rk_test_x")
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	api.ServeHTTP(w, r)
	return w
}

// refused checks an error in Stripe's form.
func refused(t *testing.T, w *httptest.ResponseRecorder, status int, code, param string) {
	t.Helper()
	var got struct {
		Error struct{ Type, Code, Param, Message string }
	}
	err := json.Unmarshal(w.Body.Bytes(), &got)
	if e := got.Error; err != nil || w.Code != status || e.Code != code || e.Param != param || e.Message == "" {
		t.Errorf("answer = %d %s, want %d, code %q, param %q", w.Code, w.Body, status, code, param)
	}
}

// list returns the ids that Stripe's own client lists, page by page.
func list(t *testing.T, api *stripegen.API, params *stripe.EventListParams) (ids []string) {
	t.Helper()
	server := httptest.NewServer(api)
	defer server.Close()
	backend := stripe.GetBackendWithConfig(stripe.APIBackend, &stripe.BackendConfig{
		URL: &server.URL, MaxNetworkRetries: stripe.Int64(0), LeveledLogger: &stripe.LeveledLogger{},
	})
	pages := event.Client{Key: "rk_test_x", B: backend}.List(params)
	for pages.Next() {
		ids = append(ids, pages.Event().ID)
	}
	if err := pages.Err(); err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestAPI_ListsEvents(t *testing.T) {
	t.Parallel()
	const base, expired = 1_750_000_000, "checkout.session.expired"
	api := stripegen.NewAPI()
	var ids []string // newest first; of the same second, the last one added
	filter := func(keep func(i int) bool) (kept []string) {
		for at, id := range ids {
			if keep(len(ids) - 1 - at) {
				kept = append(kept, id)
			}
		}
		return kept
	}
	var bodies [][]byte
	for i := range 90 {
		c := stripegen.NewCheckout()
		c.Created = time.Unix(base+int64(i/3), 0)
		if i%5 == 0 {
			c.Type = expired
		}
		bodies, ids = append(bodies, c.Event()), append(ids, c.EventID)
	}
	slices.Reverse(ids)
	for _, body := range slices.Concat(bodies[30:], bodies[:30], bodies) { // some late, all twice
		if err := api.Add(body); err != nil {
			t.Fatal(err)
		}
	}
	between := &stripe.RangeQueryParams{GreaterThanOrEqual: base + 10, LesserThanOrEqual: base + 20}
	for name, tc := range map[string]struct {
		params stripe.EventListParams
		want   []string
	}{
		"all":       {stripe.EventListParams{}, ids},
		"by 30":     {stripe.EventListParams{ListParams: stripe.ListParams{Limit: stripe.Int64(30)}}, ids},
		"one page":  {stripe.EventListParams{ListParams: stripe.ListParams{Single: true}}, ids[:10]},
		"after one": {stripe.EventListParams{ListParams: stripe.ListParams{StartingAfter: &ids[59]}}, ids[60:]},
		"after all": {stripe.EventListParams{ListParams: stripe.ListParams{StartingAfter: &ids[89]}}, nil},
		"a type": {
			stripe.EventListParams{Types: []*string{new(expired), new("charge.failed")}},
			filter(func(i int) bool { return i%5 == 0 }),
		},
		"a time": {
			stripe.EventListParams{CreatedRange: between},
			filter(func(i int) bool { return i/3 >= 10 && i/3 <= 20 }),
		},
	} {
		if diff := cmp.Diff(tc.want, list(t, api, &tc.params)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestAPI_RejectsRequests(t *testing.T) {
	t.Parallel()
	for request, want := range map[string]struct {
		status      int
		code, param string
	}{
		"GET /v1/events?starting_after=evt_x":                {400, "resource_missing", "starting_after"},
		"GET /v1/events?limit=0":                             {400, "parameter_unknown", "limit"},
		"GET /v1/events?limit=101":                           {400, "parameter_unknown", "limit"},
		"GET /v1/events?created[gte]=x":                      {400, "parameter_unknown", "created[gte]"},
		"GET /v1/events?created[since]=1":                    {400, "parameter_unknown", "created[since]"},
		"GET /v1/events?" + strings.Repeat("types[]=a&", 21): {400, "", "types"},
		"GET /v1/events/evt_x":                               {404, "resource_missing", "id"},
		"GET /v1/charges":                                    {404, "", ""},
		"DELETE /v1/events":                                  {404, "", ""},
	} {
		t.Run(request, func(t *testing.T) {
			refused(t, do(t, stripegen.NewAPI(), request, ""), want.status, want.code, want.param)
		})
	}
	for _, key := range []string{"", "Bearer sk_live_x", "Bearer pk_test_x", "Bearer sk_test_"} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/events", http.NoBody)
		r.Header.Set("Authorization", key)
		w := httptest.NewRecorder()
		stripegen.NewAPI().ServeHTTP(w, r)
		refused(t, w, http.StatusUnauthorized, "", "")
	}
}

// Each fault affects the second request of three.
func TestAPI_Faults(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault   stripegen.Fault
		status  int
		body    string
		aborted bool
	}{
		"unauthorized": {401, 401, `"Invalid API key`, false},
		"forbidden":    {403, 403, `"invalid_request_error"`, false},
		"not found":    {404, 404, `"resource_missing"`, false},
		"rate limit":   {429, 429, `"rate_limit"`, false},
		"server error": {500, 500, `"api_error"`, false},
		"HTML":         {stripegen.HTML, 200, "<!doctype html>", false},
		"wrong object": {stripegen.WrongObject, 200, `"customer"`, false},
		"wrong id":     {stripegen.WrongID, 200, `"cs_other"`, false},
		"huge":         {stripegen.Huge, 200, strings.Repeat(" ", 1<<20), false},
		"redirect":     {stripegen.Redirect, 307, "", false},
		"cut":          {stripegen.Cut, 200, `"object":"list"`, true},
		"slow":         {stripegen.Slow, 200, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			api := stripegen.NewAPI()
			api.FailLater(1, 1, tc.fault)
			for n := range 3 {
				ctx, cancel := context.WithCancel(t.Context())
				cancel() // Slow waits for it
				r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/v1/events", http.NoBody)
				r.Header.Set("Authorization", "Bearer sk_test_x")
				w := httptest.NewRecorder()
				aborted := func() (aborted bool) {
					defer func() { aborted = recover() != nil }()
					api.ServeHTTP(w, r)
					return false
				}()
				const healthy = `{"object":"list","data":[],"has_more":false,"url":"/v1/events"}`
				failed := w.Code == tc.status && aborted == tc.aborted && w.Body.String() != healthy &&
					strings.Contains(w.Body.String(), tc.body)
				if n == 1 && !failed || n != 1 && (aborted || w.Body.String() != healthy) {
					t.Errorf("request %d: %d %s, aborted %v", n, w.Code, w.Body, aborted)
				}
			}
			if got := api.Stats(); got != (stripegen.Stats{Requests: 3, Failed: 1}) {
				t.Errorf("stats = %+v", got)
			}
		})
	}
}

func TestAPI_FailShare(t *testing.T) {
	t.Parallel()
	const requests = 1000
	api := stripegen.NewAPI()
	api.FailShare(0.2, 1)
	statuses := map[int]int{}
	for range requests {
		func() {
			defer func() { _ = recover() }() // Cut
			statuses[do(t, api, "GET /v1/events", "").Code]++
		}()
	}
	if n := api.Stats().Failed; n < 150 || n > 250 {
		t.Errorf("%d of %d requests failed, want a fifth", n, requests)
	}
	for _, status := range []int{200, 307, 401, 403, 404, 429, 500} {
		if statuses[status] == 0 {
			t.Errorf("statuses = %v, want some %d", statuses, status)
		}
	}
}

func TestAPI_LimitsRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := stripegen.NewAPI()
		api.Limit(1)
		for i, want := range []struct {
			after      time.Duration
			status     int
			retryAfter string
		}{{0, 200, ""}, {0, 429, "1"}, {time.Second / 2, 429, "1"}, {time.Second, 200, ""}} {
			<-time.After(want.after)
			w := do(t, api, "GET /v1/events", "")
			if got := w.Header().Get("Retry-After"); w.Code != want.status || got != want.retryAfter {
				t.Errorf("request %d: %d, Retry-After %q, want %+v", i, w.Code, got, want)
			}
		}
		if got := api.Stats(); got != (stripegen.Stats{Requests: 4, Limited: 2, Impatient: 1}) {
			t.Errorf("stats = %+v", got)
		}
	})
}

func TestAPI_CreatesSessions(t *testing.T) {
	t.Parallel()
	api := stripegen.NewAPI()
	api.PayURL = "https://pay.example/"
	for name, tc := range map[string]struct{ key, value, code, param string }{
		"valid":                 {"metadata[a]", strings.Repeat("é", 500), "", ""},
		"no price":              {"line_items[0][price]", "", "parameter_missing", "line_items[0][price]"},
		"metadata value of 501": {"metadata[a]", strings.Repeat("é", 501), "parameter_unknown", "metadata[a]"},
		"metadata in metadata":  {"metadata[a][b]", "c", "parameter_unknown", "metadata[a][b]"},
		"dot in the reference":  {"client_reference_id", "E.C", "parameter_unknown", "client_reference_id"},
	} {
		t.Run(name, func(t *testing.T) {
			form := url.Values{
				"mode": {"subscription"}, "line_items[0][price]": {"price_1"}, "line_items[0][quantity]": {"1"},
				"success_url": {"https://shop.example/"}, "client_reference_id": {"order-7"},
			}
			form.Set(tc.key, tc.value)
			w := do(t, api, "POST /v1/checkout/sessions", form.Encode())
			if tc.param != "" {
				refused(t, w, http.StatusBadRequest, tc.code, tc.param)
				return
			}
			c := api.Sessions()[0]
			if c.Metadata["a"] != tc.value || c.Reference != "order-7" || c.PaymentStatus != "paid" ||
				!strings.Contains(w.Body.String(), `"url": "https://pay.example/`+c.SessionID) {
				t.Errorf("session = %+v, answer %s", c, w.Body)
			}
		})
	}
}
