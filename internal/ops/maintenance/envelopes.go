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

// EnvelopeAge is how long a delivered purchase keeps its message: TikTok de-duplicates for 48 hours, and
// nothing is sent again.
const EnvelopeAge = 48 * time.Hour

// The messages of purchases that TikTok accepted $1 seconds ago or earlier. The index holds those that
// still have theirs.
const sqlDropEnvelopes = `
UPDATE public.purchases SET envelope = NULL
WHERE checkout_session_id IN (
    SELECT checkout_session_id FROM public.purchases
    WHERE status = 'delivered' AND envelope IS NOT NULL AND finished_at < now() - make_interval(secs => $1)
    ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED)`

// DropEnvelopes removes the messages of purchases that TikTok accepted before an age, at most limit per call,
// and returns how many. They are never sent again, and hold what a buyer's browser told. Of several replicas
// one does it at a time; rows that are in use are left for later.
func (j *Jobs) DropEnvelopes(ctx context.Context, age time.Duration, limit int) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, pruneTimeout)
	defer cancel()
	err = pgx.BeginFunc(ctx, j.db.Pool(), func(tx pgx.Tx) error {
		if mine, err := ledger.TryLock(ctx, tx, ledger.LockEnvelopes); err != nil || !mine {
			return err
		}
		tag, err := tx.Exec(ctx, sqlDropEnvelopes, age.Seconds(), limit)
		n = int(tag.RowsAffected())
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("drop the messages of delivered purchases: %w", err)
	}
	return n, nil
}

const (
	dropEvery = time.Minute // between two looks at the ledger
	dropBatch = 500         // rows per transaction: some ten milliseconds
	dropRest  = 4           // times a step's duration: most of a busy Postgres belongs to the webhooks
)

// KeepLean calls drop, which is DropEnvelopes, until ctx ends. The first failure of a row of them is logged.
func KeepLean(
	drop func(ctx context.Context, age time.Duration, limit int) (int, error), log *zap.Logger,
) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		var failures logsafe.Changes
		for {
			began := time.Now()
			n, err := drop(ctx, EnvelopeAge, dropBatch)
			switch {
			case err == nil:
				failures = logsafe.Changes{}
			case ctx.Err() == nil && failures.Failed(err):
				log.Warn("Envelopes not dropped; retrying", zap.Error(err))
			}
			wait := dropEvery
			if n == dropBatch {
				wait = dropRest * time.Since(began)
			}
			if rest(ctx, wait) != nil {
				return nil
			}
		}
	}
}
