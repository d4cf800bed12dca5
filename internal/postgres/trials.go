package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/contract"
	"purchase-relay/internal/purchase"
)

// trial is one subscription: its trial, and the earliest invoice with money, each where it has come. Whichever comes first is
// held for the other.
type trial struct {
	purchase.Trial
	envelope []byte // the trial's own: its match keys are those of the first payment; nil: nothing may be sent
	profile  string
	expires  time.Time         // of the click id
	invoice  purchase.Purchase // ID "": none
	purchase string            // the first payment's id, once it is on the ledger
	moved    bool
}

// subscriptionsOf are those whose trials the receipts are about: none, unless first payments count.
func subscriptionsOf(receipts []purchase.Receipt) (list []string) {
	for i := range receipts {
		if p := &receipts[i].Purchase; p.Trial || p.Kind == purchase.KindFirstPayment {
			list = append(list, p.Subscription)
		}
	}
	return sorted(list)
}

// trial returns a subscription's, empty where nothing is known of it.
func (b *books) trial(p *purchase.Purchase) *trial {
	t := b.trials[p.Subscription]
	if t == nil {
		t = &trial{}
		t.Livemode = p.Livemode
		b.trials[p.Subscription] = t
	}
	return t
}

// begin notes a trial, and lets an invoice that waits for it become the first payment.
func (b *books) begin(e *entered, received time.Time) (converted string, err error) {
	t := b.trial(&e.Purchase)
	if t.Session != "" {
		return "", nil // another checkout of one subscription: the first one stands
	}
	p := e.Purchase
	t.Session, t.Started, t.Withheld = p.ID, p.PeriodStart, p.Withheld
	t.profile, t.expires, t.moved = e.profile, p.ClickExpires, true
	if p.Withheld == purchase.ReasonNone {
		p.EventName, p.Keys.ExternalID = "", purchase.HashExternalID(e.profile)
		if t.envelope, err = contract.EncodeEnvelope(&p); err != nil {
			return "", err
		}
	}
	if !t.First(&t.invoice) {
		return "", nil
	}
	return t.invoice.ID, b.convert(t, received)
}

// pay takes an invoice with money: it is the first payment, waits for its trial or for an earlier one, or is a renewal.
func (b *books) pay(r *purchase.Receipt) (purchase.Disposition, error) {
	p, t := r.Purchase, b.trial(&r.Purchase)
	switch {
	case p.ID == t.purchase, p.ID == t.invoice.ID:
		return purchase.Duplicate, nil
	case t.purchase != "", t.invoice.ID != "" && !purchase.Earlier(&p, &t.invoice):
		return purchase.Ignored, nil
	}
	t.invoice, t.moved = p, true
	if !t.First(&p) {
		return purchase.Held, nil
	}
	return purchase.Processed, b.convert(t, r.Received)
}

// convert makes a trial's invoice the first payment.
func (b *books) convert(t *trial, received time.Time) error {
	p := t.invoice
	p.Kind, p.Status = purchase.KindFirstPayment, purchase.StatusPending
	switch {
	case t.Withheld != purchase.ReasonNone:
		p.Status, p.Reason = purchase.StatusSkipped, t.Withheld
	case t.envelope == nil: // its buyer was forgotten meanwhile
		p.Status, p.Reason = purchase.StatusSkipped, purchase.ReasonNoConsent
	default:
		trial, err := contract.DecodeEnvelope(t.envelope)
		if err != nil {
			return fmt.Errorf("the trial %s: %w", t.Session, err)
		}
		p.Keys, p.Content, p.LimitedDataUse, p.ClickExpires = trial.Keys, trial.Content, trial.LimitedDataUse, t.expires
	}
	e, err := newEntered(p, t.profile, received)
	if err != nil {
		return err
	}
	e.trial = t.Session
	b.purchases[p.ID] = e
	t.purchase, t.envelope, t.moved = p.ID, nil, true
	return nil
}

// ConvertHeld makes first payments of invoices that have waited for so long for an earlier one, which never came: it was never
// paid. It says how many.
func (db *DB) ConvertHeld(ctx context.Context, patience time.Duration) (int, error) {
	const most = 100
	rows, err := db.pool.Query(ctx, sqlHeldTrials, patience.Seconds(), most)
	if err != nil {
		return 0, fmt.Errorf("look for held invoices: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	b, err := readBooks(ctx, conn.Conn(), nil, sorted(ids))
	if err != nil {
		return 0, err
	}
	n := 0
	for _, t := range b.trials {
		if t.purchase != "" || t.invoice.ID == "" || t.Session == "" {
			continue // another replica was quicker
		}
		if err := b.convert(t, b.now); err != nil {
			return 0, err
		}
		n++
	}
	return n, b.write(ctx, conn.Conn())
}

// firstPaymentsBatch is how many subscriptions are read together.
const firstPaymentsBatch = 500

// FirstPayments returns which invoices are the first payments of their subscriptions: those that the ledger
// has taken as such, and those that it would take if it had received these trials and invoices, each oldest
// first. The decisions are those of Record, and nothing is written. An invoice that waits on the ledger for
// an earlier one is none yet, nor is one whose trial is unknown.
func (db *DB) FirstPayments(ctx context.Context, trials, invoices []purchase.Purchase) ([]string, error) {
	bySubscription := make(map[string]*struct{ trials, invoices []*purchase.Purchase })
	var subscriptions, ids []string
	for i := range invoices {
		id := invoices[i].Subscription
		if bySubscription[id] == nil {
			bySubscription[id] = &struct{ trials, invoices []*purchase.Purchase }{}
			subscriptions = append(subscriptions, id)
		}
		bySubscription[id].invoices = append(bySubscription[id].invoices, &invoices[i])
	}
	for i := range trials {
		if of := bySubscription[trials[i].Subscription]; of != nil {
			of.trials = append(of.trials, &trials[i])
		}
	}
	for chunk := range slices.Chunk(subscriptions, firstPaymentsBatch) {
		b := &books{
			sessions: make(map[string]session), trials: make(map[string]*trial), purchases: make(map[string]entered),
		}
		var sessions []string
		for _, id := range chunk {
			for _, t := range bySubscription[id].trials {
				sessions = append(sessions, t.ID)
			}
		}
		if err := b.look(ctx, db.pool, sessions, chunk); err != nil {
			return nil, fmt.Errorf("look for first payments: %w", err)
		}
		for _, id := range chunk {
			if first := b.firstPayment(bySubscription[id].trials, bySubscription[id].invoices); first != "" {
				ids = append(ids, first)
			}
		}
	}
	return ids, nil
}

// look reads the states of sessions and the trials of subscriptions without a lock.
func (b *books) look(ctx context.Context, pool interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}, sessions, subscriptions []string,
) error {
	var batch pgx.Batch
	var id string
	var s session
	query(&batch, func() { b.sessions[id] = s }, []any{&id, &s.status, &s.reason}, sqlSessionStates, sessions)
	b.readTrials(&batch, subscriptions)
	return pool.SendBatch(ctx, &batch).Close()
}

// firstPayment enters what may be new about one subscription, and returns the id of its first payment; "":
// there is none yet. An invoice or a trial that cannot be entered is left out: the intake would refuse it,
// too.
func (b *books) firstPayment(trials, invoices []*purchase.Purchase) string {
	t := b.trial(invoices[0])
	held := t.invoice.ID
	for _, p := range trials {
		at := b.sessions[p.ID]
		if purchase.Advances(at.status, at.reason, p.Status, p.Reason) { // else its event is a duplicate
			_, _ = b.begin(&entered{Purchase: *p}, p.At)
		}
	}
	for _, p := range invoices {
		_, _ = b.pay(&purchase.Receipt{Purchase: *p, Received: p.At})
	}
	switch {
	case t.purchase != "":
		return t.purchase
	case t.Session == "" || t.invoice.ID == held:
		return ""
	default:
		return t.invoice.ID
	}
}

func (b *books) readTrials(batch *pgx.Batch, subscriptions []string) {
	var id string
	var t trial
	var started, expires, at, period *time.Time
	query(batch, func() {
		t.Started, t.expires, t.invoice.At, t.invoice.PeriodStart = orZero(started).UTC(), orZero(expires).UTC(), orZero(at).UTC(), orZero(period).UTC()
		t.invoice.Subscription, t.invoice.Livemode, t.invoice.Mode = id, t.Livemode, "subscription"
		b.trials[id] = new(t)
	}, []any{
		&id, &t.Livemode, &t.Session, &started, &t.Withheld, &t.profile, &t.envelope, &expires,
		&t.invoice.ID, &at, &t.invoice.AmountMinor, &t.invoice.Currency, &period, &t.invoice.Customer, &t.purchase,
	}, sqlKnownTrials, subscriptions)
}

func (b *books) putTrials(batch *pgx.Batch) {
	var ids, reasons []string
	var livemodes []bool
	var sessions, profiles, invoices, currencies, customers, purchases []*string
	var starts, expiries, ats, periods []*time.Time
	var envelopes [][]byte
	var amounts []*int64
	for _, id := range slices.Sorted(maps.Keys(b.trials)) {
		t := b.trials[id]
		if !t.moved {
			continue
		}
		ids, reasons, livemodes = append(ids, id), append(reasons, string(t.Withheld)), append(livemodes, t.Livemode)
		sessions, profiles, purchases = append(sessions, nullable(t.Session)), append(profiles, nullable(t.profile)), append(purchases, nullable(t.purchase))
		starts, expiries, envelopes = append(starts, nullableTime(t.Started)), append(expiries, nullableTime(t.expires)), append(envelopes, t.envelope)
		invoices, customers = append(invoices, nullable(t.invoice.ID)), append(customers, nullable(t.invoice.Customer))
		ats, periods = append(ats, nullableTime(t.invoice.At)), append(periods, nullableTime(t.invoice.PeriodStart))
		amounts, currencies = append(amounts, t.invoice.AmountMinor), append(currencies, nullable(t.invoice.Currency))
	}
	if len(ids) > 0 {
		batch.Queue(sqlPutTrials, ids, livemodes, sessions, starts, reasons, profiles, envelopes, expiries, invoices, ats, amounts, currencies, periods, customers, purchases)
	}
}
