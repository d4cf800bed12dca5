package tiktok_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/tiktok"
)

// TikTok's paths.
const (
	eventPath = "/open_api/v1.3/event/track/"
	pixelPath = "/open_api/v1.3/pixel/track/"
)

func TestClassify(t *testing.T) {
	type row struct {
		status, from, to int
		want             purchase.Class
	}
	for _, tc := range []row{
		{200, 0, 0, purchase.ClassDelivered},
		{299, 0, 0, purchase.ClassDelivered},
		{500, 0, 0, purchase.ClassRetry}, // success is 2xx and 0
		{302, 0, 0, purchase.ClassRetry},
		{200, 40050, 40050, purchase.ClassDelivered},
		{400, 40050, 40050, purchase.ClassDelivered},
		{200, 20001, 20001, purchase.ClassRefused},
		{200, 40000, 40000, purchase.ClassRefused},
		{400, 40002, 40003, purchase.ClassRefused},
		{200, 40006, 40013, purchase.ClassRefused},
		{200, 40051, 40051, purchase.ClassRefused},
		{200, 40061, 40063, purchase.ClassRefused},
		{200, 40001, 40001, purchase.ClassAccess},
		{401, 40101, 40109, purchase.ClassAccess},
		{200, 40113, 40113, purchase.ClassAccess},
		{200, 40117, 40118, purchase.ClassAccess},
		{200, 40130, 40130, purchase.ClassAccess},
		{200, 40300, 40301, purchase.ClassAccess},
		{200, 41000, 41000, purchase.ClassAccess},
		{401, 40100, 40100, purchase.ClassRate}, // the body's code wins over the status
		{200, 40132, 40132, purchase.ClassRate},
		{200, 40016, 40016, purchase.ClassRate},
		{200, 61000, 61000, purchase.ClassRate},
		{200, 50000, 50002, purchase.ClassRetry},
		{200, 51039, 51039, purchase.ClassRetry},
		{200, 53999, 53999, purchase.ClassRetry},
		{200, 60001, 60001, purchase.ClassRetry},
	} {
		for c := tc.from; c <= tc.to; c++ {
			if got, known := tiktok.Classify(tc.status, new(c), "m"); got != tc.want || !known {
				t.Errorf("class of HTTP %d, code %d = %s (known %t), want %s", tc.status, c, got, known, tc.want)
			}
		}
	}
	for _, unknown := range []int{1, -1, 40004, 40014, 40999, 49999, 54000, 60000, 99999} {
		if got, known := tiktok.Classify(200, new(unknown), "m"); got != purchase.ClassRetry || known {
			t.Errorf("class of code %d = %s (known %t), want retry, unknown", unknown, got, known)
		}
	}
	for want, statuses := range map[purchase.Class][]int{
		purchase.ClassRetry:   {0, 200, 204, 302, 408, 425, 500, 502, 503, 599},
		purchase.ClassRate:    {429},
		purchase.ClassAccess:  {404},
		purchase.ClassBlocked: {400, 401, 403, 405, 406, 410, 413, 414, 431, 451},
	} {
		for _, status := range statuses {
			if got, _ := tiktok.Classify(status, nil, ""); got != want {
				t.Errorf("class of HTTP %d without a code = %s, want %s", status, got, want)
			}
		}
	}
}

// One code reports faults of the event, of the settings, and temporary ones: the message distinguishes them.
func TestClassify_ByMessage(t *testing.T) {
	const refused, access, retry = purchase.ClassRefused, purchase.ClassAccess, purchase.ClassRetry
	for data, want := range map[string]purchase.Class{
		"No permission to operate pixel code: LOCALPIXEL. You must be an admin of this advertiser account.": access,
		"Invalid value for event_source_id":                     access,
		"event_source_id: Not a valid string":                   access,
		"The event source does not exist":                       access,
		"Pixel code is invalid":                                 access,
		"pixel_code: Missing data for required field":           access,
		"The pixel has been deleted":                            access,
		"Permission denied":                                     access,
		"You are not authorized to send events for this asset":  access,
		"Invalid test_event_code":                               access,
		"Test event code has expired":                           access,
		"The access token does not belong to this advertiser":   access,
		"Access_token is invalid":                               access,
		"Token has been revoked":                                access,
		"could not acquire ip":                                  retry,
		"Could not acquire lock for pixel":                      retry,
		"Request timeout":                                       retry,
		"upstream timed out":                                    retry,
		"Service busy, please try again later":                  retry,
		"Temporarily unavailable":                               retry,
		"Internal error: failed to load pixel":                  retry,
		"Too many requests. Please retry in some time.":         retry,
		"Invalid parameter":                                     refused,
		"Invalid value for event_id: not a valid string.":       refused,
		"Unexpected token in JSON at position 3":                refused,
		"Batch.3.properties.value: Not a valid string":          refused,
		"Batch.3.page.url: contains pixel_code and token":       refused,
		"Batch.0.user.email: Not a valid hash, try again":       refused,
		"data.0.event: Must be one of the event source's names": refused,
		"properties.contents.0.content_name: Pixel is too long": refused,
		"context.user.ip: timeout is no address":                refused,
		`Content name "Pixel 9, unlocked" is too long`:          refused,
		"Value 'access token' is not a currency":                refused,
		"Event time is older than 7 days":                       refused,
	} {
		for _, code := range []int{40000, 40002, 40007} {
			if got, known := tiktok.Classify(200, new(code), data); got != want || !known {
				t.Errorf("class of %d %q = %s (known %t), want %s", code, data, got, known, want)
			}
		}
	}
	const settings = "No permission to operate pixel code"
	for code, want := range map[int]purchase.Class{
		0: purchase.ClassDelivered, 40050: purchase.ClassDelivered, 40100: purchase.ClassRate,
		40001: access, 40105: access, 50000: access, 45678: access,
	} {
		if got, known := tiktok.Classify(200, new(code), settings); got != want || known == (code == 45678) {
			t.Errorf("class of %d %q = %s (known %t), want %s", code, settings, got, known, want)
		}
	}
	if got, _ := tiktok.Classify(200, new(40105), "Access token is incorrect, try again"); got != access {
		t.Errorf("class of an access code with 'try again' = %s, want access", got)
	}
	if got, _ := tiktok.Classify(500, new(0), settings); got != retry {
		t.Errorf("class of code 0 with HTTP 500 = %s, want retry", got)
	}
}

func TestParseAnswer(t *testing.T) {
	for body, want := range map[string]string{
		`{"code":0,"message":"OK","request_id":"r1"}`:   "delivered 0 r1",
		`{"code":40002,"message":"m","request_id":"r"}`: "refused 40002 r",
		`{"message":"OK"}`:                "retry 200 ", // a missing code is not 0
		`{"code":null,"message":"OK"}`:    "retry 200 ",
		`{"code":"0","message":"OK"}`:     "retry 200 ",
		`{"code":0.5}`:                    "retry 200 ",
		`{"code":1e400}`:                  "retry 200 ",
		`{"code":99999999999999999999}`:   "retry 200 ",
		`{"code":0,"message":{"a":"b"}}`:  "delivered 0 ",
		`{"code":40105,"message":["x"]}`:  "access 40105 ",
		`<html>502 Bad Gateway</html>`:    "retry 200 ",
		``:                                "retry 200 ",
		`[]`:                              "retry 200 ",
		`null`:                            "retry 200 ",
		`{"code":0`:                       "retry 200 ",
		`{"error":{}}`:                    "retry 200 ",
		`{"Code":0}`:                      "retry 200 ", // not TikTok's field
		`{"code":40105,"CODE":0}`:         "access 40105 ",
		`{"code":0} trailing`:             "retry 200 ",
		`{"code":0,"request_id":7}`:       "delivered 0 ",
		`{"code":12345,"request_id":"r"}`: "retry 12345 r",
	} {
		a := tiktok.ParseAnswer(http.StatusOK, []byte(body))
		if got := fmt.Sprint(a.Class, " ", *a.Code, " ", a.RequestID); got != want {
			t.Errorf("ParseAnswer(%s) = %q, want %q", body, got, want)
		}
	}
}

func TestParseAnswer_WithoutTikTokAnswer(t *testing.T) {
	if a := tiktok.ParseAnswer(0, nil); a.Code != nil || a.Class != purchase.ClassRetry {
		t.Errorf("answer = %+v, want retry without a code", a)
	}
	if a := tiktok.ParseAnswer(599, []byte("<html>")); a.Message != "HTTP 599 without TikTok's answer" {
		t.Errorf("message = %q, want the HTTP status", a.Message)
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add(200, []byte(`{"code":0,"message":"OK","request_id":"r1"}`))
	f.Add(503, []byte(`<html>`))
	f.Add(0, []byte(`{"code":-1}`))
	f.Add(200, []byte(`{"Code":0,"code":null}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		a := tiktok.ParseAnswer(status, body)
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(body, &fields); err != nil {
			fields = nil
		}
		code := string(fields["code"])
		success := strings.Trim(code, "-") == "0" && status >= 200 && status <= 299
		if delivered := a.Class == purchase.ClassDelivered; delivered != (success || code == "40050") {
			t.Errorf("class of HTTP %d %q = %s", status, body, a.Class)
		}
		if a.Code == nil && status != 0 {
			t.Errorf("code of HTTP %d %q = nil, want one", status, body)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"": 0, "5": 5 * time.Second, " 7 ": 7 * time.Second, "0": 0, "-5": 0, "999999": time.Hour,
		"99999999999999999999": time.Hour, "-9223372036854775807": 0, "soon": 0, "1.5": 0,
		"Fri, 02 Jan 2026 03:04:35 GMT": 30 * time.Second, "Fri, 02 Jan 2026 03:00:00 GMT": 0,
		"Sat, 03 Jan 2026 03:04:05 GMT": time.Hour,
	} {
		if got := tiktok.RetryAfter(header, now); got != want {
			t.Errorf("RetryAfter(%q) = %s, want %s", header, got, want)
		}
	}
}

func envelope(minor *int64, currency string) message.Envelope {
	return message.Envelope{
		Version: 1, EventID: "cs_live_a1B2", Livemode: true, PurchasedAt: 1704067200,
		AmountMinor: minor, Currency: currency,
		Keys: purchase.MatchKeys{
			Email: purchase.HashEmail("buyer@example.com"), Phone: purchase.HashPhone("+12133734253"),
			ExternalID: purchase.HashExternalID("p1"), TTCLID: "E.C.P.abc", TTP: "ttp1", IP: "203.0.113.7",
			UserAgent: "Mozilla/5.0", PageURL: "https://shop.example/c", Referrer: "https://www.tiktok.com/",
		},
	}
}

func config() tiktok.Config {
	return tiktok.Config{
		Payload: tiktok.PayloadEvents, EventName: "CompletePayment", Timeout: time.Minute, Now: time.Now,
	}
}

// body returns the body of a real event.
func body(t *testing.T, c tiktok.Config, e message.Envelope) string {
	t.Helper()
	data, err := tiktok.Body(c, "PIXEL1", "", []message.Envelope{e})
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestBody_EncodesGolden(t *testing.T) {
	pixel := config()
	pixel.Payload = tiktok.PayloadPixel
	for file, c := range map[string]tiktok.Config{"events.json": config(), "pixel.json": pixel} {
		body, err := tiktok.Body(c, "PIXEL1", "TEST1", []message.Envelope{envelope(new(int64(2999)), "usd")})
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		var got, wanted any
		if json.Unmarshal(body, &got) != nil || json.Unmarshal(want, &wanted) != nil {
			t.Fatalf("%s: malformed JSON", file)
		}
		if diff := cmp.Diff(wanted, got); diff != "" {
			t.Errorf("%s (-golden +got):\n%s", file, diff)
		}
	}
	for payload, counts := range map[string][]int{"pixel": {0, 2}, "events": {0, 1001}} {
		c := config()
		c.Payload = payload
		for _, n := range counts {
			if _, err := tiktok.Body(c, "PIXEL1", "", make([]message.Envelope, n)); err == nil {
				t.Errorf("%s body of %d events: error = nil, want one", payload, n)
			}
		}
	}
}

func TestBody_Values(t *testing.T) {
	for _, tc := range []struct {
		minor    *int64
		currency string
		want     string // in the body
		not      string // a field that is missing
	}{
		{new(int64(2999)), "usd", `"value":29.99,"currency":"USD"`, ""},
		{new(int64(0)), "usd", `"value":0.00,"currency":"USD"`, ""}, // 0 stays 0
		{new(int64(800)), "jpy", `"value":800,"currency":"JPY"`, ""},
		{new(int64(12345)), "kwd", `"value":12.345,"currency":"KWD"`, ""},
		{new(int64(500)), "isk", `"value":5.00,"currency":"ISK"`, ""},
		{new(int64(9007199254740993)), "usd", `"value":90071992547409.93`, ""},
		{new(int64(100)), "xaf", `"event_id":"cs_live_a1B2"`, "value"}, // unsupported
		{nil, "usd", `"event_id":"cs_live_a1B2"`, "currency"},
		{new(int64(100)), "", `"event_id":"cs_live_a1B2"`, "value"},
	} {
		got := body(t, config(), envelope(tc.minor, tc.currency))
		if !strings.Contains(got, tc.want) || tc.not != "" && strings.Contains(got, `"`+tc.not+`"`) {
			t.Errorf("body of %v %s = %s, want %s and no %q", tc.minor, tc.currency, got, tc.want, tc.not)
		}
		if strings.Contains(got, `""`) {
			t.Errorf("body = %s, want no empty strings", got)
		}
	}
}

func TestBody_ClickIDWithAndWithoutPage(t *testing.T) {
	e := envelope(new(int64(1)), "usd")
	e.Keys.PageURL, e.Keys.Referrer = "", ""
	got := body(t, config(), e)
	if !strings.Contains(got, `"ttclid":"E.C.P.abc"`) || strings.Contains(got, "page") {
		t.Errorf("body without a page = %s, want the click ID and no page", got)
	}
	c := config()
	c.PageURL = "https://shop.example/"
	for _, want := range []string{`"page":{"url":"https://shop.example/"}`, `"ttclid":"E.C.P.abc"`} {
		if got := body(t, c, e); !strings.Contains(got, want) {
			t.Errorf("body with the default page = %s, want %s", got, want)
		}
	}
}

func TestBody_ContentIDsAlone(t *testing.T) {
	e := envelope(new(int64(1)), "usd")
	e.Content = &purchase.Content{IDs: []string{"42"}}
	got := body(t, config(), e)
	if !strings.Contains(got, `"content_ids":["42"]`) || strings.Contains(got, `"contents"`) ||
		strings.Contains(got, "num_items") {
		t.Errorf("body = %s, want content_ids alone", got)
	}
}

func TestPixel_SimulatorAcceptsEvents(t *testing.T) {
	sim := tiktoksim.New(tiktoksim.Config{Token: "secret-token", Pixel: "PIXEL1"})
	server := httptest.NewServer(sim)
	defer server.Close()
	bare := message.Envelope{Version: 1, EventID: "cs_bare", PurchasedAt: 1704067200}
	events := []message.Envelope{envelope(new(int64(2999)), "usd"), envelope(new(int64(1)), "xaf"), bare}
	for path, payload := range map[string]string{eventPath: "events", pixelPath: "pixel"} {
		c := config()
		c.URL, c.Payload = server.URL+path, payload
		p := tiktok.NewPixel(c, "PIXEL1", "secret-token", "TEST1")
		for _, e := range events {
			a := p.Send(t.Context(), []message.Envelope{e})
			if a.Class != purchase.ClassDelivered || a.RequestID == "" {
				t.Errorf("%s, %s: answer = %+v, want delivered", payload, e.EventID, a)
			}
		}
	}
}

func TestPixel_ClassifiesEveryFault(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("redirect followed with the token %q", r.Header.Get("Access-Token"))
	}))
	defer elsewhere.Close()
	for name, tc := range map[string]struct {
		fault tiktoksim.Fault
		class purchase.Class
		code  string
		wait  time.Duration
	}{
		"503":            {tiktoksim.Fault{Status: 503, RetryAfter: "7"}, "retry", "503", 7 * time.Second},
		"429":            {tiktoksim.Fault{Status: 429}, purchase.ClassRate, "429", 0},
		"50000":          {tiktoksim.Fault{Code: 50000, Message: "System error"}, purchase.ClassRetry, "50000", 0},
		"gateway page":   {tiktoksim.Fault{HTML: true}, purchase.ClassRetry, "502", 0},
		"cut":            {tiktoksim.Fault{Cut: true}, purchase.ClassRetry, "none", 0},
		"cut after":      {tiktoksim.Fault{CutAfter: true}, purchase.ClassRetry, "none", 0},
		"wrong length":   {tiktoksim.Fault{LyingLength: true}, purchase.ClassRetry, "200", 0},
		"endless answer": {tiktoksim.Fault{Endless: true}, purchase.ClassRetry, "200", 0},
		"timeout":        {tiktoksim.Fault{Hang: true}, purchase.ClassRetry, "none", 0},
		"redirect":       {tiktoksim.Fault{Redirect: elsewhere.URL}, purchase.ClassRetry, "307", 0},
		"unknown code":   {tiktoksim.Fault{Code: 77777}, purchase.ClassRetry, "77777", 0},
	} {
		t.Run(name, func(t *testing.T) {
			sim := tiktoksim.New(tiktoksim.Config{Token: "secret-token", Pixel: "PIXEL1"})
			sim.Inject(tc.fault)
			server := httptest.NewServer(sim)
			defer server.Close()
			c := config()
			c.URL = server.URL + eventPath
			if tc.fault.Hang {
				c.Timeout = 100 * time.Millisecond
			}
			a := sendTo(t, c)
			code := "none"
			if a.Code != nil {
				code = fmt.Sprint(*a.Code)
			}
			if a.Class != tc.class || code != tc.code || a.RetryAfter != tc.wait {
				t.Errorf("answer = %+v, code %s; want %s, %s, wait %s", a, code, tc.class, tc.code, tc.wait)
			}
		})
	}
}

func TestSupportsCurrency(t *testing.T) {
	for currency, want := range map[string]bool{
		"usd": true, "USD": true, "JPY": true, "xaf": false, "": false, " ": false, "AED ARS": false, "ED": false,
	} {
		if got := tiktok.SupportsCurrency(currency); got != want {
			t.Errorf("SupportsCurrency(%q) = %t, want %t", currency, got, want)
		}
	}
}

// sendTo sends one event.
func sendTo(t *testing.T, c tiktok.Config) purchase.Answer {
	t.Helper()
	p := tiktok.NewPixel(c, "PIXEL1", "secret-token", "")
	return p.Send(t.Context(), []message.Envelope{envelope(new(int64(1)), "usd")})
}

// send sends one event to a server with a handler.
func send(t *testing.T, answer http.HandlerFunc) purchase.Answer {
	t.Helper()
	server := httptest.NewServer(answer)
	defer server.Close()
	c := config()
	c.URL = server.URL + eventPath + "?trace=private"
	return sendTo(t, c)
}

// Whatever the server returns, no token and no e-mail address remains.
func TestPixel_SanitizesAnswers(t *testing.T) {
	for _, hostile := range []string{
		"secret-token", "secret-\x01token", "secret-\u200btoken", "two\nlines",
		"for me@example.com", "me\u200b@example.com", "me%40example.com", "<me@example.com>",
		strings.Repeat("é", 400), strings.Repeat("x", 295) + "secret-token",
	} {
		body, err := json.Marshal(map[string]any{"code": 40002, "message": hostile, "request_id": hostile})
		if err != nil {
			t.Fatal(err)
		}
		a := send(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) })
		for _, text := range []string{a.Message, a.RequestID} {
			for _, secret := range []string{"secret-t", "me@", "%40", "\x01", "\u200b", "\n"} {
				if strings.Contains(text, secret) || len(text) > 300 || !utf8.ValidString(text) {
					t.Errorf("text of %q = %q, want it sanitized", hostile, text)
				}
			}
		}
		if len(a.RequestID) > 100 {
			t.Errorf("request ID of %d bytes, want at most 100", len(a.RequestID))
		}
	}
}

func TestPixel_ErrorOmitsURL(t *testing.T) {
	c := config()
	c.URL = "http://127.0.0.1:1" + eventPath + "?trace=private"
	a := sendTo(t, c)
	if a.Class != purchase.ClassRetry || a.Code != nil || strings.Contains(a.Message, "private") ||
		!strings.HasPrefix(a.Message, "no answer: ") {
		t.Errorf("answer = %+v, want retry without the URL", a)
	}
}

func TestPixel_TruncatedBodyKeepsStatus(t *testing.T) {
	for status, want := range map[int]purchase.Class{200: "retry", 401: "blocked", 429: "rate", 503: "retry"} {
		a := send(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.Header().Set("Retry-After", "9")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"code":0}`)
		})
		if a.Class != want || a.Code == nil || *a.Code != status || a.RetryAfter != 9*time.Second ||
			a.Message != "truncated answer: unexpected EOF" {
			t.Errorf("HTTP %d: answer = %+v, want %s, %d, wait 9s", status, a, want, status)
		}
	}
}

// A valid start of an oversized answer does not count.
func TestPixel_BoundsAnswerSize(t *testing.T) {
	a := send(t, func(w http.ResponseWriter, _ *http.Request) {
		chunk := []byte(strings.Repeat("x", 64<<10))
		_, _ = w.Write([]byte(`{"code":0,"message":"`))
		for range 64 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
		_, _ = w.Write([]byte(`"}`))
	})
	if a.Class != purchase.ClassRetry || a.Code == nil || *a.Code != 200 {
		t.Errorf("answer = %+v, want retry, 200", a)
	}
}

// Both payloads have a trial's event name, limited_data_use, all contents and every match key.
func TestBody_IncludesEveryField(t *testing.T) {
	e := message.Envelope{
		Version: 2, EventID: "cs_1", PurchasedAt: 1, Event: "StartTrial", LimitedDataUse: true,
		Content: &purchase.Content{
			ID: "42", Name: "Plan", Category: "Plans", Brand: "Example", Price: "14.50",
			Quantity: 2, IDs: []string{"42", "43"},
		},
		Keys: purchase.MatchKeys{
			FirstName: "f", LastName: "l", Zip: "z", City: "berlin", State: "be",
			Country: "de", Locale: "de-DE",
		},
	}
	for payload, parts := range map[string][]string{
		tiktok.PayloadEvents: {`"event":"StartTrial"`}, tiktok.PayloadPixel: {`"pixel_code":"PIXEL1"`},
	} {
		got := body(t, tiktok.Config{Payload: payload, EventName: "CompletePayment"}, e)
		for _, part := range append(parts, `"event":"StartTrial"`, `"limited_data_use":true`,
			`"contents":[{"content_id":"42","content_name":"Plan","content_category":"Plans",`+
				`"brand":"Example","price":14.50,"quantity":2}]`,
			`"content_ids":["42","43"],"num_items":2`,
			`"user":{"first_name":"f","last_name":"l","zip_code":"z","city":"berlin","state":"be",`+
				`"country":"de","locale":"de-DE"}`) {
			if !strings.Contains(got, part) {
				t.Errorf("%s body = %s, want %s", payload, got, part)
			}
		}
	}
}
