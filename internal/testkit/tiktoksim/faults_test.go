package tiktoksim_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"purchase-relay/internal/testkit/tiktoksim"
)

// seen is what a real client sees of one request.
type seen struct {
	status int
	header http.Header
	body   string
	err    error // of the request, or of reading its answer
}

// served is a simulator behind a socket.
type served struct {
	*tiktoksim.Simulator
	server *httptest.Server
}

func serve(t *testing.T, c tiktoksim.Config) served {
	t.Helper()
	s := tiktoksim.New(c)
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		s.Clear()
		server.Close()
	})
	// A redirect is shown, not followed.
	server.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return served{s, server}
}

func (s served) do(ctx context.Context, t *testing.T, method, path, body string) (got seen) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, s.server.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Access-Token", "local-token")
	resp, err := s.server.Client().Do(r)
	if err != nil {
		return seen{err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return seen{resp.StatusCode, resp.Header, string(data), err}
}

func (s served) track(t *testing.T) seen {
	t.Helper()
	return s.do(t.Context(), t, http.MethodPost, "/open_api/v1.3/event/track/", request(good))
}

func (s seen) code() int {
	var a answer
	_ = json.Unmarshal([]byte(s.body), &a) // -1 stands for what is no answer of TikTok's
	return a.said()
}

// TestEachFaultAsAClientSeesIt injects one fault after the other, and looks at the count that each leaves.
func TestEachFaultAsAClientSeesIt(t *testing.T) {
	for name, tc := range map[string]struct {
		fault tiktoksim.Fault
		label string
		kept  int
		ok    func(seen) bool
	}{
		"status":       {tiktoksim.Fault{Status: 429, RetryAfter: "5"}, "http_429", 0, func(s seen) bool { return s.status == 429 && s.header.Get("Retry-After") == "5" && s.code() == -1 }},
		"code":         {tiktoksim.Fault{Code: 40100}, "40100", 0, func(s seen) bool { return s.status == 200 && s.code() == 40100 }},
		"both":         {tiktoksim.Fault{Status: 401, Code: 40105, Message: "expired"}, "40105", 0, func(s seen) bool { return s.status == 401 && s.code() == 40105 && strings.Contains(s.body, "expired") }},
		"body":         {tiktoksim.Fault{Body: `{"message":"no code"}`}, "http_200", 0, func(s seen) bool { return s.status == 200 && s.body == `{"message":"no code"}` }},
		"html":         {tiktoksim.Fault{HTML: true, Status: 504}, "http_504", 0, func(s seen) bool { return s.status == 504 && strings.Contains(s.body, "504 Gateway Timeout") }},
		"redirect":     {tiktoksim.Fault{Redirect: "http://127.0.0.1:1/"}, "http_307", 0, func(s seen) bool { return s.status == 307 && s.header.Get("Location") == "http://127.0.0.1:1/" }},
		"cut":          {tiktoksim.Fault{Cut: true}, "cut", 0, func(s seen) bool { return s.status == 0 && errors.Is(s.err, io.EOF) }},
		"cut after":    {tiktoksim.Fault{CutAfter: true}, "cut", 1, func(s seen) bool { return s.status == 0 && errors.Is(s.err, io.EOF) }},
		"lying length": {tiktoksim.Fault{LyingLength: true}, "lying_length", 0, func(s seen) bool { return s.code() == 0 && errors.Is(s.err, io.ErrUnexpectedEOF) }},
		"endless":      {tiktoksim.Fault{Endless: true}, "endless", 0, func(s seen) bool { return s.status == 200 && len(s.body) == 1<<20 && s.err == nil }},
		"latency":      {tiktoksim.Fault{Latency: time.Millisecond}, "0", 1, func(s seen) bool { return s.code() == 0 }},
		"late 503":     {tiktoksim.Fault{Status: 503, Latency: time.Millisecond}, "http_503", 0, func(s seen) bool { return s.status == 503 }},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, tiktoksim.Config{})
			s.Inject(tc.fault)
			if got := s.track(t); !tc.ok(got) {
				t.Errorf("%d %v %.200q %v", got.status, got.header, got.body, got.err)
			}
			st := s.Stats()
			if st.Requests != 1 || st.ByCode[tc.label] != 1 || st.Unreached != 1-tc.kept || len(s.Received()) != tc.kept {
				t.Errorf("%+v", st)
			}
			s.Clear()
			if got := s.track(t); got.code() != 0 {
				t.Errorf("after Clear: %d %q %v", got.status, got.body, got.err)
			}
		})
	}
}

// TestDrip: the answer begins, and does not end before the client or the fault does.
func TestDrip(t *testing.T) {
	s := serve(t, tiktoksim.Config{})
	s.Inject(tiktoksim.Fault{Drip: true})
	got := make(chan seen, 1)
	go func() { got <- s.track(t) }()
	for s.Stats().ByCode["drip"] == 0 {
		if !pauseBriefly(t) {
			t.Fatal("nothing dripped")
		}
	}
	s.Clear()
	if a := <-got; a.status != 200 || json.Valid([]byte(a.body)) || len(s.Received()) != 0 {
		t.Errorf("%d %q, %v", a.status, a.body, a.err)
	}
}

// TestHangEndsWithItsClient: the server closes only when the request's goroutine is gone.
func TestHangEndsWithItsClient(t *testing.T) {
	s := serve(t, tiktoksim.Config{})
	s.Inject(tiktoksim.Fault{Hang: true})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if got := s.do(ctx, t, http.MethodPost, "/open_api/v1.3/event/track/", request(good)); !errors.Is(got.err, context.DeadlineExceeded) {
		t.Errorf("%+v", got)
	}
	s.server.Close()
}

// TestClearEndsAHang: the client has no timeout, so only Clear can end its request.
func TestClearEndsAHang(t *testing.T) {
	var arrived atomic.Bool
	hanging := make(chan struct{})
	s := serve(t, tiktoksim.Config{Now: func() time.Time { // the clock is asked once the request is there
		if arrived.CompareAndSwap(false, true) {
			close(hanging)
		}
		return time.Now()
	}})
	s.Inject(tiktoksim.Fault{Hang: true})
	done := make(chan seen)
	go func() { done <- s.track(t) }()
	<-hanging
	for len(s.Stats().ByCode) == 0 { // counted after it chose the fault that Clear has to end
		if !pauseBriefly(t) {
			t.Fatal("the request never hung")
		}
	}
	s.Clear()
	if got := <-done; got.err == nil {
		t.Errorf("%+v", got)
	}
}

func pauseBriefly(t *testing.T) bool {
	t.Helper()
	select {
	case <-t.Context().Done():
		return false
	case <-time.After(time.Millisecond):
		return true
	}
}

func TestFaultsForSome(t *testing.T) {
	var now atomic.Int64
	now.Store(1767323045)
	s := tiktoksim.New(tiktoksim.Config{Seed: 7, TestToken: "local-token", TestPixel: "SECOND", Now: func() time.Time { return time.Unix(now.Load(), 0) }})
	status := func(body string) int {
		t.Helper()
		status, _ := post(t, s, body, plain)
		return status
	}
	s.Inject(tiktoksim.Fault{Status: 503, For: 10 * time.Second})
	now.Add(9)
	if got := status(request(good)); got != 503 {
		t.Errorf("within its time: %d", got)
	}
	now.Add(1)
	if got := status(request(good)); got != 200 {
		t.Errorf("after its time: %d", got)
	}

	s.Inject(tiktoksim.Fault{Status: 500, Count: 2})
	s.Inject(tiktoksim.Fault{Status: 501, Count: 1})
	if got := []int{status(request(good)), status(request(good)), status(request(good)), status(request(good))}; got[0] != 500 || got[1] != 500 || got[2] != 501 || got[3] != 200 {
		t.Errorf("the first that stands wins, until its count is over: %v", got)
	}

	s.Inject(tiktoksim.Fault{Status: 503, OnlyPixel: "SECOND"})
	if live, test := status(request(good)), status(strings.Replace(request(good), "LOCALPIXEL", "SECOND", 1)); live != 200 || test != 503 {
		t.Errorf("one pixel: %d, %d", live, test)
	}
	s.Clear()

	s.Inject(tiktoksim.Fault{Status: 503, MatchEvent: "poison"})
	if one, many := status(request(good)), status(request(good+","+strings.Replace(good, "cs_1", "cs_poison_2", 1))); one != 200 || many != 503 {
		t.Errorf("one event: %d, %d", one, many)
	}
	s.Clear()

	s.Inject(tiktoksim.Fault{Status: 503, Rate: 0.25})
	hits := 0
	for range 1000 {
		if status(request(good)) == 503 {
			hits++
		}
	}
	if hits < 190 || hits > 310 {
		t.Errorf("a quarter of 1000: %d", hits)
	}
}

// TestFaults_ByWhatARequestHolds: a firewall's page for one event, 40050 for batches, a body that is too large, settings refused.
func TestFaults_ByWhatARequestHolds(t *testing.T) {
	plain := strings.Replace(good, "cs_1", "cs_2", 1)
	dots := strings.Replace(good, "cs_1", "cs_3", 1)
	dots = strings.Replace(dots, `"event":`, `"page":{"url":"https://shop.example/\u003cscript>/../x"},"event":`, 1)
	for name, tc := range map[string]struct {
		fault      tiktoksim.Fault
		hit, spare string
		want       func(seen) bool
	}{
		"a page for one event": {
			tiktoksim.Fault{Status: 403, HTML: true, MatchText: "../"},
			request(plain + "," + dots), request(plain),
			func(s seen) bool {
				return s.status == 403 && strings.Contains(s.body, "403 Forbidden") && s.code() == -1
			},
		},
		"escaped or not": {
			tiktoksim.Fault{Status: 406, HTML: true, MatchText: "<script>"},
			request(dots), request(plain),
			func(s seen) bool { return s.status == 406 && s.code() == -1 },
		},
		"duplicates in a batch": {
			tiktoksim.Fault{Code: 40050, Message: "Duplicated request", MinEvents: 2},
			request(plain + "," + good), request(plain),
			func(s seen) bool { return s.status == 200 && s.code() == 40050 },
		},
		"a large body": {
			tiktoksim.Fault{Status: 413, HTML: true, MinEvents: 3},
			request(plain + "," + good + "," + dots), request(plain + "," + good),
			func(s seen) bool { return s.status == 413 && s.code() == -1 },
		},
		"settings under 40002": {
			tiktoksim.Fault{Code: 40002, Message: "No permission to operate pixel code", MatchEvent: "cs_2"},
			request(plain), request(good),
			func(s seen) bool { return s.code() == 40002 && strings.Contains(s.body, "operate pixel code") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, tiktoksim.Config{})
			s.Inject(tc.fault)
			if got := s.do(t.Context(), t, http.MethodPost, "/open_api/v1.3/event/track/", tc.hit); !tc.want(got) || len(s.Received()) != 0 {
				t.Errorf("hit: %d %.200q, %d stored", got.status, got.body, len(s.Received()))
			}
			if got := s.do(t.Context(), t, http.MethodPost, "/open_api/v1.3/event/track/", tc.spare); got.code() != 0 {
				t.Errorf("spared: %d %.200q", got.status, got.body)
			}
		})
	}
}

// TestMisbehaves: each whim comes, a sender that repeats loses and doubles nothing, and a seed repeats the choices.
func TestMisbehaves(t *testing.T) {
	counts := func() tiktoksim.Stats {
		s := serve(t, tiktoksim.Config{Misbehave: 0.3, Seed: 42})
		if s.Seed() != 42 {
			t.Errorf("seed %d", s.Seed())
		}
		for range 200 {
			s.track(t)
		}
		return s.Stats()
	}
	first, second := counts(), counts()
	for _, what := range []string{"0", "50000", "http_503", "cut"} {
		if first.ByCode[what] == 0 || first.ByCode[what] != second.ByCode[what] {
			t.Errorf("%s: %d and %d", what, first.ByCode[what], second.ByCode[what])
		}
	}
	if first.Accepted != 1 {
		t.Errorf("%+v", first)
	}
	if tiktoksim.New(tiktoksim.Config{}).Seed() == 0 {
		t.Error("a random seed is told")
	}
}

func TestLatencyEndsWithItsClient(t *testing.T) {
	s := serve(t, tiktoksim.Config{Latency: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if got := s.do(ctx, t, http.MethodPost, "/open_api/v1.3/event/track/", request(good)); got.err == nil {
		t.Errorf("%+v", got)
	}
	if len(s.Received()) != 1 {
		t.Error("a slow answer is the answer to something stored")
	}
	s.server.Close()
}

func TestFaultsOverHTTP(t *testing.T) {
	s := serve(t, tiktoksim.Config{})
	for _, body := range []string{
		`{"sttus":503}`, `{}`, `null`, `[]`, `{"status":503}{}`, `{"status":99}`, `{"status":600}`, `{"cut":true,"hang":true}`,
		`{"status":503,"rate":2}`, `{"status":503,"count":-1}`, `{"status":503,"for":"soon"}`, `{"status":503,"for":10}`,
		`{"redirect":"http://a\r\nb"}`, `{"cut_after":true,"status":503}`, `{"message":"x"}`, `{"rate":0.5}`,
	} {
		if got := s.do(t.Context(), t, http.MethodPost, "/faults", body); got.status != http.StatusBadRequest || !strings.HasPrefix(got.body, "This is no fault: ") {
			t.Errorf("%s: %d %s", body, got.status, got.body)
		}
	}
	for range 2 {
		s.do(t.Context(), t, http.MethodPost, "/faults", `{"status":503,"latency":"2ms","for":"1h","count":3,"rate":1,"only_pixel":"LOCALPIXEL","match_event":"cs_","match_text":"cs_","min_events":1}`)
	}
	s.track(t)
	var standing []tiktoksim.Fault
	got := s.do(t.Context(), t, http.MethodGet, "/faults", "")
	if err := json.Unmarshal([]byte(got.body), &standing); err != nil {
		t.Fatalf("what GET says, POST takes: %v in %s", err, got.body)
	}
	if len(standing) != 2 || standing[0].Count != 2 || standing[1].Count != 3 || standing[0].Latency != 2*time.Millisecond ||
		standing[0].For <= 0 || standing[0].For > time.Hour || standing[0].MatchEvent != "cs_" || standing[0].MatchText != "cs_" || standing[0].MinEvents != 1 {
		t.Errorf("%s", got.body)
	}
	if got := s.do(t.Context(), t, http.MethodDelete, "/faults", ""); got.status != http.StatusNoContent {
		t.Errorf("DELETE: %d", got.status)
	}
	if got := s.do(t.Context(), t, http.MethodGet, "/faults", ""); got.body != "[]\n" {
		t.Errorf("after DELETE: %s", got.body)
	}
}

func TestLookingAt(t *testing.T) {
	s := serve(t, tiktoksim.Config{})
	s.track(t)
	var events []tiktoksim.Event
	got := s.do(t.Context(), t, http.MethodGet, "/events", "")
	if err := json.Unmarshal([]byte(got.body), &events); err != nil || len(events) != 1 || string(events[0].Body) != good {
		t.Errorf("%v: %s", err, got.body)
	}
	for path, want := range map[string]string{"/events?event_id=cs_2": "[]\n", "/healthz": "ok\n"} {
		if got := s.do(t.Context(), t, http.MethodGet, path, ""); got.status != 200 || got.body != want {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	if got := s.do(t.Context(), t, http.MethodGet, "/stats", ""); !strings.Contains(got.body, `"largest_batch":1`) || !strings.Contains(got.body, `"by_code":{"0":1}`) {
		t.Errorf("%s", got.body)
	}
	s.do(t.Context(), t, http.MethodDelete, "/events", "")
	if st := s.Stats(); st.Requests != 0 || len(s.Received()) != 0 {
		t.Errorf("after DELETE: %+v", st)
	}
}

func TestInjectRefusesWhatPostRefuses(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a fault without an effect was taken")
		}
	}()
	tiktoksim.New(tiktoksim.Config{}).Inject(tiktoksim.Fault{Rate: 0.5})
}

// FuzzOlderTrack: the older shape has its own opener. Whatever comes, the answer is JSON with a code.
func FuzzOlderTrack(f *testing.F) {
	f.Add([]byte(`{"pixel_code":"LOCALPIXEL","event":"Purchase","event_id":"a","timestamp":1704067200,"context":{}}`))
	f.Add([]byte(`[{"pixel_code":null}]`))
	s := tiktoksim.New(tiktoksim.Config{})
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, a := post(t, s, string(body), toPixel); a.Code == nil || a.RequestID == "" {
			t.Errorf("%q: %+v", body, a)
		}
	})
}
