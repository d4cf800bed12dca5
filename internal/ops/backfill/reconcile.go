package backfill

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// Ledger is the ledger's side of a reconciliation.
type Ledger interface {
	// Payments returns the payments of a scope, and those with the given ids of any time, each once.
	Payments(ctx context.Context, s report.Scope, ids []string) ([]report.LedgerPayment, error)
	// FirstPayments returns which of the invoices are first payments: on the ledger, or by the ledger's rules
	// if it had received these trials and invoices, each oldest first. Held invoices are left out.
	FirstPayments(ctx context.Context, trials, invoices []purchase.Purchase) (ids []string, err error)
	PutReconciliation(ctx context.Context, r report.Reconciliation) error
}

// margin is left out at the end of Stripe's list: events expire from there while it is read.
const margin = time.Hour

// Reconciler compares Stripe's payments with the ledger and with what TikTok accepted.
type Reconciler struct {
	Rules    purchase.Rules
	List     List
	Ledger   Ledger
	Livemode bool // the API key's mode
	Progress func(Progress)
	Now      func() time.Time
}

// Do compares the payments since a time and stores the result for the dashboard. Stripe is read first, so
// that the ledger already has what webhooks bring meanwhile.
func (r *Reconciler) Do(ctx context.Context, since time.Time) (report.Reconciliation, error) {
	until := r.Now()
	if oldest := until.Add(margin - MaxAge); since.Before(oldest) {
		since = oldest
	}
	since = since.Truncate(time.Second) // Stripe's times are whole seconds
	result := report.Reconciliation{Made: until, Since: since, Until: until, Livemode: r.Livemode}
	payments, err := r.listPayments(ctx, since, until)
	if err != nil {
		return result, err
	}
	ids := make([]string, len(payments))
	for i := range payments {
		ids[i] = payments[i].ID
	}
	scope := report.Scope{
		Since: since, Until: until, Livemode: r.Livemode, Modes: slices.Sorted(maps.Keys(r.Rules.Modes)),
		FirstPayments: r.Rules.FirstPayment,
	}
	recorded, err := r.Ledger.Payments(ctx, scope, ids)
	if err != nil {
		return result, err
	}
	result.Days = report.Reconcile(payments, recorded)
	return result, r.Ledger.PutReconciliation(ctx, result)
}

// listed holds the contents of Stripe's list, newest first.
type listed struct {
	payments         []report.Payment
	trials, invoices []purchase.Purchase
}

// listPayments returns Stripe's payments.
func (r *Reconciler) listPayments(ctx context.Context, since, until time.Time) ([]report.Payment, error) {
	state := State{Since: since, Until: until}
	var found listed
	count := 0
	progress := func(wait time.Duration, cause error) {
		r.Progress(Progress{State: state, Now: Counts{Known: count}, Wait: wait, Cause: cause})
	}
	retry := retrier{
		now: r.Now, waits: progress,
		cursor:  func() string { return state.Cursor },
		restart: func() { found, count, state.Cursor = listed{}, 0, "" },
	}
	err := retry.run(ctx, func(ctx context.Context) error {
		for event, err := range r.List.Events(ctx, since, until, state.Cursor) {
			if err != nil {
				return err
			}
			r.add(&event, &found)
			count++
			if state.Cursor, state.Reached = event.ID, event.Created; count%pageSize == 0 {
				progress(0, nil)
			}
		}
		return nil
	})
	if err != nil || len(found.invoices) == 0 {
		return found.payments, err
	}
	return r.addFirstPayments(ctx, found)
}

// addFirstPayments returns the payments and the invoices that are first payments.
func (r *Reconciler) addFirstPayments(ctx context.Context, found listed) ([]report.Payment, error) {
	slices.Reverse(found.trials)
	slices.Reverse(found.invoices)
	ids, err := r.Ledger.FirstPayments(ctx, found.trials, found.invoices)
	if err != nil {
		return nil, err
	}
	first := make(map[string]bool, len(ids))
	for _, id := range ids {
		first[id] = true
	}
	for i := range found.invoices {
		if p := &found.invoices[i]; first[p.ID] {
			found.payments = append(found.payments, paymentOf(p, p.At))
		}
	}
	return found.payments, nil
}

// add appends the payment or trial of an event. It decides itself whether a checkout was paid, because a
// reconciliation must also find intake's mistakes. Strings are cloned, because they would keep the whole
// event in memory: a month may have 100,000.
func (r *Reconciler) add(e *purchase.Event, found *listed) {
	if e.Livemode != r.Livemode {
		return
	}
	p, decision, err := purchase.FromEvent(*e, r.Rules, e.Created)
	if err != nil || decision != purchase.DecisionRecord {
		return
	}
	for _, s := range []*string{&p.ID, &p.Subscription, &p.Currency} {
		*s = strings.Clone(*s)
	}
	switch {
	case e.Checkout != nil && hasMoney(e):
		found.payments = append(found.payments, paymentOf(&p, e.Created))
	case p.Kind == purchase.KindFirstPayment:
		p.Customer = ""
		found.invoices = append(found.invoices, p)
	case p.Trial:
		found.trials = append(found.trials, purchase.Purchase{
			ID: p.ID, Kind: p.Kind, Status: p.Status, Reason: p.Reason, Mode: p.Mode, Livemode: p.Livemode,
			At: p.At, Subscription: p.Subscription, Trial: true, PeriodStart: p.PeriodStart,
		})
	}
}

func paymentOf(p *purchase.Purchase, at time.Time) report.Payment {
	return report.Payment{ID: p.ID, At: at, AmountMinor: p.AmountMinor, Currency: p.Currency}
}

// hasMoney reports whether a checkout was paid. An amount of 0 is no sale, even with the status paid.
func hasMoney(e *purchase.Event) bool {
	paid := e.Type == purchase.TypeCompleted && e.Checkout.PaymentStatus == "paid"
	return (paid || e.Type == purchase.TypeAsyncSucceeded) && !e.Checkout.Free()
}
