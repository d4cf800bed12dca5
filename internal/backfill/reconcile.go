package backfill

import (
	"context"
	"slices"
	"strings"
	"time"

	"purchase-relay/internal/purchase"
)

// Books are the ledger's side of a reconciliation. Standings returns the checkouts of some modes that were paid, or first heard of, in a
// time, and those of the ids whatever their time, each once.
type Books interface {
	Standings(ctx context.Context, since, until time.Time, livemode bool, modes, ids []string) ([]purchase.Standing, error)
	PutReconciliation(ctx context.Context, r purchase.Reconciliation) error
}

// edge is left out of a reconciliation where it reaches back as far as Stripe's list: events vanish from it while it is read.
const edge = time.Hour

// Reconciler holds Stripe's paid sessions against the ledger against TikTok's acceptances.
type Reconciler struct {
	List     List
	Books    Books
	Livemode bool            // the mode that the key sees
	Modes    map[string]bool // the checkout modes that count
	Progress func(Progress)
	Now      func() time.Time
}

// Do compares what was paid since a time, and keeps what it found for the dashboard. Stripe is asked first: what a webhook brings
// meanwhile is found on the ledger.
func (r *Reconciler) Do(ctx context.Context, since time.Time) (purchase.Reconciliation, error) {
	until := r.Now()
	if oldest := until.Add(edge - MaxAge); since.Before(oldest) {
		since = oldest
	}
	since = since.Truncate(time.Second) // as Stripe's times are
	report := purchase.Reconciliation{Made: until, Since: since, Until: until, Livemode: r.Livemode}
	paid, err := r.paid(ctx, since, until)
	if err != nil {
		return report, err
	}
	ids := make([]string, len(paid))
	for i := range paid {
		ids[i] = paid[i].ID
	}
	var modes []string
	for mode := range r.Modes {
		modes = append(modes, mode)
	}
	slices.Sort(modes)
	standings, err := r.Books.Standings(ctx, since, until, r.Livemode, modes, ids)
	if err != nil {
		return report, err
	}
	report.Days = purchase.Reconcile(paid, standings)
	return report, r.Books.PutReconciliation(ctx, report)
}

// paid lists what Stripe says was paid.
func (r *Reconciler) paid(ctx context.Context, since, until time.Time) (list []purchase.Payment, err error) {
	at := purchase.Backfill{Since: since, Until: until}
	count := 0
	tell := func(wait time.Duration, why error) {
		r.Progress(Progress{Backfill: at, Now: purchase.BackfillCounts{Known: count}, Waits: wait, Reason: why})
	}
	p := persistence{
		now: r.Now, tell: tell,
		cursor:  func() string { return at.Cursor },
		restart: func() { list, count, at.Cursor = nil, 0, "" },
	}
	err = p.walk(ctx, func(ctx context.Context) error {
		for event, err := range r.List.Events(ctx, since, until, at.Cursor) {
			if err != nil {
				return err
			}
			if payment, ok := r.payment(&event); ok {
				list = append(list, payment)
			}
			count++
			if at.Cursor, at.Reached = event.ID, event.Created; count%most == 0 {
				tell(0, nil)
			}
		}
		return nil
	})
	return list, err
}

// payment reads what an event says was paid. It does not ask the intake: that is what is held against it.
func (r *Reconciler) payment(e *purchase.Event) (p purchase.Payment, paid bool) {
	c := e.Checkout
	if c == nil || e.Livemode != r.Livemode || !r.Modes[c.Mode] || !purchase.ValidID(c.ID) {
		return p, false
	}
	switch e.Type {
	case purchase.TypeCompleted:
		paid = c.PaymentStatus == "paid"
	case purchase.TypeAsyncSucceeded:
		paid = true
	}
	p = purchase.Payment{ID: c.ID, At: e.Created}
	if c.AmountTotal != nil && *c.AmountTotal >= 0 {
		p.AmountMinor = c.AmountTotal
	}
	if purchase.ValidCurrency(c.Currency) {
		p.Currency = strings.ToLower(c.Currency)
	}
	return p, paid
}
