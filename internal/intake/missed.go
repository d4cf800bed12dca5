package intake

import (
	"context"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/purchase"
)

// Missed takes an event that was found in Stripe's list as if its webhook had come: the same proposal, the same transaction, the same
// way onward. What is known already is a purchase.Duplicate and is not written about. The error says that the same event may be tried
// again.
func (h *Handler) Missed(ctx context.Context, event purchase.Event) (purchase.Disposition, error) {
	log := h.log.With(zap.String("stripe_event_id", purchase.Tellable(event.ID)))
	received := h.now()
	p, decision, err := purchase.FromEvent(event, h.rules, received)
	switch {
	case err != nil:
		log.WithOptions(h.flood).Error("Malformed event", zap.String("type", purchase.Tellable(event.Type)), zap.Error(err))
		return purchase.Malformed, nil // no other try could mend it
	case decision != purchase.DecisionRecord:
		return purchase.Ignored, nil
	}
	recorded, err := h.record(ctx, purchase.Receipt{Event: event, Received: received, Purchase: p, CaughtUp: true})
	if err != nil || recorded.Disposition == purchase.Duplicate {
		return recorded.Disposition, err
	}
	log = log.With(zap.String("checkout_session_id", p.ID))
	log.Info("Caught up with what no webhook had brought", zap.String("type", event.Type), zap.Bool("livemode", event.Livemode), zap.Time("created", event.Created))
	h.tell(log, p, recorded)
	return recorded.Disposition, nil
}

// Foresight says what would become of a receipt, and records nothing.
type Foresight interface {
	Foresee(ctx context.Context, r purchase.Receipt) (purchase.Disposition, error)
}

// Rehearsal tells what Missed would do, and does nothing.
type Rehearsal struct {
	Ledger Foresight
	Rules  purchase.Rules
	Now    func() time.Time
}

// Missed says what Handler.Missed would.
func (r *Rehearsal) Missed(ctx context.Context, event purchase.Event) (purchase.Disposition, error) {
	received := r.Now()
	p, decision, err := purchase.FromEvent(event, r.Rules, received)
	switch {
	case err != nil:
		return purchase.Malformed, nil //nolint:nilerr // it is what becomes of the event
	case decision != purchase.DecisionRecord:
		return purchase.Ignored, nil
	}
	ctx, cancel := context.WithTimeout(ctx, RecordTimeout)
	defer cancel()
	return r.Ledger.Foresee(ctx, purchase.Receipt{Event: event, Received: received, Purchase: p, CaughtUp: true})
}
