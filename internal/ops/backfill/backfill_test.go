package backfill_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/ops/backfill"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// refusal is Stripe's no.
type refusal struct {
	wait          time.Duration
	passing, gone bool
}

func (r *refusal) Error() string                    { return "no" }
func (r *refusal) Retryable() (time.Duration, bool) { return r.wait, r.passing }
func (r *refusal) CursorGone() bool                 { return r.gone }

// fake implements List, Intake, Journal, Ledger and Lead in memory. Its events are oldest first.
type fake struct {
	events  []purchase.Event
	fail    map[int]error // by the number of the event, counted over all calls of Events
	listed  int
	cursors []string // of the calls to Events
	waited  []time.Duration
	becomes map[string]purchase.Disposition

	mu        sync.Mutex
	taken     map[string]int
	ledgerErr map[string]int // by event: how often Take fails
	saved     map[string]backfill.State
	saves     []backfill.State
	left      []string
	recorded  []report.LedgerPayment
	scope     report.Scope
	first     []string // the invoices that are first payments
	trials    []purchase.Purchase
	invoices  []purchase.Purchase
	kept      []report.Reconciliation
	leads     bool
	released  bool
}

func newFake(n int) *fake {
	s := &fake{
		fail: map[int]error{}, becomes: map[string]purchase.Disposition{}, taken: map[string]int{},
		ledgerErr: map[string]int{}, saved: map[string]backfill.State{}, leads: true,
	}
	for i := range n {
		s.add(i, time.Now().Add(time.Duration(i-n)*time.Minute))
	}
	return s
}

func id(i int) string { return fmt.Sprintf("evt_%04d", i) }

func (s *fake) add(i int, at time.Time) {
	s.events = append(s.events, purchase.Event{
		ID: id(i), Type: purchase.TypeCompleted, Created: at.UTC().Truncate(time.Second),
		Checkout: &purchase.Checkout{
			ID: fmt.Sprintf("cs_%04d", i), Mode: "subscription", PaymentStatus: "paid",
			AmountTotal: new(int64(100)), Currency: "USD",
		},
	})
}

func (s *fake) Events(
	_ context.Context, since, until time.Time, after string,
) iter.Seq2[purchase.Event, error] {
	s.cursors = append(s.cursors, after)
	return func(yield func(purchase.Event, error) bool) {
		passed := after == ""
		for _, e := range slices.Backward(s.events) {
			switch {
			case !passed:
				passed = e.ID == after
				continue
			case e.Created.Before(since.Truncate(time.Second)) || e.Created.After(until):
				continue
			}
			s.listed++
			if err := s.fail[s.listed]; err != nil {
				yield(purchase.Event{}, err)
				return
			}
			if !yield(e, nil) {
				return
			}
		}
		if !passed {
			yield(purchase.Event{}, &refusal{gone: true})
		}
	}
}

func (s *fake) Take(
	_ context.Context, e purchase.Event, source purchase.Source,
) (purchase.Disposition, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ledgerErr[e.ID] > 0 {
		s.ledgerErr[e.ID]--
		return "", errors.New("the ledger is away")
	}
	if source != purchase.SourceBackfill {
		return "", fmt.Errorf("source = %q", source)
	}
	s.taken[e.ID]++
	switch d := s.becomes[e.ID]; d {
	case "":
	case purchase.Malformed:
		return d, errors.New("event without a type")
	default:
		return d, nil
	}
	if s.taken[e.ID] > 1 {
		return purchase.Duplicate, nil
	}
	return purchase.Processed, nil
}

func (s *fake) Backfill(_ context.Context, origin string) (backfill.State, error) {
	return s.saved[origin], nil
}

func (s *fake) PutBackfill(_ context.Context, b backfill.State) error {
	s.saved[b.Origin] = b
	s.saves = append(s.saves, b)
	return nil
}

func (s *fake) Payments(_ context.Context, scope report.Scope, _ []string) ([]report.LedgerPayment, error) {
	s.scope = scope
	return s.recorded, nil
}

func (s *fake) FirstPayments(_ context.Context, trials, invoices []purchase.Purchase) ([]string, error) {
	s.trials, s.invoices = trials, invoices
	return s.first, nil
}

// subscriptions returns rules that count subscriptions.
func subscriptions(r purchase.Rules) purchase.Rules {
	r.Modes = map[string]bool{"subscription": true}
	return r
}

func (s *fake) PutReconciliation(_ context.Context, r report.Reconciliation) error {
	s.kept = append(s.kept, r)
	return nil
}

func (s *fake) Hold(context.Context) (bool, error) {
	return s.leads, nil
}

func (s *fake) Release() { s.released = true }

func (s *fake) run(ctx context.Context, since time.Duration) (backfill.Counts, error) {
	r := backfill.Run{
		List: s, Intake: s, Journal: s, Now: time.Now,
		Progress: func(p backfill.Progress) {
			if p.Wait > 0 {
				s.waited = append(s.waited, p.Wait)
			}
		},
		Left: func(e purchase.Event, d purchase.Disposition) { s.left = append(s.left, e.ID+" "+string(d)) },
	}
	return r.Do(ctx, backfill.OriginCommand, time.Now().Add(-since), time.Now())
}

func TestRun_TakesEachEventOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newFake(300)
		s.becomes[id(299)], s.becomes[id(298)] = purchase.Ignored, purchase.Rejected
		s.becomes[id(297)], s.becomes[id(296)] = purchase.Malformed, purchase.Duplicate
		s.becomes[id(295)] = purchase.AwaitingPayment
		counts, err := s.run(t.Context(), 250*time.Minute)
		if err != nil || counts != (backfill.Counts{Known: 1, New: 246, Ignored: 1, Rejected: 1, Malformed: 1}) ||
			len(s.taken) != 250 {
			t.Errorf("counts = %+v, %v; taken %d", counts, err, len(s.taken))
		}
		if diff := cmp.Diff([]string{id(298) + " rejected", id(297) + " malformed"}, s.left); diff != "" {
			t.Error(diff)
		}
		b := s.saved[backfill.OriginCommand]
		if b.Finished.IsZero() || b.Cursor != id(50) || b.Counts != counts || len(s.saves) != 4 {
			t.Errorf("state = %+v after %d saves", b, len(s.saves))
		}
	})
}

func TestRun_DryRunStoresNoProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newFake(300)
		old := backfill.State{
			Origin: backfill.OriginCommand, Since: time.Now().Add(-10 * time.Hour), Until: time.Now(),
			Cursor: id(100), Reached: s.events[100].Created,
		}
		s.saved[backfill.OriginCommand] = old
		r := backfill.Run{
			List: s, Intake: s, Now: time.Now, Progress: func(backfill.Progress) {},
			Left: func(purchase.Event, purchase.Disposition) {},
		}
		counts, err := r.Do(t.Context(), backfill.OriginCommand, time.Now().Add(-10*time.Hour), time.Now())
		if err != nil || counts.Sum() != 300 {
			t.Errorf("counts = %+v, error %v, want 300", counts, err)
		}
		if len(s.saves) > 0 || s.saved[backfill.OriginCommand] != old {
			t.Errorf("%d saves, want none", len(s.saves))
		}
	})
}

// Events taken in are not listed again, and waits are at least as long as Stripe's Retry-After.
func TestRun_RetriesAfterFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newFake(300)
		s.fail[120] = &refusal{wait: 7 * time.Second, passing: true}
		s.fail[121] = &refusal{passing: true}
		s.ledgerErr[id(30)] = 1
		counts, err := s.run(t.Context(), 10*time.Hour)
		if err != nil || counts.Sum() != 300 || len(s.taken) != 300 {
			t.Fatalf("counts = %+v, %v", counts, err)
		}
		if diff := cmp.Diff([]string{"", id(181), id(181), id(81)}, s.cursors); diff != "" {
			t.Errorf("cursors (-want +got):\n%s", diff)
		}
		if len(s.waited) != 3 || s.waited[0] != 7*time.Second || s.waited[1] > time.Minute {
			t.Errorf("waits = %v", s.waited)
		}
	})
}

// A temporary failure ends the run after three minutes, a permanent one immediately.
func TestRun_EndsWithoutProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newFake(300)
		for i := range 200 {
			s.fail[151+i] = &refusal{passing: true}
		}
		began := time.Now()
		counts, err := s.run(t.Context(), 10*time.Hour)
		if took := time.Since(began); err == nil || counts.Sum() != 150 || took < 2*time.Minute ||
			took > 3*time.Minute {
			t.Errorf("counts = %+v, %v after %s", counts, err, took)
		}
		s.fail = map[int]error{s.listed + 1: &refusal{}}
		began = time.Now()
		if _, err := s.run(t.Context(), 10*time.Hour); err == nil || time.Since(began) > 0 {
			t.Errorf("error = %v after %s", err, time.Since(began))
		}
	})
}

// After the rest of the earlier run come the newer events; none is read twice.
func TestRun_Resumes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newFake(300)
		s.fail[201] = &refusal{}
		if counts, err := s.run(t.Context(), 10*time.Hour); err == nil || counts.Sum() != 200 {
			t.Fatalf("counts = %+v, %v", counts, err)
		}
		<-time.After(5 * time.Minute)
		s.add(300, time.Now().Add(-time.Minute))
		counts, err := s.run(t.Context(), 10*time.Hour)
		if err != nil || counts != (backfill.Counts{New: 101}) || len(s.taken) != 301 {
			t.Errorf("counts = %+v, %v", counts, err)
		}
		if b := s.saved[backfill.OriginCommand]; b.Finished.IsZero() || b.Counts.New != 301 {
			t.Errorf("state = %+v", b)
		}
		if diff := cmp.Diff([]string{"", id(100), ""}, s.cursors); diff != "" {
			t.Error(diff)
		}
	})
}

// The progress is outside the requested time, or Stripe no longer lists its event.
func TestRun_RestartsWithUnusableProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newFake(300)
		old := backfill.State{
			Origin: backfill.OriginCommand, Since: time.Now().Add(-10 * time.Hour), Until: time.Now(),
			Cursor: id(100), Reached: s.events[100].Created,
		}
		s.saved[backfill.OriginCommand] = old
		if counts, err := s.run(t.Context(), time.Hour); err != nil || counts.Sum() != 60 {
			t.Errorf("shorter time: counts = %+v, %v", counts, err)
		}
		old.Cursor = "evt_unknown"
		s.saved[backfill.OriginCommand] = old
		if counts, err := s.run(t.Context(), 10*time.Hour); err != nil || counts.Sum() != 300 {
			t.Errorf("unlisted cursor: counts = %+v, %v", counts, err)
		}
	})
}

func TestRun_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newFake(300)
		s.fail[101] = &refusal{wait: time.Minute, passing: true}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		counts, err := s.run(ctx, 10*time.Hour)
		if !errors.Is(err, context.DeadlineExceeded) || counts.Sum() != 100 ||
			s.saved[backfill.OriginCommand].Cursor != id(200) {
			t.Errorf("counts = %+v, %v", counts, err)
		}
	})
}

// An interrupted call is no reason to announce a retry.
func TestRun_DoesNotWaitAfterItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s := newFake(10)
		s.fail[1] = context.Canceled
		if _, err := s.run(ctx, time.Hour); !errors.Is(err, context.Canceled) || len(s.waited) > 0 {
			t.Errorf("run = %v, waited %v, want canceled without a wait", err, s.waited)
		}
	})
}

// check runs the periodic check for some time.
func (s *fake) check(
	t *testing.T, interval, length time.Duration,
) (*prometheus.Registry, *observer.ObservedLogs) {
	t.Helper()
	core, log := observer.New(zap.InfoLevel)
	registry := prometheus.NewRegistry()
	k := backfill.NewCheck(backfill.CheckConfig{
		Interval: interval, List: s, Intake: s, Journal: s, Lead: s, Ledger: s,
		Rules: subscriptions(purchase.Rules{}),
		Now:   time.Now,
	}, zap.New(core), registry)
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	if err := k.Run(ctx); err != nil || !s.released {
		t.Errorf("run: %v; released = %t, want true", err, s.released)
	}
	return registry, log
}

// Events younger than webhookDelay are left for the next run; those in the overlap are read twice.
func TestCheck_BackfillsAndReconciles(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newFake(300)
		registry, log := s.check(t, time.Hour, 150*time.Minute) // at 0, 60 and 120 minutes
		if len(s.taken) != 300 || s.taken[id(0)] != 1 || s.taken[id(220)] != 1 || s.taken[id(299)] != 2 {
			t.Errorf("taken %d events, the oldest %d times, the newest %d", len(s.taken), s.taken[id(0)],
				s.taken[id(299)])
		}
		if n, err := testutil.GatherAndCount(registry, "purchase_relay_backfill_events_total"); err != nil ||
			n != 5 {
			t.Errorf("series = %d, %v, want 5", n, err)
		}
		if missed := log.FilterMessage("Missed webhooks backfilled").All(); len(missed) != 2 ||
			missed[0].ContextMap()["events"] != int64(291) {
			t.Errorf("log = %v, want two lines, the first with 291 events", missed)
		}
		if len(s.kept) != 1 || s.kept[0].Counts()[report.DiffMissing] != 300 ||
			log.FilterMessage("Stripe, the ledger and TikTok differ").Len() != 1 {
			t.Errorf("reconciliations = %d, want 1 with its log line", len(s.kept))
		}
	})
}

func TestCheck_OnlyTheLeaderRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newFake(10)
		s.leads = false
		s.check(t, time.Minute, time.Hour)
		if len(s.taken) > 0 || len(s.kept) > 0 {
			t.Errorf("taken %d events, want 0", len(s.taken))
		}
	})
}

func TestCheck_LogsRepeatedErrorOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newFake(300)
		for i := 1; i <= 3; i++ {
			s.fail[i] = &refusal{}
		}
		_, log := s.check(t, time.Hour, 4*time.Hour)
		if log.FilterMessageSnippet("Backfill check failed").Len() != 1 || len(s.taken) != 300 {
			t.Errorf("taken %d events, want 300; log %v", len(s.taken), log.All())
		}
	})
}

func reconciler(s *fake, r purchase.Rules) backfill.Reconciler {
	return backfill.Reconciler{
		Rules: subscriptions(r), List: s, Ledger: s, Progress: func(backfill.Progress) {}, Now: time.Now,
	}
}

func TestReconciler_ComparesPaidCheckouts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newFake(10)
		at := time.Now()
		for i, change := range []func(e *purchase.Event){
			func(e *purchase.Event) { e.Livemode = true },
			func(e *purchase.Event) { e.Checkout.Mode = "setup" },
			func(e *purchase.Event) { e.Checkout.PaymentStatus = "unpaid" },
			func(e *purchase.Event) { e.Checkout = nil },
			func(e *purchase.Event) { e.Type = purchase.TypeAsyncFailed },
			func(e *purchase.Event) { e.Type, e.Checkout.PaymentStatus = purchase.TypeAsyncSucceeded, "unpaid" },
			func(e *purchase.Event) { e.Checkout.ID = "cs_0000" },              // a second event of one payment
			func(e *purchase.Event) { e.Checkout.AmountTotal = new(int64(0)) }, // paid, and nothing
		} {
			s.add(10+i, at)
			change(&s.events[10+i])
		}
		s.fail[4] = &refusal{wait: time.Second, passing: true}
		r := reconciler(s, purchase.Rules{})
		found, err := r.Do(t.Context(), time.Now().Add(-time.Hour))
		if err != nil || len(s.kept) != 1 {
			t.Fatal(err)
		}
		missing := 0
		for _, d := range found.Days {
			missing += len(d.Differ[report.DiffMissing])
			if d.Currency != "USD" || d.Paid.Minor != int64(d.Paid.Count)*100 {
				t.Errorf("%+v", d)
			}
		}
		if missing != 11 {
			t.Errorf("missing = %d, want 11", missing)
		}
		// As far as Stripe's list reaches, less an hour: its end moves while it is read.
		if found, err = r.Do(t.Context(), time.Now().AddDate(-1, 0, 0)); err != nil ||
			found.Until.Sub(found.Since) > backfill.MaxAge-time.Hour+time.Second {
			t.Errorf("since = %s, %v", found.Since, err)
		}
	})
}

// Trials are left out, and so are invoices that are no first payments.
func TestReconciler_ComparesFirstPayments(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newFake(0)
		began := time.Now()
		trial := func(n int, subscription string) {
			s.add(n, began.Add(time.Duration(n-100)*time.Minute))
			c := s.events[len(s.events)-1].Checkout
			c.PaymentStatus, c.AmountTotal, c.Subscription = "no_payment_required", new(int64(0)), subscription
			c.Email = "buyer@example.com"
		}
		invoice := func(n int, subscription string, amount int64) {
			s.events = append(s.events, purchase.Event{
				ID: id(n), Type: purchase.TypeInvoicePaid, Created: began.Add(time.Duration(n-100) * time.Minute).UTC(),
				Invoice: &purchase.Invoice{
					ID: fmt.Sprintf("in_%04d", n), Subscription: subscription, AmountPaid: &amount, Currency: "EUR",
				},
			})
		}
		trial(1, "sub_1")
		s.add(2, began.Add(-98*time.Minute)) // a sale
		trial(3, "sub_3")
		invoice(4, "sub_1", 0)
		invoice(5, "sub_1", 4900)
		invoice(6, "sub_3", 1900)
		invoice(7, "sub_3", 1900)
		s.first = []string{"in_0005", "in_0006"}
		taken := report.Payment{ID: "in_0006", At: began, AmountMinor: new(int64(1900)), Currency: "eur"}
		s.recorded = []report.LedgerPayment{{Payment: taken, Status: purchase.StatusDelivered}}
		r := reconciler(s, purchase.Rules{TrialEvent: "StartTrial", FirstPayment: true})
		found, err := r.Do(t.Context(), began.Add(-24*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		var missing []string
		for _, d := range found.Days {
			missing = append(missing, d.Differ[report.DiffMissing]...)
		}
		slices.Sort(missing)
		if diff := cmp.Diff([]string{"cs_0002", "in_0005"}, missing); diff != "" || found.ToReview() != 2 {
			t.Errorf("%d to review, missing (-want +got):\n%s", found.ToReview(), diff)
		}
		ids := func(list []purchase.Purchase) (ids []string) {
			for _, p := range list {
				ids = append(ids, p.ID+" "+p.Subscription)
			}
			return ids
		}
		if diff := cmp.Diff([]string{"cs_0001 sub_1", "cs_0003 sub_3"}, ids(s.trials)); diff != "" {
			t.Errorf("trials, oldest first (-want +got):\n%s", diff)
		}
		wanted := []string{"in_0005 sub_1", "in_0006 sub_3", "in_0007 sub_3"}
		if diff := cmp.Diff(wanted, ids(s.invoices)); diff != "" {
			t.Errorf("invoices, oldest first (-want +got):\n%s", diff)
		}
		if !s.scope.FirstPayments {
			t.Error("scope.FirstPayments = false, want true")
		}
		// Without FIRST_PAYMENT none is compared, on either side.
		r.Rules, s.invoices = subscriptions(purchase.Rules{TrialEvent: "StartTrial"}), nil
		s.recorded = nil
		if found, err = r.Do(t.Context(), began.Add(-24*time.Hour)); err != nil || found.ToReview() != 1 {
			t.Errorf("FIRST_PAYMENT off: %d to review, %v, want 1", found.ToReview(), err)
		}
		if s.invoices != nil || s.scope.FirstPayments {
			t.Errorf("FIRST_PAYMENT off: %d invoices read, scope %+v", len(s.invoices), s.scope)
		}
	})
}

// Otherwise both would differ forever.
func TestReconciler_CountsMoneyAsTheLedgerDoes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for basis, want := range map[purchase.ValueBasis]int64{
			purchase.ValueTotal: 200, purchase.ValueNet: 100 + 70,
		} {
			s := newFake(0)
			for i, change := range []func(c *purchase.Checkout){
				func(*purchase.Checkout) {},
				func(c *purchase.Checkout) { c.Tax, c.Shipping = new(int64(20)), new(int64(10)) },
				func(c *purchase.Checkout) { c.AmountTotal = new(int64(0)) }, // a full discount, called paid
			} {
				s.add(i, time.Now())
				change(s.events[i].Checkout)
			}
			r := reconciler(s, purchase.Rules{Value: basis})
			found, err := r.Do(t.Context(), time.Now().Add(-time.Hour))
			if err != nil || len(found.Days) != 1 || found.Days[0].Paid != (report.Totals{Count: 2, Minor: want}) {
				t.Errorf("VALUE=%s: %+v, error %v, want 2 of %d", basis, found.Days, err, want)
			}
		}
	})
}
