package intake

import (
	"net/http"
	"strings"
	"unicode"

	"go.uber.org/zap"
)

// Public returns the public listener's handler: the webhook, with or without a final slash, and healthz. Any
// other path returns 404 and is counted and logged: an endpoint with a mistyped path loses every sale.
func (h *Handler) Public(healthz http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/webhooks/stripe", r.URL.Path == "/webhooks/stripe/":
			h.ServeHTTP(w, r)
		case r.RequestURI == "*": // OPTIONS * has no path
			w.Header().Set("Connection", "close")
			http.Error(w, http.StatusText(http.StatusBadRequest), http.StatusBadRequest)
		case r.URL.Path != "/healthz":
			h.notFound(w, r)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
		default:
			healthz.ServeHTTP(w, r)
		}
	})
}

func (h *Handler) notFound(w http.ResponseWriter, r *http.Request) {
	h.webhooks.WithLabelValues(typeNone, resultNotFound).Inc()
	h.log.WithOptions(h.flood).Warn("Unknown path",
		zap.String("method", safeMethod(r.Method)), zap.String("path", safePath(r.URL.Path)),
		zap.String("remote", r.RemoteAddr),
		zap.String("remedy", "if this is Stripe, the endpoint's path is /webhooks/stripe"))
	w.Header().Set("Connection", "close") // the body is not read
	http.NotFound(w, r)
}

// safeMethod returns a known method, or "other", for the log.
func safeMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodOptions:
		return method
	}
	return "other"
}

// maxPath is the limit of a logged path, in bytes.
const maxPath = 100

// safePath returns a shortened path for the log. A path with other characters than letters, digits and
// "/._-" is replaced: it may contain an e-mail address or terminal escapes.
func safePath(path string) string {
	if len(path) > maxPath {
		path = path[:maxPath]
	}
	const plain = "/._-"
	for _, c := range path {
		if c > unicode.MaxASCII || !unicode.IsLetter(c) && !unicode.IsDigit(c) && !strings.ContainsRune(plain, c) {
			return "[not a plain path]"
		}
	}
	return path
}
