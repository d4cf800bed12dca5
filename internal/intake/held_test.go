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

// held converts as many as it is told to.
type held struct {
	answers []int // -1 is an error
	asked   []time.Duration
}

func (h *held) ConvertHeld(_ context.Context, patience time.Duration) (int, error) {
	h.asked = append(h.asked, patience)
	if n := len(h.asked); n > len(h.answers) || h.answers[n-1] == 0 {
		return 0, nil
	} else if h.answers[n-1] < 0 {
		return 0, errors.New("connection refused")
	}
	return h.answers[len(h.asked)-1], nil
}

// Invoices that wait are looked at again and again, whatever an earlier look came to; the relay is woken
// for what became a purchase.
func TestConvertHeldInvoices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, woken := &held{answers: []int{0, -1, 2}}, 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := intake.ConvertHeldInvoices(h, func() { woken++ }, zap.NewNop())(ctx); err != nil {
			t.Error(err)
		}
		if len(h.asked) < 4 || h.asked[0] != purchase.InvoiceHoldTime || woken != 1 {
			t.Errorf("asked %v, woke %d", h.asked, woken)
		}
	})
}
