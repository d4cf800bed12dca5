package intake

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.uber.org/zap"

	"purchase-relay/internal/flood"
	"purchase-relay/internal/purchase"
)

// MaxBody is the limit of a webhook body in bytes. Some of Stripe's events exceed 64 KB.
const MaxBody = 1 << 20

// retryAfter is the Retry-After of a 503, in seconds.
const retryAfter = "10"

// Webhook verifies the signature of a raw body and decodes the event. The error of Verify is a short value
// for the log and must not contain a secret.
type Webhook interface {
	Verify(body []byte, signature string) error
	Decode(body []byte) (purchase.Event, error)
}

// Handler serves POST /webhooks/stripe.
type Handler struct {
	webhook   Webhook
	service   *Service
	log       *zap.Logger
	flood     zap.Option // rate limit for lines that a client can multiply
	admission admission
	lastEvent atomic.Int64 // receipt of the last signed event, Unix nanoseconds; 0: none

	thinMutex sync.Mutex
	thin      RejectedThin

	webhooks  *prometheus.CounterVec
	durations *prometheus.HistogramVec
}

// Values of the label type of purchase_relay_webhooks_total besides event types.
const (
	typeNone  = "none"  // no event
	typeThin  = "thin"  // a v2 event without its object
	typeOther = "other" // any other event type
)

// Values of its label result besides dispositions.
const (
	resultInvalidSignature = "invalid_signature"
	resultNotAnEvent       = "not_an_event"
	resultNotFound         = "not_found"
	resultPanic            = "panic"
	resultNoAPIKey         = "no_api_key"
	resultStripeDown       = "stripe_unavailable"
	resultUnavailable      = "unavailable"
	resultBusy             = "busy"
	resultTooLarge         = "too_large"
	resultUnreadable       = "unreadable"
	resultMethod           = "method"
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
	// increase() needs each series to start at 0.
	for _, result := range []string{
		resultInvalidSignature, resultNotAnEvent, resultPanic, resultNotFound, resultBusy, resultTooLarge,
		resultUnreadable, resultMethod,
	} {
		h.webhooks.WithLabelValues(typeNone, result)
	}
	for _, eventType := range purchase.EventTypes() {
		for _, d := range []purchase.Disposition{
			purchase.Processed, purchase.Duplicate, purchase.AwaitingPayment, purchase.Rejected,
			purchase.Malformed, resultUnavailable,
		} {
			h.webhooks.WithLabelValues(eventType, string(d))
		}
	}
	for _, result := range []string{
		string(purchase.Ignored), string(purchase.Processed), string(purchase.Malformed),
		resultNoAPIKey, resultStripeDown, resultUnavailable,
	} {
		h.webhooks.WithLabelValues(typeThin, result)
	}
	return h
}

// LastWebhook returns when this process received the last signed event of any type; zero: none.
func (h *Handler) LastWebhook() time.Time {
	if at := h.lastEvent.Load(); at != 0 {
		return time.Unix(0, at).UTC()
	}
	return time.Time{}
}

// RejectedThin counts the thin events that this process rejected for lack of an API key.
type RejectedThin struct {
	Count         int
	First, Latest time.Time
}

// thinPause ends a period of rejected thin events: Stripe repeats one within twelve hours.
const thinPause = 12 * time.Hour

// RejectedThin returns the current period of rejected thin events; its Count is 0 if there is none.
func (h *Handler) RejectedThin() RejectedThin {
	h.thinMutex.Lock()
	defer h.thinMutex.Unlock()
	if h.service.Now().Sub(h.thin.Latest) >= thinPause {
		return RejectedThin{}
	}
	return h.thin
}

func (h *Handler) countThin(now time.Time) {
	h.thinMutex.Lock()
	defer h.thinMutex.Unlock()
	if h.thin.Count == 0 || now.Sub(h.thin.Latest) >= thinPause {
		h.thin = RejectedThin{First: now}
	}
	h.thin.Count++
	h.thin.Latest = now
}

// response is the response to one webhook with its metric labels.
type response struct {
	status    int
	body      map[string]string
	eventType string
	result    string
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := h.service.Now()
	resp := h.handleRecovered(w, r)
	h.webhooks.WithLabelValues(resp.eventType, resp.result).Inc()
	h.durations.WithLabelValues(resp.result).Observe(h.service.Now().Sub(began).Seconds())
	w.Header().Set("Content-Type", "application/json")
	if resp.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", retryAfter)
	}
	w.WriteHeader(resp.status)
	_ = json.NewEncoder(w).Encode(resp.body) // after a write error Stripe retries
}

// handleRecovered is handle with 500 for a panic, after which Stripe retries. It does not log the panic's
// value, which may contain personal data.
func (h *Handler) handleRecovered(w http.ResponseWriter, r *http.Request) (resp response) {
	defer func() {
		if p := recover(); p != nil {
			h.log.Error("Webhook handler panicked",
				zap.String("panic", fmt.Sprintf("%T", p)), zap.ByteString("stack", debug.Stack()))
			resp = failed(http.StatusInternalServerError, typeNone, resultPanic, "internal error")
		}
	}()
	return h.handle(w, r)
}

// handle reads, verifies and decodes a request, and passes the event to the service.
func (h *Handler) handle(w http.ResponseWriter, r *http.Request) response {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return failed(http.StatusMethodNotAllowed, typeNone, resultMethod, "method not allowed")
	}
	signature := r.Header.Get("Stripe-Signature")
	switch {
	case r.ContentLength > MaxBody:
		return failedUnread(w, http.StatusRequestEntityTooLarge, resultTooLarge, "body is larger than 1 MiB")
	case signature == "":
		h.logInvalidSignature(r, "missing")
		return failedUnread(w, http.StatusBadRequest, resultInvalidSignature, "invalid signature")
	}
	slot := h.admission.admit(initialSize(r), func() {
		// A deadline in the past fails the read. Every writer of net/http's server supports it.
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
	})
	if slot == nil {
		h.log.WithOptions(h.flood).Warn("Too many concurrent webhooks",
			zap.String("remedy", "none: Stripe retries"))
		return failedUnread(w, http.StatusServiceUnavailable, resultBusy, "too many requests")
	}
	defer slot.release()
	body, err := readBody(w, r, slot)
	if !slot.bodyRead() {
		h.log.WithOptions(h.flood).Warn("Evicted slow request body")
		return failedUnread(w, http.StatusServiceUnavailable, resultBusy, "too many requests")
	}
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return failed(http.StatusRequestEntityTooLarge, typeNone, resultTooLarge, "body is larger than 1 MiB")
	} else if err != nil {
		return failed(http.StatusBadRequest, typeNone, resultUnreadable, "body could not be read")
	}
	if err := h.webhook.Verify(body, signature); err != nil {
		h.logInvalidSignature(r, err.Error())
		return failed(http.StatusBadRequest, typeNone, resultInvalidSignature, "invalid signature")
	}
	event, err := h.webhook.Decode(body)
	if err != nil {
		h.log.WithOptions(h.flood).Warn("Webhook body is not an event", zap.Error(err))
		return failed(http.StatusBadRequest, typeNone, resultNotAnEvent, err.Error())
	}
	h.lastEvent.Store(h.service.Now().UnixNano())
	disposition, err := h.service.Take(r.Context(), event, purchase.SourceWebhook)
	if errors.Is(err, errNoAPIKey) {
		h.countThin(h.service.Now())
	}
	return responseTo(event, disposition, err)
}

// responseTo returns the response for the result of Service.Take.
func responseTo(event purchase.Event, disposition purchase.Disposition, err error) response {
	eventType := typeLabel(event)
	switch {
	case errors.Is(err, errNoAPIKey):
		return failed(http.StatusBadRequest, eventType, resultNoAPIKey, err.Error())
	case disposition == purchase.Malformed:
		return failed(http.StatusBadRequest, eventType, string(disposition), err.Error())
	case errors.Is(err, errFetch):
		return failed(http.StatusServiceUnavailable, eventType, resultStripeDown, "Stripe's API is unavailable")
	case err != nil:
		return failed(http.StatusServiceUnavailable, eventType, resultUnavailable, "ledger is unavailable")
	}
	status := disposition
	if disposition == purchase.Foreign {
		status = purchase.Ignored
	}
	return response{http.StatusOK, map[string]string{"status": string(status)}, eventType, string(disposition)}
}

// typeLabel returns the metric's label for an event's type.
func typeLabel(event purchase.Event) string {
	switch {
	case event.Thin:
		return typeThin
	case slices.Contains(purchase.EventTypes(), event.Type):
		return event.Type
	}
	return typeOther
}

// failed returns an error response.
func failed(status int, eventType, result, message string) response {
	return response{status, map[string]string{"error": message}, eventType, result}
}

// failedUnread returns an error response without reading the body, and closes the connection.
func failedUnread(w http.ResponseWriter, status int, result, message string) response {
	w.Header().Set("Connection", "close")
	return failed(status, typeNone, result, message)
}

func (h *Handler) logInvalidSignature(r *http.Request, cause string) {
	h.log.WithOptions(h.flood).Warn("Invalid signature",
		zap.String("signature", cause), zap.String("remote", r.RemoteAddr),
		zap.String("remedy", "if this is Stripe, compare STRIPE_WEBHOOK_SECRET with the endpoint's signing "+
			"secret, and this machine's clock"))
}
