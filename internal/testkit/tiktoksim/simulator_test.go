package tiktoksim_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/testkit/tiktoksim"
)

const (
	batchPath = "/open_api/v1.3/event/track/"
	pixelPath = "/open_api/v1.3/pixel/track/"

	hash  = "6a6c26195c3682faa816966af789717c3bfa834eee6c599d667d2b3429c27cfd"
	empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

	// The event_time is before the start of a synctest bubble's clock.
	event = `{"event":"CompletePayment","event_time":946598400,"event_id":"cs_1","limited_data_use":true,` +
		`"user":{"email":"` + hash + `","city":"saopaulo","ip":"2001:db8::1","ttclid":"E.C.P"},` +
		`"page":{"url":"https://a.example/?x=1","referrer":""},"properties":{"value":29.99,"currency":"USD",` +
		`"contents":[{"content_id":"a","quantity":2,"price":9.99}],"content_ids":["a"],"num_items":2}}`
	batch = `{"event_source":"web","event_source_id":"LOCALPIXEL","data":[` + event + `]}`
	older = `{"pixel_code":"LOCALPIXEL","event":"CompletePayment","event_id":"cs_older","timestamp":946598400,` +
		`"test_event_code":"TEST1","properties":{"value":0,"currency":"JPY"},` +
		`"context":{"user":{"ttclid":"E.C.P"},"page":{"url":"https://a.example/"}}}`
)

// batchOf returns a batch of good events with these ids.
func batchOf(ids ...string) string {
	var events []string
	for _, id := range ids {
		events = append(events, strings.Replace(event, "cs_1", id, 1))
	}
	return strings.Replace(batch, event, strings.Join(events, ","), 1)
}

// post returns the HTTP status and TikTok's code with its message.
func post(t *testing.T, s *tiktoksim.Simulator, path, body string, header http.Header) (int, string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(body))
	r.Header = http.Header{"Content-Type": {"application/json"}, "Access-Token": {"local-token"}}
	maps.Copy(r.Header, header)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w.Code, codeOf(w.Body.String())
}

// codeOf returns the code and the message in one of TikTok's answers, "" for any other.
func codeOf(body string) string {
	var a struct {
		Code      *int   `json:"code"`
		Message   string `json:"message"`
		RequestID string `json:"request_id"`
	}
	if err := json.Unmarshal([]byte(body), &a); err != nil || a.Code == nil || a.RequestID == "" {
		return ""
	}
	return fmt.Sprint(*a.Code, " ", a.Message)
}

// Each rule refuses a body. A rule that is lost would let a fault of the worker's bodies pass.
func TestSimulator_Bodies(t *testing.T) {
	t.Parallel()
	future := time.Now().Add(time.Hour + time.Minute).Unix()
	type edit struct{ name, old, replacement, want string } // want is what the answer begins with
	for _, group := range []struct {
		name, path, base, prefix string
		edits                    []edit
	}{
		{"Batch", batchPath, batch, "", []edit{
			{"good", "", "", "0 OK"},
			{"not JSON", batch, "<xml>", "40000"},
			{"null", batch, "null", "40000"},
			{"not UTF-8", "cs_1", "cs_\xff", "40000"},

			{"unknown source", `"web"`, `"fax"`, "40002 event_source: Must be one of: web app offline crm"},
			{"source is not the pixel's", `"web"`, `"crm"`, "40001 No permission"},
			{"unknown pixel", "LOCALPIXEL", "OTHER", `40001 No permission to operate web event source "OTHER"`},
			{"empty pixel", "LOCALPIXEL", "", "40002 event_source_id: Field may not be empty"},
			{"test code is a number", `"data"`, `"test_event_code":1,"data"`, "40002 test_event_code: Not a valid"},
			{"data in another case", `"data"`, `"Data"`, "40002 data: Missing data for required field"},
			{"no event", event, "", "40002 data: Length must be between 1 and 1000"},
			{"1000 events", event, event + strings.Repeat(","+event, 999), "0"},
			{"1001 events", event, event + strings.Repeat(",{}", 1000), "40002 data: Length must be"},
			{"event is null", event, "null", "40002 Batch.0: Field may not be null"},
			{"second event is bad", event, event + ",{}", "40002 Batch.1.event: Missing data for required field"},
		}},
		{"Event", batchPath, batch, "40002 Batch.0.", []edit{
			{"lower-case event", "CompletePayment", "completepayment", "event: Not a valid choice"},
			{"event_id is a number", `"cs_1"`, "273196", "event_id: Not a valid string"},
			{"long event_id", "cs_1", strings.Repeat("é", 257), "event_id: Longer than maximum length 256"},
			{"time is a string", "946598400", `"946598400"`, "event_time: Not a valid integer"},
			{"time is in milliseconds", "946598400", "946598400000", "event_time: Not a valid Unix"},
			{"time is in the future", "946598400", fmt.Sprint(future), "event_time: Not a valid Unix"},
			{"time is 0", "946598400", "0", "event_time: Must be greater than or equal to 1"},
			{"flag is a string", "true", `"true"`, "limited_data_use: Not a valid boolean"},

			{"user is a list", `"user":{`, `"user":[],"other":{`, "user: Not a valid object"},
			{"several hashes", `"` + hash + `"`, `["` + hash + `","` + hash + `"]`, ""},
			{"no hashes", `"` + hash + `"`, "[]", "user.email: Not a valid SHA256 hash"},
			{"plain email", hash, "a@b.example", "user.email: Not a valid SHA256 hash"},
			{"upper-case hash", hash, strings.ToUpper(hash), "user.email: Not a valid SHA256 hash"},
			{"hash of nothing", hash, empty, "user.email: Hash of an empty value"},
			{"email is null", `"` + hash + `"`, "null", "user.email: Field may not be null"},
			{"city with a space", "saopaulo", "são paulo", "user.city: Must be lower-case letters only"},
			{"country as ip", "2001:db8::1", "US", "user.ip: Not a valid IPv4 or IPv6 address"},
			{"empty ttclid", "E.C.P", "", "user.ttclid: Field may not be empty"},
			{"ttclid is a number", `"E.C.P"`, "7", "user.ttclid: Not a valid string"},
			{"empty unknown field", `"email"`, `"more":{"deep":[""]},"email"`, "user: Contains an empty field"},
			{"url without a host", "https://a.example/?x=1", "/checkout", "page.url: Not a valid URL"},

			{"value 0", "29.99", "0", ""},
			{"value is a string", "29.99", `"29.99"`, "properties.value: Not a valid number"},
			{"value is negative", "29.99", "-1", "properties.value: Must be greater than or equal to 0"},
			{"value out of range", "29.99", "1e999", "properties.value: Not a valid number"},
			{"lower-case currency", "USD", "usd", "properties.currency: Not a valid choice"},
			{"unlisted currency", "USD", "XAF", "properties.currency: Not a valid choice"},
			{"no currency", `"currency":"USD",`, "", "properties: Missing currency of the value"},
			{"num_items is a string", `"num_items":2`, `"num_items":"2"`, "properties.num_items: Not a valid"},
			{"order_id is a number", `"num_items"`, `"order_id":1,"num_items"`, "properties.order_id: Not a valid"},
			{"contents is an object", `[{"content_id"`, `{},"x":[{"id"`, "properties.contents: Not a valid list"},
			{"content_id is a number", `"content_id":"a"`, `"content_id":1`, "properties.contents.0.content_id: Not"},
			{"quantity 0", `"quantity":2`, `"quantity":0`, "properties.contents.0.quantity: Must be greater"},
			{"price is a string", "9.99}", `"9.99"}`, "properties.contents.0.price: Not a valid number"},
			{"content_ids is a string", `["a"]`, `"a"`, "properties.content_ids: Not a valid list"},
			{"content_ids holds a number", `["a"]`, `["a",7]`, "properties.content_ids.1: Not a valid string"},
		}},
		{"Older", pixelPath, older, "", []edit{
			{"good", "", "", "0 OK"},
			{"unknown pixel", "LOCALPIXEL", "OTHER", "40001 No permission"},
			{"no pixel", "pixel_code", "pixel", "40002 pixel_code: Missing data for required field"},
			{"ISO time", "946598400", `"2024-01-01T00:00:00Z"`, "40002 timestamp: Not a valid integer"},
			{"test code is a number", `"TEST1"`, "1", "40002 test_event_code: Not a valid string"},
			{"url", "https://a.example/", "/checkout", "40002 context.page.url: Not a valid URL"},
			{"email", `"ttclid":"E.C.P"`, `"email":"a@b"`, "40002 context.user.email: Not a valid SHA256 hash"},
			{"currency", "JPY", "jpy", "40002 properties.currency: Not a valid choice"},
		}},
	} {
		for _, tc := range group.edits {
			t.Run(group.name+"/"+tc.name, func(t *testing.T) {
				t.Parallel()
				want := group.prefix + tc.want
				if tc.want == "" {
					want = "0 OK"
				}
				if !strings.Contains(group.base, tc.old) {
					t.Fatalf("the good body does not contain %q", tc.old)
				}
				s := tiktoksim.New(tiktoksim.Config{})
				body := strings.Replace(group.base, tc.old, tc.replacement, 1)
				status, got := post(t, s, group.path, body, nil)
				if status != http.StatusOK || !strings.HasPrefix(got, want) {
					t.Errorf("answer = HTTP %d, %q, want HTTP 200, %q", status, got, want)
				}
				if got, want := len(s.Received()) > 0, want[0] == '0'; got != want {
					t.Errorf("stored = %t, want %t", got, want)
				}
			})
		}
	}
}

func TestSimulator_Access(t *testing.T) {
	t.Parallel()
	s := tiktoksim.New(tiktoksim.Config{Token: "first", TestToken: "second", Pixel: "PIXEL1"})
	body := strings.Replace(batch, "LOCALPIXEL", "PIXEL1", 1)
	answers := func(token, want string) {
		t.Helper()
		_, got := post(t, s, batchPath, body, http.Header{"Access-Token": {token}})
		if !strings.HasPrefix(got, want) {
			t.Errorf("answer to the token %q = %q, want %s", token, got, want)
		}
	}
	answers("", "40104 ")
	answers("other", "40105 ")
	answers("first", "0 ")
	answers("second", "0 ")
	s.SetToken("rotated")
	answers("first", "40105 ")
	answers("rotated", "0 ")
}

func TestSimulator_Headers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, value, want string }{
		{"Content-Type", "application/json; charset=utf-8", "0 OK"},
		{"Content-Type", "text/plain", "40000 Content-Type must be application/json"},
		{"Content-Type", "", "40000 Content-Type must be application/json"},
		{"Content-Encoding", "gzip", "40000 Content-Encoding is not supported"},
	} {
		s := tiktoksim.New(tiktoksim.Config{})
		if _, got := post(t, s, batchPath, batch, http.Header{tc.name: {tc.value}}); got != tc.want {
			t.Errorf("answer to %s %q = %q, want %q", tc.name, tc.value, got, tc.want)
		}
	}
}

// TikTok does not redirect from a wrong path to the right one, and answers without JSON.
func TestSimulator_UnknownPath(t *testing.T) {
	t.Parallel()
	s := tiktoksim.New(tiktoksim.Config{})
	for _, path := range []string{strings.TrimSuffix(batchPath, "/"), batchPath + "x", "/" + batchPath, "/"} {
		if status, got := post(t, s, path, batch, nil); status != http.StatusNotFound || got != "" {
			t.Errorf("answer at %s = HTTP %d, %q, want HTTP 404 without JSON", path, status, got)
		}
	}
}

// A repeat is recognised for exactly 48 hours from the first arrival. The counts and what is stored show it.
func TestSimulator_Store(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := tiktoksim.New(tiktoksim.Config{})
		send := func(after time.Duration, body string) {
			t.Helper()
			<-time.After(after)
			if _, got := post(t, s, batchPath, body, nil); got != "0 OK" {
				t.Errorf("answer = %q", got)
			}
		}
		start := time.Now()
		send(0, batchOf("cs_1", "cs_2", "cs_1"))
		send(47*time.Hour, strings.Replace(batchOf("cs_1"), "29.99", "30", 1))
		send(time.Hour-1, batchOf("cs_1"))
		send(1, batchOf("cs_1"))
		post(t, s, batchPath, strings.Replace(batchOf("cs_3", "cs_4"), "USD", "usd", 1), nil)
		post(t, s, pixelPath, older, nil)

		got := s.Received()
		if len(got) != 4 {
			t.Fatalf("%d events, want 4: cs_1, cs_2, cs_1 again and cs_older", len(got))
		}
		if e := got[0]; e.EventID != "cs_1" || e.Event != "CompletePayment" || e.Pixel != "LOCALPIXEL" ||
			e.EventTime != 946598400 || string(e.Body) != event || e.Copies != 4 || e.Variants != 2 ||
			!e.FirstAt.Equal(start) {
			t.Errorf("first event = %+v", e)
		}
		if e := got[2]; e.EventID != "cs_1" || e.Copies != 1 {
			t.Errorf("event after 48 hours = %+v, want a new one", e)
		}
		if e := got[3]; e.EventID != "cs_older" || e.EventTime != 946598400 || e.TestEventCode != "TEST1" ||
			e.Pixel != "LOCALPIXEL" || string(e.Body) != older {
			t.Errorf("event of the older shape = %+v", e)
		}
		stats, want := s.Stats(), tiktoksim.Stats{
			Requests: 6, Events: 9, Accepted: 4, Duplicates: 3,
			ByCode: map[string]int{"0": 5, "40002": 1},
		}
		if diff := cmp.Diff(want, stats); diff != "" {
			t.Errorf("stats (-want +got):\n%s", diff)
		}
	})
}
