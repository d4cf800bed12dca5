package tiktoksim_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/tiktoksim"
)

// said is the answer's code, -1 without one.
func (a answer) said() int {
	if a.Code == nil {
		return -1
	}
	return *a.Code
}

func toPixel(r *http.Request) { r.URL.Path = "/open_api/v1.3/pixel/track/" }

// TestEveryFieldOfAnEvent puts one field at a time into an event and looks at the sentence that comes back; "" means taken.
func TestEveryFieldOfAnEvent(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tc := range []struct{ where, field, want string }{
		{"user", `"external_id":[]`, "Batch.0.user.external_id: Field may not be empty"},
		{"user", `"email":["` + hash + `","x"]`, "Batch.0.user.email.1: Not a valid SHA256 hash"},
		{"user", `"email":null`, "Batch.0.user.email: Field may not be null"},
		{"user", `"first_name":"ann"`, "Batch.0.user.first_name: Not a valid SHA256 hash"},
		{"user", `"last_name":"` + hash + `","zip_code":["` + hash + `"]`, ""},
		{"user", `"city":"saopaulo","state":"sp","country":"br"`, ""},
		{"user", `"city":"São Paulo"`, "Batch.0.user.city: Must be lower-case letters only"},
		{"user", `"country":"US"`, "Batch.0.user.country: Must be lower-case letters only"},
		{"user", `"state":""`, "Batch.0.user.state: Field may not be empty"},
		{"user", `"ip":"2001:db8::1"`, ""},
		{"user", `"ip":"fe80::1%eth0"`, "Batch.0.user.ip: Not a valid IPv4 or IPv6 address"},
		{"user", `"more":{"deep":[""]}`, "Batch.0.user.more.deep.0: Field may not be empty"},
		{"user", `"ttclid":7`, "Batch.0.user.ttclid: Not a valid string"},
		{"page", `"url":"/checkout"`, "Batch.0.page.url: Not a valid URL"},
		{"page", `"url":"ftp://a.example/"`, "Batch.0.page.url: Not a valid URL"},
		{"page", `"url":"https://a.example/?x=1","referrer":"https://b.example"`, ""},
		{"properties", `"value":1e999,"currency":"USD"`, "Batch.0.properties.value: Not a valid number"},
		{"properties", `"value":-1,"currency":"USD"`, "Batch.0.properties.value: Must be greater than or equal to 0"},
		{"properties", `"contents":{}`, "Batch.0.properties.contents: Not a valid list"},
		{"properties", `"contents":[{"content_id":"a","quantity":2,"price":9.99},{"quantity":0}]`, "Batch.0.properties.contents.1.quantity: Must be greater than or equal to 1"},
		{"properties", `"contents":[{"quantity":1.0}]`, "Batch.0.properties.contents.0.quantity: Not a valid integer"},
		{"properties", `"contents":[{"price":"9.99"}]`, "Batch.0.properties.contents.0.price: Not a valid number"},
		{"properties", `"contents":[]`, ""},
		{
			"properties",
			`"contents":[{"content_id":"a","brand":"b","content_category":"c","price":9.99}],"content_ids":["a","b"],"num_items":3`, "",
		},
		{"properties", `"content_ids":"a"`, "Batch.0.properties.content_ids: Not a valid list"},
		{"properties", `"content_ids":["a",7]`, "Batch.0.properties.content_ids.1: Not a valid string"},
		{"properties", `"content_ids":[""]`, "Batch.0.properties.content_ids.0: Field may not be empty"},
		{"properties", `"num_items":"3"`, "Batch.0.properties.num_items: Not a valid integer"},
		{"user", `"locale":"pt-BR"`, ""},
		{"user", `"locale":""`, "Batch.0.user.locale: Field may not be empty"},
		{"", `"limited_data_use":true`, ""},
		{"", `"limited_data_use":"true"`, "Batch.0.limited_data_use: Not a valid boolean"},
		{"", `"user":[]`, "Batch.0.user: Not a valid object"},
		{"", `"event_id":""`, "Batch.0.event_id: Field may not be empty"},
		{"", `"event_id":"` + strings.Repeat("é", 256) + `"`, ""},
		{"", `"event_id":"` + strings.Repeat("é", 257) + `"`, "Batch.0.event_id: Longer than maximum length 256"},
		{"", fmt.Sprintf(`"event_time":%d`, now.Add(time.Hour).Unix()), ""},
		{"", fmt.Sprintf(`"event_time":%d`, now.Add(time.Hour).Unix()+1), "Batch.0.event_time: Not a valid Unix timestamp in seconds: it lies in the future"},
		{"", `"event_time":1.7e9`, "Batch.0.event_time: Not a valid integer"},
		{"", `"event_time":0`, "Batch.0.event_time: Must be greater than or equal to 1"},
	} {
		s := tiktoksim.New(tiktoksim.Config{Now: func() time.Time { return now }})
		field := tc.field
		if tc.where != "" {
			field = fmt.Sprintf(`%q:{%s}`, tc.where, tc.field)
		}
		// Of two fields with one name the last counts.
		_, a := post(t, s, request(`{"event":"Purchase","event_time":1704067200,"event_id":"cs_1",`+field+`}`), plain)
		if tc.want == "" && a.said() != 0 || tc.want != "" && (a.said() != 40002 || a.Message != tc.want) {
			t.Errorf("%s: %d %q", tc.field, a.said(), a.Message)
		}
	}
}

func TestWhatStandsAroundTheEvents(t *testing.T) {
	for body, want := range map[string]int{
		`null`:              40000,
		`[]`:                40000,
		request(good) + `x`: 40000,
		strings.Replace(request(good), "cs_1", "cs_\xff", 1):                                      40000,
		strings.Replace(request(good), `"data"`, `"Data"`, 1):                                     40002,
		strings.Replace(request(good), `"event_source"`, `"test_event_code":1,"event_source"`, 1): 40002,
		strings.Replace(request(good), `"LOCALPIXEL"`, `""`, 1):                                   40002,
		strings.Replace(request(good), `"web"`, `"crm"`, 1):                                       40001, // a pixel is none of its ids
		request("null"): 40002,
		request(good + strings.Repeat(","+good, 999)): 0,
	} {
		if _, a := post(t, tiktoksim.New(tiktoksim.Config{}), body, plain); a.said() != want {
			t.Errorf("%.80s: %d %s, not %d", body, a.said(), a.Message, want)
		}
	}
}

func TestAccess(t *testing.T) {
	second := tiktoksim.Config{TestToken: "second", TestPixel: "SECOND"}
	for _, tc := range []struct {
		config       tiktoksim.Config
		token, pixel string
		want         int
	}{
		{tiktoksim.Config{}, "", "LOCALPIXEL", 40104},
		{tiktoksim.Config{}, "wrong", "LOCALPIXEL", 40105},
		{tiktoksim.Config{}, "local-token", "SECOND", 40001},
		{second, "second", "SECOND", 0},
		{second, "second", "LOCALPIXEL", 40001},
		{second, "local-token", "SECOND", 40001},
		{second, "local-token", "LOCALPIXEL", 0},
		{tiktoksim.Config{TestPixel: "SECOND"}, "local-token", "SECOND", 0},
		{tiktoksim.Config{TestToken: "second"}, "second", "LOCALPIXEL", 0},
	} {
		body := strings.Replace(request(good), "LOCALPIXEL", tc.pixel, 1)
		_, a := post(t, tiktoksim.New(tc.config), body, func(r *http.Request) { r.Header.Set("Access-Token", tc.token) })
		if a.said() != tc.want {
			t.Errorf("%q for %q: %d %s, not %d", tc.token, tc.pixel, a.said(), a.Message, tc.want)
		}
	}
}

func TestHeadersPathsAndSize(t *testing.T) {
	s := tiktoksim.New(tiktoksim.Config{})
	for name, tc := range map[string]struct {
		body   string
		change func(r *http.Request)
		want   int // code; -1: none
		status int
	}{
		"charset":           {request(good), func(r *http.Request) { r.Header.Set("Content-Type", "application/json; charset=utf-8") }, 0, 200},
		"no type":           {request(good), func(r *http.Request) { r.Header.Del("Content-Type") }, 40000, 200},
		"compressed":        {request(good), func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") }, 40000, 200},
		"too large":         {request(good) + strings.Repeat(" ", 10<<20), plain, 40000, 200},
		"the largest":       {request(good) + strings.Repeat(" ", 10<<20-len(request(good))), plain, 0, 200},
		"GET":               {"", func(r *http.Request) { r.Method = http.MethodGet }, -1, 405},
		"no slash at last":  {request(good), func(r *http.Request) { r.URL.Path = "/open_api/v1.3/pixel/track" }, -1, 404},
		"two slashes":       {request(good), func(r *http.Request) { r.URL.Path = "//open_api/v1.3/event/track/" }, -1, 404},
		"another version":   {request(good), func(r *http.Request) { r.URL.Path = "/open_api/v1.2/event/track/" }, -1, 404},
		"below the address": {request(good), func(r *http.Request) { r.URL.Path = "/open_api/v1.3/event/track/x" }, -1, 404},
	} {
		if status, a := post(t, s, tc.body, tc.change); a.said() != tc.want || status != tc.status {
			t.Errorf("%s: HTTP %d, %d %s", name, status, a.said(), a.Message)
		}
	}
}

func TestOlderShape(t *testing.T) {
	const older = `{"pixel_code":"LOCALPIXEL","event":"CompletePayment","event_id":"cs_9","timestamp":1704067200,"test_event_code":"TEST1",` +
		`"properties":{"value":0,"currency":"JPY"},"context":{"user":{"ttclid":"E.C.P"},"page":{"url":"https://a.example/"}}}`
	for _, tc := range []struct {
		old, replacement string
		code             int
		message          string
	}{
		{`LOCALPIXEL`, `ELSEWHERE`, 40001, "No permission"},
		{`"pixel_code":"LOCALPIXEL",`, ``, 40002, "pixel_code: Missing data for required field"},
		{`"TEST1"`, `1`, 40002, "test_event_code: Not a valid string"},
		{`1704067200`, `"2024-01-01T00:00:00Z"`, 40002, "timestamp: Not a valid integer"},
		{`"cs_9"`, `9`, 40002, "event_id: Not a valid string"},
		{`"context"`, `"Context"`, 40002, "context: Missing data for required field"},
		{`"url":"https://a.example/"`, ``, 0, "OK"},
		{`"url":"https://a.example/"`, `"url":"/checkout"`, 40002, "context.page.url: Not a valid URL"},
		{`"ttclid":"E.C.P"`, `"email":"a@b.example"`, 40002, "context.user.email: Not a valid SHA256 hash"},
	} {
		_, a := post(t, tiktoksim.New(tiktoksim.Config{}), strings.Replace(older, tc.old, tc.replacement, 1), toPixel)
		if a.said() != tc.code || !strings.HasPrefix(a.Message, tc.message) {
			t.Errorf("%s: %d %s", tc.old, a.said(), a.Message)
		}
	}
	s := tiktoksim.New(tiktoksim.Config{})
	for range 2 {
		if _, a := post(t, s, older, toPixel); a.said() != 0 {
			t.Fatalf("%d %s", a.said(), a.Message)
		}
	}
	e := s.Received()
	if len(e) != 1 || e[0].EventID != "cs_9" || e[0].EventTime != 1704067200 || e[0].Pixel != "LOCALPIXEL" ||
		e[0].TestEventCode != "TEST1" || string(e[0].Body) != older || e[0].Copies != 2 || e[0].Variants != 1 {
		t.Errorf("%+v", e)
	}
}

// TestBatchIsTakenWholeOrNotAtAll: TikTok refuses everything for one bad event, and names the first.
func TestBatchIsTakenWholeOrNotAtAll(t *testing.T) {
	s := tiktoksim.New(tiktoksim.Config{})
	other := func(id string) string { return strings.Replace(good, "cs_1", id, 1) }
	bad := strings.Replace(other("cs_3"), hash, "a@b.example", 1)
	if _, a := post(t, s, request(good+","+other("cs_2")+","+other("cs_4")+","+bad+","+bad), plain); a.Message != "Batch.3.user.email: Not a valid SHA256 hash" {
		t.Errorf("%d %s", a.said(), a.Message)
	}
	if st := s.Stats(); len(s.Received()) != 0 || st.Refused != 1 || st.Events != 5 || st.LargestBatch != 5 || st.ByCode["40002"] != 1 {
		t.Errorf("%+v", st)
	}
	post(t, s, request(good+","+other("cs_2")+","+good), plain)
	if st := s.Stats(); st.Accepted != 2 || st.Duplicates != 1 || st.Requests != 2 || st.Events != 8 {
		t.Errorf("with a repeat inside one batch: %+v", st)
	}
}

func TestDuplicateCode(t *testing.T) {
	s := tiktoksim.New(tiktoksim.Config{DuplicateCode: 40050})
	second := strings.Replace(good, "cs_1", "cs_2", 1)
	for i, tc := range []struct {
		data string
		want int
	}{{good, 0}, {good, 40050}, {good + "," + second, 0}, {good + "," + second, 40050}} {
		if _, a := post(t, s, request(tc.data), plain); a.said() != tc.want {
			t.Errorf("request %d: %d, not %d", i, a.said(), tc.want)
		}
	}
	asFault := tiktoksim.New(tiktoksim.Config{})
	post(t, asFault, request(good), plain)
	asFault.Inject(tiktoksim.Fault{DuplicateCode: 40050})
	if _, a := post(t, asFault, request(good), plain); a.said() != 40050 || asFault.Received()[0].Copies != 2 {
		t.Errorf("as a fault: %d, %+v", a.said(), asFault.Received())
	}
}
