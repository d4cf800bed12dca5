// Package intake is step 1: it records each verified Stripe event once, as a purchase with the customer's
// profile. A webhook gets 200 after the commit, never before.
//
// Webhooks and backfilled events share one path:
//
//	Handler (webhook) ─┐
//	                   ├─▶ Service.Take ─▶ purchase.FromEvent ─▶ Ledger.Record ─▶ Publisher
//	backfill ──────────┘
//
// No step waits for the queue or for TikTok.
package intake

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.uber.org/zap"

	"purchase-relay/internal/flood"
	"purchase-relay/internal/purchase"
)

// Time limits for one event. Stripe delays the buyer's redirect to the success page until the webhook's
// response, for up to 10 s.
const (
	FetchTimeout  = 4 * time.Second // for a thin event's object
	RecordTimeout = 5 * time.Second // for the transaction
)

// Ledger records receipts. Implementations must commit one transaction before Record returns nil, return
// Duplicate for a known event and for a session's same or earlier state (also of concurrent calls), and
// decide a dry run alike without writing. After an error the event may be recorded again.
type Ledger interface {
	Record(ctx context.Context, r purchase.Receipt) (purchase.Recorded, error)
}

// Objects fetches the objects of thin events. Any error but purchase.ErrReference is temporary. Errors must
// not contain secrets.
type Objects interface {
	Fetch(ctx context.Context, event purchase.Event) (purchase.Event, error)
}

// Publisher publishes recorded purchases. Its methods must not block and must be safe for concurrent use.
type Publisher interface {
	// Ready reports whether Enqueue would publish immediately. If so, the transaction that records the purchase
	// also claims it.
	Ready() bool
	// Enqueue publishes a claimed purchase, after the commit.
	Enqueue(p purchase.Purchase, recorded purchase.Recorded)
	// Wake signals pending purchases in the ledger.
	Wake()
}

// Config configures a Service.
type Config struct {
	Ledger    Ledger
	Rules     purchase.Rules
	Objects   Objects   // nil: thin events are rejected
	Publisher Publisher // nil: another process publishes pending purchases
	DryRun    bool      // do not record, log, count or publish
	Now       func() time.Time
}

// Service records verified events.
type Service struct {
	Config
	log   *zap.Logger
	flood zap.Option // rate limit for lines that a client can multiply

	noValue   prometheus.Counter
	dropped   *prometheus.CounterVec
	lateClick prometheus.Counter
	customers prometheus.Counter
}

// NewService returns a Service. With a nil registerer its metrics are not exported.
func NewService(c Config, log *zap.Logger, reg prometheus.Registerer) *Service {
	if c.DryRun {
		log, reg = zap.NewNop(), nil
	}
	if c.DryRun || c.Publisher == nil {
		c.Publisher = noPublisher{}
	}
	metrics := promauto.With(reg)
	s := &Service{
		Config: c, log: log, flood: flood.Limit(log),
		noValue: metrics.NewCounter(prometheus.CounterOpts{
			Name: "purchase_relay_purchases_without_value_total",
			Help: "Paid purchases without amount or currency: sent without a value.",
		}),
		dropped: metrics.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_match_keys_dropped_total",
			Help: "Unusable match keys of checkouts, by key and reason.",
		}, []string{"key", "reason"}),
		lateClick: metrics.NewCounter(prometheus.CounterOpts{
			Name: "purchase_relay_late_click_ids_total",
			Help: "Purchases paid after the CLICK_WINDOW of their click id.",
		}),
		customers: metrics.NewCounter(prometheus.CounterOpts{
			Name: "purchase_relay_customer_changes_total",
			Help: "Purchases under a known address with another customer id.",
		}),
	}
	for _, key := range purchase.DropKeys() {
		for _, reason := range purchase.DropReasons() {
			s.dropped.WithLabelValues(key, string(reason))
		}
	}
	return s
}

// noPublisher leaves purchases to the relay of another process.
type noPublisher struct{}

func (noPublisher) Ready() bool                                  { return false }
func (noPublisher) Enqueue(purchase.Purchase, purchase.Recorded) {}
func (noPublisher) Wake()                                        {}

// The errors of fetching a thin event's object.
var (
	errNoAPIKey = errors.New("thin event has no checkout: choose snapshot payloads or set STRIPE_API_KEY")
	errFetch    = errors.New("fetch thin event's object")
)

// Take records a verified event once and publishes its purchase. With purchase.Malformed an error is
// permanent; after any other error the event may be taken again.
func (s *Service) Take(
	ctx context.Context, event purchase.Event, source purchase.Source,
) (purchase.Disposition, error) {
	log := s.log.With(zap.String("stripe_event_id", purchase.LogSafe(event.ID)))
	received := s.Now()
	p, decision, err := purchase.FromEvent(event, s.Rules, received)
	if decision == purchase.DecisionFetch {
		if event, err = s.fetch(ctx, log, event); err == nil {
			received = s.Now()
			p, decision, err = purchase.FromEvent(event, s.Rules, received)
		}
	}
	switch {
	case errors.Is(err, errFetch):
		return "", err
	case errors.Is(err, errNoAPIKey):
		return purchase.Malformed, err
	case err != nil:
		log.WithOptions(s.flood).Error("Malformed event",
			zap.String("type", purchase.LogSafe(event.Type)), zap.Error(err),
			zap.String("remedy", "see the event in Stripe; for a thin one, choose snapshot payloads there"))
		return purchase.Malformed, err
	case decision == purchase.DecisionForeign:
		log.WithOptions(s.flood).Info("Event of another account ignored",
			zap.String("account", purchase.LogSafe(event.Account)),
			zap.String("remedy", "if its sales count, add the account to CONNECT_ACCOUNTS"))
		return purchase.Foreign, nil
	case decision != purchase.DecisionRecord:
		return purchase.Ignored, nil
	}
	log = log.With(zap.String("checkout_session_id", p.ID))
	if source == purchase.SourceWebhook {
		log.Info("Signature verified", zap.Bool("livemode", event.Livemode))
		log.Info("Processing " + event.Type)
	}
	recorded, err := s.record(ctx, purchase.Receipt{
		Event: event, Source: source, Received: received, Purchase: p, DryRun: s.DryRun,
	})
	if err != nil {
		if source == purchase.SourceWebhook {
			log.Error("Failed to create profile", zap.Error(err),
				zap.String("remedy", "Stripe retries; check Postgres"))
		}
		return "", err
	}
	if s.DryRun {
		return recorded.Disposition, nil
	}
	if source == purchase.SourceBackfill && recorded.Disposition != purchase.Duplicate {
		log.Info("Backfilled missed event", zap.String("type", event.Type), zap.Bool("livemode", event.Livemode),
			zap.Time("created", event.Created))
	}
	s.logResult(log, source, p, recorded)
	if recorded.Disposition == purchase.Processed {
		s.publish(p, recorded)
	}
	return recorded.Disposition, nil
}

// fetch returns a thin event with its object. Stripe retries a rejected event for days: no sale is lost.
func (s *Service) fetch(ctx context.Context, log *zap.Logger, event purchase.Event) (purchase.Event, error) {
	log = log.WithOptions(s.flood).With(zap.String("object", purchase.LogSafe(event.Related.ID)))
	if s.Objects == nil {
		log.Error("Thin event without STRIPE_API_KEY",
			zap.String("remedy", "in Stripe, choose snapshot payloads, or set STRIPE_API_KEY"))
		return event, errNoAPIKey
	}
	ctx, cancel := context.WithTimeout(ctx, FetchTimeout)
	defer cancel()
	fetched, err := s.Objects.Fetch(ctx, event)
	if err != nil && !errors.Is(err, purchase.ErrReference) {
		log.Error("Thin event fetch failed", zap.Error(err),
			zap.String("remedy", "Stripe retries; check STRIPE_API_KEY and the connection to Stripe's API"))
		err = fmt.Errorf("%w: %w", errFetch, err)
	}
	fetched.Thin = false // it equals its snapshot now
	return fetched, err
}

// record records a receipt within RecordTimeout and claims it if it can be published immediately.
func (s *Service) record(ctx context.Context, r purchase.Receipt) (purchase.Recorded, error) {
	ctx, cancel := context.WithTimeout(ctx, RecordTimeout)
	defer cancel()
	r.Claim = s.Publisher.Ready()
	return s.Ledger.Record(ctx, r)
}

// logResult logs and counts a recorded event.
func (s *Service) logResult(
	log *zap.Logger, source purchase.Source, p purchase.Purchase, r purchase.Recorded,
) {
	if r.Conflict != "" && r.Disposition != purchase.Duplicate {
		log.Warn("Event id repeated with another session", zap.String("first_session_id", r.Conflict),
			zap.String("remedy", "none: both sessions are recorded"))
	}
	switch r.Disposition {
	case purchase.Processed:
		s.logPurchase(log, p, r)
	case purchase.Duplicate:
		if source == purchase.SourceWebhook { // most backfilled events are
			log.WithOptions(s.flood).Info("Duplicate event")
		}
	case purchase.Rejected:
		log.Error("Invalid email", zap.String("remedy",
			"paid without a valid e-mail address: give access by hand, see the purchase in Stripe"))
	case purchase.AwaitingPayment:
		log.Info("Awaiting payment")
	case purchase.Held:
		log.Info("Invoice held until its trial arrives")
	case purchase.Ignored:
		log.Debug("Renewal ignored")
	default: // not recorded
	}
}

// logPurchase logs and counts a purchase that gives access or is sent.
func (s *Service) logPurchase(log *zap.Logger, p purchase.Purchase, r purchase.Recorded) {
	for _, d := range p.Dropped {
		s.dropped.WithLabelValues(d.Key, string(d.Reason)).Inc()
	}
	if r.LateClick {
		s.lateClick.Inc()
	}
	if r.ProfileID != "" {
		profile, message := zap.String("profile_id", r.ProfileID), "Profile updated"
		if r.ProfileCreated {
			message = "Profile created"
		}
		log.Info(message, profile)
		if r.PreviousCustomer != "" {
			s.customers.Inc()
			log.Info("Customer id changed", profile,
				zap.String("before", r.PreviousCustomer), zap.String("customer", p.Customer))
		}
		log.Info("PROVISIONING COMPLETE", profile)
	}
	if r.FirstPayment != "" {
		log.Info("First payment after a trial", zap.String("first_payment", r.FirstPayment))
	}
	hasValue := p.AmountMinor != nil && p.Currency != ""
	if p.Status == purchase.StatusPending && p.Kind != purchase.KindTrial && !hasValue {
		s.noValue.Inc()
		log.Warn("Purchase has no amount or currency", zap.String("remedy", "none: it is sent without a value"))
	}
}

// publish passes a recorded purchase to the publisher.
func (s *Service) publish(p purchase.Purchase, r purchase.Recorded) {
	claimed := !r.Claimed.IsZero()
	if claimed {
		s.Publisher.Enqueue(p, r)
	}
	pending := p.Status == purchase.StatusPending && !claimed
	converted := r.FirstPayment != "" && r.FirstPayment != p.ID // the invoice that was held for this trial
	if pending || converted {
		s.Publisher.Wake()
	}
}
