package intake

import (
	"context"
	"errors"
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
	p, ours, err := proposeListed(event, h.rules, received)
	switch {
	case err != nil:
		log.WithOptions(h.flood).Error("Malformed event", zap.String("type", purchase.Tellable(event.Type)), zap.Error(err))
		return purchase.Malformed, nil // no other try could mend it
	case !ours:
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

// errUnread refuses an event that was listed and cannot be read: a webhook of it would have been refused before.
var errUnread = errors.New("an event without a type")

func proposeListed(e purchase.Event, rules Rules, received time.Time) (purchase.Purchase, bool, error) {
	if e.Type == "" {
		return purchase.Purchase{}, false, errUnread
	}
	return Propose(e, rules, received)
}

// Rehearsal tells what Missed would do, and does nothing.
type Rehearsal struct {
	Ledger Ledger
	Rules  Rules
	Now    func() time.Time
}

// Missed says what Handler.Missed would.
func (r *Rehearsal) Missed(ctx context.Context, event purchase.Event) (purchase.Disposition, error) {
	received := r.Now()
	p, ours, err := proposeListed(event, r.Rules, received)
	switch {
	case err != nil:
		return purchase.Malformed, nil //nolint:nilerr // it is what becomes of the event
	case !ours:
		return purchase.Ignored, nil
	}
	ctx, cancel := context.WithTimeout(ctx, RecordTimeout)
	defer cancel()
	recorded, err := r.Ledger.Record(ctx, purchase.Receipt{Event: event, Received: received, Purchase: p, CaughtUp: true, DryRun: true})
	return recorded.Disposition, err
}

// Types are the types of events that may concern a purchase: what Stripe's list is asked for.
func (r Rules) Types() []string {
	types := []string{purchase.TypeCompleted, purchase.TypeAsyncSucceeded, purchase.TypeAsyncFailed}
	if r.FirstPayment {
		types = append(types, purchase.TypeInvoicePaid)
	}
	return types
}
