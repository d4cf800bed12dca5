package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/stripe/stripe-go/v76/webhook"
)

func noenv(string) string { return "" }

// Made-up purchases never leave this machine.
func TestSendsToThisMachineAlone(t *testing.T) {
	for url, want := range map[string]bool{
		"http://127.0.0.1:8080/x": true, "http://[::1]:8080/x": true, "http://localhost/x": true, "http://ingest:8080/x": true,
		"http://10.0.0.1/x": false, "https://shop.example/x": false, "http://[2001:db8::1]/x": false, "": false, "/x": false,
	} {
		if local(url) != want {
			t.Errorf("%s: %v", url, !want)
		}
	}
	if err := run(t.Context(), []string{"-url", "https://shop.example/webhooks/stripe"}, noenv, io.Discard); err == nil {
		t.Error("it was sent elsewhere")
	}
}

func TestSendsCopiesOfEach(t *testing.T) {
	var mu sync.Mutex
	sessions, signed := map[string]int{}, 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var event struct {
			Data struct {
				Object struct{ ID string } `json:"object"`
			} `json:"data"`
		}
		if err := json.Unmarshal(body, &event); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		sessions[event.Data.Object.ID]++
		if webhook.ValidatePayload(body, r.Header.Get("Stripe-Signature"), "whsec_local") == nil {
			signed++
		}
		_, _ = io.WriteString(w, `{"status":"processed"}`)
	}))
	defer server.Close()
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-url", server.URL, "-n", "30", "-copies", "3"}, noenv, &out); err != nil {
		t.Fatal(err)
	}
	if len(sessions) != 30 || signed != 90 || !strings.Contains(out.String(), `90 × 200 {"status":"processed"}`) {
		t.Errorf("%d sessions, %d signed; %s", len(sessions), signed, out.String())
	}
	for _, way := range []string{"-forge", "-stale"} {
		signed = 0
		if err := run(t.Context(), []string{"-url", server.URL, way}, noenv, io.Discard); err != nil || signed > 0 {
			t.Errorf("%s: %d signed, %v", way, signed, err)
		}
	}
}
