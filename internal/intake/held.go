package intake

import (
	"context"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/purchase"
)

// HeldInvoices are the recorded invoices that wait for an earlier one. ConvertHeld converts those held for at
// least age to first payments and returns their number. Implementations must convert each invoice once,
// whatever the number of replicas.
type HeldInvoices interface {
	ConvertHeld(ctx context.Context, age time.Duration) (int, error)
}

const (
	convertInterval = 10 * time.Minute
	convertTimeout  = 30 * time.Second
)

// ConvertHeldInvoices returns a task that converts held invoices until its context ends. It calls wake, which
// wakes the relay, if there were any.
func ConvertHeldInvoices(held HeldInvoices, wake func(), log *zap.Logger) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		tick := time.NewTicker(convertInterval)
		defer tick.Stop()
		for {
			bounded, cancel := context.WithTimeout(ctx, convertTimeout)
			n, err := held.ConvertHeld(bounded, purchase.InvoiceHoldTime)
			cancel()
			switch {
			case err != nil && ctx.Err() == nil:
				log.Warn("Conversion of held invoices failed", zap.Error(err), zap.Duration("again_in", convertInterval))
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
