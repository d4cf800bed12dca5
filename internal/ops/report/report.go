// Package report reads the ledger for pages, commands and metrics: rows, timelines, totals, match-key
// coverage and reconciliations. Triggers write each change to rollup_changes and Fold adds the changes up,
// so the cost of a total does not grow with the ledger.
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

// New returns a Reader of db.
func New(db *ledger.DB) *Reader { return &Reader{db} }

// snapshot returns the options of a transaction whose statements all see the same rows.
func snapshot() pgx.TxOptions {
	return pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
}

// paidState and paid are purchase.Paid in SQL, the others the states of a paid purchase by
// purchase.StateOfSale. The rollup has no kind; it counts trials in a column.
const (
	paidState = `status NOT IN ('awaiting_payment', 'payment_failed')
        AND NOT (status = 'skipped' AND reason = 'no_payment')`
	paid         = paidState + ` AND kind <> 'trial'`
	waitingState = `status IN ('pending', 'published', 'retrying')`
	leftOutState = `(status = 'skipped'
        AND reason IN ('test_purchase', 'no_consent', 'internal', 'forgotten'))`
)

const sqlOutboxState = `SELECT count(*), min(created_at) FROM public.purchases WHERE status = 'pending'`

// OutboxState returns the number of pending purchases and when the oldest was created (zero: none).
func (r *Reader) OutboxState(ctx context.Context) (pending int, oldest time.Time, err error) {
	var at *time.Time
	if err := r.db.Pool().QueryRow(ctx, sqlOutboxState).Scan(&pending, &at); err != nil {
		return 0, time.Time{}, fmt.Errorf("read outbox: %w", err)
	}
	return pending, ledger.OrZero(at), nil
}

// Backfilled events are left out: they would hide a disabled endpoint.
const sqlLastWebhook = `SELECT max(received_at) FROM public.stripe_events WHERE NOT caught_up`

// LastWebhook returns when any replica last received a webhook about a purchase (zero: never).
func (r *Reader) LastWebhook(ctx context.Context) (at time.Time, err error) {
	if err := scanTime(r.db.Pool().QueryRow(ctx, sqlLastWebhook), &at); err != nil {
		return time.Time{}, fmt.Errorf("read last webhook: %w", err)
	}
	return at, nil
}

// A partial index covers backfilled events. A held invoice counts once it has become a first payment.
const sqlBackfilled = `
SELECT count(DISTINCT e.checkout_session_id), max(e.received_at) FROM public.stripe_events e
JOIN public.purchases p ON p.checkout_session_id = e.checkout_session_id
WHERE e.caught_up AND e.received_at >= $1 AND e.disposition IN ('processed', 'held', 'rejected')
    AND p.purchased_at >= $1 AND p.purchased_at < $2 AND ($3::boolean IS NULL OR p.livemode = $3) AND ` + paid

// Backfilled counts the purchases paid in a period whose webhook was missed, and returns when the last one
// was recorded; livemode nil means both modes.
func (r *Reader) Backfilled(
	ctx context.Context, from, until time.Time, livemode *bool,
) (n int, last time.Time, err error) {
	var at *time.Time
	if err := r.db.Pool().QueryRow(ctx, sqlBackfilled, from, until, livemode).Scan(&n, &at); err != nil {
		return 0, time.Time{}, fmt.Errorf("count backfilled purchases: %w", err)
	}
	return n, ledger.OrZero(at), nil
}

// DeadLetters are the dead purchases of one reason.
type DeadLetters struct {
	Reason        purchase.Reason
	Count         int
	First, Latest time.Time // when the first and the last one was recorded as dead
	IDs           []string  // up to five, latest first
}

const sqlDeadLetters = `
SELECT reason, count(*), min(updated_at), max(updated_at),
    (array_agg(checkout_session_id ORDER BY updated_at DESC, checkout_session_id))[1:5]
FROM public.purchases WHERE status = 'dead' AND updated_at >= $1
GROUP BY reason ORDER BY reason`

// DeadLetters returns, by reason, the purchases that were recorded as dead since a time and still are.
func (r *Reader) DeadLetters(ctx context.Context, since time.Time) ([]DeadLetters, error) {
	rows, err := r.db.Pool().Query(ctx, sqlDeadLetters, since)
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	letters, err := ledger.Collect(r.db, "alarm", rows, func(row pgx.CollectableRow) (d DeadLetters, err error) {
		err = row.Scan(&d.Reason, &d.Count, &d.First, &d.Latest, &d.IDs)
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return letters, nil
}

func scanTime(row pgx.Row, into *time.Time) error {
	var at *time.Time
	err := row.Scan(&at)
	*into = ledger.OrZero(at)
	return err
}
