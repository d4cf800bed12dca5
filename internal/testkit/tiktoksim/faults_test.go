package tiktoksim_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/testkit/wait"
)

// do sends a request over a socket and reads up to 1 MiB of the answer. status is 0 without one.
func do(
	ctx context.Context, server *httptest.Server, method, path, body string,
) (status int, header http.Header, answer string, err error) {
	r, err := http.NewRequestWithContext(ctx, method, server.URL+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, "", err
	}
	r.Header = http.Header{"Content-Type": {"application/json"}, "Access-Token": {"local-token"}}
	response, err := server.Client().Transport.RoundTrip(r)
	if err != nil {
		return 0, nil, "", err
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	return response.StatusCode, response.Header, string(data), errors.Join(err, response.Body.Close())
}

// Every fault as a client receives it.
func TestFault_Answers(t *testing.T) {
	t.Parallel()
	for label, tc := range map[string]struct {
		fault  tiktoksim.Fault
		status int
		body   string // part of it
		err    error
		stored int
	}{
		"http_503":     {tiktoksim.Fault{Status: 503, RetryAfter: "5"}, 503, "Service Unavailable", nil, 0},
		"40100":        {tiktoksim.Fault{Code: 40100, Message: "slow"}, 200, `40100,"message":"slow"`, nil, 0},
		"40105":        {tiktoksim.Fault{Code: 40105, Status: 401}, 401, `"code":40105`, nil, 0},
		"http_200":     {tiktoksim.Fault{Body: `{"message":"no code"}`}, 200, `{"message":"no code"}`, nil, 0},
		"html":         {tiktoksim.Fault{HTML: true, Status: 504}, 504, "504 Gateway Timeout", nil, 0},
		"redirect":     {tiktoksim.Fault{Redirect: "http://127.0.0.1:1/"}, 307, "", nil, 0},
		"cut":          {tiktoksim.Fault{Cut: true}, 0, "", io.EOF, 0},
		"cut_after":    {tiktoksim.Fault{CutAfter: true}, 0, "", io.EOF, 1},
		"lying_length": {tiktoksim.Fault{LyingLength: true}, 200, `"code":0`, io.ErrUnexpectedEOF, 0},
		"endless":      {tiktoksim.Fault{Endless: true}, 200, strings.Repeat("x", 1000), nil, 0},
		"drip":         {tiktoksim.Fault{Drip: true}, 200, `{"code":0,"message":"`, nil, 0},
		"hang":         {tiktoksim.Fault{Hang: true}, 0, "", io.EOF, 0},
		"0":            {tiktoksim.Fault{Latency: 1}, 200, `"code":0`, nil, 1},
	} {
		t.Run(label, func(t *testing.T) {
			t.Parallel()
			s := tiktoksim.New(tiktoksim.Config{})
			server := httptest.NewServer(s)
			defer server.Close()
			s.Inject(tc.fault)
			if tc.fault.Hang || tc.fault.Drip {
				go afterArrival(t, s, s.Clear)
			}
			status, header, body, err := do(t.Context(), server, http.MethodPost, batchPath, batch)
			if status != tc.status || !strings.Contains(body, tc.body) || !errors.Is(err, tc.err) {
				t.Errorf("answer = HTTP %d, %.200q, %v, want HTTP %d, %q, %v",
					status, body, err, tc.status, tc.body, tc.err)
			}
			if header.Get("Location") != tc.fault.Redirect || header.Get("Retry-After") != tc.fault.RetryAfter {
				t.Errorf("header = %v, want that of %+v", header, tc.fault)
			}
			stats := s.Stats()
			if stats.ByCode[label] != 1 || stats.Events != tc.stored || len(s.Received()) != tc.stored {
				t.Errorf("%d events, stats = %+v, want %d and one %s", len(s.Received()), stats, tc.stored, label)
			}
		})
	}
}

func afterArrival(t *testing.T, s *tiktoksim.Simulator, run func()) {
	t.Helper()
	if !wait.Until(t.Context(), time.Minute, time.Millisecond, func() bool { return s.Stats().Requests > 0 }) {
		t.Error("no request arrived")
	}
	run()
}

// A disconnect ends the request: server.Close waits for that. The events of a delayed answer are stored.
func TestFault_ClientDisconnects(t *testing.T) {
	t.Parallel()
	for stored, fault := range []tiktoksim.Fault{{Hang: true}, {Latency: time.Hour}} {
		s := tiktoksim.New(tiktoksim.Config{})
		server := httptest.NewServer(s)
		s.Inject(fault)
		ctx, cancel := context.WithCancel(t.Context())
		go afterArrival(t, s, cancel)
		_, _, _, err := do(ctx, server, http.MethodPost, batchPath, batch)
		if got := len(s.Received()); got != stored || !errors.Is(err, context.Canceled) {
			t.Errorf("%+v: %d events, error = %v, want %d, %v", fault, got, err, stored, context.Canceled)
		}
		server.Close()
	}
}

// Which requests a fault applies to. Every one of them is answered 503.
func TestFault_Matches(t *testing.T) {
	t.Parallel()
	attack := strings.Replace(batchOf("cs_2", "cs_3"), "?x=1", `?x=\u003cscript>/../`, 1)
	for name, tc := range map[string]struct {
		fault       tiktoksim.Fault
		hit, spared string
	}{
		"event_id":     {tiktoksim.Fault{MatchText: "poison"}, batchOf("cs_1", "cs_poison"), batch},
		"text":         {tiktoksim.Fault{MatchText: "/../"}, attack, batch},
		"escaped text": {tiktoksim.Fault{MatchText: "<script>"}, attack, batch},
		"batch":        {tiktoksim.Fault{MinEvents: 2}, batchOf("cs_1", "cs_2"), batch},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := tiktoksim.New(tiktoksim.Config{})
			tc.fault.Status = http.StatusServiceUnavailable
			s.Inject(tc.fault)
			if got, _ := post(t, s, batchPath, tc.hit, nil); got != http.StatusServiceUnavailable {
				t.Errorf("HTTP %d to what matches, want 503", got)
			}
			if got, _ := post(t, s, batchPath, tc.spared, nil); got != http.StatusOK {
				t.Errorf("HTTP %d to what does not match, want 200", got)
			}
		})
	}
}

// The first fault applies until its count or its time is over.
func TestFault_Ends(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := tiktoksim.New(tiktoksim.Config{})
		s.Inject(tiktoksim.Fault{Status: 500, Count: 2})
		s.Inject(tiktoksim.Fault{Status: 501, For: 10 * time.Second})
		s.Inject(tiktoksim.Fault{DuplicateCode: 40050})
		for i, tc := range []struct {
			after  time.Duration
			body   string
			status int
			answer string
		}{
			{0, batch, 500, ""},
			{0, batch, 500, ""},
			{0, batch, 501, ""},
			{10*time.Second - 1, batch, 501, ""},
			{1, batch, 200, "0 OK"},
			{0, batch, 200, "40050 Duplicated request"},
			{0, batchOf("cs_1", "cs_2"), 200, "0 OK"},
			{0, batchOf("cs_1", "cs_2"), 200, "40050 Duplicated request"},
		} {
			<-time.After(tc.after)
			if status, answer := post(t, s, batchPath, tc.body, nil); status != tc.status || answer != tc.answer {
				t.Errorf("answer %d = HTTP %d, %q, want HTTP %d, %q", i, status, answer, tc.status, tc.answer)
			}
		}
	})
}

// A seed repeats the choices. A sender that repeats its request loses and doubles nothing.
func TestSimulator_Misbehaves(t *testing.T) {
	t.Parallel()
	run := func() tiktoksim.Stats {
		s := tiktoksim.New(tiktoksim.Config{Misbehave: 0.3, Seed: 42})
		server := httptest.NewServer(s)
		defer server.Close()
		s.Inject(tiktoksim.Fault{Code: 40100, Rate: 0.2})
		for range 100 {
			_, _, _, _ = do(t.Context(), server, http.MethodPost, batchPath, batch)
		}
		return s.Stats()
	}
	stats := run()
	if diff := cmp.Diff(stats, run()); diff != "" {
		t.Errorf("stats of two runs differ:\n%s", diff)
	}
	for _, label := range []string{"0", "40100", "50000", "html", "cut_after"} {
		if stats.ByCode[label] == 0 || stats.Accepted != 1 {
			t.Errorf("stats = %+v, want some %s and one event", stats, label)
		}
	}
}

// The paths for people and for make run.
func TestSimulator_ControlPaths(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(tiktoksim.New(tiktoksim.Config{}))
	defer server.Close()
	for _, tc := range []struct {
		method, path, body string
		status             int
		want               string // part of the answer
	}{
		{"POST", "/faults", `{"sttus":503}`, 400, `unknown field "sttus"`},
		{"POST", "/faults", `{}`, 400, "neither an answer nor latency"},
		{"POST", "/faults", `{"status":99}`, 400, "status must be between 200 and 599"},
		{"POST", "/faults", `{"code":1,"rate":2}`, 400, "rate must be between 0 and 1"},
		{"POST", "/faults", `{"code":1,"for":"soon"}`, 400, "invalid duration"},
		{"POST", "/faults", `{"status":503,"count":3,"latency":"2ms","for":"10h"}`, 200, ""},
		{"POST", batchPath, batch, 503, "Service Unavailable"},
		{"DELETE", "/faults", "", 200, ""},
		{"POST", batchPath, batch, 200, `"code":0`},
		{"GET", "/events", "", 200, `"copies":1,"variants":1}]`},
		{"GET", "/stats", "", 200, `"by_code":{"0":1,"http_503":1}`},
		{"PUT", "/counting", `{"loose":1}`, 400, `unknown field "loose"`},
		{"GET", "/healthz", "", 200, "ok"},
	} {
		status, _, got, err := do(t.Context(), server, tc.method, tc.path, tc.body)
		if err != nil || status != tc.status || !strings.Contains(got, tc.want) {
			t.Errorf("%s %s %s = HTTP %d, %q, %v, want HTTP %d, %q",
				tc.method, tc.path, tc.body, status, got, err, tc.status, tc.want)
		}
	}
}
