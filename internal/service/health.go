package service

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// readyTimeout bounds a readiness check: a probe must not hang with a dependency.
const readyTimeout = 2 * time.Second

// Set by the linker: -X purchase-relay/internal/service.version=…, the others likewise. committed is the
// commit's time in RFC 3339: the time of the build would change the binary.
var version, commit, committed string //nolint:gochecknoglobals // the linker needs variables

// Version returns the linked version, else the go command's, else "dev".
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "dev"
}

// revision returns the commit from the linker or the go command, else "unknown".
func revision() string { return cmp.Or(commit, setting("vcs.revision"), "unknown") }

// revisionTime returns the commit's time likewise.
func revisionTime() string { return cmp.Or(committed, setting("vcs.time"), "unknown") }

// setting returns what the go command recorded in the binary under key, or "".
func setting(key string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == key {
				return s.Value
			}
		}
	}
	return ""
}

// Healthz responds with 200.
func Healthz() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"status": "ok"})
	})
}

// Readyz responds with 200 or 503 and the JSON of check's body.
func Readyz(check func(ctx context.Context) (ready bool, body map[string]string)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		ready, body := check(ctx)
		status := http.StatusServiceUnavailable
		if ready {
			status = http.StatusOK
		}
		answer(w, status, body)
	})
}

func answer(w http.ResponseWriter, status int, body map[string]string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // fails only if the client is gone
}

// Metrics returns the program's own registry and its handler.
func Metrics(version string) (*prometheus.Registry, http.Handler) {
	registry := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "purchase_relay_build_info", Help: "Always 1; the labels describe the build.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version(), "revision": revision()},
	})
	info.Set(1)
	process := collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})
	registry.MustRegister(info, collectors.NewGoCollector(), process)
	return registry, promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

// Health requests /healthz from a running program's admin listener, for images without curl.
func Health(ctx context.Context, adminAddr string) error {
	status, _, err := GetAdmin(ctx, adminAddr, "/healthz")
	switch {
	case err != nil:
		return err
	case status != http.StatusOK:
		return fmt.Errorf("GET /healthz: %d %s", status, http.StatusText(status))
	}
	return nil
}

const maxPageBytes = 4 << 20

// GetAdmin requests a page from a running program's admin listener, over loopback if it listens on every
// address.
func GetAdmin(ctx context.Context, adminAddr, path string) (status int, body []byte, err error) {
	host, port, err := net.SplitHostPort(adminAddr)
	if err != nil {
		return 0, nil, fmt.Errorf("ADMIN_ADDR %q is not host:port", adminAddr)
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	url := "http://" + net.JoinHostPort(host, port) + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, nil, err
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if body, err = io.ReadAll(io.LimitReader(resp.Body, maxPageBytes)); err != nil {
		return 0, nil, fmt.Errorf("read %s: %w", url, err)
	}
	return resp.StatusCode, body, nil
}
