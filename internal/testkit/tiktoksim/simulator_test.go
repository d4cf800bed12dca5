package tiktoksim_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"purchase-relay/internal/testkit/tiktoksim"
)

const (
	hash = "6a6c26195c3682faa816966af789717c3bfa834eee6c599d667d2b3429c27cfd"
	good = `{"event":"CompletePayment","event_time":1704067200,"event_id":"cs_1","user":{"email":"` + hash + `"},"properties":{"value":29.99,"currency":"USD"}}`
)

func request(data string) string {
	return `{"event_source":"web","event_source_id":"LOCALPIXEL","data":[` + data + `]}`
}

type answer struct {
	Code      *int   `json:"code"`
	Message   string `json:"message"`
	RequestID string `json:"request_id"`
}

func post(t *testing.T, s *tiktoksim.Simulator, body string, change func(r *http.Request)) (int, answer) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/open_api/v1.3/event/track/", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Access-Token", "local-token")
	change(r)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	var a answer
	_ = json.Unmarshal(w.Body.Bytes(), &a) // a gateway's page is none
	return w.Code, a
}

func plain(*http.Request) {}

func TestRefusesWhatTikTokRefuses(t *testing.T) {
	with := func(old, replacement string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in the good event", old)
		}
		return request(strings.Replace(good, old, replacement, 1))
	}
	user := func(fields string) string { return with(`"email":"`+hash+`"`, fields) }
	for name, tc := range map[string]struct {
		body    string
		code    int
		message string
	}{
		"good":                      {request(good), 0, ""},
		"good, lists":               {user(`"email":["` + hash + `"],"phone":["` + hash + `"]`), 0, ""},
		"good, 0":                   {with("29.99", "0"), 0, ""},
		"good, nothing known":       {with(`"email":"`+hash+`"`, ``), 0, ""},
		"not JSON":                  {`<xml>`, -1, ""},
		"another source":            {strings.Replace(request(good), `"web"`, `"fax"`, 1), -1, "event_source"},
		"another pixel":             {strings.Replace(request(good), "LOCALPIXEL", "ELSEWHERE", 1), 40001, ""},
		"no event":                  {request(``), 40002, "data"},
		"too many":                  {request(good + strings.Repeat(","+good, 1000)), 40002, "data"},
		"the second is bad":         {request(good + "," + strings.Replace(good, `"cs_1"`, `273196`, 1)), 40002, "Batch.1.event_id"},
		"event_id is a number":      {with(`"cs_1"`, `273196`), 40002, "Batch.0.event_id"},
		"event in lower case":       {with("CompletePayment", "completepayment"), 40002, "Batch.0.event"},
		"milliseconds":              {with("1704067200", "1704067200000"), 40002, "event_time"},
		"time as a text":            {with("1704067200", `"1704067200"`), 40002, "event_time"},
		"half a second":             {with("1704067200", "1704067200.5"), 40002, "event_time"},
		"a plain address":           {user(`"email":"a@b.example"`), 40002, "Batch.0.user.email"},
		"an upper-case hash":        {user(`"email":"` + strings.ToUpper(hash) + `"`), 40002, "user.email"},
		"the hash of nothing":       {user(`"phone":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"`), 40002, "user.phone"},
		"an empty text":             {user(`"user_agent":""`), 40002, "user.user_agent"},
		"a country as ip":           {user(`"ip":"US"`), 40002, "user.ip"},
		"a click id without a page": {user(`"ttclid":"E.C.P"`), 0, ""},
		"value as a text":           {with("29.99", `"29.99"`), 40002, "properties.value"},
		"currency in lower case":    {with("USD", "usd"), 40002, "properties.currency"},
		"a currency not listed":     {with("USD", "XAF"), 40002, "properties.currency"},
		"value without currency":    {with(`,"currency":"USD"`, ``), 40002, "properties.currency"},
		"content_id is a number":    {with(`"value"`, `"contents":[{"content_id":1}],"value"`), 40002, "Batch.0.properties.contents.0.content_id"},
		"order_id is a number":      {with(`"value"`, `"order_id":1,"value"`), 40002, "properties.order_id"},
	} {
		s := tiktoksim.New(tiktoksim.Config{})
		status, a := post(t, s, tc.body, plain)
		switch {
		case a.Code == nil || a.RequestID == "" || status != http.StatusOK:
			t.Errorf("%s: HTTP %d, %+v", name, status, a)
		case tc.code >= 0 && *a.Code != tc.code, tc.code < 0 && *a.Code/1000 != 40, !strings.Contains(a.Message, tc.message):
			t.Errorf("%s: %d %s", name, *a.Code, a.Message)
		case len(s.Received()) > 0 != (tc.code == 0):
			t.Errorf("%s: %d events were kept", name, len(s.Received()))
		}
	}
}

func TestRefusesStrangers(t *testing.T) {
	s := tiktoksim.New(tiktoksim.Config{})
	for name, change := range map[string]func(r *http.Request){
		"no token":     func(r *http.Request) { r.Header.Del("Access-Token") },
		"a wrong one":  func(r *http.Request) { r.Header.Set("Access-Token", "x") },
		"content type": func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") },
	} {
		if _, a := post(t, s, request(good), change); a.Code == nil || *a.Code/1000 != 40 {
			t.Errorf("%s: %+v", name, a)
		}
	}
	if status, a := post(t, s, request(good), func(r *http.Request) { r.URL.Path = "/open_api/v1.3/event/track" }); status != http.StatusNotFound || a.Code != nil {
		t.Errorf("without the last slash: %d %+v", status, a)
	}
	s.SetToken("new")
	if _, a := post(t, s, request(good), func(r *http.Request) { r.Header.Set("Access-Token", "new") }); a.Code == nil || *a.Code != 0 {
		t.Errorf("the rotated token: %+v", a)
	}
	if n := len(s.Received()); n != 1 {
		t.Errorf("%d events were kept", n)
	}
}

func TestKnowsRepeatsFor48Hours(t *testing.T) {
	var mu sync.Mutex
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := tiktoksim.New(tiktoksim.Config{Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	pass := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); now = now.Add(d) }
	post(t, s, request(good), plain)
	pass(47 * time.Hour)
	post(t, s, request(good), plain)
	if st := s.Stats(); st.Accepted != 1 || st.Duplicates != 1 || st.Requests != 2 {
		t.Errorf("within 48 h: %+v", st)
	}
	post(t, s, request(strings.Replace(good, "29.99", "30", 1)), plain)
	if e := s.Received(); len(e) != 1 || e[0].Copies != 3 || e[0].Variants != 2 || e[0].EventID != "cs_1" || e[0].EventTime != 1704067200 {
		t.Errorf("received: %+v", e)
	}
	pass(2 * time.Hour)
	post(t, s, request(good), plain)
	if st := s.Stats(); st.Duplicates != 2 {
		t.Errorf("a repeat after 48 h counts as one: %+v", st)
	}
}

func TestFaults(t *testing.T) {
	s := tiktoksim.New(tiktoksim.Config{})
	server := httptest.NewServer(s)
	defer server.Close()
	send := func(method, path, body string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, bytes.NewReader([]byte(body)))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Access-Token", "local-token")
		resp, err := server.Client().Do(r)
		if err != nil {
			return 0, err.Error()
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			return resp.StatusCode, err.Error()
		}
		return resp.StatusCode, string(text)
	}
	track := func() (int, string) { return send(http.MethodPost, "/open_api/v1.3/event/track/", request(good)) }
	for fault, check := range map[string]func(status int, text string) bool{
		`{"status":503}`:                           func(status int, _ string) bool { return status == 503 },
		`{"code":40105,"message":"revoked"}`:       func(status int, text string) bool { return status == 200 && strings.Contains(text, "40105") },
		`{"html":true}`:                            func(status int, text string) bool { return status == 502 && strings.Contains(text, "<html") },
		`{"cut":true}`:                             func(status int, _ string) bool { return status == 0 },
		`{"lying_length":true}`:                    func(_ int, text string) bool { return strings.Contains(text, "EOF") },
		`{"status":200,"body":"{\"code\":50000}"}`: func(_ int, text string) bool { return text == `{"code":50000}` },
	} {
		if status, text := send(http.MethodPost, "/faults", fault); status/100 != 2 {
			t.Fatalf("%s: %d %s", fault, status, text)
		}
		if status, text := track(); !check(status, text) {
			t.Errorf("%s: %d %s", fault, status, text)
		}
		if status, _ := send(http.MethodDelete, "/faults", ""); status/100 != 2 {
			t.Errorf("DELETE: %d", status)
		}
	}
	if len(s.Received()) > 0 {
		t.Error("a faulted request left something")
	}
	s.Inject(tiktoksim.Fault{CutAfter: true, Count: 1})
	if status, _ := track(); status != 0 || len(s.Received()) != 1 {
		t.Errorf("cut after: %d, %d kept", status, len(s.Received()))
	}
	if status, _ := track(); status != 200 {
		t.Errorf("after its count a fault still stands: %d", status)
	}
	if status, text := send(http.MethodPost, "/faults", `{"sttus":503}`); status != http.StatusBadRequest || !strings.Contains(text, "sttus") {
		t.Errorf("a misspelt fault: %d %s", status, text)
	}
	if status, text := send(http.MethodGet, "/events?event_id=cs_1", ""); status != 200 || !strings.Contains(text, `"copies":2`) {
		t.Errorf("events: %d %s", status, text)
	}
}

func FuzzTrack(f *testing.F) {
	f.Add([]byte(request(good)))
	f.Add([]byte(`{"event_source":"web","event_source_id":1,"data":{}}`))
	f.Add([]byte(`{"event_source":"web","event_source_id":"LOCALPIXEL","data":[null,{"user":[]}]}`))
	s := tiktoksim.New(tiktoksim.Config{})
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, a := post(t, s, string(body), plain); a.Code == nil || a.RequestID == "" {
			t.Errorf("%q: %+v", body, a)
		}
	})
}
