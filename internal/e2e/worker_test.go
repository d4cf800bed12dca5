package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// A token rotated at TikTok and in its file: the worker goes on without a restart, and without waiting for its next probe.
func TestRotatedTokenFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("local-token")
	s := newStack(t, "TIKTOK_ACCESS_TOKEN=", "TIKTOK_ACCESS_TOKEN_FILE="+file, "RETRY_INITIAL=5m", "RETRY_MAX=15m")
	first, second := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	s.send(first)
	s.awaitStatus(first.SessionID, "delivered")
	s.sim.SetToken("rotated")
	s.send(second)
	s.await("the worker to pause", func() bool { return status(s.worker.admin+"/readyz") == http.StatusServiceUnavailable })
	write("rotated")
	s.await("the worker to take the token", func() bool { return s.worker.said("Access token changed") == 1 })
	// What met the old token waits for the probe of then, five minutes away; what comes now probes at once.
	third := stripegen.NewCheckout().Live()
	s.send(third)
	s.awaitStatus(third.SessionID, "delivered")
	s.await("the worker to be ready", func() bool { return status(s.worker.admin+"/readyz") == http.StatusOK })
	if n := query[int](s, `SELECT count(*) FROM purchases WHERE status = 'dead'`); n > 0 {
		t.Errorf("%d dead", n)
	}
	for _, line := range s.worker.lines() {
		if strings.Contains(line, "local-token") || strings.Contains(line, `"rotated"`) {
			t.Errorf("a token in the log: %s", line)
		}
	}
}

func TestSendTest(t *testing.T) {
	t.Parallel()
	sim := tiktoksim.New(tiktoksim.Config{})
	server := listen(t, sim)
	send := func(env ...string) (int, string) {
		t.Helper()
		all := append([]string{"TIKTOK_ACCESS_TOKEN=local-token", "TIKTOK_PIXEL_ID=LOCALPIXEL", "TIKTOK_API_URL=" + server + eventPath}, env...)
		return command(t, "tiktok-worker", all, "send-test", "--code", "TEST7")
	}
	if code, out := send(); code != 0 || !strings.Contains(out, "TikTok accepted the event (code 0") || !strings.Contains(out, "request_id") {
		t.Errorf("%d %s", code, out)
	}
	if events := sim.Received(); len(events) != 1 || events[0].TestEventCode != "TEST7" {
		t.Errorf("TikTok has %+v", events)
	}
	for env, want := range map[string]string{
		"TIKTOK_ACCESS_TOKEN=wrong": "refuses access", "TIKTOK_EVENT_NAME=Nonsense": "for its content", "TIKTOK_API_URL=http://127.0.0.1:1/": "no usable answer",
		"TIKTOK_PAYLOAD=events": "accepted",
	} {
		if code, out := send(env); (code == 0) != (want == "accepted") || !strings.Contains(out, want) || strings.Contains(out, "local-token") {
			t.Errorf("%s: %d %s", env, code, out)
		}
	}
	sim.Inject(tiktoksim.Fault{Status: 503, Count: 2}) // in passing
	if code, out := send(); code != 0 {
		t.Errorf("%d %s", code, out)
	}
	sim.Inject(tiktoksim.Fault{Status: 503, Count: 4})
	if code, out := send(); code != 1 || !strings.Contains(out, "no usable answer") {
		t.Errorf("%d %s", code, out)
	}
	if code, out := command(t, "tiktok-worker", []string{}, "send-test"); code != 2 || !strings.Contains(out, "test event code is required") || !strings.Contains(out, "TIKTOK_PIXEL_ID") {
		t.Errorf("without anything: %d %s", code, out)
	}
}

// TikTok's bad days, one after the other: all purchases are delivered in the end, none dies, and each outage costs few requests.
func TestEveryKindOfOutage(t *testing.T) {
	t.Parallel()
	s := newStack(t, "TIKTOK_TIMEOUT=1s", "RETRY_INITIAL=100ms", "RETRY_MAX=1s", "TIKTOK_MAX_RPS=1000")
	lasting := time.Second
	for _, tc := range []struct {
		name  string
		fault tiktoksim.Fault
	}{
		{"502 and a gateway's page", tiktoksim.Fault{HTML: true, For: lasting}},
		{"503", tiktoksim.Fault{Status: 503, For: lasting}},
		{"429, seconds", tiktoksim.Fault{Status: 429, RetryAfter: "1", For: lasting}},
		{"429, a date", tiktoksim.Fault{Status: 429, RetryAfter: "a date", For: lasting}},
		{"40100", tiktoksim.Fault{Code: 40100, Message: "Too many requests", For: lasting}},
		{"40105", tiktoksim.Fault{Code: 40105, Message: "Access token is incorrect", For: lasting}},
		{"50000", tiktoksim.Fault{Code: 50000, Message: "System error", For: lasting}},
		{"51039", tiktoksim.Fault{Code: 51039, Message: "Service error", For: lasting}},
		{"20001 once", tiktoksim.Fault{Code: 20001, Message: "Partial success", Count: 1}},
		{"hang", tiktoksim.Fault{Hang: true, For: lasting}},
		{"reset", tiktoksim.Fault{Cut: true, For: lasting}},
		{"reset after it was taken", tiktoksim.Fault{CutAfter: true, For: lasting}},
		{"a truncated answer", tiktoksim.Fault{LyingLength: true, For: lasting}},
		{"an endless answer", tiktoksim.Fault{Endless: true, For: lasting}},
		{"a slow drip", tiktoksim.Fault{Drip: true, For: lasting}},
		{"an answer without code", tiktoksim.Fault{Body: `{"message":"OK","request_id":"r"}`, For: lasting}},
		{"an answer that is no JSON", tiktoksim.Fault{Body: "OK", For: lasting}},
		{"a redirect", tiktoksim.Fault{Redirect: "http://127.0.0.1:1/", For: lasting}},
		{"a wrong path", tiktoksim.Fault{Status: 404, Body: "404 page not found", For: lasting}},
	} {
		before := s.sim.Stats().Requests
		if tc.fault.RetryAfter == "a date" {
			tc.fault.RetryAfter = time.Now().Add(2 * time.Second).UTC().Format(http.TimeFormat)
		}
		s.sim.Inject(tc.fault)
		var ids []string
		for range 20 {
			c := stripegen.NewCheckout().Live()
			ids = append(ids, c.SessionID)
			if answer := s.send(c); answer.Status != http.StatusOK {
				t.Fatalf("%s: a webhook was answered %+v", tc.name, answer)
			}
		}
		s.await(tc.name+" to be over", func() bool {
			return query[int](s, `SELECT count(*) FROM purchases WHERE status <> 'delivered'`) == 0
		})
		s.sim.Clear()
		for _, id := range ids {
			if e := s.event(id); e.Variants != 1 {
				t.Errorf("%s: %d bodies under one event_id", tc.name, e.Variants)
			}
		}
		requests := s.sim.Stats().Requests - before
		t.Logf("%-28s %d requests for %d purchases", tc.name, requests, len(ids))
		if requests > 60 {
			t.Errorf("%s: %d requests", tc.name, requests)
		}
	}
}

// One bad event in a hundred: all good ones are accepted once, each bad one dies with TikTok's own words.
func TestBacklogWithBadEvents(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.worker.kill()
	s.ingest.kill()
	bad := 0
	n := dose(1200, 2500) // several batches of the relay and of TikTok
	// Straight onto the ledger, as intake would write them.
	s.seed(n, func(i int) bool {
		if i%100 == 41 {
			bad++
			return true
		}
		return false
	})
	s.startIngest()
	s.await("all to be in the queue", func() bool { return query[int](s, `SELECT count(*) FROM purchases WHERE status = 'pending'`) == 0 })
	s.startWorker()
	s.await("all to end", func() bool {
		return query[int](s, `SELECT count(*) FROM purchases WHERE status NOT IN ('delivered', 'dead')`) == 0
	})
	if dead := query[int](s, `SELECT count(*) FROM purchases WHERE status = 'dead' AND reason = 'refused' AND last_code = 40002 AND last_error LIKE 'Batch.0.%'`); dead != bad {
		t.Errorf("%d of %d bad ones are dead with TikTok's words", dead, bad)
	}
	for _, e := range s.sim.Received() {
		if e.Copies != 1 {
			t.Errorf("%s has %d copies", e.EventID, e.Copies)
		}
	}
	if good := len(s.sim.Received()); good != n-bad {
		t.Errorf("TikTok has %d of %d good ones", good, n-bad)
	}
	t.Logf("%d purchases, %d of them bad, in %d requests", n, bad, s.sim.Stats().Requests)
	if requests := s.sim.Stats().Requests; requests > 130 {
		t.Errorf("%d requests", requests)
	}
}

// seed writes purchases that are pending onto the ledger; a bad one's message holds what TikTok refuses.
func (s *stack) seed(n int, bad func(i int) bool) {
	s.t.Helper()
	envelopes := make([]string, n)
	ids := make([]string, n)
	for i := range n {
		ids[i] = fmt.Sprintf("cs_live_seed%06d", i)
		at := time.Now()
		if bad(i) {
			at = at.Add(3 * time.Hour) // TikTok takes no event from so far ahead
		}
		envelopes[i] = fmt.Sprintf(`{"version":1,"event_id":%q,"livemode":true,"purchased_at":%d,"amount_minor":2999,"currency":"usd","match_keys":{"email":%q}}`,
			ids[i], at.Unix(), sha(ids[i]))
	}
	s.exec(`INSERT INTO purchases (checkout_session_id, status, mode, livemode, amount_minor, currency, purchased_at, envelope)
		SELECT id, 'pending', 'subscription', true, 2999, 'usd', now(), convert_to(envelope, 'UTF8') FROM unnest($1::text[], $2::text[]) AS u (id, envelope)`, ids, envelopes)
}
