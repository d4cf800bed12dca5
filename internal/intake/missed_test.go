package intake_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/intake"
	"purchase-relay/internal/purchase"
)

// foresight is a ledger that only says what it would do.
type foresight struct {
	ledger
}

func (f *foresight) Foresee(ctx context.Context, r purchase.Receipt) (purchase.Disposition, error) {
	recorded, err := f.Record(ctx, r)
	return recorded.Disposition, err
}

// An event of Stripe's list takes the webhook's way: proposed alike, recorded alike and marked as caught up, and sent onward.
func TestMissed(t *testing.T) {
	away := errors.New("away")
	for name, tc := range map[string]struct {
		change   func(e *purchase.Event)
		recorded purchase.Recorded
		err      error
		want     purchase.Disposition
		receipts int
		woken    int
		logged   string
	}{
		"new":          {func(*purchase.Event) {}, purchase.Recorded{Disposition: purchase.Processed, ProfileID: "p1", ProfileCreated: true}, nil, purchase.Processed, 1, 1, "Profile created"},
		"known":        {func(*purchase.Event) {}, purchase.Recorded{Disposition: purchase.Duplicate}, nil, purchase.Duplicate, 1, 0, ""},
		"rejected":     {func(e *purchase.Event) { e.Checkout.Email = "" }, purchase.Recorded{Disposition: purchase.Rejected}, nil, purchase.Rejected, 1, 0, "Invalid email"},
		"not ours":     {func(e *purchase.Event) { e.Checkout.Mode = "setup" }, purchase.Recorded{}, nil, purchase.Ignored, 0, 0, ""},
		"no checkout":  {func(e *purchase.Event) { e.Checkout = nil }, purchase.Recorded{}, nil, purchase.Malformed, 0, 0, "Malformed event"},
		"unreadable":   {func(e *purchase.Event) { *e = purchase.Event{ID: "evt_1"} }, purchase.Recorded{}, nil, purchase.Malformed, 0, 0, "Malformed event"},
		"ledger away":  {func(*purchase.Event) {}, purchase.Recorded{}, away, "", 1, 0, ""},
		"async, first": {func(e *purchase.Event) { e.Checkout.PaymentStatus = "unpaid" }, purchase.Recorded{Disposition: purchase.AwaitingPayment}, nil, purchase.AwaitingPayment, 1, 0, "Awaiting payment"},
	} {
		l := &foresight{ledger{recorded: tc.recorded, err: tc.err}}
		o := &onward{}
		core, log := observer.New(zap.InfoLevel)
		h := intake.NewHandler(nil, l, purchase.Rules{Modes: map[string]bool{"subscription": true}}, o, func() time.Time { return received }, zap.New(core), prometheus.NewRegistry())
		d, err := h.Missed(t.Context(), event(tc.change))
		if d != tc.want || !errors.Is(err, tc.err) || len(l.got) != tc.receipts || o.woken != tc.woken {
			t.Errorf("%s: %q, %v; %d receipts, woken %d times", name, d, err, len(l.got), o.woken)
		}
		for _, r := range l.got {
			if !r.CaughtUp || r.Event.ID != "evt_1" || r.Purchase.ID != "cs_1" {
				t.Errorf("%s: %+v", name, r)
			}
		}
		if tc.logged == "" && log.Len() > 0 || tc.logged != "" && log.FilterMessage(tc.logged).Len() != 1 || log.FilterMessage("Signature verified").Len() > 0 {
			t.Errorf("%s: logged %v", name, log.All())
		}
		r := intake.Rehearsal{Ledger: l, Rules: purchase.Rules{Modes: map[string]bool{"subscription": true}}, Now: func() time.Time { return received }}
		if d, err := r.Missed(t.Context(), event(tc.change)); d != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%s, rehearsed: %q, %v", name, d, err)
		}
	}
}
