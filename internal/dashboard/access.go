package dashboard

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"html"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"purchase-relay/internal/flood"
	"purchase-relay/internal/secret"
)

// Access guards the dashboard and the API: the token as Bearer or as Basic's password, or, without a token (allowed
// on a loopback listener alone), a loopback name as Host, so that a page elsewhere cannot reach it by rebinding
// its own name. Changes from another origin are refused. Wrong tokens are counted and slowed down.
type Access struct {
	token   [sha256.Size]byte
	open    bool
	limit   *rate.Limiter
	log     *zap.Logger
	refused prometheus.Counter
	next    http.Handler
}

// wrongTokenWait bounds how long a wrong token waits for its answer.
const wrongTokenWait = 5 * time.Second

// NewAccess wraps a handler. token "" means no token.
func NewAccess(token secret.Text, next http.Handler, log *zap.Logger, reg prometheus.Registerer) http.Handler {
	a := &Access{
		token: sha256.Sum256([]byte(token.Reveal())), open: token == "", next: next, log: log.WithOptions(flood.Limit(log)),
		limit: rate.NewLimiter(rate.Limit(2), 5),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "purchase_relay_admin_refused_total", Help: "Requests to the dashboard or its API with a wrong token.",
		}),
	}
	reg.MustRegister(a.refused)
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		log.Warn("A change from another origin was refused", zap.String("remote", r.RemoteAddr), zap.String("path", r.URL.Path), zap.String("origin", r.Header.Get("Origin")))
		turnAway(w, r, http.StatusForbidden, "changes are taken from this dashboard's own pages alone")
	}))
	guarded := protection.Handler(a)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{
			"Content-Security-Policy": contentPolicy, "X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
			"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store",
		} {
			w.Header().Set(name, value)
		}
		guarded.ServeHTTP(w, r)
	})
}

// contentPolicy lets pages load our own files alone, run no inline script, send forms to us alone and stand in no frame.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// turnAway answers whom the dashboard does not know: with JSON on the API, else with a page that needs none of its files.
func turnAway(w http.ResponseWriter, r *http.Request, status int, sentence string) {
	if !wantsPage(r) {
		fail(w, status, sentence)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">`+
		"<title>%[1]s</title><h1>%[1]s</h1><p>%[2]s.</p></html>\n", http.StatusText(status), html.EscapeString(capitalise(sentence))) // the reader is gone
}

// wantsPage says whether a request is for people.
func wantsPage(r *http.Request) bool { return !strings.HasPrefix(r.URL.Path, "/api/") }

// ServeHTTP implements http.Handler.
func (a *Access) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case a.open && loopbackHost(r.Host), !a.open && a.authorised(r):
		a.next.ServeHTTP(w, r)
	case a.open:
		turnAway(w, r, http.StatusForbidden, "without ADMIN_TOKEN this is answered under a loopback name only: localhost, 127.0.0.1 or [::1]")
	default:
		if r.Header.Get("Authorization") != "" {
			a.slow(r)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="purchase-relay", charset="UTF-8"`)
		turnAway(w, r, http.StatusUnauthorized, "the admin token is needed: as Bearer, or as the password of Basic")
	}
}

func (a *Access) authorised(r *http.Request) bool {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		if _, given, ok = r.BasicAuth(); !ok {
			return false
		}
	}
	sum := sha256.Sum256([]byte(given)) // equal lengths: the comparison tells nothing about the token's
	return subtle.ConstantTimeCompare(sum[:], a.token[:]) == 1
}

// slow makes guessing tedious without shutting out who has the right token.
func (a *Access) slow(r *http.Request) {
	a.refused.Inc()
	a.log.Warn("Wrong admin token", zap.String("remote", r.RemoteAddr))
	ctx, cancel := context.WithTimeout(r.Context(), wrongTokenWait)
	defer cancel()
	if a.limit.Wait(ctx) != nil {
		<-ctx.Done() // over the limit: the longest wait
	}
}

func loopbackHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	switch strings.Trim(host, "[]") {
	case "localhost", "127.0.0.1", "::1":
		return true
	}
	return false
}
