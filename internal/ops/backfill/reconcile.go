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

// Ledger are the ledger's side of a reconciliation.
type Ledger interface {
	// Payments returns what a scope holds, by the time of payment or, while unpaid, of the first event, and
	// those of the ids whatever their time, each once.
	Payments(ctx context.Context, s report.Scope, ids []string) ([]report.LedgerPayment, error)
	// FirstPayments returns which of the invoices are first payments: those that the ledger has taken as
	// such, and those that it would take if it had received these trials and invoices, each oldest first. One
	// that waits on the ledger is none yet.
	FirstPayments(ctx context.Context, trials, invoices []purchase.Purchase) (ids []string, err error)
	PutReconciliation(ctx context.Context, r report.Reconciliation) error
}

// edge is left out of a reconciliation where it reaches back as far as Stripe's list: events vanish from it while it is read.
const edge = time.Hour

// Reconciler compares Stripe's payments with the ledger and with what TikTok accepted.
type Reconciler struct {
	Rules    purchase.Rules
	List     List
	Ledger   Ledger
	Livemode bool // the mode that the key sees
	Progress func(Progress)
	Now      func() time.Time
}

// Do compares what was paid since a time, and keeps what it found for the dashboard. Stripe is asked first: what a webhook brings
// meanwhile is found on the ledger.
func (r *Reconciler) Do(ctx context.Context, since time.Time) (report.Reconciliation, error) {
	until := r.Now()
	if oldest := until.Add(edge - MaxAge); since.Before(oldest) {
		since = oldest
	}
	since = since.Truncate(time.Second) // as Stripe's times are
	found := report.Reconciliation{Made: until, Since: since, Until: until, Livemode: r.Livemode}
	paid, err := r.paid(ctx, since, until)
	if err != nil {
		return found, err
	}
	ids := make([]string, len(paid))
	for i := range paid {
		ids[i] = paid[i].ID
	}
	scope := report.Scope{
		Since: since, Until: until, Livemode: r.Livemode, Modes: slices.Sorted(maps.Keys(r.Rules.Modes)),
		FirstPayments: r.Rules.FirstPayment,
	}
	recorded, err := r.Ledger.Payments(ctx, scope, ids)
	if err != nil {
		return found, err
	}
	found.Days = report.Reconcile(paid, recorded)
	return found, r.Ledger.PutReconciliation(ctx, found)
}

// listed is what a walk through Stripe's list found, newest first.
type listed struct {
	payments         []report.Payment
	trials, invoices []purchase.Purchase
}

// paid lists what was paid according to Stripe.
func (r *Reconciler) paid(ctx context.Context, since, until time.Time) ([]report.Payment, error) {
	at := State{Since: since, Until: until}
	var found listed
	count := 0
	tell := func(wait time.Duration, why error) {
		r.Progress(Progress{State: at, Now: Counts{Known: count}, Wait: wait, Cause: why})
	}
	retry := retrier{
		now: r.Now, waits: tell,
		cursor:  func() string { return at.Cursor },
		restart: func() { found, count, at.Cursor = listed{}, 0, "" },
	}
	err := retry.run(ctx, func(ctx context.Context) error {
		for event, err := range r.List.Events(ctx, since, until, at.Cursor) {
			if err != nil {
				return err
			}
			r.sort(&event, &found)
			count++
			if at.Cursor, at.Reached = event.ID, event.Created; count%pageSize == 0 {
				tell(0, nil)
			}
		}
		return nil
	})
	if err != nil || len(found.invoices) == 0 {
		return found.payments, err
	}
	return r.firstPayments(ctx, found)
}

// firstPayments adds those of the invoices that are first payments.
func (r *Reconciler) firstPayments(ctx context.Context, found listed) ([]report.Payment, error) {
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

// sort notes what an event says of a payment or a trial. Whether a checkout was paid is read here and not
// taken from the intake, whose mistakes are to be found. Texts are cloned: they would keep the whole event in
// memory, of which a month may have 100,000.
func (r *Reconciler) sort(e *purchase.Event, found *listed) {
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
			ID: p.ID, Kind: p.Kind, Status: p.Status, Reason: p.Reason, Mode: p.Mode, Livemode: p.Livemode, At: p.At,
			Subscription: p.Subscription, Trial: true, PeriodStart: p.PeriodStart,
		})
	}
}

func paymentOf(p *purchase.Purchase, at time.Time) report.Payment {
	return report.Payment{ID: p.ID, At: at, AmountMinor: p.AmountMinor, Currency: p.Currency}
}

// hasMoney reports whether an event says that its checkout was paid: an amount of 0 is no sale, whatever the
// status says.
func hasMoney(e *purchase.Event) bool {
	paid := e.Type == purchase.TypeCompleted && e.Checkout.PaymentStatus == "paid"
	return (paid || e.Type == purchase.TypeAsyncSucceeded) && !e.Checkout.Free()
}
