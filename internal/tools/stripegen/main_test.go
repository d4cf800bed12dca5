package main

import (
	"bytes"
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
			t.Error("an event has no valid signature")
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
}

func TestRun_RejectsFlags(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t)
	for _, args := range []string{
		"-n=0", "-n=1000001", "-rate=-1", "-rate=NaN", "-rate=0.0001", "-list=http://10.0.0.1:1",
		"-url=https://shop.example/", "20",
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

func TestRun_SendsSignedDuplicates(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t)
	out := e.sends(t, "-n 30 -duplicates 1")
	if len(e.received) != 30 || !strings.Contains(out, "60 × 200") {
		t.Errorf("%d events, want 30, sent 60 times: %s", len(e.received), out)
	}
}

func TestRun_ListAddsWithheldEvents(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t)
	api := stripegen.NewAPI()
	server := httptest.NewServer(api)
	defer server.Close()
	e.sends(t, "-n 20 -withhold 1 -list "+server.URL)
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/events?limit=100", http.NoBody)
	r.Header.Set("Authorization", "Bearer sk_test_x")
	w := httptest.NewRecorder()
	api.ServeHTTP(w, r)
	if n := gjson.Get(w.Body.String(), "data.#").Int(); n != 20 {
		t.Errorf("%d events listed, want 20", n)
	}
	err := run(t.Context(), []string{"-url", e.url, "-list", "http://127.0.0.1:1"}, noenv, io.Discard)
	if err == nil || len(e.received) > 0 {
		t.Errorf("without a list: %v, %d events sent, want an error and none", err, len(e.received))
	}
}
