package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/purchase"
)

const sqlRollback = `ROLLBACK`

// Foresee says what Record would answer, by the same decisions under the same locks, and writes nothing.
func (db *DB) Foresee(ctx context.Context, r purchase.Receipt) (d purchase.Disposition, err error) {
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return "", fmt.Errorf("foresee session %s: %w", r.Purchase.ID, err)
	}
	defer conn.Release()
	b, err := readBooks(ctx, conn.Conn(), []purchase.Receipt{r}, subscriptionsOf([]purchase.Receipt{r}))
	if err != nil {
		return "", fmt.Errorf("foresee session %s: %w", r.Purchase.ID, err)
	}
	recorded, err := b.enter(&r)
	if err != nil {
		return "", fmt.Errorf("foresee session %s: %w", r.Purchase.ID, err)
	}
	if _, err := conn.Exec(ctx, sqlRollback); err != nil {
		return "", fmt.Errorf("foresee session %s: %w", r.Purchase.ID, err)
	}
	return recorded.Disposition, nil
}

const sqlBackfill = `
SELECT since, until, cursor, reached, known, fresh, ignored, rejected, malformed, finished_at FROM public.backfills WHERE origin = $1`

// Backfill returns how far the last catch-up of an origin came; its Until is zero where there was none.
func (db *DB) Backfill(ctx context.Context, origin string) (purchase.Backfill, error) {
	b := purchase.Backfill{Origin: origin}
	var reached, finished *time.Time
	err := db.pool.QueryRow(ctx, sqlBackfill, origin).Scan(&b.Since, &b.Until, &b.Cursor, &reached,
		&b.Counts.Known, &b.Counts.New, &b.Counts.Ignored, &b.Counts.Rejected, &b.Counts.Malformed, &finished)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return b, nil
	case err != nil:
		return b, fmt.Errorf("read how far the catch-up came: %w", err)
	}
	b.Reached, b.Finished = orZero(reached), orZero(finished)
	return b, nil
}

const sqlPutBackfill = `
INSERT INTO public.backfills AS b (origin, since, until, cursor, reached, known, fresh, ignored, rejected, malformed, finished_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (origin) DO UPDATE SET since = excluded.since, until = excluded.until, cursor = excluded.cursor, reached = excluded.reached,
    known = excluded.known, fresh = excluded.fresh, ignored = excluded.ignored, rejected = excluded.rejected, malformed = excluded.malformed,
    finished_at = excluded.finished_at, updated_at = now()`

// PutBackfill remembers how far a catch-up came.
func (db *DB) PutBackfill(ctx context.Context, b purchase.Backfill) error {
	_, err := db.pool.Exec(ctx, sqlPutBackfill, b.Origin, b.Since, b.Until, b.Cursor, nullableTime(b.Reached),
		b.Counts.Known, b.Counts.New, b.Counts.Ignored, b.Counts.Rejected, b.Counts.Malformed, nullableTime(b.Finished))
	if err != nil {
		return fmt.Errorf("remember how far the catch-up came: %w", err)
	}
	return nil
}

// Few events come by catch-up: the partial index holds those alone. An unpaid checkout, or a trial, is no
// purchase, also where the trial was sent; an invoice that was held is one once it has become a first
// payment.
const sqlCaughtUp = `
SELECT count(DISTINCT e.checkout_session_id), max(e.received_at) FROM public.stripe_events e
JOIN public.purchases p ON p.checkout_session_id = e.checkout_session_id
WHERE e.caught_up AND e.received_at >= $1 AND e.disposition IN ('processed', 'held', 'rejected')
    AND p.purchased_at >= $1 AND ($2::boolean IS NULL OR p.livemode = $2) AND p.status NOT IN ('awaiting_payment', 'payment_failed')
    AND p.kind <> 'trial'`

// CaughtUp counts the purchases paid since a time that no webhook had brought, and says when the last of them was found; livemode nil
// means both modes.
func (db *DB) CaughtUp(ctx context.Context, since time.Time, livemode *bool) (n int, last time.Time, err error) {
	var at *time.Time
	if err := db.pool.QueryRow(ctx, sqlCaughtUp, since, livemode).Scan(&n, &at); err != nil {
		return 0, time.Time{}, fmt.Errorf("count what came by catch-up: %w", err)
	}
	return n, orZero(at), nil
}

// One of the index's ranges.
const standings = `
SELECT checkout_session_id, status, reason, amount_minor, COALESCE(currency, ''), COALESCE(purchased_at, created_at),
    sent_minor
FROM public.purchases
WHERE livemode = $1 AND (kind = 'checkout' AND mode = ANY($2) OR kind = 'first_payment' AND $3) AND `

const sqlStandings = standings + `COALESCE(purchased_at, created_at) BETWEEN $4 AND $5`

const sqlStandingsOf = standings + `checkout_session_id = ANY($4)`

// Standings returns what a scope holds, and those of the ids whatever their time, each once.
func (db *DB) Standings(ctx context.Context, s purchase.Scope, ids []string) ([]purchase.Standing, error) {
	rows, err := db.pool.Query(ctx, sqlStandings, s.Livemode, s.Modes, s.FirstPayments, s.Since, s.Until)
	if err != nil {
		return nil, fmt.Errorf("read where purchases stand: %w", err)
	}
	list, err := Collect(db, "reconcile", rows, scanStanding)
	if err != nil {
		return nil, fmt.Errorf("read where purchases stand: %w", err)
	}
	seen := make(map[string]bool, len(list))
	for i := range list {
		seen[list[i].ID] = true
	}
	var others []string
	for _, id := range ids {
		if !seen[id] {
			seen[id] = true
			others = append(others, id)
		}
	}
	if len(others) == 0 {
		return list, nil
	}
	rows, err = db.pool.Query(ctx, sqlStandingsOf, s.Livemode, s.Modes, s.FirstPayments, others)
	if err != nil {
		return nil, fmt.Errorf("read where purchases stand: %w", err)
	}
	more, err := Collect(db, "reconcile", rows, scanStanding)
	if err != nil {
		return nil, fmt.Errorf("read where purchases stand: %w", err)
	}
	return append(list, more...), nil
}

func scanStanding(row pgx.CollectableRow) (s purchase.Standing, err error) {
	err = row.Scan(&s.ID, &s.Status, &s.Reason, &s.AmountMinor, &s.Currency, &s.At, &s.SentMinor)
	s.At = s.At.UTC()
	return s, err
}

const sqlReconciliation = `SELECT report FROM public.reconciliations WHERE livemode = $1`

// Reconciliation returns the latest of a mode; its Made is zero where there was none.
func (db *DB) Reconciliation(ctx context.Context, livemode bool) (r purchase.Reconciliation, err error) {
	var report []byte
	switch err := db.pool.QueryRow(ctx, sqlReconciliation, livemode).Scan(&report); {
	case errors.Is(err, pgx.ErrNoRows):
		return r, nil
	case err != nil:
		return r, fmt.Errorf("read the reconciliation: %w", err)
	}
	if err := json.Unmarshal(report, &r); err != nil {
		return r, fmt.Errorf("read the reconciliation: %w", err)
	}
	return r, nil
}

const sqlPutReconciliation = `
INSERT INTO public.reconciliations (livemode, made_at, report) VALUES ($1, $2, $3)
ON CONFLICT (livemode) DO UPDATE SET made_at = excluded.made_at, report = excluded.report`

// PutReconciliation keeps a reconciliation in the place of the one before.
func (db *DB) PutReconciliation(ctx context.Context, r purchase.Reconciliation) error {
	report, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("keep the reconciliation: %w", err)
	}
	if _, err := db.pool.Exec(ctx, sqlPutReconciliation, r.Livemode, r.Made, report); err != nil {
		return fmt.Errorf("keep the reconciliation: %w", err)
	}
	return nil
}
