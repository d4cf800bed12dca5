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

// shop is Stripe's list, oldest first, the ledger and its journal, in memory.
type shop struct {
	events  []purchase.Event
	fail    map[int]error // by the number of the event that is not listed, counted over all walks
	listed  int
	asked   []string // the cursors
	waited  []time.Duration
	becomes map[string]purchase.Disposition

	mu        sync.Mutex
	taken     map[string]int
	ledgerErr map[string]int // by event: how often the ledger is away
	saved     map[string]backfill.State
	saves     []backfill.State
	left      []string
	standings []report.LedgerPayment
	scope     report.Scope
	first     []string // the invoices that are first payments
	trials    []purchase.Purchase
	invoices  []purchase.Purchase
	kept      []report.Reconciliation
	leads     bool
	released  bool
}

func newShop(n int) *shop {
	s := &shop{
		fail: map[int]error{}, becomes: map[string]purchase.Disposition{}, taken: map[string]int{}, ledgerErr: map[string]int{}, saved: map[string]backfill.State{}, leads: true,
	}
	for i := range n {
		s.add(i, time.Now().Add(time.Duration(i-n)*time.Minute))
	}
	return s
}

func id(i int) string { return fmt.Sprintf("evt_%04d", i) }

func (s *shop) add(i int, at time.Time) {
	s.events = append(s.events, purchase.Event{
		ID: id(i), Type: purchase.TypeCompleted, Created: at.UTC().Truncate(time.Second),
		Checkout: &purchase.Checkout{ID: fmt.Sprintf("cs_%04d", i), Mode: "subscription", PaymentStatus: "paid", AmountTotal: new(int64(100)), Currency: "USD"},
	})
}

func (s *shop) Events(_ context.Context, since, until time.Time, after string) iter.Seq2[purchase.Event, error] {
	s.asked = append(s.asked, after)
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

func (s *shop) Take(_ context.Context, e purchase.Event, source purchase.Source) (purchase.Disposition, error) {
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

func (s *shop) Backfill(_ context.Context, origin string) (backfill.State, error) {
	return s.saved[origin], nil
}

func (s *shop) PutBackfill(_ context.Context, b backfill.State) error {
	s.saved[b.Origin] = b
	s.saves = append(s.saves, b)
	return nil
}

func (s *shop) Payments(_ context.Context, scope report.Scope, _ []string) ([]report.LedgerPayment, error) {
	s.scope = scope
	return s.standings, nil
}

func (s *shop) FirstPayments(_ context.Context, trials, invoices []purchase.Purchase) ([]string, error) {
	s.trials, s.invoices = trials, invoices
	return s.first, nil
}

// subscriptions returns rules that count subscriptions.
func subscriptions(r purchase.Rules) purchase.Rules {
	r.Modes = map[string]bool{"subscription": true}
	return r
}

func (s *shop) PutReconciliation(_ context.Context, r report.Reconciliation) error {
	s.kept = append(s.kept, r)
	return nil
}

func (s *shop) Hold(context.Context) (bool, error) { return s.leads, nil }
func (s *shop) Release()                           { s.released = true }

func (s *shop) run(ctx context.Context, since time.Duration) (backfill.Counts, error) {
	r := backfill.Run{
		List: s, Intake: s, Journal: s, Now: time.Now,
		Progress: func(p backfill.Progress) {
			if p.Waits > 0 {
				s.waited = append(s.waited, p.Waits)
			}
		},
		Left: func(e purchase.Event, d purchase.Disposition) { s.left = append(s.left, e.ID+" "+string(d)) },
	}
	return r.Do(ctx, backfill.OriginCommand, time.Now().Add(-since), time.Now())
}

// Everything of a time is taken once, the newest first, and counted by what became of it.
func TestRun_TakesEachEventOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShop(300)
		s.becomes[id(299)], s.becomes[id(298)] = purchase.Ignored, purchase.Rejected
		s.becomes[id(297)], s.becomes[id(296)] = purchase.Malformed, purchase.Duplicate
		s.becomes[id(295)] = purchase.AwaitingPayment
		counts, err := s.run(t.Context(), 250*time.Minute)
		if err != nil || counts != (backfill.Counts{Known: 1, New: 246, Ignored: 1, Rejected: 1, Malformed: 1}) || len(s.taken) != 250 {
			t.Errorf("%+v, %v; %d were taken", counts, err, len(s.taken))
		}
		if diff := cmp.Diff([]string{id(298) + " rejected", id(297) + " malformed"}, s.left); diff != "" {
			t.Error(diff)
		}
		b := s.saved[backfill.OriginCommand]
		if b.Finished.IsZero() || b.Cursor != id(50) || b.Counts != counts || len(s.saves) != 4 {
			t.Errorf("%+v after %d saves", b, len(s.saves))
		}
	})
}

// A dry run walks over the same events, from the newest one, and stores no progress.
func TestRun_DryRunStoresNoProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShop(300)
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

// Stripe asks to wait, fails, breaks off; the ledger goes away: what was done is not asked for again, and waits are as long as asked.
func TestRun_RetriesAfterFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShop(300)
		s.fail[120] = &refusal{wait: 7 * time.Second, passing: true}
		s.fail[121] = &refusal{passing: true}
		s.ledgerErr[id(30)] = 1
		counts, err := s.run(t.Context(), 10*time.Hour)
		if err != nil || counts.Sum() != 300 || len(s.taken) != 300 {
			t.Fatalf("%+v, %v", counts, err)
		}
		if diff := cmp.Diff([]string{"", id(181), id(181), id(81)}, s.asked); diff != "" {
			t.Errorf("cursors: %s", diff)
		}
		if len(s.waited) != 3 || s.waited[0] != 7*time.Second || s.waited[1] > time.Minute {
			t.Errorf("waits: %v", s.waited)
		}
	})
}

// A neighbour that stays away ends the run, after three minutes without progress; one that says no for good, at once.
func TestRun_EndsWithoutProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShop(300)
		for i := range 200 {
			s.fail[151+i] = &refusal{passing: true}
		}
		began := time.Now()
		counts, err := s.run(t.Context(), 10*time.Hour)
		if took := time.Since(began); err == nil || counts.Sum() != 150 || took < 2*time.Minute || took > 3*time.Minute {
			t.Errorf("%+v, %v after %s", counts, err, took)
		}
		s.fail = map[int]error{s.listed + 1: &refusal{}}
		began = time.Now()
		if _, err := s.run(t.Context(), 10*time.Hour); err == nil || time.Since(began) > 0 {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

// A run that died goes on where it was, and then takes what came since: nothing is walked over twice.
func TestRun_Resumes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShop(300)
		s.fail[201] = &refusal{}
		if counts, err := s.run(t.Context(), 10*time.Hour); err == nil || counts.Sum() != 200 {
			t.Fatalf("%+v, %v", counts, err)
		}
		<-time.After(5 * time.Minute)
		s.add(300, time.Now().Add(-time.Minute))
		counts, err := s.run(t.Context(), 10*time.Hour)
		if err != nil || counts != (backfill.Counts{New: 101}) || len(s.taken) != 301 {
			t.Errorf("%+v, %v", counts, err)
		}
		if b := s.saved[backfill.OriginCommand]; b.Finished.IsZero() || b.Counts.New != 301 {
			t.Errorf("remembered: %+v", b)
		}
		if diff := cmp.Diff([]string{"", id(100), ""}, s.asked); diff != "" {
			t.Error(diff)
		}
	})
}

// Where the one before came is of no use: it is past what is asked for now, or Stripe does not know the event any more.
func TestRun_RestartsWithUnusableProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShop(300)
		old := backfill.State{Origin: backfill.OriginCommand, Since: time.Now().Add(-10 * time.Hour), Until: time.Now(), Cursor: id(100), Reached: s.events[100].Created}
		s.saved[backfill.OriginCommand] = old
		if counts, err := s.run(t.Context(), time.Hour); err != nil || counts.Sum() != 60 {
			t.Errorf("less is asked for: %+v, %v", counts, err)
		}
		old.Cursor = "evt_unheard_of"
		s.saved[backfill.OriginCommand] = old
		if counts, err := s.run(t.Context(), 10*time.Hour); err != nil || counts.Sum() != 300 {
			t.Errorf("an event that is gone: %+v, %v", counts, err)
		}
	})
}

func TestRun_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShop(300)
		s.fail[101] = &refusal{wait: time.Minute, passing: true}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		counts, err := s.run(ctx, 10*time.Hour)
		if !errors.Is(err, context.DeadlineExceeded) || counts.Sum() != 100 || s.saved[backfill.OriginCommand].Cursor != id(200) {
			t.Errorf("%+v, %v", counts, err)
		}
	})
}

// check runs ingest's own check for a time.
func (s *shop) check(t *testing.T, interval, length time.Duration) (*prometheus.Registry, *observer.ObservedLogs) {
	t.Helper()
	core, log := observer.New(zap.InfoLevel)
	registry := prometheus.NewRegistry()
	k := backfill.NewCheck(backfill.CheckConfig{
		Interval: interval, List: s, Intake: s, Journal: s, Lead: s, Books: s, Rules: subscriptions(purchase.Rules{}),
		Now: time.Now,
	}, zap.New(core), registry)
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	if err := k.Run(ctx); err != nil || !s.released {
		t.Errorf("%v; released %v", err, s.released)
	}
	return registry, log
}

// The check looks at what is old enough to have had its webhook, each event once or, where two looks overlap, twice, and tells what came by it.
func TestCheck_BackfillsAndReconciles(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShop(300)
		registry, log := s.check(t, time.Hour, 150*time.Minute) // at 0, 60 and 120 minutes
		if len(s.taken) != 300 || s.taken[id(0)] != 1 || s.taken[id(220)] != 1 || s.taken[id(299)] != 2 {
			t.Errorf("%d were taken, the oldest %d, the newest %d times", len(s.taken), s.taken[id(0)], s.taken[id(299)])
		}
		if n, err := testutil.GatherAndCount(registry, "purchase_relay_backfill_events_total"); err != nil || n != 5 {
			t.Errorf("%d series, %v", n, err)
		}
		if told := log.FilterMessage("Missed webhooks backfilled").All(); len(told) != 2 || told[0].ContextMap()["events"] != int64(291) {
			t.Errorf("told: %v", told)
		}
		// Once a day, and what is missing is told.
		if len(s.kept) != 1 || s.kept[0].Counts()[report.DiffMissing] != 300 || log.FilterMessage("Stripe, the ledger and TikTok differ").Len() != 1 {
			t.Errorf("%d reconciliations", len(s.kept))
		}
	})
}

func TestCheck_OnlyTheLeaderRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShop(10)
		s.leads = false
		s.check(t, time.Minute, time.Hour)
		if len(s.taken) > 0 || len(s.kept) > 0 {
			t.Errorf("%d were taken", len(s.taken))
		}
	})
}

// A check that fails says so once, and goes on with the same.
func TestCheck_LogsAnErrorOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShop(300)
		for i := 1; i <= 3; i++ {
			s.fail[i] = &refusal{}
		}
		_, log := s.check(t, time.Hour, 4*time.Hour)
		if log.FilterMessageSnippet("Backfill check failed").Len() != 1 || len(s.taken) != 300 {
			t.Errorf("%d were taken; %v", len(s.taken), log.All())
		}
	})
}

func reconciler(s *shop, r purchase.Rules) backfill.Reconciler {
	return backfill.Reconciler{Rules: subscriptions(r), List: s, Books: s, Progress: func(backfill.Progress) {}, Now: time.Now}
}

// Stripe's side of a reconciliation is what was paid in the key's mode and the checkout modes that count.
func TestReconciler_ComparesPaidCheckouts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShop(10)
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
			t.Errorf("%d missing", missing)
		}
		// As far as Stripe's list reaches, less an hour: its end moves while it is read.
		if found, err = r.Do(t.Context(), time.Now().AddDate(-1, 0, 0)); err != nil || found.Until.Sub(found.Since) > backfill.MaxAge-time.Hour+time.Second {
			t.Errorf("since %s, %v", found.Since, err)
		}
	})
}

// Trials stay out of the comparison, sent or not; of the invoices those count that the ledger's rules make
// first payments.
func TestReconciler_ComparesFirstPayments(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShop(0)
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
		s.standings = []report.LedgerPayment{{Payment: taken, Status: purchase.StatusDelivered}}
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
		if diff := cmp.Diff([]string{"cs_0002", "in_0005"}, missing); diff != "" || found.Open() != 2 {
			t.Errorf("%d open, missing (-want +got):\n%s", found.Open(), diff)
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
			t.Error("the ledger's first payments were left out")
		}
		// Without FIRST_PAYMENT none is compared, on either side.
		r.Rules, s.invoices = subscriptions(purchase.Rules{TrialEvent: "StartTrial"}), nil
		s.standings = nil
		if found, err = r.Do(t.Context(), began.Add(-24*time.Hour)); err != nil || found.Open() != 1 {
			t.Errorf("switched off: %d open, %v, want the one sale", found.Open(), err)
		}
		if s.invoices != nil || s.scope.FirstPayments {
			t.Errorf("switched off: %d invoices were looked at, scope %+v", len(s.invoices), s.scope)
		}
	})
}

// A checkout of nothing was not paid, whatever Stripe calls it, and the value is the one that the ledger has:
// else both would differ for ever.
func TestReconciler_CountsMoneyAsTheLedgerDoes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for basis, want := range map[purchase.ValueBasis]int64{purchase.ValueTotal: 200, purchase.ValueNet: 100 + 70} {
			s := newShop(0)
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
