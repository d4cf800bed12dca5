package intake

import (
	"context"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/purchase"
)

// Trials make first payments of invoices that waited for so long for an earlier one, and say how many. Implementations owe: one
// invoice becomes one purchase, however many replicas ask.
type Trials interface {
	ConvertHeld(ctx context.Context, patience time.Duration) (int, error)
}

// How often invoices that wait are looked at, and how long a look may take.
const (
	convertEvery   = 10 * time.Minute
	convertTimeout = 30 * time.Second
)

// KeepConverted returns what looks at them until its context ends; wake tells the relay.
func KeepConverted(t Trials, wake func(), log *zap.Logger) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		tick := time.NewTicker(convertEvery)
		defer tick.Stop()
		for {
			look, cancel := context.WithTimeout(ctx, convertTimeout)
			n, err := t.ConvertHeld(look, purchase.HeldFor)
			cancel()
			switch {
			case err != nil && ctx.Err() == nil:
				log.Warn("Invoices that wait for an earlier one could not be looked at; again later", zap.Error(err))
			case n > 0:
				log.Info("Held invoices became first payments", zap.Int("purchases", n))
				wake()
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}
}
