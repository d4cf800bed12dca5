package service_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"purchase-relay/internal/service"
)

func TestReadyz_AndHealth(t *testing.T) {
	ready := false
	mux := http.NewServeMux()
	mux.Handle("/healthz", service.Healthz())
	mux.Handle("/readyz", service.Readyz(func(context.Context) (bool, map[string]string) { return ready, map[string]string{"nats": "down"} }))
	registry, metrics := service.Metrics("v1.2.3")
	mux.Handle("/metrics", metrics)
	server := httptest.NewServer(mux)
	defer server.Close()
	ask := func(path string) (int, string) {
		resp, err := server.Client().Do(request(t, server.URL+path))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if code, body := ask("/healthz"); code != 200 || body != `{"status":"ok"}`+"\n" {
		t.Errorf("healthz: %d %s", code, body)
	}
	for _, want := range []int{503, 200} {
		code, body := ask("/readyz")
		if code != want || body != `{"nats":"down"}`+"\n" {
			t.Errorf("readyz: %d %s", code, body)
		}
		ready = true
	}
	if _, body := ask("/metrics"); !strings.Contains(body, `purchase_relay_build_info{goversion="`) || !strings.Contains(body, `revision="`) || !strings.Contains(body, "go_goroutines") || !strings.Contains(body, `version="v1.2.3"`) || registry == nil {
		t.Errorf("metrics: %.300s", body)
	}
	addr := strings.TrimPrefix(server.URL, "http://")
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{addr, ":" + port, "0.0.0.0:" + port} {
		if err := service.Health(t.Context(), a); err != nil {
			t.Errorf("health of %s: %v", a, err)
		}
	}
	server.Close()
	if err := service.Health(t.Context(), addr); err == nil {
		t.Error("a dead program is healthy")
	}
}
