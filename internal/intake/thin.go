package intake

import (
	"context"
	"errors"
	"net/http"

	"go.uber.org/zap"

	"purchase-relay/internal/purchase"
)

// fetch gives a thin event its object; refused is the answer where there is none. A sale is never lost for
// that: Stripe sends the event again for days, whatever the refusal says.
func (h *Handler) fetch(
	ctx context.Context, log *zap.Logger, event purchase.Event,
) (_ purchase.Event, refused *answer) {
	limited := log.WithOptions(h.flood).With(zap.String("object", purchase.Tellable(event.Related.ID)))
	if h.objects == nil {
		limited.Error("Thin event without STRIPE_API_KEY",
			zap.String("remedy", "in Stripe, choose snapshot payloads, or set STRIPE_API_KEY"))
		a := refusal(http.StatusBadRequest, kindThin, resultNoKey,
			"a thin event carries no checkout: choose snapshot payloads or set STRIPE_API_KEY")
		return event, &a
	}
	ctx, cancel := context.WithTimeout(ctx, FetchTimeout)
	defer cancel()
	fetched, err := h.objects.Fetch(ctx, event)
	switch {
	case errors.Is(err, purchase.ErrReference):
		limited.Error("Malformed event", zap.String("type", event.Type), zap.Error(err))
		a := refusal(http.StatusBadRequest, kindThin, "malformed", err.Error())
		return event, &a
	case err != nil:
		limited.Error("Fetch of a thin event failed", zap.Error(err),
			zap.String("remedy", "Stripe sends the event again; check STRIPE_API_KEY and the way to Stripe's API"))
		a := refusal(http.StatusServiceUnavailable, kindThin, resultStripeAway,
			"Stripe's API is not available, send the event again")
		return event, &a
	}
	fetched.Thin = false // from here on it is as its snapshot
	return fetched, nil
}
