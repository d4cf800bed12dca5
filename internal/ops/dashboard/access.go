package dashboard

import (
	"context"
	"fmt"
	"html"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/flood"
	"purchase-relay/internal/logsafe"
)

// The reasons of refusals, as labels of the counter.
const (
	refusedOrigin    = "origin"
	refusedToken     = "token"
	refusedThrottled = "throttled"
)

// Access guards the dashboard and the API: a token as Bearer or as Basic's password. Without any token, which
// is allowed on a loopback listener alone, everybody who reaches it may use it; which host names reach it,
// the listener decides. Changes from another origin are refused. Peers that send wrong tokens are throttled.
type Access struct {
	tokens   keyring
	throttle *throttle
	log      *zap.Logger
	refused  func(reason string)
	next     http.Handler
}

// NewAccess wraps a handler. refused counts by reason: origin, token, throttled.
func NewAccess(tokens []Token, next http.Handler, refused func(reason string), log *zap.Logger) http.Handler {
	a := &Access{
		tokens: newKeyring(tokens), throttle: newThrottle(time.Now), next: next, refused: refused, log: log.WithOptions(flood.Limit(log)),
	}
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(a.denyOrigin))
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

func (a *Access) denyOrigin(w http.ResponseWriter, r *http.Request) {
	a.refused(refusedOrigin)
	a.log.Warn("Cross-origin change refused", zap.String("remote", r.RemoteAddr), zap.String("path", logsafe.Text(r.URL.Path, 80)),
		zap.String("origin", logsafe.Text(r.Header.Get("Origin"), 80)))
	turnAway(w, r, http.StatusForbidden, "changes are taken from this dashboard's own pages alone")
}

// contentPolicy lets pages load our own files alone, run no inline script, send forms to us alone and stand
// in no frame.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// turnAway answers whom the dashboard does not know: with JSON on the API, else with a page that needs none
// of its files.
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
	if len(a.tokens) == 0 {
		a.next.ServeHTTP(w, r)
		return
	}
	if given, ok := tokenOf(r); ok {
		name, compared := a.compare(r, given)
		switch {
		case !compared:
			a.refused(refusedThrottled)
			w.Header().Set("Retry-After", strconv.Itoa(int(maxTurns*guessPace/time.Second)))
			turnAway(w, r, http.StatusTooManyRequests, "too many wrong tokens came from your address, and this one was not looked at: try again")
			return
		case name != "":
			a.next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), holder{}, name)))
			return
		}
		a.refused(refusedToken)
		a.log.Warn("Wrong admin token", zap.String("remote", r.RemoteAddr))
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="purchase-relay", charset="UTF-8"`)
	turnAway(w, r, http.StatusUnauthorized, "the admin token is needed: as Bearer, or as the password of Basic")
}

// tokenOf returns the token that a request carries.
func tokenOf(r *http.Request) (given string, ok bool) {
	if given, ok = strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return given, true
	}
	_, given, ok = r.BasicAuth()
	return given, ok
}

// compare returns the name of the token, "" where it is wrong, as soon as the peer may have one compared.
func (a *Access) compare(r *http.Request, given string) (name string, compared bool) {
	from := peerOf(r.RemoteAddr)
	wait, ok := a.throttle.admit(from)
	if !ok {
		return "", false
	}
	if wait > 0 {
		turn := time.NewTimer(wait)
		defer turn.Stop()
		defer a.throttle.waited(from)
		select {
		case <-turn.C:
		case <-r.Context().Done():
			return "", false
		}
	}
	if name = a.tokens.name(given); name != "" && wait == 0 {
		a.throttle.right(from)
	}
	return name, true
}

// holder is the key of a token's name in the context of a request that carried it.
type holder struct{}

// heldBy returns the name of the token that a request proved to hold, for the log. What a client calls itself
// is not in it.
func heldBy(r *http.Request) string {
	if name, ok := r.Context().Value(holder{}).(string); ok {
		return name
	}
	return "no token" // no name has a blank
}
