package backfill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/purchase"
)

// State is the progress of a backfill. It reads from the newest event to the oldest: the events between
// Since and Cursor are left.
type State struct {
	Origin       string    // OriginCommand or OriginCheck
	Since, Until time.Time // by Stripe's clock
	Cursor       string    // the last event taken in; "": none yet
	Reached      time.Time // that event's time
	Counts       Counts
	Finished     time.Time // zero: unfinished
}

// Counts counts the events of a backfill by disposition.
type Counts struct {
	Known     int // duplicates
	New       int
	Ignored   int // of another mode or account
	Rejected  int // new and paid, without a usable e-mail address
	Malformed int // without a usable checkout
}

// Add counts an event.
func (c *Counts) Add(d purchase.Disposition) {
	switch d {
	case purchase.Duplicate:
		c.Known++
	case purchase.Ignored, purchase.Foreign:
		c.Ignored++
	case purchase.Rejected:
		c.Rejected++
	case purchase.Malformed:
		c.Malformed++
	case purchase.Processed, purchase.AwaitingPayment, purchase.Held:
		c.New++
	}
}

// Sum returns the number of all events.
func (c Counts) Sum() int { return c.Known + c.New + c.Ignored + c.Rejected + c.Malformed }

// LedgerJournal is a Journal in the ledger.
type LedgerJournal struct{ db *ledger.DB }

// NewJournal returns the journal in db.
func NewJournal(db *ledger.DB) *LedgerJournal { return &LedgerJournal{db} }

const sqlBackfill = `
SELECT since, until, cursor, reached, known, fresh, ignored, rejected, malformed, finished_at
FROM public.backfills WHERE origin = $1`

// Backfill returns the state of an origin's last backfill; Until is zero if there is none.
func (j *LedgerJournal) Backfill(ctx context.Context, origin string) (State, error) {
	b := State{Origin: origin}
	var reached, finished *time.Time
	err := j.db.Pool().QueryRow(ctx, sqlBackfill, origin).Scan(&b.Since, &b.Until, &b.Cursor, &reached,
		&b.Counts.Known, &b.Counts.New, &b.Counts.Ignored, &b.Counts.Rejected, &b.Counts.Malformed, &finished)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return b, nil
	case err != nil:
		return b, fmt.Errorf("read backfill state: %w", err)
	}
	b.Reached, b.Finished = ledger.OrZero(reached), ledger.OrZero(finished)
	return b, nil
}

const sqlPutBackfill = `
INSERT INTO public.backfills AS b (origin, since, until, cursor, reached, known, fresh, ignored, rejected,
    malformed, finished_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (origin) DO UPDATE SET since = excluded.since, until = excluded.until, cursor = excluded.cursor,
    reached = excluded.reached, known = excluded.known, fresh = excluded.fresh, ignored = excluded.ignored,
    rejected = excluded.rejected, malformed = excluded.malformed, finished_at = excluded.finished_at,
    updated_at = now()`

// PutBackfill stores the state of a backfill.
func (j *LedgerJournal) PutBackfill(ctx context.Context, b State) error {
	_, err := j.db.Pool().Exec(ctx, sqlPutBackfill, b.Origin, b.Since, b.Until, b.Cursor,
		ledger.NullTime(b.Reached), b.Counts.Known, b.Counts.New, b.Counts.Ignored, b.Counts.Rejected,
		b.Counts.Malformed, ledger.NullTime(b.Finished))
	if err != nil {
		return fmt.Errorf("store backfill state: %w", err)
	}
	return nil
}
