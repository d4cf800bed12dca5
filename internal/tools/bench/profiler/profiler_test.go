package profiler_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"purchase-relay/internal/tools/bench/profiler"
)

func TestServe_LoopbackOnly(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0", "192.0.2.1:1", "nonsense"} {
		if err := profiler.Serve(addr); err == nil {
			t.Errorf("Serve(%q) succeeds, want an error", addr)
		}
	}
	if err := profiler.Serve(""); err != nil {
		t.Error(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := profiler.Serve(addr); err == nil {
		t.Error("Serve succeeds on an address in use, want an error")
	}
	_ = l.Close()
	if err := profiler.Serve(addr); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + addr + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(body), "TestServe_LoopbackOnly") {
		t.Errorf("profile = %s, %v, want this test in it", body, err)
	}
}
