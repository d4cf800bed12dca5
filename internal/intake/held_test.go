package intake_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/intake"
	"purchase-relay/internal/purchase"
)

// held is an intake.HeldInvoices with fixed results.
type held struct {
	results []int // -1: an error
	ages    []time.Duration
}

func (h *held) ConvertHeld(_ context.Context, age time.Duration) (int, error) {
	h.ages = append(h.ages, age)
	if len(h.results) == 0 {
		return 0, nil
	}
	n := h.results[0]
	h.results = h.results[1:]
	if n < 0 {
		return 0, errors.New("connection refused")
	}
	return n, nil
}

// The task continues after an error, and wakes the relay for converted invoices only.
func TestConvertHeldInvoices_WakesRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, woken := &held{results: []int{0, -1, 2}}, 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := intake.ConvertHeldInvoices(h, func() { woken++ }, zap.NewNop())(ctx); err != nil {
			t.Error(err)
		}
		if len(h.ages) < 4 || h.ages[0] != purchase.InvoiceHoldTime || woken != 1 {
			t.Errorf("ages = %v, woken %d times, want four of %s, once", h.ages, woken, purchase.InvoiceHoldTime)
		}
	})
}
