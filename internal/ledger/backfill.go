package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/purchase"
)

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
