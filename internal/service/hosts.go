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

// Why a request to the admin listener was refused, as a label of purchase_relay_admin_refused_total.
const (
	RefusedHost      = "host"      // its Host is not among ADMIN_HOSTS
	RefusedOrigin    = "origin"    // a change from another origin
	RefusedToken     = "token"     // a wrong token
	RefusedThrottled = "throttled" // not compared: too many wrong tokens came from this peer
)

// NewAdminRefusals registers a counter of refused requests and returns what counts one.
func NewAdminRefusals(reg prometheus.Registerer) func(reason string) {
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "purchase_relay_admin_refused_total", Help: "Requests to the admin listener that were refused, by reason.",
	}, []string{"reason"})
	for _, reason := range []string{RefusedHost, RefusedOrigin, RefusedToken, RefusedThrottled} {
		refused.WithLabelValues(reason)
	}
	reg.MustRegister(refused)
	return func(reason string) { refused.WithLabelValues(reason).Inc() }
}

// Hosts are the names that the admin listener answers to. A page elsewhere can make its own name point at the
// listener (DNS rebinding) and then ask as the same origin: its name is what gives it away.
type Hosts struct {
	names    map[string]bool
	literals bool // every IP address, too: it cannot be made to point elsewhere
}

// ParseHosts returns the loopback names, the host of the listener's address and those in list. Unless addr is
// a loopback address, where nobody else has a reason to come, IP addresses are allowed as well: probes and
// Prometheus ask by them.
func ParseHosts(list []string, addr string) (Hosts, error) {
	h := Hosts{names: map[string]bool{"localhost": true, "127.0.0.1": true, "::1": true}, literals: !Loopback(addr)}
	if own, _, err := net.SplitHostPort(addr); err == nil && own != "" {
		h.names[normalHost(own)] = true
	}
	for _, name := range list {
		normal := normalHost(strings.TrimSpace(name))
		if _, err := netip.ParseAddr(normal); err != nil && !hostName(normal) {
			return h, fmt.Errorf("%q is no host name such as ingest.internal, without scheme and port", logsafe.Text(name, 80))
		}
		h.names[normal] = true
	}
	return h, nil
}

// hostName reports whether a name has a host's form.
func hostName(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return len(name) <= 253
}

// normalHost is a host as names are compared: without port, brackets and the root's dot, in lower case.
func normalHost(host string) string {
	if name, port, err := net.SplitHostPort(host); err == nil && strings.Trim(port, "0123456789") == "" {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// Allow reports whether a request with this Host is answered.
func (h Hosts) Allow(host string) bool {
	name := normalHost(host)
	if h.names[name] {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && (h.literals || ip.Unmap().IsLoopback())
}

// Guard answers requests under other names with 403. /healthz is spared: it says nothing, and a probe that
// fails ends the process.
func (h Hosts) Guard(next http.Handler, refused func(reason string), log *zap.Logger) http.Handler {
	log = log.WithOptions(flood.Limit(log))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" || h.Allow(r.Host) {
			next.ServeHTTP(w, r)
			return
		}
		refused(RefusedHost)
		log.Warn("Unknown host refused", zap.String("host", logsafe.Text(r.Host, 80)), zap.String("remote", r.RemoteAddr),
			zap.String("remedy", "if the name is yours, add it to ADMIN_HOSTS"))
		w.Header().Set("X-Content-Type-Options", "nosniff")
		answer(w, http.StatusForbidden, map[string]string{"error": "this host name is not among ADMIN_HOSTS"})
	})
}
