package ledger

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/message"
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
		if t.envelope, err = message.EncodeEnvelope(&p); err != nil {
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
	err := b.convert(t, r.Received)
	if errors.Is(err, errTrialEnvelope) {
		return purchase.Held, nil // Stripe's repeats end after three days; ConvertHeld tries again and reports it
	}
	return purchase.Processed, err
}

// errTrialEnvelope says that a trial's envelope is corrupt or of a newer version: its match keys cannot be
// read.
var errTrialEnvelope = errors.New("envelope cannot be read")

// convert makes a trial's invoice the first payment.
func (b *books) convert(t *trial, received time.Time) error {
	p := t.invoice
	p.Kind, p.Status = purchase.KindFirstPayment, purchase.StatusPending
	switch {
	case t.Withheld != purchase.ReasonNone:
		p.Status, p.Reason = purchase.StatusSkipped, t.Withheld
	case t.envelope == nil: // its buyer was forgotten meanwhile
		p.Status, p.Reason = purchase.StatusSkipped, purchase.ReasonForgotten
	default:
		trial, err := message.DecodeEnvelope(t.envelope)
		if err != nil {
			return fmt.Errorf("trial %s: %w: %w", t.Session, errTrialEnvelope, err)
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

// convertBatch is how many held invoices are looked up per query.
const convertBatch = 100

// Invoices that wait beside their trial, from a place on, and whether they have waited $1 seconds.
const sqlHeldTrials = `
SELECT subscription_id, held_at, held_at < now() - make_interval(secs => $1) FROM public.trials
WHERE purchase_id IS NULL AND invoice_id IS NOT NULL AND checkout_session_id IS NOT NULL
    AND held_at >= $2::timestamptz AND (held_at > $2 OR subscription_id > $3)
ORDER BY held_at, subscription_id LIMIT $4`

// ConvertHeld makes first payments of invoices that have waited for so long for an earlier one, which never came: it was never
// paid. It returns how many. Each is converted in a transaction of its own: one that cannot be, because its
// trial's envelope is corrupt or of a newer version, is reported and remains held.
func (db *DB) ConvertHeld(ctx context.Context, patience time.Duration) (n int, err error) {
	for from := (place{}); ; {
		rows, err := db.pool.Query(ctx, sqlHeldTrials, patience.Seconds(), from.at, from.id, convertBatch)
		if err != nil {
			return n, fmt.Errorf("look for held invoices: %w", err)
		}
		list, err := Collect(db, "trials", rows, func(row pgx.CollectableRow) (h heldInvoice, err error) {
			return h, row.Scan(&h.id, &h.at, &h.due)
		})
		if err != nil {
			return n, fmt.Errorf("look for held invoices: %w", err)
		}
		for _, h := range list {
			converted, err := db.convertHeld(ctx, h)
			switch {
			case err == nil && converted:
				n++
			case err != nil && (ctx.Err() != nil || !separable(err)):
				return n, fmt.Errorf("convert held invoices: %w", err)
			case err != nil:
				db.skip("trials", h.id, err)
			}
		}
		if len(list) == 0 {
			return n, nil
		}
		from = list[len(list)-1].place
	}
}

// place is where a walk has come to, in the order of time and id.
type place struct {
	at time.Time
	id string
}

// heldInvoice is a subscription whose trial and invoice have come, without a first payment.
type heldInvoice struct {
	place
	due bool // it has waited long enough for an earlier invoice
}

// convertHeld converts a held invoice where it is due, or could be converted at once but for its trial's
// envelope. false: it waits, or another replica was faster.
func (db *DB) convertHeld(ctx context.Context, h heldInvoice) (bool, error) {
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Release()
	b, err := readBooks(ctx, conn.Conn(), nil, []string{h.id})
	if err != nil {
		return false, err
	}
	t := b.trials[h.id]
	if t == nil || t.purchase != "" || t.invoice.ID == "" || t.Session == "" || !h.due && !t.First(&t.invoice) {
		_, err := conn.Exec(ctx, sqlRollback)
		return false, err
	}
	if err := b.convert(t, b.now); err != nil {
		return false, fmt.Errorf("%w: %w", errContent, err)
	}
	return true, b.write(ctx, conn.Conn())
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

const sqlKnownTrials = `
SELECT subscription_id, livemode, COALESCE(checkout_session_id, ''), started_at, reason,
    COALESCE((SELECT p.id::text FROM public.profiles p WHERE p.id = t.profile_id), ''), envelope, click_expires_at,
    COALESCE(invoice_id, ''), invoice_at, amount_minor, COALESCE(currency, ''), period_start, COALESCE(stripe_customer_id, ''), COALESCE(purchase_id, '')
FROM public.trials t WHERE subscription_id = ANY($1)`

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

const sqlPutTrials = `
INSERT INTO public.trials AS t (subscription_id, livemode, checkout_session_id, started_at, reason, profile_id, envelope, click_expires_at,
    invoice_id, invoice_at, amount_minor, currency, period_start, stripe_customer_id, purchase_id, held_at)
SELECT u.id, u.livemode, u.session, u.started, u.reason, u.profile::uuid, u.envelope, u.expires, u.invoice, u.at, u.amount, u.currency, u.period, u.customer, u.purchase,
    CASE WHEN u.invoice IS NOT NULL THEN now() END
FROM unnest($1::text[], $2::boolean[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::bytea[], $8::timestamptz[], $9::text[], $10::timestamptz[],
    $11::bigint[], $12::text[], $13::timestamptz[], $14::text[], $15::text[])
    AS u (id, livemode, session, started, reason, profile, envelope, expires, invoice, at, amount, currency, period, customer, purchase)
ON CONFLICT (subscription_id) DO UPDATE SET
    livemode = excluded.livemode, checkout_session_id = excluded.checkout_session_id, started_at = excluded.started_at, reason = excluded.reason,
    profile_id = excluded.profile_id, envelope = excluded.envelope, click_expires_at = excluded.click_expires_at, invoice_id = excluded.invoice_id,
    invoice_at = excluded.invoice_at, amount_minor = excluded.amount_minor, currency = excluded.currency, period_start = excluded.period_start,
    stripe_customer_id = excluded.stripe_customer_id, purchase_id = excluded.purchase_id,
    held_at = CASE WHEN excluded.invoice_id IS DISTINCT FROM t.invoice_id THEN excluded.held_at ELSE t.held_at END`

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
