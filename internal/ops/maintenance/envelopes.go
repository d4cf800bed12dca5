package maintenance

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/logsafe"
)

// EnvelopeAge is how long a delivered purchase keeps its message, as long as TikTok de-duplicates events.
const EnvelopeAge = 48 * time.Hour

// A partial index covers delivered purchases that still have a message.
const sqlDropEnvelopes = `
UPDATE public.purchases SET envelope = NULL
WHERE checkout_session_id IN (
    SELECT checkout_session_id FROM public.purchases
    WHERE status = 'delivered' AND envelope IS NOT NULL AND finished_at < now() - make_interval(secs => $1)
    ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED)`

// DropEnvelopes removes up to limit messages of purchases that were delivered longer than age ago and
// returns how many. They are never sent again and hold personal data. An advisory lock admits one replica;
// locked rows are left for a later call.
func (j *Jobs) DropEnvelopes(ctx context.Context, age time.Duration, limit int) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, pruneTimeout)
	defer cancel()
	err = pgx.BeginFunc(ctx, j.db.Pool(), func(tx pgx.Tx) error {
		if locked, err := ledger.TryLock(ctx, tx, ledger.LockEnvelopes); err != nil || !locked {
			return err
		}
		tag, err := tx.Exec(ctx, sqlDropEnvelopes, age.Seconds(), limit)
		n = int(tag.RowsAffected())
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("drop messages of delivered purchases: %w", err)
	}
	return n, nil
}

const (
	dropInterval = time.Minute
	dropBatch    = 500 // rows per transaction, which takes some ten milliseconds
)

// KeepLean returns a function that calls drop, which is DropEnvelopes, until ctx ends. Repeated failures
// are logged once.
func KeepLean(
	drop func(ctx context.Context, age time.Duration, limit int) (int, error), log *zap.Logger,
) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		var failures logsafe.Changes
		for {
			start := time.Now()
			n, err := drop(ctx, EnvelopeAge, dropBatch)
			switch {
			case err == nil:
				failures = logsafe.Changes{}
			case ctx.Err() == nil && failures.Failed(err):
				log.Warn("Envelopes not dropped; retrying", zap.Error(err))
			}
			wait := dropInterval
			if n == dropBatch {
				wait = restFactor * time.Since(start)
			}
			if sleep(ctx, wait) != nil {
				return nil
			}
		}
	}
}
