package notify_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/ops/notify"
	"purchase-relay/internal/secret"
)

var deadMessage = notify.Message{ //nolint:gochecknoglobals // never written
	Reason: "dead:refused", State: notify.StateFiring, Since: time.Unix(1767225600, 0), Count: 7,
	Purchases: new(7),
	IDs:       []string{"cs_1", "cs_2"}, What: "7 purchases died <!channel> & more", Remedy: "Replay them.",
}

func TestWebhook_PostsTextAndFields(t *testing.T) {
	t.Parallel()
	var got map[string]any
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if got := r.Method + " " + r.Header.Get("Content-Type"); got != "POST application/json" {
			t.Errorf("request = %q, want POST application/json", got)
		}
		got = nil
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	webhook := notify.NewWebhook(secret.String(server.URL + "/hook/t0ken"))
	if err := webhook.Send(t.Context(), deadMessage); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"text": "purchase-relay: 7 purchases died <!channel> & more\n" +
			"Since 2026-01-01T00:00:00Z. Purchases: 7.\ncs_1, cs_2 and 5 more\nReplay them.",
		"source": "purchase-relay", "reason": "dead:refused", "state": "firing", "since": "2026-01-01T00:00:00Z",
		"count": 7.0, "purchases": 7.0, "ids": []any{"cs_1", "cs_2"},
		"what": deadMessage.What, "remedy": deadMessage.Remedy,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
	resolved := deadMessage
	resolved.State, resolved.What, resolved.Remedy, resolved.IDs = notify.StateResolved, "All is well.", "", nil
	if err := webhook.Send(t.Context(), resolved); err != nil {
		t.Fatal(err)
	}
	if text := got["text"]; text != "purchase-relay: resolved. All is well." || got["state"] != "resolved" {
		t.Errorf("text = %q, state = %q, want resolved", text, got["state"])
	}
}

// An error does not contain the URL, which is a secret.
func TestWebhook_ErrorsSayWhetherToRetry(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	mux := http.NewServeMux()
	for _, status := range []int{http.StatusInternalServerError, http.StatusNotFound} {
		mux.HandleFunc(fmt.Sprintf("/%d/", status), func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
		})
	}
	mux.Handle("/302/", http.RedirectHandler("/target", http.StatusFound))
	mux.HandleFunc("/target", func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") })
	mux.HandleFunc("/slow/", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("/cut/", func(w http.ResponseWriter, _ *http.Request) {
		if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
			_ = conn.Close()
		}
	})
	server := httptest.NewServer(mux)
	t.Cleanup(func() { close(release); server.Close() })
	const closed = "http://127.0.0.1:1" // another process may take the port of a closed server
	for url, tc := range map[string]struct {
		retryable bool
		want      string
	}{
		server.URL + "/500/t0ken":  {true, "500"},
		server.URL + "/404/t0ken":  {false, "404"},
		server.URL + "/302/t0ken":  {false, "redirects are not followed"},
		server.URL + "/slow/t0ken": {false, "timed out"},
		server.URL + "/cut/t0ken":  {false, "request to receiver"},
		closed + "/t0ken":          {true, "request to receiver"},
	} {
		timeout := time.Minute
		if tc.want == "timed out" {
			timeout = 300 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		err := notify.NewWebhook(secret.String(url)).Send(ctx, deadMessage)
		cancel()
		failure, ok := errors.AsType[*notify.SendError](err)
		if !ok || failure.Retryable != tc.retryable || !strings.Contains(err.Error(), tc.want) ||
			strings.Contains(err.Error(), "t0ken") {
			t.Errorf("%s: error = %+v, want %+v without the token", url, failure, tc)
		}
	}
}

func TestCheckURL(t *testing.T) {
	t.Parallel()
	for url, valid := range map[secret.String]bool{
		"https://hooks.slack.com/services/T/B/x": true,
		"http://127.0.0.1:9/x":                   true,
		"http://localhost:9/x":                   true,
		"hooks.slack.com/x":                      false,
		"ftp://h/x":                              false,
		"https:///x":                             false,
		"::":                                     false,
		"http://mattermost.internal/hooks/x":     false,
		"http://10.0.0.1/x":                      false,
		"HTTP://hooks.example/x":                 false,
	} {
		if err := notify.CheckURL(url); (err == nil) != valid {
			t.Errorf("CheckURL(%s) = %v, want valid %t", url.Reveal(), err, valid)
		}
	}
}
