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

type subscription struct {
	purchase.Subscription

	profile  string // the trial's profile id
	envelope []byte // the trial's message, with the match keys of the first payment; nil: never sent
	changed  bool
}

// subscriptionsOf returns the subscriptions of the trials and invoices among receipts. Without FIRST_PAYMENT
// there are none.
func subscriptionsOf(receipts []purchase.Receipt) (ids []string) {
	for i := range receipts {
		if p := &receipts[i].Purchase; p.Trial || p.Kind == purchase.KindFirstPayment {
			ids = append(ids, p.Subscription)
		}
	}
	return sorted(ids)
}

func (tx *transaction) subscription(id string) *subscription {
	s := tx.subscriptions[id]
	if s == nil {
		s = &subscription{}
		tx.subscriptions[id] = s
	}
	return s
}

// addTrial records a trial's checkout, which may make the held invoice the first payment.
func (tx *transaction) addTrial(row *purchaseRow, recorded *purchase.Recorded) (err error) {
	s := tx.subscription(row.Subscription)
	if s.Trial.Session != "" {
		return nil
	}
	var converts bool
	s.Subscription, converts = s.AddTrial(&row.Purchase)
	s.profile, s.changed = row.profile, true
	if row.Withheld == purchase.ReasonNone {
		trial := row.Purchase
		trial.EventName, trial.Keys.ExternalID = "", purchase.HashExternalID(row.profile)
		if s.envelope, err = message.EncodeEnvelope(&trial); err != nil {
			return err
		}
	}
	if !converts {
		return nil
	}
	first, err := tx.convert(s)
	recorded.FirstPayment, recorded.LateClick = first.ID, recorded.LateClick || first.lateClick()
	return err
}

// decideInvoice returns the result of a subscription's invoice and adds the rows to write.
func (tx *transaction) decideInvoice(r *purchase.Receipt) (recorded purchase.Recorded, err error) {
	s := tx.subscription(r.Purchase.Subscription)
	next, disposition := s.AddInvoice(&r.Purchase)
	recorded.Disposition = disposition
	if disposition != purchase.Held && disposition != purchase.Processed {
		return recorded, nil
	}
	s.Subscription, s.changed = next, true
	if disposition == purchase.Held {
		return recorded, nil
	}
	first, err := tx.convert(s)
	switch {
	case errors.Is(err, errTrialEnvelope): // Stripe retries for three days only, ConvertHeld without limit
		recorded.Disposition = purchase.Held
		return recorded, nil
	case err != nil:
		return recorded, err
	}
	tx.addPurchase(&first, r, &recorded)
	recorded.FirstPayment = first.ID
	return recorded, nil
}

// errTrialEnvelope is returned for a trial whose envelope, and so its match keys, is corrupt or of a newer
// version.
var errTrialEnvelope = errors.New("unreadable envelope")

func (tx *transaction) convert(s *subscription) (first purchaseRow, err error) {
	var trial *purchase.Purchase
	if s.envelope != nil {
		e, err := message.DecodeEnvelope(s.envelope)
		if err != nil {
			return first, fmt.Errorf("trial %s: %w: %w", s.Trial.Session, errTrialEnvelope, err)
		}
		trial = &purchase.Purchase{Keys: e.Keys, Content: e.Content, LimitedDataUse: e.LimitedDataUse}
	}
	next, payment := s.Convert(trial)
	if first, err = newPurchaseRow(payment, s.profile); err != nil {
		return first, err
	}
	first.trialSession = s.Trial.Session
	tx.markFirstSale(&first)
	tx.purchases[first.ID] = first
	s.Subscription, s.envelope, s.changed = next, nil, true
	return first, nil
}

const heldBatchSize = 100

// Invoices that are held although their trial has arrived, after a cursor, and whether for at least $1
// seconds.
const sqlHeldInvoices = `
SELECT subscription_id, held_at, held_at < now() - make_interval(secs => $1) FROM public.trials
WHERE purchase_id IS NULL AND invoice_id IS NOT NULL AND checkout_session_id IS NOT NULL
    AND held_at >= $2::timestamptz AND (held_at > $2 OR subscription_id > $3)
ORDER BY held_at, subscription_id LIMIT $4`

// ConvertHeld makes first payments of invoices that have been held for longer than holdFor, because the
// earlier invoice was never paid. It returns their number. Each is converted in its own transaction. An
// invoice whose trial has an unreadable envelope is skipped and remains held.
func (db *DB) ConvertHeld(ctx context.Context, holdFor time.Duration) (n int, err error) {
	for after := (heldCursor{}); ; {
		rows, err := db.pool.Query(ctx, sqlHeldInvoices, holdFor.Seconds(), after.at, after.id, heldBatchSize)
		if err != nil {
			return n, fmt.Errorf("read held invoices: %w", err)
		}
		list, err := Collect(db, "trials", rows, func(row pgx.CollectableRow) (h heldInvoice, err error) {
			return h, row.Scan(&h.id, &h.at, &h.expired)
		})
		if err != nil {
			return n, fmt.Errorf("read held invoices: %w", err)
		}
		for _, h := range list {
			converted, err := db.convertHeld(ctx, h)
			switch {
			case err == nil && converted:
				n++
			case err != nil && (ctx.Err() != nil || !contentError(err)):
				return n, fmt.Errorf("convert held invoices: %w", err)
			case err != nil:
				db.skip("trials", h.id, err)
			}
		}
		if len(list) == 0 {
			return n, nil
		}
		after = list[len(list)-1].heldCursor
	}
}

type heldCursor struct {
	at time.Time // held since
	id string    // the subscription's
}

// heldInvoice is a subscription whose trial and invoice have arrived, without a first payment.
type heldInvoice struct {
	heldCursor

	expired bool // the hold
}

// convertHeld converts an invoice whose hold has expired, or that was held only for an unreadable envelope.
// It returns false if the invoice remains held or another replica has converted it.
func (db *DB) convertHeld(ctx context.Context, h heldInvoice) (bool, error) {
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Release()
	tx, err := begin(ctx, conn.Conn(), nil, []string{h.id})
	if err != nil {
		return false, err
	}
	s := tx.subscription(h.id)
	if !s.Converts(h.expired) {
		return false, tx.rollback(ctx)
	}
	if _, err := tx.convert(s); err != nil {
		return false, fmt.Errorf("%w: %w", errContent, err)
	}
	return true, tx.commit(ctx)
}

const firstPaymentsBatch = 500

// FirstPayments returns the ids of the invoices that are first payments: those recorded, and those that
// Record would make of these trials and invoices, each oldest first. It writes nothing. It leaves out
// invoices that are held on the ledger and those without a known trial.
func (db *DB) FirstPayments(
	ctx context.Context, trials, invoices []purchase.Purchase,
) (ids []string, err error) {
	bySubscription := make(map[string]*candidates)
	var subscriptions []string
	for i := range invoices {
		id := invoices[i].Subscription
		if bySubscription[id] == nil {
			bySubscription[id] = &candidates{}
			subscriptions = append(subscriptions, id)
		}
		bySubscription[id].invoices = append(bySubscription[id].invoices, &invoices[i])
	}
	for i := range trials {
		if c := bySubscription[trials[i].Subscription]; c != nil {
			c.trials = append(c.trials, &trials[i])
		}
	}
	for chunk := range slices.Chunk(subscriptions, firstPaymentsBatch) {
		var sessions []string
		for _, id := range chunk {
			for _, t := range bySubscription[id].trials {
				sessions = append(sessions, t.ID)
			}
		}
		states, known := make(map[string]sessionState), make(map[string]*subscription)
		var batch pgx.Batch
		var id string
		var state sessionState
		queueQuery(&batch, func() { states[id] = state }, []any{&id, &state.status, &state.reason},
			sqlSessionStates, sessions)
		querySubscriptions(&batch, known, make(map[string]*buyer), chunk)
		if err := db.pool.SendBatch(ctx, &batch).Close(); err != nil {
			return nil, fmt.Errorf("read first payments: %w", err)
		}
		for _, id := range chunk {
			var s purchase.Subscription
			if row := known[id]; row != nil {
				s = row.Subscription
			}
			if first := bySubscription[id].firstPayment(s, states); first != "" {
				ids = append(ids, first)
			}
		}
	}
	return ids, nil
}

type candidates struct {
	trials, invoices []*purchase.Purchase
}

// firstPayment returns the id of the first payment after applying the candidates to s, or "". states has the
// recorded sessions of the trials.
func (c *candidates) firstPayment(s purchase.Subscription, states map[string]sessionState) string {
	held := s.Invoice.ID
	for _, p := range c.trials {
		state := states[p.ID]
		if !purchase.Advances(state.status, state.reason, p.Status, p.Reason) { // a duplicate event
			continue
		}
		var converts bool
		if s, converts = s.AddTrial(p); converts {
			return s.Invoice.ID
		}
	}
	for _, p := range c.invoices {
		var d purchase.Disposition
		if s, d = s.AddInvoice(p); d == purchase.Processed {
			return p.ID
		}
	}
	switch {
	case s.FirstPayment != "":
		return s.FirstPayment
	case s.Trial.Session == "" || s.Invoice.ID == held:
		return ""
	default:
		return s.Invoice.ID
	}
}

const sqlKnownTrials = `
SELECT subscription_id, t.livemode, COALESCE(checkout_session_id, ''), started_at, reason,
    COALESCE(p.id::text, ''), p.first_paid_at, envelope,
    click_expires_at, COALESCE(invoice_id, ''), invoice_at, amount_minor, COALESCE(currency, ''),
    period_start, COALESCE(t.stripe_customer_id, ''), COALESCE(purchase_id, '')
FROM public.trials t LEFT JOIN public.profiles p ON p.id = t.profile_id WHERE subscription_id = ANY($1)`

// querySubscriptions adds a query to a batch that reads subscriptions and their buyers into maps.
// Known buyers are kept.
func querySubscriptions(
	batch *pgx.Batch, into map[string]*subscription, buyers map[string]*buyer, ids []string,
) {
	var id string
	var s subscription
	var started, expires, paid, period, firstPaid *time.Time
	queueQuery(batch, func() {
		s.Trial.Started, s.Trial.ClickExpires = OrZero(started).UTC(), OrZero(expires).UTC()
		s.Invoice.At, s.Invoice.PeriodStart = OrZero(paid).UTC(), OrZero(period).UTC()
		s.Invoice.Subscription, s.Invoice.Livemode, s.Invoice.Mode = id, s.Livemode, "subscription"
		into[id] = new(s)
		if s.profile != "" && buyers[s.profile] == nil {
			buyers[s.profile] = &buyer{firstPaid: OrZero(firstPaid)}
		}
	}, []any{
		&id, &s.Livemode, &s.Trial.Session, &started, &s.Trial.Withheld, &s.profile, &firstPaid, &s.envelope,
		&expires, &s.Invoice.ID, &paid, &s.Invoice.AmountMinor, &s.Invoice.Currency, &period, &s.Invoice.Customer,
		&s.FirstPayment,
	}, sqlKnownTrials, ids)
}

const sqlUpsertTrials = `
INSERT INTO public.trials AS t (subscription_id, livemode, checkout_session_id, started_at, reason,
    profile_id, envelope, click_expires_at, invoice_id, invoice_at, amount_minor, currency, period_start,
    stripe_customer_id, purchase_id, held_at)
SELECT u.id, u.livemode, u.session, u.started, u.reason, u.profile::uuid,
    u.envelope, u.expires, u.invoice, u.paid, u.amount, u.currency, u.period, u.customer,
    u.purchase, CASE WHEN u.invoice IS NOT NULL THEN now() END
FROM unnest($1::text[], $2::boolean[], $3::text[], $4::timestamptz[], $5::text[], $6::text[],
    $7::bytea[], $8::timestamptz[], $9::text[], $10::timestamptz[], $11::bigint[], $12::text[],
    $13::timestamptz[], $14::text[], $15::text[]) AS u (id, livemode, session, started, reason, profile,
    envelope, expires, invoice, paid, amount, currency, period, customer, purchase)
ON CONFLICT (subscription_id) DO UPDATE SET
    livemode = excluded.livemode, checkout_session_id = excluded.checkout_session_id, started_at =
    excluded.started_at, reason = excluded.reason, profile_id = excluded.profile_id, envelope =
    excluded.envelope, click_expires_at = excluded.click_expires_at, invoice_id = excluded.invoice_id,
    invoice_at = excluded.invoice_at, amount_minor = excluded.amount_minor, currency = excluded.currency,
    period_start = excluded.period_start, stripe_customer_id = excluded.stripe_customer_id, purchase_id =
    excluded.purchase_id, held_at = CASE WHEN excluded.invoice_id IS DISTINCT FROM t.invoice_id THEN
    excluded.held_at ELSE t.held_at END`

func (tx *transaction) upsertSubscriptions(batch *pgx.Batch) {
	ids := slices.Sorted(maps.Keys(tx.subscriptions))
	ids = slices.DeleteFunc(ids, func(id string) bool { return !tx.subscriptions[id].changed })
	if len(ids) == 0 {
		return
	}
	rows := make([]*subscription, len(ids))
	for i, id := range ids {
		rows[i] = tx.subscriptions[id]
	}
	batch.Queue(sqlUpsertTrials,
		ids,
		column(rows, func(s *subscription) bool { return s.Livemode }),
		column(rows, func(s *subscription) *string { return nullable(s.Trial.Session) }),
		column(rows, func(s *subscription) *time.Time { return NullTime(s.Trial.Started) }),
		column(rows, func(s *subscription) string { return string(s.Trial.Withheld) }),
		column(rows, func(s *subscription) *string { return nullable(s.profile) }),
		column(rows, func(s *subscription) []byte { return s.envelope }),
		column(rows, func(s *subscription) *time.Time { return NullTime(s.Trial.ClickExpires) }),
		column(rows, func(s *subscription) *string { return nullable(s.Invoice.ID) }),
		column(rows, func(s *subscription) *time.Time { return NullTime(s.Invoice.At) }),
		column(rows, func(s *subscription) *int64 { return s.Invoice.AmountMinor }),
		column(rows, func(s *subscription) *string { return nullable(s.Invoice.Currency) }),
		column(rows, func(s *subscription) *time.Time { return NullTime(s.Invoice.PeriodStart) }),
		column(rows, func(s *subscription) *string { return nullable(s.Invoice.Customer) }),
		column(rows, func(s *subscription) *string { return nullable(s.FirstPayment) }))
}
