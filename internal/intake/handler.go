package intake

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.uber.org/zap"

	"purchase-relay/internal/flood"
	"purchase-relay/internal/purchase"
)

// MaxBody is the largest webhook body that is read, in bytes. Stripe's events may pass 64 KB.
const MaxBody = 1 << 20

// retryAfter is the Retry-After of a 503, in seconds.
const retryAfter = "10"

// Webhook verifies the signature over a raw body and decodes the event. The error of Verify is a short word
// for the log and never holds a secret.
type Webhook interface {
	Verify(body []byte, signature string) error
	Decode(body []byte) (purchase.Event, error)
}

// Handler answers POST /webhooks/stripe.
type Handler struct {
	webhook   Webhook
	service   *Service
	log       *zap.Logger
	flood     zap.Option // for lines that a sender can multiply
	admission admission
	last      atomic.Int64 // when the last signed event came, Unix nanoseconds; 0: none yet

	webhooks  *prometheus.CounterVec
	durations *prometheus.HistogramVec
}

// Values of the label type of purchase_relay_webhooks_total that are no event types.
const (
	typeNone  = "none"  // no event was read
	typeThin  = "thin"  // a v2 event, which carries no object
	typeOther = "other" // an event type that never counts
)

// Values of its label result, beside the dispositions.
const (
	resultInvalidSignature = "invalid_signature"
	resultNotAnEvent       = "not_an_event"
	resultNotFound         = "not_found"
	resultPanic            = "panic"
	resultNoKey            = "no_api_key"
	resultStripeAway       = "stripe_unavailable"
	resultUnavailable      = "unavailable"
)

// NewHandler returns the webhook's handler.
func NewHandler(w Webhook, s *Service, log *zap.Logger, reg prometheus.Registerer) *Handler {
	metrics := promauto.With(reg)
	h := &Handler{
		webhook: w, service: s, log: log, flood: flood.Limit(log),
		webhooks: metrics.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_webhooks_total", Help: "Webhook requests by event type and result.",
		}, []string{"type", "result"}),
		durations: metrics.NewHistogramVec(prometheus.HistogramOpts{
			Name: "purchase_relay_webhook_duration_seconds", Help: "Time to answer a webhook, by result.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"result"}),
	}
	// Each series starts at 0: Prometheus sees no increase from a missing one.
	for _, result := range []string{resultInvalidSignature, resultNotAnEvent, resultPanic, resultNotFound} {
		h.webhooks.WithLabelValues(typeNone, result)
	}
	for _, kind := range purchase.EventTypes() {
		for _, d := range []purchase.Disposition{
			purchase.Processed, purchase.Duplicate, purchase.AwaitingPayment, purchase.Rejected, resultUnavailable,
		} {
			h.webhooks.WithLabelValues(kind, string(d))
		}
	}
	for _, result := range []string{
		string(purchase.Ignored), string(purchase.Processed), resultNoKey, resultStripeAway, resultUnavailable,
	} {
		h.webhooks.WithLabelValues(typeThin, result)
	}
	return h
}

// LastWebhook returns when this process received the last signed event of any type; zero: none yet.
func (h *Handler) LastWebhook() time.Time {
	if at := h.last.Load(); at != 0 {
		return time.Unix(0, at).UTC()
	}
	return time.Time{}
}

// answer is the response to one webhook with its metric labels.
type answer struct {
	status int
	body   map[string]string
	kind   string
	result string
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := h.service.Now()
	a := h.guarded(w, r)
	h.webhooks.WithLabelValues(a.kind, a.result).Inc()
	h.durations.WithLabelValues(a.result).Observe(h.service.Now().Sub(began).Seconds())
	w.Header().Set("Content-Type", "application/json")
	if a.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", retryAfter)
	}
	w.WriteHeader(a.status)
	_ = json.NewEncoder(w).Encode(a.body) // the client is gone: Stripe sends the event again
}

// guarded turns a panic into an answer after which Stripe sends the event again. The panic's value is not
// logged: it may hold a buyer's data.
func (h *Handler) guarded(w http.ResponseWriter, r *http.Request) (a answer) {
	defer func() {
		if p := recover(); p != nil {
			h.log.Error("A webhook panicked",
				zap.String("panic", fmt.Sprintf("%T", p)), zap.ByteString("stack", debug.Stack()))
			a = refusal(http.StatusInternalServerError, typeNone, resultPanic, "internal error, send the event again")
		}
	}()
	return h.handle(w, r)
}

// handle reads, verifies and decodes a request, and passes the event to the service.
func (h *Handler) handle(w http.ResponseWriter, r *http.Request) answer {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return refusal(http.StatusMethodNotAllowed, typeNone, "method", "only POST is answered here")
	}
	signature := r.Header.Get("Stripe-Signature")
	switch {
	case r.ContentLength > MaxBody:
		return unread(w, http.StatusRequestEntityTooLarge, "too_large", "the body is larger than 1 MiB")
	case signature == "":
		h.logInvalidSignature(r, "missing")
		return unread(w, http.StatusBadRequest, resultInvalidSignature, "invalid signature")
	}
	slot := h.admission.admit(initialSize(r), func() {
		// A deadline in the past ends the reading with an error. Every writer of net/http's server supports it.
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
	})
	if slot == nil {
		h.log.WithOptions(h.flood).Warn("Too many webhooks at once; Stripe sends this one again")
		return unread(w, http.StatusServiceUnavailable, "busy", "too many requests at once, send the event again")
	}
	defer slot.release()
	body, err := readBody(w, r, slot)
	if !slot.bodyRead() {
		h.log.WithOptions(h.flood).Warn("Evicted slow request body")
		return unread(w, http.StatusServiceUnavailable, "busy", "too many requests at once, send the event again")
	}
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return refusal(http.StatusRequestEntityTooLarge, typeNone, "too_large", "the body is larger than 1 MiB")
	} else if err != nil {
		return refusal(http.StatusBadRequest, typeNone, "unreadable", "the body could not be read")
	}
	if err := h.webhook.Verify(body, signature); err != nil {
		h.logInvalidSignature(r, err.Error())
		return refusal(http.StatusBadRequest, typeNone, resultInvalidSignature, "invalid signature")
	}
	event, err := h.webhook.Decode(body)
	if err != nil {
		h.log.WithOptions(h.flood).Warn("Not an event", zap.Error(err))
		return refusal(http.StatusBadRequest, typeNone, resultNotAnEvent, err.Error())
	}
	h.last.Store(h.service.Now().UnixNano())
	disposition, err := h.service.Take(r.Context(), event, purchase.SourceWebhook)
	return answerOf(event, disposition, err)
}

// answerOf returns the answer to an event that the service took or refused.
func answerOf(event purchase.Event, disposition purchase.Disposition, err error) answer {
	kind := kindOf(event)
	switch {
	case errors.Is(err, errNoAPIKey):
		return refusal(http.StatusBadRequest, kind, resultNoKey, err.Error())
	case disposition == purchase.Malformed:
		return refusal(http.StatusBadRequest, kind, string(disposition), err.Error())
	case errors.Is(err, errFetch):
		return refusal(http.StatusServiceUnavailable, kind, resultStripeAway,
			"Stripe's API is not available, send the event again")
	case err != nil:
		return refusal(http.StatusServiceUnavailable, kind, resultUnavailable,
			"the ledger is not available, send the event again")
	}
	status := disposition
	if disposition == purchase.Foreign {
		status = purchase.Ignored
	}
	return answer{http.StatusOK, map[string]string{"status": string(status)}, kind, string(disposition)}
}

// kindOf returns the metric's label for an event's type: a small closed set.
func kindOf(event purchase.Event) string {
	switch {
	case event.Thin:
		return typeThin
	case slices.Contains(purchase.EventTypes(), event.Type):
		return event.Type
	}
	return typeOther
}

func refusal(status int, kind, result, sentence string) answer {
	return answer{status: status, body: map[string]string{"error": sentence}, kind: kind, result: result}
}

// unread refuses a request without reading its body, which costs the connection.
func unread(w http.ResponseWriter, status int, result, sentence string) answer {
	w.Header().Set("Connection", "close")
	return refusal(status, typeNone, result, sentence)
}

func (h *Handler) logInvalidSignature(r *http.Request, cause string) {
	h.log.WithOptions(h.flood).Warn("Invalid signature",
		zap.String("signature", cause), zap.String("remote", r.RemoteAddr),
		zap.String("remedy", "if this is Stripe, compare STRIPE_WEBHOOK_SECRET with the endpoint's signing "+
			"secret, and this machine's clock"))
}
