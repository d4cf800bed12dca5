package service_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/service"
)

func TestHosts_Allow(t *testing.T) {
	t.Parallel()
	const loopback, everywhere = "127.0.0.1:8081", ":8081"
	for _, tc := range []struct {
		addr string
		list []string
		host string
		want bool
	}{
		{loopback, nil, "127.0.0.1:8081", true},
		{loopback, nil, "localhost", true},
		{loopback, nil, "LocalHost:8081", true},
		{loopback, nil, "localhost.:8081", true},
		{loopback, nil, "[::1]:8081", true},
		{loopback, nil, "[::1]", true},
		{loopback, nil, "127.0.0.2:9", true},
		{loopback, nil, "[::ffff:127.0.0.1]:8081", true},
		{loopback, nil, "10.0.0.1:8081", false},
		{loopback, nil, "evil.example:8081", false},
		{loopback, nil, "127.0.0.1.evil.example", false},
		{loopback, nil, "localhost.evil.example", false},
		{loopback, nil, "evil.localhost.example", false},
		{loopback, nil, "127.1", false},
		{loopback, nil, "2130706433", false},
		{loopback, nil, "0x7f000001:8081", false},
		{loopback, nil, "", false},
		{loopback, nil, ":8081", false},
		{loopback, nil, "localhost:8081@evil.example", false},
		{loopback, []string{"relay.internal"}, "Relay.Internal.:443", true},
		{loopback, []string{"relay.internal"}, "sub.relay.internal", false},
		{loopback, []string{"10.0.0.1"}, "10.0.0.1:8081", true},
		{"relay.example:8081", nil, "relay.example:8081", true},
		{"relay.example:8081", nil, "other.example", false},
		{"10.1.2.3:8081", nil, "10.1.2.3:8081", true},
		{everywhere, nil, "10.244.0.7:8081", true},
		{everywhere, nil, "[fd00::7]:8081", true},
		{everywhere, nil, "localhost:8081", true},
		{everywhere, nil, "ingest:8081", false},
		{everywhere, []string{"ingest"}, "ingest:8081", true},
		{everywhere, []string{"ingest.relay.svc", " ingest "}, "ingest.relay.svc:8081", true},
		{"0.0.0.0:8081", nil, "192.0.2.1", true},
		{"[::]:8081", nil, "rebound.example:8081", false},
	} {
		t.Run(fmt.Sprint(tc.addr, tc.list, tc.host), func(t *testing.T) {
			t.Parallel()
			hosts, err := service.ParseHosts(tc.list, tc.addr)
			if err != nil {
				t.Fatal(err)
			}
			if got := hosts.Allow(tc.host); got != tc.want {
				t.Errorf("Allow(%q) = %t, want %t", tc.host, got, tc.want)
			}
		})
	}
	for _, name := range []string{
		"", "http://ingest", "*.example", "a b", "ingest:port:8081", "ingest/", "a..b", "ex\u202eample",
	} {
		if _, err := service.ParseHosts([]string{name}, everywhere); err == nil {
			t.Errorf("ParseHosts(%q) = nil, want an error", name)
		}
	}
}

// Over a real connection, every path but /healthz is refused under a foreign name.
func TestHosts_GuardsEveryPath(t *testing.T) {
	t.Parallel()
	core, logged := observer.New(zapcore.InfoLevel)
	registry := prometheus.NewRegistry()
	refused := service.NewAdminRefusals(registry)
	hosts, err := service.ParseHosts([]string{"ingest"}, ":1")
	if err != nil {
		t.Fatal(err)
	}
	life := service.NewLifecycle(zap.NewNop())
	withoutTimeout := func(s *http.Server) { s.ReadHeaderTimeout, s.ReadTimeout = 0, 0 } // for a busy machine
	addr, err := life.Serve("ADMIN_ADDR", "127.0.0.1:0", service.AdminConnections,
		hosts.Guard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), refused, zap.New(core)),
		withoutTimeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = life.Stop(time.Minute) })
	for _, tc := range []struct {
		path, host string
		want       int
	}{
		{"/healthz", "evil.example", 200},
		{"/metrics", "evil.example", 403},
		{"/readyz", "evil.example", 403},
		{"/", "evil.example", 403},
		{"/api/v1/summary", "evil.example", 403},
		{"//healthz", "evil.example", 403},
		{"/healthz/../metrics", "evil.example", 403},
		{"/metrics", "ingest:8081", 200},
		{"/readyz", "10.0.0.1:8081", 200},
		{"/", "localhost:8081", 200},
		{"http://localhost/metrics", "evil.example", 200},
		{"http://evil.example/metrics", "localhost", 403}, // the target's host counts
	} {
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", tc.path, tc.host)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		_ = conn.Close()
		if resp.StatusCode != tc.want {
			t.Errorf("GET %s with Host %s: status = %d, want %d", tc.path, tc.host, resp.StatusCode, tc.want)
		}
	}
	want := "# HELP purchase_relay_admin_refused_total " +
		"Requests to the admin listener that were refused, by reason.\n" +
		"# TYPE purchase_relay_admin_refused_total counter\n"
	for _, line := range []string{`"host"} 7`, `"origin"} 0`, `"throttled"} 0`, `"token"} 0`} {
		want += "purchase_relay_admin_refused_total{reason=" + line + "\n"
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	if got := logged.FilterMessage("Unknown host refused").Len(); got != 7 {
		t.Errorf("logged %d times, want 7", got)
	}
}
