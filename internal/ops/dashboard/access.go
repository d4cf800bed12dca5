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

// The reasons for refusing a request: the values of a metric's label.
const (
	refusedOrigin    = "origin"
	refusedToken     = "token"
	refusedThrottled = "throttled"
)

// Access protects the dashboard and the API. It requires a token, as Bearer or as the password of Basic,
// unless none is configured, which is only allowed on a loopback listener. The listener checks the Host
// header. Cross-origin changes are refused, and peers that send wrong tokens are throttled.
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
		tokens: newKeyring(tokens), throttle: newThrottle(time.Now), next: next, refused: refused,
		log: log.WithOptions(flood.Limit(log)),
	}
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(a.denyOrigin))
	protected := protection.Handler(a)
	headers := map[string]string{
		"Content-Security-Policy": contentPolicy, "X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff",
		"Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store",
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range headers {
			w.Header().Set(name, value)
		}
		protected.ServeHTTP(w, r)
	})
}

func (a *Access) denyOrigin(w http.ResponseWriter, r *http.Request) {
	a.refused(refusedOrigin)
	a.log.Warn("Cross-origin change refused", zap.String("remote", r.RemoteAddr),
		zap.String("path", logsafe.Text(r.URL.Path, 80)),
		zap.String("origin", logsafe.Text(r.Header.Get("Origin"), 80)))
	writePlainError(w, r, http.StatusForbidden, "cross-origin requests are refused")
}

// contentPolicy allows own files and forms only: no inline scripts, no frames.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; " +
	"connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

const plainErrorPage = `<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<title>%[1]s</title><h1>%[1]s</h1><p>%[2]s.</p></html>
`

// writePlainError answers unauthenticated requests: JSON for the API, else a page without any assets.
func writePlainError(w http.ResponseWriter, r *http.Request, status int, message string) {
	if !wantsPage(r) {
		writeJSONError(w, status, message)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	text := html.EscapeString(capitalise(message))
	_, _ = fmt.Fprintf(w, plainErrorPage, http.StatusText(status), text) // the client is gone
}

// wantsPage reports whether a request is for a page, not the API.
func wantsPage(r *http.Request) bool { return !strings.HasPrefix(r.URL.Path, "/api/") }

// ServeHTTP implements http.Handler.
func (a *Access) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if len(a.tokens) == 0 {
		a.next.ServeHTTP(w, r)
		return
	}
	if token, ok := tokenOf(r); ok {
		name, compared := a.compare(r, token)
		switch {
		case !compared:
			a.refused(refusedThrottled)
			w.Header().Set("Retry-After", strconv.Itoa(int(maxWaiting*guessInterval/time.Second)))
			writePlainError(w, r, http.StatusTooManyRequests, "too many wrong tokens from your address; try again")
			return
		case name != "":
			a.next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), tokenNameKey{}, name)))
			return
		}
		a.refused(refusedToken)
		a.log.Warn("Wrong admin token", zap.String("remote", r.RemoteAddr))
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="purchase-relay", charset="UTF-8"`)
	writePlainError(w, r, http.StatusUnauthorized, "admin token required, as Bearer or as the password of Basic")
}

// tokenOf returns the token of a request.
func tokenOf(r *http.Request) (token string, ok bool) {
	if token, ok = strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return token, true
	}
	_, token, ok = r.BasicAuth()
	return token, ok
}

// compare waits as the throttle demands and returns the token's name; "": wrong token. compared is false if
// the token was not compared.
func (a *Access) compare(r *http.Request, token string) (name string, compared bool) {
	from := peerOf(r.RemoteAddr)
	wait, ok := a.throttle.admit(from)
	if !ok {
		return "", false
	}
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		defer a.throttle.doneWaiting(from)
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return "", false
		}
	}
	if name = a.tokens.name(token); name != "" && wait == 0 {
		a.throttle.refund(from)
	}
	return name, true
}

// tokenNameKey is the context key of the name of a request's token.
type tokenNameKey struct{}

// tokenName returns the name of the token that a request was authenticated with, for the log. It ignores
// the user name of Basic.
func tokenName(r *http.Request) string {
	if name, ok := r.Context().Value(tokenNameKey{}).(string); ok {
		return name
	}
	return "no token" // cannot be a token's name: names have no blanks
}
