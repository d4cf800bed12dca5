package notify_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/ops/notify"
	"purchase-relay/internal/secret"
)

var deadMessage = notify.Message{ //nolint:gochecknoglobals // never written
	Reason: "dead:refused", State: notify.StateFiring, Since: time.Unix(1767225600, 0), Count: 7, IDs: []string{"cs_1", "cs_2"},
	What: "7 purchases were given up on <!channel> & more", Remedy: "Replay them.",
}

func TestWebhookPosts(t *testing.T) {
	t.Parallel()
	var got map[string]any
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %v %v", r.Method, r.Header, err)
		}
		if err := json.Unmarshal(data, &got); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	if err := notify.NewWebhook(secret.String(server.URL+"/hook/t0ken")).Send(t.Context(), deadMessage); err != nil {
		t.Fatal(err)
	}
	if got["text"] != "purchase-relay: 7 purchases were given up on <!channel> & more\ncs_1, cs_2 and 5 more\nReplay them." || got["reason"] != "dead:refused" ||
		got["state"] != "firing" || got["count"] != 7.0 || got["since"] != "2026-01-01T00:00:00Z" || got["source"] != "purchase-relay" || len(got) != 9 {
		t.Errorf("%v", got)
	}
	over := deadMessage
	over.State, over.What, over.Remedy, over.IDs = notify.StateResolved, "All is well.", "", nil
	if err := notify.NewWebhook(secret.String(server.URL)).Send(t.Context(), over); err != nil {
		t.Fatal(err)
	}
	if got["text"] != "purchase-relay: over. All is well." || got["state"] != "resolved" {
		t.Errorf("%v", got)
	}
}

// What goes wrong is told without the address, which holds a secret, and says whether the message may be sent again.
func TestWebhookRefused(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	elsewhere := 0
	mux := http.NewServeMux()
	mux.HandleFunc("/500/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	mux.HandleFunc("/404/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) })
	mux.HandleFunc("/302/", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) })
	mux.HandleFunc("/elsewhere", func(http.ResponseWriter, *http.Request) { elsewhere++ })
	mux.HandleFunc("/hang/", func(_ http.ResponseWriter, r *http.Request) {
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
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for url, tc := range map[string]struct {
		again bool
		says  string
	}{
		server.URL + "/500/t0ken": {true, "500"}, server.URL + "/404/t0ken": {false, "404"}, server.URL + "/302/t0ken": {false, "redirects are not followed"},
		server.URL + "/hang/t0ken": {false, "does not answer in time"}, server.URL + "/cut/t0ken": {false, "cannot be reached"}, closed.URL + "/t0ken": {true, "cannot be reached"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := notify.NewWebhook(secret.String(url)).Send(ctx, deadMessage)
		cancel()
		var refusal *notify.Refusal
		if !errors.As(err, &refusal) || refusal.Again != tc.again || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "t0ken") {
			t.Errorf("%s: %v (%+v)", url, err, refusal)
		}
	}
	if elsewhere > 0 {
		t.Error("a redirect was followed")
	}
}

func TestCheckURL(t *testing.T) {
	t.Parallel()
	for url, good := range map[secret.String]bool{
		"https://hooks.slack.com/services/T/B/x": true, "http://127.0.0.1:9/x": true, "hooks.slack.com/x": false, "ftp://h/x": false, "https:///x": false, "::": false,
		"http://localhost:9/x": true, "http://mattermost.internal/hooks/x": false, "http://10.0.0.1/x": false, "HTTP://hooks.example/x": false,
	} {
		if err := notify.CheckURL(url); (err == nil) != good {
			t.Errorf("%s: %v", url.Reveal(), err)
		}
	}
}
