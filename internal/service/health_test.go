package service_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"purchase-relay/internal/service"
)

func TestAdminPages(t *testing.T) {
	var ready atomic.Bool
	mux := http.NewServeMux()
	mux.Handle("/healthz", service.Healthz())
	mux.Handle("/readyz", service.Readyz(func(context.Context) (bool, map[string]string) {
		return ready.Load(), map[string]string{"nats": "down"}
	}))
	_, metrics := service.Metrics("v1.2.3")
	mux.Handle("/metrics", metrics)
	server := httptest.NewServer(mux)
	defer server.Close()
	addr := strings.TrimPrefix(server.URL, "http://")
	expect := func(path string, status int, want ...string) {
		t.Helper()
		var got int
		var body []byte
		err := beyondTimeout(func() (err error) {
			got, body, err = service.GetAdmin(t.Context(), addr, path)
			return err
		})
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
	ready.Store(true)
	expect("/readyz", 200, `{"nats":"down"}`+"\n")
	expect("/metrics", 200, `build_info{goversion="`, `revision="`, `version="v1.2.3"`, "go_goroutines")

	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{addr, ":" + port, "0.0.0.0:" + port} {
		if err := beyondTimeout(func() error { return service.Health(t.Context(), a) }); err != nil {
			t.Errorf("Health(%q) = %v, want nil", a, err)
		}
	}
	if err := service.Health(t.Context(), "127.0.0.1:1"); err == nil {
		t.Error("Health of a stopped program = nil, want an error")
	}
}

// beyondTimeout repeats a request for up to a minute while it times out: a busy machine may exceed the two
// seconds.
func beyondTimeout(get func() error) error {
	for began := time.Now(); ; {
		if err := get(); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > time.Minute {
			return err
		}
	}
}
