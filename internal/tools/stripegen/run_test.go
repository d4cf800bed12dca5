package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/stripe/stripe-go/v76/webhook"
	"github.com/tidwall/gjson"

	"purchase-relay/internal/testkit/stripegen"
)

// endpoint counts signed webhooks by event.
type endpoint struct {
	url string

	mu       sync.Mutex
	received map[string]int
	unsigned int
}

func newEndpoint(t *testing.T) *endpoint {
	t.Helper()
	e := &endpoint{received: map[string]int{}}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if webhook.ValidatePayload(body, r.Header.Get("Stripe-Signature"), "whsec_local") != nil {
			e.unsigned++
			return
		}
		e.received[gjson.GetBytes(body, "id").String()]++
	}))
	t.Cleanup(server.Close)
	e.url = server.URL
	return e
}

// sends runs the command and returns its output.
func (e *endpoint) sends(t *testing.T, args string) string {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), append(strings.Fields(args), "-url", e.url), noenv, &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func noenv(string) string { return "" }

// Generated purchases never leave this machine.
func TestLocal(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]bool{
		"http://127.0.0.1:8080/x": true, "http://[::1]:8080/x": true, "http://localhost/x": true,
		"http://ingest:8080/x": true, "http://10.0.0.1/x": false, "https://shop.example/x": false,
		"http://[2001:db8::1]/x": false, "": false, "/x": false,
	} {
		if got := local(url); got != want {
			t.Errorf("local(%q) = %v, want %v", url, got, want)
		}
	}
	for address, want := range map[string]bool{
		":0": true, "localhost:0": true, "[::1]:0": true, "127.0.0.2:0": true, "10.0.0.1:0": false,
		"ingest:0": false, "[::]:0": false, "0.0.0.0:0": false, "8080": false,
	} {
		if got := localListener(address); got != want {
			t.Errorf("localListener(%q) = %v, want %v", address, got, want)
		}
	}
}

func TestRun_RejectsFlags(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t)
	for _, args := range []string{
		"-n=0", "-n=1000001", "-copies=0", "-concurrency=0", "-rate=-1", "-rate=NaN", "-rate=0.0001", "-retry=0",
		"-retry=1001", "-delay=-1s", "-delay=73h", "-reorder=2", "-reorder=NaN", "-duplicates=-1", "-withhold=1.5",
		"-type=", "-async=perhaps", "-async=failed -status=paid", "-async=failed -type=x",
		"-serve-events=10.0.0.1:0", "-list=http://10.0.0.1:1", "-list=http://127.0.0.1:1 -serve-events=127.0.0.1:0",
		"-url=https://shop.example/",
	} {
		err := run(t.Context(), append([]string{"-url", e.url}, strings.Fields(args)...), noenv, io.Discard)
		if err == nil {
			t.Errorf("%s: no error", args)
		}
	}
	if len(e.received) > 0 {
		t.Errorf("%d events were sent, want none", len(e.received))
	}
}

func TestRun_SendsCopies(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t)
	out := e.sends(t, "-n 30 -copies 3")
	if len(e.received) != 30 || !strings.Contains(out, "90 × 200") {
		t.Errorf("%d events, want 30, sent 90 times: %s", len(e.received), out)
	}
	e.sends(t, "-forge")
	e.sends(t, "-stale")
	if e.unsigned != 2 {
		t.Errorf("%d requests with a wrong signature, want 2", e.unsigned)
	}
}

// listed counts the events at a stand-in for Stripe's API.
func listed(t *testing.T, url string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/v1/events?limit=100", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer sk_test_x")
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return int(gjson.GetBytes(body, "data.#").Int())
}

func TestRun_ListAddsWithheldEvents(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t)
	server := httptest.NewServer(stripegen.NewAPI())
	e.sends(t, "-n 20 -withhold 1 -list "+server.URL)
	if n := listed(t, server.URL); n != 20 {
		t.Errorf("%d events listed, want 20", n)
	}
	server.Close()
	err := run(t.Context(), []string{"-url", e.url, "-list", server.URL}, noenv, io.Discard)
	if err == nil || len(e.received) > 0 {
		t.Errorf("without a list: %v, %d events sent, want an error and none", err, len(e.received))
	}
}

func TestRun_ServesEventsUntilInterrupted(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	e := newEndpoint(t)
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, strings.Fields("-n 50 -withhold 0.5 -serve-events 127.0.0.1:0 -url "+e.url), noenv, in)
		ended <- errors.Join(err, in.Close())
	}()
	url := ""
	for lines := bufio.NewScanner(out); lines.Scan() && !strings.HasPrefix(lines.Text(), "median"); {
		if rest, found := strings.CutPrefix(lines.Text(), "events at "); found {
			url, _, _ = strings.Cut(rest, "/v1/")
		}
	}
	if n := listed(t, url); n != 50 || len(e.received) == 0 || len(e.received) == 50 {
		t.Errorf("%d events listed, %d sent, want 50 and some", n, len(e.received))
	}
	interrupt()
	if err := <-ended; err != nil {
		t.Errorf("interrupted: %v", err)
	}
}
