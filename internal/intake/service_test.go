package intake_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/intake"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/stripegen"
)

// publisher is an intake.Publisher that stores its calls.
type publisher struct {
	ready bool

	mu       sync.Mutex
	woken    int
	enqueued []enqueued
}

type enqueued struct{ id, message string }

func (p *publisher) Ready() bool { return p.ready }

func (p *publisher) Wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.woken++
}

func (p *publisher) Enqueue(q purchase.Purchase, recorded purchase.Recorded) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enqueued = append(p.enqueued, enqueued{q.ID, string(recorded.Message)})
}

// If the publisher is ready, a purchase is claimed while it is recorded, and enqueued after the commit.
func TestService_ClaimsAndEnqueues(t *testing.T) {
	t.Parallel()
	c := stripegen.NewCheckout()
	for _, ready := range []bool{true, false} {
		e := newEndpoint(t, purchase.Rules{}, nil)
		e.publisher.ready = ready
		want, woken := []enqueued(nil), 1
		if ready {
			e.ledger.recorded.Message, e.ledger.recorded.Claimed = []byte("message"), time.Now()
			want, woken = []enqueued{{c.SessionID, "message"}}, 0
		}
		e.post(c.Event(), 200)
		r := e.ledger.receipts[0]
		if r.Claim != ready || r.Source != purchase.SourceWebhook || r.DryRun || e.publisher.woken != woken {
			t.Errorf("ready %v: receipt = %+v, woken %d times, want %d", ready, r, e.publisher.woken, woken)
		}
		if diff := cmp.Diff(want, e.publisher.enqueued, cmp.AllowUnexported(enqueued{})); diff != "" {
			t.Errorf("ready %v: enqueued (-want +got):\n%s", ready, diff)
		}
	}
}

// The held invoice of a trial becomes another pending purchase.
func TestService_WakesForConvertedInvoice(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t, purchase.Rules{FirstPayment: true}, nil)
	e.ledger.recorded.FirstPayment = "in_1"
	e.post(stripegen.NewCheckout().Trial().Event(), 200)
	if e.publisher.woken != 1 {
		t.Errorf("woken %d times, want once", e.publisher.woken)
	}
}

func event(change func(e *purchase.Event)) purchase.Event {
	e := purchase.Event{
		ID: "evt_1", Type: purchase.TypeCompleted, Created: time.Now().Add(-time.Minute), Livemode: true,
		Checkout: &purchase.Checkout{
			ID: "cs_1", Mode: "subscription", PaymentStatus: "paid", AmountTotal: new(int64(2999)), Currency: "USD",
			Email: "buyer@example.com",
		},
	}
	change(&e)
	return e
}

// A dry run returns the same disposition without logs, metrics and wake-ups.
func TestService_TakesBackfilledEvents(t *testing.T) {
	t.Parallel()
	unavailable := errors.New("unavailable")
	none := purchase.Recorded{}
	created := purchase.Recorded{Disposition: purchase.Processed, ProfileID: "p1", ProfileCreated: true}
	recordedAs := func(d purchase.Disposition) purchase.Recorded { return purchase.Recorded{Disposition: d} }
	asIs := func(*purchase.Event) {}
	for name, tc := range map[string]struct {
		change   func(e *purchase.Event)
		recorded purchase.Recorded
		err      error // the ledger's
		want     purchase.Disposition
		receipts int
		woken    int
		logged   string
	}{
		"new":   {asIs, created, nil, purchase.Processed, 1, 1, "Profile created"},
		"known": {asIs, recordedAs(purchase.Duplicate), nil, purchase.Duplicate, 1, 0, ""},
		"rejected": {
			func(e *purchase.Event) { e.Checkout.Email = "" },
			recordedAs(purchase.Rejected), nil, purchase.Rejected, 1, 0, "Invalid email",
		},
		"awaiting payment": {
			func(e *purchase.Event) { e.Checkout.PaymentStatus = "unpaid" },
			recordedAs(purchase.AwaitingPayment), nil, purchase.AwaitingPayment, 1, 0, "Awaiting payment",
		},
		"other mode": {
			func(e *purchase.Event) { e.Checkout.Mode = "setup" },
			none, nil, purchase.Ignored, 0, 0, "",
		},
		"no checkout": {
			func(e *purchase.Event) { e.Checkout = nil },
			none, nil, purchase.Malformed, 0, 0, "Malformed event",
		},
		"ledger unavailable": {asIs, none, unavailable, "", 1, 0, ""},
	} {
		for _, dry := range []bool{false, true} {
			l, p := &ledger{recorded: tc.recorded, err: tc.err}, &publisher{ready: true}
			core, log := observer.New(zap.InfoLevel)
			reg := prometheus.NewRegistry()
			s := intake.NewService(intake.Config{
				Ledger: l, Rules: purchase.Rules{Modes: map[string]bool{"subscription": true}}, Publisher: p,
				DryRun: dry, Now: time.Now,
			}, zap.New(core), reg)
			d, err := s.Take(t.Context(), event(tc.change), purchase.SourceBackfill)
			if d != tc.want || (err != nil) != (tc.err != nil || tc.want == purchase.Malformed) {
				t.Errorf("%s, dry %v: disposition = %q, error = %v, want %q", name, dry, d, err, tc.want)
			}
			if len(l.receipts) != tc.receipts {
				t.Errorf("%s, dry %v: %d receipts, want %d", name, dry, len(l.receipts), tc.receipts)
			}
			for _, r := range l.receipts {
				if r.Source != purchase.SourceBackfill || r.DryRun != dry || r.Claim == dry || r.Purchase.ID != "cs_1" {
					t.Errorf("%s, dry %v: receipt = %+v", name, dry, r)
				}
			}
			logged, woken := tc.logged, tc.woken
			if dry {
				logged, woken = "", 0
				if n, err := testutil.GatherAndCount(reg); n > 0 || err != nil {
					t.Errorf("%s: a dry run exports %d metrics, error = %v, want none", name, n, err)
				}
			}
			if p.woken != woken {
				t.Errorf("%s, dry %v: woken %d times, want %d", name, dry, p.woken, woken)
			}
			if logged == "" && log.Len() > 0 || logged != "" && log.FilterMessage(logged).Len() != 1 {
				t.Errorf("%s, dry %v: log = %v, want %q", name, dry, log.All(), logged)
			}
			if log.FilterMessage("Signature verified").Len() > 0 {
				t.Errorf("%s, dry %v: log = %v, want no signature", name, dry, log.All())
			}
		}
	}
}
