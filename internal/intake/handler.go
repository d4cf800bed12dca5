package intake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/flood"
	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// MaxBody is the largest webhook body that is read, in bytes. Stripe's events may pass 64 KB.
const MaxBody = 1 << 20

// RecordTimeout bounds one webhook's transaction: past it Stripe is told to come again. The buyer waits up to
// 10 s for the answer (Stripe holds the redirect to the success page).
const RecordTimeout = 5 * time.Second

// retryAfter is the Retry-After of a 503, in seconds.
const retryAfter = "10"

// Webhook is Stripe's side: it verifies a signature over the raw body and reads the event. An error of Verify
// is a short word for the log and never holds a secret.
type Webhook interface {
	Verify(body []byte, signature string) error
	Decode(body []byte) (purchase.Event, error)
}

// FetchTimeout bounds the fetch of a thin event's object. With RecordTimeout it stays within the 10 s that
// the buyer waits.
const FetchTimeout = 4 * time.Second

// Objects gives thin events of our types their object. An error is a short text for the log and never holds a
// secret.
type Objects interface {
	Fetch(ctx context.Context, event purchase.Event) (purchase.Event, error)
}

// Handler answers POST /webhooks/stripe.
type Handler struct {
	webhook Webhook
	objects Objects // nil: thin events are refused
	ledger  Ledger
	rules   purchase.Rules
	onward  Onward
	now     func() time.Time
	log     *zap.Logger
	room    room
	flood   zap.Option // for the lines that a sender can multiply

	webhooks  *prometheus.CounterVec
	durations *prometheus.HistogramVec
	noValue   prometheus.Counter
	dropped   *prometheus.CounterVec
	late      prometheus.Counter
	customers prometheus.Counter // profiles that get another customer id
	last      atomic.Int64       // when Stripe last signed something of use, Unix nanoseconds; 0: not yet
}

// Onward is who publishes what was recorded. Ready says whether that will be at once: then a purchase is claimed in its own
// transaction and offered after the commit; else it waits on the ledger. Neither blocks.
type Onward interface {
	Ready() bool
	Offer(c message.Claim)
	Wake()
}

// NewHandler returns the webhook's handler.
func NewHandler(w Webhook, l Ledger, rules purchase.Rules, onward Onward, now func() time.Time, log *zap.Logger, reg prometheus.Registerer) *Handler {
	h := &Handler{
		webhook: w, ledger: l, rules: rules, onward: onward, now: now, log: log, flood: flood.Limit(log),
		webhooks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_webhooks_total", Help: "Webhook requests by event type and result.",
		}, []string{"type", "result"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "purchase_relay_webhook_duration_seconds", Help: "Time to answer a webhook, by result.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"result"}),
		noValue: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "purchase_relay_purchases_without_value_total", Help: "Paid purchases whose amount or currency Stripe left out: sent without a value.",
		}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_match_keys_dropped_total", Help: "Match keys that a checkout carried and that could not be used, by key and reason.",
		}, []string{"key", "reason"}),
		customers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "purchase_relay_customer_changes_total",
			Help: "Purchases under a known address that bring another customer id.",
		}),
		late: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "purchase_relay_late_click_ids_total",
			Help: "Purchases whose click id was older than CLICK_WINDOW when they were paid.",
		}),
	}
	for _, result := range []string{"invalid_signature", "not_an_event", "panic", resultNotFound} {
		h.webhooks.WithLabelValues("none", result)
	}
	for _, kind := range []string{purchase.TypeCompleted, purchase.TypeAsyncSucceeded, purchase.TypeAsyncFailed, purchase.TypeInvoicePaid} {
		for _, d := range []purchase.Disposition{purchase.Processed, purchase.Duplicate, purchase.AwaitingPayment, purchase.Rejected, "unavailable"} {
			h.webhooks.WithLabelValues(kind, string(d)) // from 0: an increase from nothing at all would not be seen
		}
	}
	for _, result := range []string{string(purchase.Ignored), string(purchase.Processed), resultNoKey, resultStripeAway, "unavailable"} {
		h.webhooks.WithLabelValues(kindThin, result)
	}
	for _, key := range purchase.DropKeys() {
		for _, reason := range purchase.DropReasons() {
			h.dropped.WithLabelValues(key, string(reason))
		}
	}
	reg.MustRegister(h.webhooks, h.durations, h.noValue, h.dropped, h.late, h.customers)
	return h
}

// FetchWith lets thin events be fetched with a key. It is called before the first request.
func (h *Handler) FetchWith(objects Objects) { h.objects = objects }

// LastWebhook returns when Stripe's last webhook came to this process, whatever it was about; zero: none yet.
func (h *Handler) LastWebhook() time.Time {
	if at := h.last.Load(); at != 0 {
		return time.Unix(0, at).UTC()
	}
	return time.Time{}
}

// answer is one webhook's end: status and body of the response, and the metric's labels.
type answer struct {
	status int
	body   map[string]string
	kind   string // the event's type, "thin", "other" or "none"
	result string
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := h.now()
	a := h.guarded(w, r)
	h.webhooks.WithLabelValues(a.kind, a.result).Inc()
	h.durations.WithLabelValues(a.result).Observe(h.now().Sub(began).Seconds())
	w.Header().Set("Content-Type", "application/json")
	if a.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", retryAfter)
	}
	w.WriteHeader(a.status)
	_ = json.NewEncoder(w).Encode(a.body) // the client is gone: Stripe will ask again
}

// guarded turns a panic into an answer that Stripe repeats, and into an error in the log: the server's own line about it
// is for debugging alone. What was panicked with stays out of it, because it may hold a buyer's data.
func (h *Handler) guarded(w http.ResponseWriter, r *http.Request) (a answer) {
	defer func() {
		if p := recover(); p != nil {
			h.log.Error("A webhook panicked", zap.String("panic", fmt.Sprintf("%T", p)), zap.ByteString("stack", debug.Stack()))
			a = refusal(http.StatusInternalServerError, "none", "panic", "internal error, send the event again")
		}
	}()
	return h.handle(w, r)
}

func refusal(status int, kind, result, sentence string) answer {
	return answer{status: status, body: map[string]string{"error": sentence}, kind: kind, result: result}
}

// unread refuses a request whose body is not looked at: the connection goes with it.
func unread(w http.ResponseWriter, status int, result, sentence string) answer {
	w.Header().Set("Connection", "close")
	return refusal(status, "none", result, sentence)
}

// invalidSignature tells of a signature that is not Stripe's, of some in a flood.
func (h *Handler) invalidSignature(r *http.Request, why string, a answer) answer {
	h.log.WithOptions(h.flood).Warn("Invalid signature", zap.String("signature", why), zap.String("remote", r.RemoteAddr),
		zap.String("remedy", "if this is Stripe, compare STRIPE_WEBHOOK_SECRET with the endpoint's signing secret, and this machine's clock"))
	return a
}

func (h *Handler) handle(w http.ResponseWriter, r *http.Request) answer {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return refusal(http.StatusMethodNotAllowed, "none", "method", "only POST is answered here")
	}
	signature := r.Header.Get("Stripe-Signature")
	switch {
	case r.ContentLength > MaxBody:
		return unread(w, http.StatusRequestEntityTooLarge, "too_large", "the body is larger than 1 MiB")
	case signature == "":
		return h.invalidSignature(r, "missing", unread(w, http.StatusBadRequest, "invalid_signature", "invalid signature"))
	}
	place := h.room.enter(size(r), func() {
		// The reading ends with an error. (A writer that cannot do that is none of the server's.)
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
	})
	if place == nil {
		h.log.WithOptions(h.flood).Warn("Too many webhooks at once; Stripe sends this one again")
		return unread(w, http.StatusServiceUnavailable, "busy", "too many requests at once, send the event again")
	}
	defer h.room.leave(place)
	body, err := read(w, r, func(bytes int64) bool { return h.room.grow(place, bytes) })
	if !h.room.arrived(place) {
		h.log.WithOptions(h.flood).Warn("Evicted slow request body")
		return unread(w, http.StatusServiceUnavailable, "busy", "too many requests at once, send the event again")
	}
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return refusal(http.StatusRequestEntityTooLarge, "none", "too_large", "the body is larger than 1 MiB")
	} else if err != nil {
		return refusal(http.StatusBadRequest, "none", "unreadable", "the body could not be read")
	}
	if err := h.webhook.Verify(body, signature); err != nil {
		return h.invalidSignature(r, err.Error(), refusal(http.StatusBadRequest, "none", "invalid_signature", "invalid signature"))
	}
	event, err := h.webhook.Decode(body)
	if err != nil {
		h.log.WithOptions(h.flood).Warn("Not an event", zap.Error(err))
		return refusal(http.StatusBadRequest, "none", "not_an_event", err.Error())
	}
	h.last.Store(h.now().UnixNano())
	log := h.log.With(zap.String("stripe_event_id", purchase.Tellable(event.ID)))
	return h.take(r.Context(), log, event)
}

// take runs a verified event through the ledger.
func (h *Handler) take(ctx context.Context, log *zap.Logger, event purchase.Event) answer {
	kind, received := kindOf(event), h.now()
	p, decision, err := purchase.FromEvent(event, h.rules, received)
	if decision == purchase.DecisionFetch {
		var refused *answer
		if event, refused = h.fetch(ctx, log, event); refused != nil {
			return *refused
		}
		received = h.now()
		p, decision, err = purchase.FromEvent(event, h.rules, received)
	}
	ignored := map[string]string{"status": string(purchase.Ignored)}
	switch {
	case err != nil:
		log.WithOptions(h.flood).Error("Malformed event", zap.String("type", event.Type), zap.Error(err))
		return refusal(http.StatusBadRequest, kind, "malformed", err.Error())
	case decision == purchase.DecisionForeign:
		log.WithOptions(h.flood).Info("Event of another account ignored", zap.String("account", purchase.Tellable(event.Account)),
			zap.String("remedy", "if its sales are yours, name the account in CONNECT_ACCOUNTS"))
		return answer{http.StatusOK, ignored, kind, resultOtherAccount}
	case decision != purchase.DecisionRecord:
		return answer{http.StatusOK, ignored, kind, string(purchase.Ignored)}
	}
	log = log.With(zap.String("checkout_session_id", p.ID))
	log.Info("Signature verified", zap.Bool("livemode", event.Livemode))
	log.Info("Processing " + event.Type)
	recorded, err := h.record(ctx, purchase.Receipt{Event: event, Received: received, Purchase: p})
	if err != nil {
		// A profile that could not be created is the customer's access: the line that is grepped for.
		log.Error("Failed to create profile", zap.Error(err), zap.String("remedy", "Stripe sends the event again; look at Postgres"))
		return refusal(http.StatusServiceUnavailable, kind, "unavailable", "the ledger is not available, send the event again")
	}
	if recorded.Conflict != "" && recorded.Disposition != purchase.Duplicate {
		log.Warn("Event id repeated with another session", zap.String("first_session_id", recorded.Conflict),
			zap.String("remedy", "none: both sessions are recorded"))
	}
	h.tell(log, p, recorded)
	return answer{http.StatusOK, map[string]string{"status": string(recorded.Disposition)}, kind, string(recorded.Disposition)}
}

// record has a receipt recorded in time, and claimed where it would be published at once.
func (h *Handler) record(ctx context.Context, r purchase.Receipt) (purchase.Recorded, error) {
	ctx, cancel := context.WithTimeout(ctx, RecordTimeout)
	defer cancel()
	r.Claim = h.onward.Ready()
	return h.ledger.Record(ctx, r)
}

// tell logs what was recorded and wakes the relay.
func (h *Handler) tell(log *zap.Logger, p purchase.Purchase, r purchase.Recorded) {
	switch r.Disposition {
	case purchase.Duplicate:
		log.WithOptions(h.flood).Info("Duplicate event")
		return
	case purchase.Rejected:
		log.Error("Invalid email", zap.String("remedy", "paid without a usable e-mail address: give access by hand, see the purchase in Stripe"))
		return
	case purchase.AwaitingPayment:
		log.Info("Awaiting payment")
		return
	case purchase.Ignored:
		log.Debug("Renewal ignored")
		return
	case purchase.Held:
		log.Info("Invoice held until its trial arrives")
		return
	default:
	}
	h.count(p, r)
	switch {
	case r.ProfileCreated:
		log.Info("Profile created", zap.String("profile_id", r.ProfileID))
	case r.ProfileID != "":
		log.Info("Profile updated", zap.String("profile_id", r.ProfileID))
	}
	if r.CustomerBefore != "" {
		h.customers.Inc()
		log.Info("Customer id changed", zap.String("profile_id", r.ProfileID),
			zap.String("before", r.CustomerBefore), zap.String("customer", p.Customer))
	}
	if r.ProfileID != "" {
		log.Info("PROVISIONING COMPLETE", zap.String("profile_id", r.ProfileID))
	}
	if r.FirstPayment != "" {
		log.Info("First payment after a trial", zap.String("first_payment", r.FirstPayment))
		if r.FirstPayment != p.ID { // its invoice waited for this trial
			h.onward.Wake()
		}
	}
	if p.Status == purchase.StatusPending {
		if p.Kind != purchase.KindTrial && (p.AmountMinor == nil || p.Currency == "") {
			h.noValue.Inc()
			log.Warn("No amount or currency: the purchase is sent without a value")
		}
		h.hand(p, r)
	}
}

// count counts what a purchase's match keys are worth.
func (h *Handler) count(p purchase.Purchase, r purchase.Recorded) {
	for _, d := range p.Dropped {
		h.dropped.WithLabelValues(d.Key, string(d.Reason)).Inc()
	}
	if r.LateClick {
		h.late.Inc()
	}
}

// hand passes a recorded purchase on.
func (h *Handler) hand(p purchase.Purchase, r purchase.Recorded) {
	if r.Claimed.IsZero() {
		h.onward.Wake()
		return
	}
	h.onward.Offer(message.Claim{ID: p.ID, Livemode: p.Livemode, Generation: 1, FirstPublished: r.Claimed, Envelope: r.Message})
}

// Values of the metric's labels that are said in more than one place.
const (
	kindThin           = "thin" // a v2 event: it carries no object
	resultNoKey        = "no_api_key"
	resultStripeAway   = "stripe_unavailable"
	resultOtherAccount = "other_account"
	resultNotFound     = "not_found"
)

// kindOf keeps the metric's label a small closed set.
func kindOf(event purchase.Event) string {
	if event.Thin {
		return kindThin
	}
	switch event.Type {
	case purchase.TypeCompleted, purchase.TypeAsyncSucceeded, purchase.TypeAsyncFailed, purchase.TypeInvoicePaid:
		return event.Type
	}
	return "other"
}
