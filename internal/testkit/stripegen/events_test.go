package stripegen_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stripe/stripe-go/v76"
	"github.com/stripe/stripe-go/v76/event"

	"purchase-relay/internal/testkit/stripegen"
)

// listing serves a list, and returns Stripe's own client for it.
func listing(t *testing.T, list *stripegen.EventList, key string) (client event.Client, url string) {
	t.Helper()
	server := httptest.NewServer(list)
	t.Cleanup(server.Close)
	return event.Client{Key: key, B: stripe.GetBackendWithConfig(stripe.APIBackend, &stripe.BackendConfig{
		URL: &server.URL, HTTPClient: server.Client(), MaxNetworkRetries: stripe.Int64(0), LeveledLogger: &stripe.LeveledLogger{},
	})}, server.URL
}

const someday = 1_750_000_000

// filled lists n events, three of them a second, and every fifth of another type; ids are theirs, the newest first.
func filled(t *testing.T, n int) (list *stripegen.EventList, ids []string) {
	t.Helper()
	list = new(stripegen.EventList)
	for i := range n {
		c := stripegen.NewCheckout()
		c.Created = time.Unix(someday+int64(i/3), 0)
		if i%5 == 0 {
			c.Type = "checkout.session.expired"
		}
		if err := list.Add(c.Event()); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, c.EventID)
	}
	slices.Reverse(ids)
	return list, ids
}

// all are the ids that Stripe's client gets, page by page.
func all(t *testing.T, client event.Client, params *stripe.EventListParams) []string {
	t.Helper()
	var ids []string
	pages := client.List(params)
	for pages.Next() {
		ids = append(ids, pages.Event().ID)
	}
	if err := pages.Err(); err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestEventListIsReadByStripesClient(t *testing.T) {
	list, ids := filled(t, 250)
	client, _ := listing(t, list, "rk_test_x")
	// those are the ids of the events with these numbers, counted in the order in which they were added.
	those := func(is func(i int) bool) []string {
		var kept []string
		for at, id := range ids {
			if is(len(ids) - 1 - at) {
				kept = append(kept, id)
			}
		}
		return kept
	}
	expired := func(i int) bool { return i%5 == 0 }
	page := func(limit int64) stripe.ListParams { return stripe.ListParams{Limit: &limit} }
	for name, c := range map[string]struct {
		params *stripe.EventListParams
		want   []string
	}{
		"all":               {&stripe.EventListParams{}, ids},
		"all, by hundreds":  {&stripe.EventListParams{ListParams: page(100)}, ids},
		"all, one by one":   {&stripe.EventListParams{ListParams: page(1)}, ids},
		"pages that fit":    {&stripe.EventListParams{ListParams: page(50)}, ids},
		"one page":          {&stripe.EventListParams{ListParams: stripe.ListParams{Single: true}}, ids[:10]},
		"from one on":       {&stripe.EventListParams{ListParams: stripe.ListParams{StartingAfter: &ids[99]}}, ids[100:]},
		"after the oldest":  {&stripe.EventListParams{ListParams: stripe.ListParams{StartingAfter: &ids[249]}}, nil},
		"before the newest": {&stripe.EventListParams{ListParams: stripe.ListParams{EndingBefore: &ids[0]}}, nil},
		"a type":            {&stripe.EventListParams{Type: new("checkout.session.expired")}, those(expired)},
		"types":             {&stripe.EventListParams{Types: stripe.StringSlice([]string{"charge.failed", "checkout.session.completed"})}, those(func(i int) bool { return !expired(i) })},
		"both types":        {&stripe.EventListParams{Types: stripe.StringSlice([]string{"checkout.session.expired", "checkout.session.completed"})}, ids},
		"a group of types":  {&stripe.EventListParams{Type: new("checkout.*")}, ids},
		"no such type":      {&stripe.EventListParams{Type: new("charge.*")}, nil},
		"a second":          {&stripe.EventListParams{Created: stripe.Int64(someday + 40)}, those(func(i int) bool { return i/3 == 40 })},
		"between":           {&stripe.EventListParams{CreatedRange: &stripe.RangeQueryParams{GreaterThanOrEqual: someday + 10, LesserThan: someday + 60}}, those(func(i int) bool { return i/3 >= 10 && i/3 < 60 })},
		"strictly between":  {&stripe.EventListParams{CreatedRange: &stripe.RangeQueryParams{GreaterThan: someday + 10, LesserThanOrEqual: someday + 60}}, those(func(i int) bool { return i/3 > 10 && i/3 <= 60 })},
		"filtered, from one that is filtered away": {
			&stripe.EventListParams{ListParams: stripe.ListParams{StartingAfter: &ids[1]}, Type: new("checkout.session.expired"), CreatedRange: &stripe.RangeQueryParams{GreaterThan: someday + 20}},
			those(func(i int) bool { return expired(i) && i < 248 && i/3 > 20 }),
		},
	} {
		if diff := cmp.Diff(c.want, all(t, client, c.params)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	// Backwards, the client turns the pages, but shows each with its oldest event first.
	forward := slices.Clone(ids[:200])
	slices.Reverse(forward)
	if diff := cmp.Diff(forward, all(t, client, &stripe.EventListParams{ListParams: stripe.ListParams{EndingBefore: &ids[200]}})); diff != "" {
		t.Errorf("backwards: %s", diff)
	}
	got, err := client.Get(ids[7], nil)
	if err != nil || got.ID != ids[7] || got.Data.Object["object"] != "checkout.session" {
		t.Errorf("one: %+v, %v", got, err)
	}
}

func TestEventListOrdersByTimeThenInsertion(t *testing.T) {
	list := new(stripegen.EventList)
	client, _ := listing(t, list, "sk_test_x")
	if ids := all(t, client, nil); ids != nil {
		t.Errorf("an empty list: %v", ids)
	}
	for _, body := range []string{
		`{"id":"evt_1","type":"a.b","created":20}`, `{"id":"evt_2","type":"a.b","created":10}`, `{"id":"evt_3","type":"a.b","created":20}`,
		`{"id":"evt_4","type":"a.b","created":30}`, `{"id":"evt_5","type":"a.b","created":9223372036854775807}`,
		`{"id":"evt_2","type":"a.b","created":40}`, // known: it stays as it is
	} {
		if err := list.Add([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	one := int64(1)
	if diff := cmp.Diff([]string{"evt_5", "evt_4", "evt_3", "evt_1", "evt_2"}, all(t, client, &stripe.EventListParams{ListParams: stripe.ListParams{Limit: &one}})); diff != "" {
		t.Error(diff)
	}
	for _, body := range []string{``, `[]`, `{}`, `{"id":"evt_6","type":"a.b"}`, `{"id":"evt_6","created":1}`, `{"type":"a.b","created":1}`, `{"id":"evt_6","type":"a.b","created":"2026-01-01T00:00:00Z"}`} {
		if err := list.Add([]byte(body)); err == nil {
			t.Errorf("%s was taken for an event", body)
		}
	}
}

// get asks as no library does, and returns the status and the body.
func get(t *testing.T, method, url string, authorize func(*http.Request)) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	authorize(req)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func bearer(key string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+key) }
}

func TestEventListKeepsTheBytes(t *testing.T) {
	list := new(stripegen.EventList)
	_, url := listing(t, list, "")
	bodies := []string{`{"id": "evt_1",  "type": "a.b", "created": 1, "x": "<&>"}`, "{\n  \"id\": \"evt_2\", \"type\": \"a.b\", \"created\": 2}"}
	for _, body := range bodies {
		if err := list.Add([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	want := `{"object":"list","data":[` + bodies[1] + "," + bodies[0] + `],"has_more":false,"url":"/v1/events"}`
	if status, body := get(t, http.MethodGet, url+"/v1/events", bearer("sk_test_x")); status != http.StatusOK || body != want {
		t.Errorf("%d %s", status, body)
	}
	if status, body := get(t, http.MethodGet, url+"/v1/events/evt_1", bearer("sk_test_x")); status != http.StatusOK || body != bodies[0] {
		t.Errorf("%d %s", status, body)
	}
	// types[] as other libraries write it, and the end of a list that has more.
	if status, body := get(t, http.MethodGet, url+"/v1/events?types[]=c.d&types[]=a.b&limit=1", bearer("sk_test_x")); status != http.StatusOK ||
		body != `{"object":"list","data":[`+bodies[1]+`],"has_more":true,"url":"/v1/events"}` {
		t.Errorf("%d %s", status, body)
	}
}

func TestEventListWantsATestKey(t *testing.T) {
	list, _ := filled(t, 1)
	_, url := listing(t, list, "")
	for name, c := range map[string]struct {
		authorize func(*http.Request)
		want      int
	}{
		"secret":          {bearer("sk_test_x"), http.StatusOK},
		"restricted":      {bearer("rk_test_x"), http.StatusOK},
		"basic":           {func(r *http.Request) { r.SetBasicAuth("sk_test_x", "") }, http.StatusOK},
		"none":            {func(*http.Request) {}, http.StatusUnauthorized},
		"live":            {bearer("sk_live_x"), http.StatusUnauthorized},
		"publishable":     {bearer("pk_test_x"), http.StatusUnauthorized},
		"empty":           {bearer("sk_test_"), http.StatusUnauthorized},
		"basic, password": {func(r *http.Request) { r.SetBasicAuth("", "sk_test_x") }, http.StatusUnauthorized},
	} {
		status, body := get(t, http.MethodGet, url+"/v1/events", c.authorize)
		if status != c.want || status != http.StatusOK && !strings.Contains(body, `"type":"invalid_request_error"`) {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
}

func TestEventListRefusesAsStripeDoes(t *testing.T) {
	list, ids := filled(t, 3)
	_, url := listing(t, list, "")
	for ask, want := range map[string]struct {
		status      int
		code, param string
	}{
		"GET /v1/events?starting_after=evt_x":                                  {400, "resource_missing", "starting_after"},
		"GET /v1/events?ending_before=evt_x":                                   {400, "resource_missing", "ending_before"},
		"GET /v1/events?ending_before=" + ids[0] + "&starting_after=" + ids[2]: {400, "", ""},
		"GET /v1/events?type=a.b&types[0]=c.d":                                 {400, "", "types"},
		"GET /v1/events?" + strings.Repeat("types[]=a.b&", 21):                 {400, "", "types"},
		"GET /v1/events?limit=0":                                               {400, "parameter_invalid_integer", "limit"},
		"GET /v1/events?limit=101":                                             {400, "parameter_invalid_integer", "limit"},
		"GET /v1/events?limit=ten":                                             {400, "parameter_invalid_integer", "limit"},
		"GET /v1/events?created[gte]=yesterday":                                {400, "parameter_invalid_integer", "created[gte]"},
		"GET /v1/events?created[since]=1":                                      {400, "parameter_unknown", "created[since]"},
		"GET /v1/events?kind=a.b":                                              {400, "parameter_unknown", "kind"},
		"GET /v1/events?limit=%zz":                                             {400, "", ""},
		"GET /v1/events/evt_x":                                                 {404, "resource_missing", "id"},
		"GET /v1/charges":                                                      {404, "", ""},
		"POST /v1/events":                                                      {404, "", ""},
	} {
		method, path, _ := strings.Cut(ask, " ")
		status, body := get(t, method, url+path, bearer("sk_test_x"))
		var answer struct {
			Error struct{ Type, Code, Param, Message string }
		}
		if err := json.Unmarshal([]byte(body), &answer); err != nil {
			t.Errorf("%s: %v", ask, err)
		}
		e := answer.Error
		if status != want.status || e.Type != "invalid_request_error" || e.Code != want.code || e.Param != want.param || e.Message == "" {
			t.Errorf("%s: %d %s", ask, status, body)
		}
	}
}

func TestEventListFailsOnDemand(t *testing.T) {
	list, ids := filled(t, 1)
	client, _ := listing(t, list, "sk_test_x")
	for status, want := range map[int]stripe.Error{
		429: {HTTPStatusCode: 429, Type: stripe.ErrorTypeInvalidRequest, Code: stripe.ErrorCodeRateLimit},
		500: {HTTPStatusCode: 500, Type: stripe.ErrorTypeAPI},
	} {
		list.Fail(2, status)
		for range 2 {
			var got *stripe.Error
			pages := client.List(nil)
			if pages.Next() || !errors.As(pages.Err(), &got) || got.HTTPStatusCode != want.HTTPStatusCode || got.Type != want.Type || got.Code != want.Code || got.RequestID == "" {
				t.Errorf("%d: %v", status, pages.Err())
			}
		}
		if got := all(t, client, nil); !slices.Equal(got, ids) {
			t.Errorf("after %d: %v", status, got)
		}
	}
}

// What is added while pages are turned is newer than the cursor, and moves nothing.
func TestEventListGrowsWhileItIsRead(t *testing.T) {
	list, ids := filled(t, 100)
	client, _ := listing(t, list, "sk_test_x")
	pages := client.List(nil)
	var read []string
	var adding sync.WaitGroup
	for pages.Next() {
		if len(read)%10 == 0 {
			adding.Go(func() {
				body := fmt.Appendf(nil, `{"id":%q,"type":"a.b","created":%d}`, stripegen.ID("evt_", 24), someday+1000)
				if err := list.Add(body); err != nil {
					t.Error(err)
				}
			})
		}
		read = append(read, pages.Event().ID)
	}
	adding.Wait()
	if diff := cmp.Diff(ids, read); diff != "" || pages.Err() != nil {
		t.Errorf("%v; %s", pages.Err(), diff)
	}
	if now := all(t, client, nil); len(now) != 110 {
		t.Errorf("%d are listed", len(now))
	}
}

// One request a second: the next one is refused, with the time that it must wait, and an impatient one is counted.
func TestEventListLimitsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, _ := filled(t, 1)
		list.Limit(1)
		for i, want := range []struct {
			after  time.Duration
			status int
		}{{0, 200}, {0, 429}, {time.Second / 2, 429}, {time.Second, 200}} {
			<-time.After(want.after)
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/events", http.NoBody)
			r.Header.Set("Authorization", "Bearer rk_test_x")
			w := httptest.NewRecorder()
			list.ServeHTTP(w, r)
			if w.Code != want.status || (w.Code == 429) != (w.Header().Get("Retry-After") == "1") {
				t.Errorf("request %d: %d, Retry-After %q", i, w.Code, w.Header().Get("Retry-After"))
			}
		}
		if got := list.Stats(); got != (stripegen.Stats{Requests: 4, Limited: 2, Impatient: 1}) {
			t.Errorf("%+v", got)
		}
	})
}

// A page fails midway: those before it come whole, it comes in half, and whole when it is asked for again.
func TestEventListCutsAPage(t *testing.T) {
	list, ids := filled(t, 30)
	client, _ := listing(t, list, "sk_test_x")
	list.FailLater(1, 1, stripegen.Cut)
	pages := client.List(nil)
	read := 0
	for pages.Next() {
		read++
	}
	if read != 10 || pages.Err() == nil || list.Stats().Failed != 1 {
		t.Errorf("%d events, then %v", read, pages.Err())
	}
	if got := all(t, client, &stripe.EventListParams{ListParams: stripe.ListParams{StartingAfter: &ids[9]}}); !slices.Equal(got, ids[10:]) {
		t.Errorf("after it: %d events", len(got))
	}
}

// Sessions and invoices are served by their ids, as the newest event about them has them.
func TestEventList_ServesObjects(t *testing.T) {
	t.Parallel()
	list := new(stripegen.EventList)
	c := stripegen.NewCheckout().Delayed("konbini")
	paid := c.AsyncSucceeded(time.Hour)
	in := c.Invoices(time.Hour, time.Hour, 1)[0]
	for _, body := range [][]byte{paid.Event(), c.Event(), in.Event()} {
		if err := list.Add(body); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"/v1/checkout/sessions/" + c.SessionID: `"payment_status": "paid"`,
		"/v1/invoices/" + in.InvoiceID:         `"object": "invoice"`,
		"/v1/checkout/sessions/cs_unknown":     "No such checkout.session: 'cs_unknown'",
		"/v1/invoices/" + c.SessionID:          "No such invoice",
	} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody)
		req.Header.Set("Authorization", "Bearer rk_test_x")
		resp := httptest.NewRecorder()
		list.ServeHTTP(resp, req)
		if !strings.Contains(resp.Body.String(), want) || (resp.Code == http.StatusNotFound) != strings.HasPrefix(want, "No such") {
			t.Errorf("GET %s: %d %s, want %s", path, resp.Code, resp.Body, want)
		}
	}
}
