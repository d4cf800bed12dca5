// Package report reads the ledger for people: rows, timelines, figures, match-key coverage and
// reconciliations. Figures come from a rollup, which triggers note changes for and Fold adds up: what they
// cost does not grow with the ledger.
package report

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/purchase"
)

// Reader reads a ledger. It is safe for concurrent use.
type Reader struct{ db *ledger.DB }

// New returns the reader of a ledger.
func New(db *ledger.DB) *Reader { return &Reader{db} }

// snapshot returns the options of a transaction whose statements see the same ledger.
func snapshot() pgx.TxOptions {
	return pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
}

// paidState and paid are purchase.Paid in SQL. The rollup has no kind: it counts trials apart.
const (
	paidState = `status NOT IN ('awaiting_payment', 'payment_failed')
        AND NOT (status = 'skipped' AND reason = 'no_payment')`
	paid = paidState + ` AND kind <> 'trial'`
)

const sqlOutboxState = `SELECT count(*), min(created_at) FROM public.purchases WHERE status = 'pending'`

// OutboxState returns how many purchases wait for the relay, and since when the oldest does (zero: none).
func (r *Reader) OutboxState(ctx context.Context) (pending int, oldest time.Time, err error) {
	var at *time.Time
	if err := r.db.Pool().QueryRow(ctx, sqlOutboxState).Scan(&pending, &at); err != nil {
		return 0, time.Time{}, fmt.Errorf("read the outbox: %w", err)
	}
	return pending, ledger.OrZero(at), nil
}

// What a backfill brought says nothing of the endpoint. The index by time is read from its end.
const sqlLastWebhook = `SELECT max(received_at) FROM public.stripe_events WHERE NOT caught_up`

// LastWebhook returns when a webhook last brought an event that concerns a purchase, to whichever replica
// (zero: never).
func (r *Reader) LastWebhook(ctx context.Context) (at time.Time, err error) {
	if err := scanTime(r.db.Pool().QueryRow(ctx, sqlLastWebhook), &at); err != nil {
		return time.Time{}, fmt.Errorf("read the last webhook: %w", err)
	}
	return at, nil
}

// Few events come by backfill: the partial index holds those alone. An invoice that was held is a purchase
// once it has become a first payment.
const sqlCaughtUp = `
SELECT count(DISTINCT e.checkout_session_id), max(e.received_at) FROM public.stripe_events e
JOIN public.purchases p ON p.checkout_session_id = e.checkout_session_id
WHERE e.caught_up AND e.received_at >= $1 AND e.disposition IN ('processed', 'held', 'rejected')
    AND p.purchased_at >= $1 AND ($2::boolean IS NULL OR p.livemode = $2) AND ` + paid

// CaughtUp counts the purchases paid since a time that no webhook brought, and returns when the last of them
// was found; livemode nil means both modes.
func (r *Reader) CaughtUp(
	ctx context.Context, since time.Time, livemode *bool,
) (n int, last time.Time, err error) {
	var at *time.Time
	if err := r.db.Pool().QueryRow(ctx, sqlCaughtUp, since, livemode).Scan(&n, &at); err != nil {
		return 0, time.Time{}, fmt.Errorf("count backfilled purchases: %w", err)
	}
	return n, ledger.OrZero(at), nil
}

// DeadLetters are the purchases that died lately of one reason and are dead still.
type DeadLetters struct {
	Reason        purchase.Reason
	Count         int
	First, Latest time.Time // when the first and the last of them was recorded as dead
	IDs           []string  // some, the latest first
}

const sqlDeaths = `
SELECT reason, count(*), min(updated_at), max(updated_at),
    (array_agg(checkout_session_id ORDER BY updated_at DESC, checkout_session_id))[1:5]
FROM public.purchases WHERE status = 'dead' AND updated_at >= $1
GROUP BY reason ORDER BY reason`

// DeadLetters returns the purchases that were recorded as dead since a time and are dead still, by reason.
func (r *Reader) DeadLetters(ctx context.Context, since time.Time) ([]DeadLetters, error) {
	rows, err := r.db.Pool().Query(ctx, sqlDeaths, since)
	if err != nil {
		return nil, fmt.Errorf("read dead purchases: %w", err)
	}
	letters, err := ledger.Collect(r.db, "alarm", rows, func(row pgx.CollectableRow) (d DeadLetters, err error) {
		err = row.Scan(&d.Reason, &d.Count, &d.First, &d.Latest, &d.IDs)
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("read dead purchases: %w", err)
	}
	return letters, nil
}

func scanTime(row pgx.Row, into *time.Time) error {
	var at *time.Time
	err := row.Scan(&at)
	*into = ledger.OrZero(at)
	return err
}
