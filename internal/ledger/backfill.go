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

// PutBackfill remembers how far a catch-up came.
func (db *DB) PutBackfill(ctx context.Context, b purchase.Backfill) error {
	_, err := db.pool.Exec(ctx, sqlPutBackfill, b.Origin, b.Since, b.Until, b.Cursor, nullableTime(b.Reached),
		b.Counts.Known, b.Counts.New, b.Counts.Ignored, b.Counts.Rejected, b.Counts.Malformed, nullableTime(b.Finished))
	if err != nil {
		return fmt.Errorf("remember how far the catch-up came: %w", err)
	}
	return nil
}

// CaughtUp counts the purchases paid since a time that no webhook had brought, and says when the last of them was found; livemode nil
// means both modes.
func (db *DB) CaughtUp(ctx context.Context, since time.Time, livemode *bool) (n int, last time.Time, err error) {
	var at *time.Time
	if err := db.pool.QueryRow(ctx, sqlCaughtUp, since, livemode).Scan(&n, &at); err != nil {
		return 0, time.Time{}, fmt.Errorf("count what came by catch-up: %w", err)
	}
	return n, orZero(at), nil
}

// Standings returns what a scope holds, and those of the ids whatever their time, each once.
func (db *DB) Standings(ctx context.Context, s purchase.Scope, ids []string) ([]purchase.Standing, error) {
	rows, err := db.pool.Query(ctx, sqlStandings, s.Livemode, s.Modes, s.FirstPayments, s.Since, s.Until)
	if err != nil {
		return nil, fmt.Errorf("read where purchases stand: %w", err)
	}
	list, err := collect(db, "reconcile", rows, scanStanding)
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
	more, err := collect(db, "reconcile", rows, scanStanding)
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
