package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"purchase-relay/internal/testkit/tiktoksim"
)

// The token is rotated at TikTok and in its file: the worker resumes without a restart and before its probe.
func TestWorker_ReloadsTokenFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("local-token")
	s := newStack(t, "TIKTOK_ACCESS_TOKEN=", "TIKTOK_ACCESS_TOKEN_FILE="+file, "RETRY_INITIAL=5m",
		"RETRY_MAX=15m")
	s.checkDelivered(s.sell(1)...)
	s.sim.SetToken("rotated")
	s.sell(1)
	s.awaitReadiness(s.worker.admin, http.StatusServiceUnavailable)
	write("rotated")
	s.await("the new token", func() bool { return s.worker.logged("Access token changed") == 1 })
	// The purchase that met the old token waits for its probe in 5 minutes. A new one is sent immediately.
	s.checkDelivered(s.sell(1)...)
	s.awaitReadiness(s.worker.admin, http.StatusOK)
	if n := s.count("dead"); n != 0 {
		t.Errorf("dead purchases = %d, want none", n)
	}
	if log := s.worker.log(); strings.Contains(log, "local-token") || strings.Contains(log, `"rotated"`) {
		t.Error("the log contains a token")
	}
}

// The machine suspends the worker for longer than a fetch waits. The purchase that the stream sent meanwhile
// is delivered, not lost until the stream sends it again, as if it had crashed the worker.
func TestWorker_KeepsPurchaseFetchedDuringPause(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.checkDelivered(s.sell(1)...)
	send := func(signal syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(s.worker.PID(), signal); err != nil {
			t.Fatal(err)
		}
	}
	send(syscall.SIGSTOP)
	id := s.sell(1)[0]
	<-time.After(8 * time.Second) // a fetch waits for five, and two more for the response
	send(syscall.SIGCONT)
	s.checkDelivered(id)
	if log := s.worker.log(); !strings.Contains(log, `"event_id":"`+id+`","livemode":true,"delivery":1,`) {
		t.Errorf("worker's log = %s, want the first delivery of %s", log, id)
	}
}

func TestSendTest_ReportsAnswer(t *testing.T) {
	t.Parallel()
	sim := tiktoksim.New(tiktoksim.Config{})
	server := listen(t, sim)
	env := []string{
		"TIKTOK_ACCESS_TOKEN=local-token", "TIKTOK_PIXEL_ID=LOCALPIXEL", "TIKTOK_API_URL=" + server + eventPath,
		"TIKTOK_TIMEOUT=1m", // a request that exceeds it is repeated, and counts against the three tries
	}
	check := func(name string, env []string, wantCode int, want string) {
		t.Helper()
		code, out := command(t, "tiktok-worker", env, "send-test", "--code", "TEST7")
		if code != wantCode || !strings.Contains(out, want) || strings.Contains(out, "local-token") {
			t.Errorf("%s: exit code %d, want %d with %q: %s", name, code, wantCode, want, out)
		}
	}
	check("working settings", env, 0, `TikTok accepted the event (code 0, "OK", request_id `)
	if events := sim.Received(); len(events) != 1 || events[0].TestEventCode != "TEST7" {
		t.Errorf("TikTok has %+v, want one event with the code TEST7", events)
	}
	for setting, want := range map[string]string{
		"TIKTOK_ACCESS_TOKEN=wrong": "refuses access", "TIKTOK_EVENT_NAME=Nonsense": "for its content",
		"TIKTOK_API_URL=http://127.0.0.1:1/": "no usable answer",
	} {
		check(setting, append(env, setting), 1, want)
	}
	check("events", append(env, "TIKTOK_PAYLOAD=events"), 0, "accepted")
	sim.Inject(tiktoksim.Fault{Status: 503, Count: 2})
	check("transient 503", env, 0, "accepted")
	sim.Inject(tiktoksim.Fault{Status: 503, Count: 4})
	check("503", env, 1, "no usable answer")
	code, out := command(t, "tiktok-worker", nil, "send-test")
	both := strings.Contains(out, "TIKTOK_TEST_EVENT_CODE is required") &&
		strings.Contains(out, "TIKTOK_PIXEL_ID")
	if code != 2 || !both {
		t.Errorf("no settings: exit code %d, want 2 with both settings: %s", code, out)
	}
}

// After each outage all purchases are delivered, none is dead, and few requests were sent.
func TestWorker_DeliversAfterEveryOutage(t *testing.T) {
	t.Parallel()
	s := newStack(t, "TIKTOK_TIMEOUT=1s", "RETRY_INITIAL=100ms", "RETRY_MAX=1s", "TIKTOK_MAX_RPS=1000")
	const duration = time.Second
	for _, tc := range []struct {
		name  string
		fault tiktoksim.Fault
	}{
		{"502 and a gateway's page", tiktoksim.Fault{HTML: true, For: duration}},
		{"503", tiktoksim.Fault{Status: 503, For: duration}},
		{"429, seconds", tiktoksim.Fault{Status: 429, RetryAfter: "1", For: duration}},
		{"429, a date", tiktoksim.Fault{Status: 429, RetryAfter: "a date", For: duration}},
		{"40100", tiktoksim.Fault{Code: 40100, Message: "Too many requests", For: duration}},
		{"40105", tiktoksim.Fault{Code: 40105, Message: "Access token is incorrect", For: duration}},
		{"50000", tiktoksim.Fault{Code: 50000, Message: "System error", For: duration}},
		{"51039", tiktoksim.Fault{Code: 51039, Message: "Service error", For: duration}},
		{"20001 once", tiktoksim.Fault{Code: 20001, Message: "Partial success", Count: 1}},
		{"hang", tiktoksim.Fault{Hang: true, For: duration}},
		{"reset", tiktoksim.Fault{Cut: true, For: duration}},
		{"reset after acceptance", tiktoksim.Fault{CutAfter: true, For: duration}},
		{"a truncated answer", tiktoksim.Fault{LyingLength: true, For: duration}},
		{"an endless answer", tiktoksim.Fault{Endless: true, For: duration}},
		{"a slow drip", tiktoksim.Fault{Drip: true, For: duration}},
		{"an answer without code", tiktoksim.Fault{Body: `{"message":"OK","request_id":"r"}`, For: duration}},
		{"an answer without JSON", tiktoksim.Fault{Body: "OK", For: duration}},
		{"a redirect", tiktoksim.Fault{Redirect: "http://127.0.0.1:1/", For: duration}},
		{"a wrong path", tiktoksim.Fault{Status: 404, Body: "404 page not found", For: duration}},
	} {
		before := s.sim.Stats().Requests
		if tc.fault.RetryAfter == "a date" {
			tc.fault.RetryAfter = time.Now().Add(2 * time.Second).UTC().Format(http.TimeFormat)
		}
		s.sim.Inject(tc.fault)
		ids := s.sell(10)
		s.awaitNone(`purchases WHERE status <> 'delivered'`)
		s.sim.Clear()
		for _, id := range ids {
			if e := s.event(id); e.Variants != 1 {
				t.Errorf("%s: %s was sent in %d bodies, want 1", tc.name, id, e.Variants)
			}
		}
		requests := s.sim.Stats().Requests - before
		t.Logf("%-28s %d requests for %d purchases", tc.name, requests, len(ids))
		if requests > 60 {
			t.Errorf("%s: requests = %d, want at most 60", tc.name, requests)
		}
	}
}

// One event in a hundred is invalid: the others are accepted once, and each invalid one is dead with TikTok's
// error.
func TestWorker_SplitsBacklogWithInvalidEvents(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	invalid := 0
	n := scale(600, 2500) // several batches of the relay and of TikTok
	s.backlog(n, func(i int, p *seeded) {
		if i%100 == 41 {
			invalid++
			p.at = p.at.Add(3 * time.Hour) // too far ahead for TikTok
		}
	})
	s.startWorker()
	s.awaitNone(`purchases WHERE status NOT IN ('delivered', 'dead')`)
	dead := s.rows(`purchases WHERE status = 'dead' AND reason = 'refused' AND last_code = 40002
		AND last_error LIKE 'Batch.0.%'`)
	if dead != invalid {
		t.Errorf("dead with TikTok's error = %d, want %d", dead, invalid)
	}
	events := s.sim.Received()
	for _, e := range events {
		if e.Copies != 1 {
			t.Errorf("TikTok has %d copies of %s, want 1", e.Copies, e.EventID)
		}
	}
	if len(events) != n-invalid {
		t.Errorf("TikTok has %d events, want %d", len(events), n-invalid)
	}
	// What a busy server delivered too late for its fetch is redelivered, and each of these is sent alone.
	redelivered := len(regexp.MustCompile(`"delivery":[2-9],"events":1}`).FindAllString(s.worker.log(), -1))
	if requests := s.sim.Stats().Requests; requests-redelivered > 130 {
		t.Errorf("requests = %d, %d of them for redelivered events, want at most 130 others", requests, redelivered)
	}
}
