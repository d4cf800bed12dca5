package service_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"purchase-relay/internal/service"
)

func TestAdminPages(t *testing.T) {
	ready := false
	mux := http.NewServeMux()
	mux.Handle("/healthz", service.Healthz())
	mux.Handle("/readyz", service.Readyz(func(context.Context) (bool, map[string]string) {
		return ready, map[string]string{"nats": "down"}
	}))
	_, metrics := service.Metrics("v1.2.3")
	mux.Handle("/metrics", metrics)
	server := httptest.NewServer(mux)
	defer server.Close()
	addr := strings.TrimPrefix(server.URL, "http://")
	expect := func(path string, status int, want ...string) {
		t.Helper()
		got, body, err := service.GetAdmin(t.Context(), addr, path)
		if err != nil || got != status {
			t.Errorf("GET %s = %d, %v, want %d", path, got, err, status)
		}
		for _, part := range want {
			if !strings.Contains(string(body), part) {
				t.Errorf("GET %s = %.300s, want %q in it", path, body, part)
			}
		}
	}
	expect("/healthz", 200, `{"status":"ok"}`+"\n")
	expect("/readyz", 503, `{"nats":"down"}`+"\n")
	ready = true
	expect("/readyz", 200, `{"nats":"down"}`+"\n")
	expect("/metrics", 200, `build_info{goversion="`, `revision="`, `version="v1.2.3"`, "go_goroutines")

	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{addr, ":" + port, "0.0.0.0:" + port} {
		if err := service.Health(t.Context(), a); err != nil {
			t.Errorf("Health(%q) = %v, want nil", a, err)
		}
	}
	server.Close()
	if err := service.Health(t.Context(), addr); err == nil {
		t.Error("Health of a stopped program = nil, want an error")
	}
}
