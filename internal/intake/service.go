// Package intake is step 1: a verified event of Stripe becomes a purchase and is recorded once, together with
// the customer's profile. A webhook is answered 200 after the commit, never before.
//
// Webhooks and backfilled events take one path:
//
//	Handler (webhook) ─┐
//	                   ├─▶ Service.Take ─▶ purchase.FromEvent ─▶ Ledger.Record ─▶ Publisher
//	backfill ──────────┘
//
// Nothing here waits for the queue or for TikTok.
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

// Time limits of one event. The buyer waits up to 10 s for the webhook's answer: Stripe holds the redirect
// to the success page.
const (
	FetchTimeout  = 4 * time.Second // of a thin event's object
	RecordTimeout = 5 * time.Second // of the transaction
)

// Ledger records receipts. Implementations owe: one transaction that is committed when Record returns nil;
// an event, and a session's same or earlier state, recorded once, however often and concurrently they come
// (then Duplicate); a dry run decides alike and writes nothing. An error means that the event may be
// recorded later.
type Ledger interface {
	Record(ctx context.Context, r purchase.Receipt) (purchase.Recorded, error)
}

// Objects fetches the objects of thin events. The error is purchase.ErrReference for an unusable reference,
// else temporary; its text holds no secret.
type Objects interface {
	Fetch(ctx context.Context, event purchase.Event) (purchase.Event, error)
}

// Publisher publishes recorded purchases. Implementations owe: no method blocks, and all are safe for
// concurrent use.
type Publisher interface {
	// Ready reports whether Enqueue would publish immediately. Then the purchase is claimed in the transaction
	// that records it.
	Ready() bool
	// Enqueue publishes a claimed purchase. It is called after the commit.
	Enqueue(p purchase.Purchase, recorded purchase.Recorded)
	// Wake reports that purchases wait on the ledger.
	Wake()
}

// Config configures a Service.
type Config struct {
	Ledger    Ledger
	Rules     purchase.Rules
	Objects   Objects   // nil: thin events are refused
	Publisher Publisher // nil: another process publishes what waits on the ledger
	DryRun    bool      // nothing is recorded, logged, counted or published
	Now       func() time.Time
}

// Service records verified events.
type Service struct {
	Config
	log   *zap.Logger
	flood zap.Option // for lines that a sender can multiply

	noValue   prometheus.Counter
	dropped   *prometheus.CounterVec
	late      prometheus.Counter
	customers prometheus.Counter
}

// NewService returns a Service. Without a registerer its metrics are not exported.
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
			Help: "Paid purchases whose amount or currency Stripe left out: sent without a value.",
		}),
		dropped: metrics.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_match_keys_dropped_total",
			Help: "Match keys that a checkout carried and that could not be used, by key and reason.",
		}, []string{"key", "reason"}),
		late: metrics.NewCounter(prometheus.CounterOpts{
			Name: "purchase_relay_late_click_ids_total",
			Help: "Purchases whose click id was older than CLICK_WINDOW when they were paid.",
		}),
		customers: metrics.NewCounter(prometheus.CounterOpts{
			Name: "purchase_relay_customer_changes_total",
			Help: "Purchases under a known address that bring another customer id.",
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

// The causes why a thin event's object was not fetched.
var (
	errNoAPIKey = errors.New("a thin event carries no checkout: choose snapshot payloads or set STRIPE_API_KEY")
	errFetch    = errors.New("fetch the object of a thin event")
)

// Take records a verified event once and publishes its purchase. An error beside purchase.Malformed is
// final; after any other error the same event may be taken again.
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
			zap.String("type", purchase.LogSafe(event.Type)), zap.Error(err))
		return purchase.Malformed, err
	case decision == purchase.DecisionForeign:
		log.WithOptions(s.flood).Info("Event of another account ignored",
			zap.String("account", purchase.LogSafe(event.Account)),
			zap.String("remedy", "if its sales are yours, name the account in CONNECT_ACCOUNTS"))
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
			// The customer gets no access: the prescribed line says so.
			log.Error("Failed to create profile", zap.Error(err),
				zap.String("remedy", "Stripe sends the event again; look at Postgres"))
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
	s.report(log, source, p, recorded)
	if recorded.Disposition == purchase.Processed {
		s.publish(p, recorded)
	}
	return recorded.Disposition, nil
}

// fetch returns a thin event with its object. Stripe sends the event again for days after any refusal: the
// sale is not lost.
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
		log.Error("Fetch of a thin event failed", zap.Error(err),
			zap.String("remedy", "Stripe sends the event again; check STRIPE_API_KEY and the way to Stripe's API"))
		err = fmt.Errorf("%w: %w", errFetch, err)
	}
	fetched.Thin = false // from here on it equals its snapshot
	return fetched, err
}

// record records a receipt within RecordTimeout. It is claimed as well where it would be published
// immediately.
func (s *Service) record(ctx context.Context, r purchase.Receipt) (purchase.Recorded, error) {
	ctx, cancel := context.WithTimeout(ctx, RecordTimeout)
	defer cancel()
	r.Claim = s.Publisher.Ready()
	return s.Ledger.Record(ctx, r)
}

// report logs and counts what was recorded.
func (s *Service) report(log *zap.Logger, source purchase.Source, p purchase.Purchase, r purchase.Recorded) {
	if r.Conflict != "" && r.Disposition != purchase.Duplicate {
		log.Warn("Event id repeated with another session", zap.String("first_session_id", r.Conflict),
			zap.String("remedy", "none: both sessions are recorded"))
	}
	switch r.Disposition {
	case purchase.Processed:
		s.reportPurchase(log, p, r)
	case purchase.Duplicate:
		if source == purchase.SourceWebhook { // a backfill finds mostly these
			log.WithOptions(s.flood).Info("Duplicate event")
		}
	case purchase.Rejected:
		log.Error("Invalid email", zap.String("remedy",
			"paid without a usable e-mail address: give access by hand, see the purchase in Stripe"))
	case purchase.AwaitingPayment:
		log.Info("Awaiting payment")
	case purchase.Held:
		log.Info("Invoice held until its trial arrives")
	case purchase.Ignored:
		log.Debug("Renewal ignored")
	default: // the others are never recorded
	}
}

// reportPurchase logs and counts a purchase that gives access or is sent.
func (s *Service) reportPurchase(log *zap.Logger, p purchase.Purchase, r purchase.Recorded) {
	for _, d := range p.Dropped {
		s.dropped.WithLabelValues(d.Key, string(d.Reason)).Inc()
	}
	if r.LateClick {
		s.late.Inc()
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
		log.Warn("No amount or currency: the purchase is sent without a value")
	}
}

// publish passes a recorded purchase to the publisher.
func (s *Service) publish(p purchase.Purchase, r purchase.Recorded) {
	claimed := !r.Claimed.IsZero()
	if claimed {
		s.Publisher.Enqueue(p, r)
	}
	waits := p.Status == purchase.StatusPending && !claimed
	converted := r.FirstPayment != "" && r.FirstPayment != p.ID // the invoice that was held for this trial
	if waits || converted {
		s.Publisher.Wake()
	}
}
