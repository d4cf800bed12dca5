package service

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/flood"
	"purchase-relay/internal/logsafe"
)

// Reasons for refusing a request to the admin listener, a label of purchase_relay_admin_refused_total.
const (
	RefusedHost      = "host"      // unknown Host header
	RefusedOrigin    = "origin"    // change from another origin
	RefusedToken     = "token"     // wrong token
	RefusedThrottled = "throttled" // too many wrong tokens from this peer
)

// NewAdminRefusals registers a counter of refused requests and returns a function that counts one.
func NewAdminRefusals(reg prometheus.Registerer) func(reason string) {
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "purchase_relay_admin_refused_total",
		Help: "Requests to the admin listener that were refused, by reason.",
	}, []string{"reason"})
	for _, reason := range []string{RefusedHost, RefusedOrigin, RefusedToken, RefusedThrottled} {
		refused.WithLabelValues(reason)
	}
	reg.MustRegister(refused)
	return func(reason string) { refused.WithLabelValues(reason).Inc() }
}

// Hosts are the host names that the admin listener accepts. In DNS rebinding, a foreign page points its own
// name at the listener to become the same origin: only the Host header reveals it.
type Hosts struct {
	names    map[string]bool
	literals bool // accept every IP address: it cannot be rebound
}

// ParseHosts returns the loopback names, the host of the listener's address and those in list. Unless addr is
// a loopback address, every IP address is accepted as well: probes and Prometheus use them.
func ParseHosts(list []string, addr string) (Hosts, error) {
	h := Hosts{names: map[string]bool{"localhost": true, "127.0.0.1": true, "::1": true}}
	h.literals = !Loopback(addr)
	if own, _, err := net.SplitHostPort(addr); err == nil && own != "" {
		h.names[normalHost(own)] = true
	}
	for _, name := range list {
		normal := normalHost(strings.TrimSpace(name))
		if _, err := netip.ParseAddr(normal); err != nil && !isHostName(normal) {
			return h, fmt.Errorf("%q is not a bare host name such as ingest.internal", logsafe.Text(name, 80))
		}
		h.names[normal] = true
	}
	return h, nil
}

func isHostName(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return len(name) <= 253
}

// normalHost removes port, brackets and the final dot, and converts to lower case.
func normalHost(host string) string {
	if name, port, err := net.SplitHostPort(host); err == nil && strings.Trim(port, "0123456789") == "" {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// Allow reports whether a request with this Host header is accepted.
func (h Hosts) Allow(host string) bool {
	name := normalHost(host)
	if h.names[name] {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && (h.literals || ip.Unmap().IsLoopback())
}

// Guard responds with 403 to other hosts, except on /healthz: it reveals nothing, and a failing probe
// restarts the process.
func (h Hosts) Guard(next http.Handler, refused func(reason string), log *zap.Logger) http.Handler {
	log = log.WithOptions(flood.Limit(log))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" || h.Allow(r.Host) {
			next.ServeHTTP(w, r)
			return
		}
		refused(RefusedHost)
		log.Warn("Unknown host refused", zap.String("host", logsafe.Text(r.Host, 80)),
			zap.String("remote", r.RemoteAddr), zap.String("remedy", "if it is yours, add it to ADMIN_HOSTS"))
		w.Header().Set("X-Content-Type-Options", "nosniff")
		answer(w, http.StatusForbidden, map[string]string{"error": "host name is not in ADMIN_HOSTS"})
	})
}
