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

// oldestPending is since when the longest pending purchase waits. A replay, or a late payment, makes an old
// purchase pending, and updated_at is its time. The oldest 1,000 are enough: their order is that of
// created_at.
const oldestPending = `(SELECT min(updated_at) FROM (
        SELECT updated_at FROM public.purchases WHERE status = 'pending' ORDER BY created_at LIMIT 1000) w)`

const sqlOutboxState = `
SELECT count(*), ` + oldestPending + ` FROM public.purchases WHERE status = 'pending'`

// OutboxState returns the number of pending purchases and since when the oldest one waits (zero: none).
func (r *Reader) OutboxState(ctx context.Context) (pending int, oldest time.Time, err error) {
	var at *time.Time
	if err := r.db.Pool().QueryRow(ctx, sqlOutboxState).Scan(&pending, &at); err != nil {
		return 0, time.Time{}, fmt.Errorf("read outbox: %w", err)
	}
	return pending, ledger.OrZero(at), nil
}

// Backfilled events are left out: they would hide a disabled endpoint.
const sqlLastWebhook = `
SELECT NULLIF(max(received_at), 'infinity') FROM public.stripe_events WHERE NOT caught_up`

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

func scanTime(row pgx.Row, into *time.Time) error {
	var at *time.Time
	err := row.Scan(&at)
	*into = ledger.OrZero(at)
	return err
}
