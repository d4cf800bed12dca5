package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/relay"
)

// first_published_at is set by the first claim, before the first publish, so that a lost acknowledgement does
// not reset the purchase's age.
const sqlClaim = `
UPDATE public.purchases SET claimed_until = now() + make_interval(secs => $2),
    first_published_at = COALESCE(first_published_at, now())
WHERE checkout_session_id IN (
    SELECT checkout_session_id FROM public.purchases
    WHERE status = 'pending' AND (claimed_until IS NULL OR claimed_until < now())
    ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED)
RETURNING checkout_session_id, livemode, generation, first_published_at, envelope`

// Claim implements relay.Outbox.
func (db *DB) Claim(ctx context.Context, limit int) ([]relay.Claim, error) {
	return db.claimRows(ctx, "relay", "claim pending purchases", sqlClaim, limit, relay.ClaimTimeout.Seconds())
}

// Selects purchases without an outcome for the grace period, by Postgres' clock. Because of swept_at a
// purchase that is still queued is claimed once per grace period instead of once per sweep.
//
// If the outcome of a replayed purchase arrives before the relay's claim, the row is in flight without a
// first publish. Its age then starts when the stream stored the message or, if unknown, when the outcome was
// recorded.
const sqlOverdue = `
UPDATE public.purchases SET claimed_until = now() + make_interval(secs => $3),
    first_published_at = COALESCE(first_published_at, published_at, updated_at)
WHERE checkout_session_id IN (
    SELECT checkout_session_id FROM public.purchases
    WHERE status IN ('published', 'retrying')
        AND GREATEST(updated_at, swept_at) < now() - make_interval(secs => $2)
        AND (claimed_until IS NULL OR claimed_until < now())
    ORDER BY published_at LIMIT $1 FOR UPDATE SKIP LOCKED)
RETURNING checkout_session_id, livemode, generation, first_published_at, envelope`

// Overdue implements relay.SweepLedger.
func (db *DB) Overdue(ctx context.Context, grace time.Duration, limit int) ([]relay.Claim, error) {
	return db.claimRows(ctx, "sweeper", "claim overdue purchases", sqlOverdue, limit, grace.Seconds(),
		relay.ClaimTimeout.Seconds())
}

var errNoEnvelope = errors.New("row has no envelope")

// claimRows runs a statement that claims rows. Unreadable rows are skipped; if a batch has no others, the
// next batch is claimed.
func (db *DB) claimRows(
	ctx context.Context, where, operation, statement string, args ...any,
) ([]relay.Claim, error) {
	for {
		rows, err := db.pool.Query(ctx, statement, args...)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", operation, err)
		}
		claims, err := Collect(db, where, rows, scanClaim)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", operation, err)
		}
		if len(claims) > 0 || rows.CommandTag().RowsAffected() == 0 {
			return claims, nil
		}
	}
}

func scanClaim(row pgx.CollectableRow) (c relay.Claim, err error) {
	err = row.Scan(&c.ID, &c.Livemode, &c.Generation, &c.FirstPublished, &c.Envelope)
	if err == nil && len(c.Envelope) == 0 {
		err = errNoEnvelope
	}
	return c, err
}

// A row whose outcome was recorded first is complete. After an ambiguous publish the mark has the higher
// generation. The CTE locks the rows in key order.
const sqlPublished = `
WITH marks AS (
    SELECT m.id, m.generation, m.sequence, m.age, m.first
    FROM unnest($1::text[], $2::int[], $3::bigint[], $4::float8[], $5::timestamptz[])
        AS m (id, generation, sequence, age, first)
), open AS (
    SELECT p.checkout_session_id FROM public.purchases p JOIN marks m ON p.checkout_session_id = m.id
    WHERE p.generation <= m.generation AND (p.status = 'pending' OR p.published_at IS NULL)
        AND (m.first IS NULL OR m.first = p.first_published_at)
    ORDER BY p.checkout_session_id FOR UPDATE OF p
)
UPDATE public.purchases p SET
    status = CASE WHEN p.status = 'pending' THEN 'published' ELSE p.status END, generation = m.generation,
    published_at = now() - make_interval(secs => m.age),
    stream_sequence = COALESCE(NULLIF(m.sequence, 0), p.stream_sequence),
    claimed_until = NULL, updated_at = now()
FROM marks m JOIN open o ON o.checkout_session_id = m.id
WHERE p.checkout_session_id = m.id AND p.generation <= m.generation
    AND (p.status = 'pending' OR p.published_at IS NULL)`

// MarkPublished implements relay.Outbox. It keeps a recorded outcome and a newer generation.
func (db *DB) MarkPublished(ctx context.Context, marks []relay.Mark) error {
	if len(marks) == 0 {
		return nil
	}
	ages, firsts := make([]float64, len(marks)), make([]*time.Time, len(marks))
	for i, m := range marks {
		ages[i], firsts[i] = m.Age.Seconds(), NullTime(m.FirstPublished)
	}
	ids, generations, sequences := markColumns(marks)
	if _, err := db.pool.Exec(ctx, sqlPublished, ids, generations, sequences, ages, firsts); err != nil {
		return fmt.Errorf("mark %d purchases published: %w", len(marks), err)
	}
	return nil
}

// The CTE locks the rows in key order: an UPDATE alone locks in plan order and could deadlock with other
// writers.
const sqlReleased = `
WITH open AS (
    SELECT checkout_session_id FROM public.purchases
    WHERE checkout_session_id = ANY($1) AND status IN ('pending', 'published', 'retrying')
    ORDER BY checkout_session_id FOR UPDATE
)
UPDATE public.purchases p SET claimed_until = NULL FROM open o
WHERE p.checkout_session_id = o.checkout_session_id AND p.status IN ('pending', 'published', 'retrying')`

// Keeps an outcome that was recorded since.
const sqlSwept = `
UPDATE public.purchases p SET
    status = 'published', generation = m.generation, published_at = now(), stream_sequence = m.sequence,
    swept_at = now(), claimed_until = NULL, updated_at = now()
FROM unnest($1::text[], $2::int[], $3::bigint[]) AS m (id, generation, sequence)
WHERE p.checkout_session_id = m.id AND p.generation < m.generation AND p.status IN ('published', 'retrying')`

const sqlStillQueued = `
UPDATE public.purchases SET swept_at = now(), claimed_until = NULL
WHERE checkout_session_id = ANY($1) AND status IN ('published', 'retrying')`

// RecordSweep implements relay.SweepLedger.
func (db *DB) RecordSweep(ctx context.Context, published []relay.Mark, queued, unknown []string) error {
	ids := slices.Concat(queued, unknown)
	for _, m := range published {
		ids = append(ids, m.ID)
	}
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlLockPurchases, ids); err != nil {
			return err
		}
		publishedIDs, generations, sequences := markColumns(published)
		if _, err := tx.Exec(ctx, sqlSwept, publishedIDs, generations, sequences); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlStillQueued, queued); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sqlReleased, unknown)
		return err
	})
	if err != nil {
		return fmt.Errorf("record sweep of %d purchases: %w", len(ids), err)
	}
	return nil
}

// The generation protects a purchase that was replayed since: its age has been reset.
const sqlExpire = `
UPDATE public.purchases p SET
    status = 'dead', reason = 'expired', finished_at = now(), claimed_until = NULL, next_attempt_at = NULL,
    updated_at = now()
FROM unnest($1::text[], $2::int[]) AS m (id, generation)
WHERE p.checkout_session_id = m.id AND p.generation = m.generation AND p.status IN ('published', 'retrying')
    AND p.first_published_at <= now() - make_interval(secs => $3)
RETURNING p.checkout_session_id`

// Expire implements relay.SweepLedger.
func (db *DB) Expire(
	ctx context.Context, marks []relay.Mark, maxAge time.Duration,
) (expired []string, err error) {
	ids, generations, _ := markColumns(marks)
	err = pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlLockPurchases, ids); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, sqlExpire, ids, generations, maxAge.Seconds())
		if err != nil {
			return err
		}
		expired, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("expire purchases: %w", err)
	}
	return expired, nil
}

// Release implements relay.Outbox.
func (db *DB) Release(ctx context.Context, ids []string) error {
	if _, err := db.pool.Exec(ctx, sqlReleased, ids); err != nil {
		return fmt.Errorf("release %d claims: %w", len(ids), err)
	}
	return nil
}

// Resets first_published_at if this claim set it, which claimed_until shows. An earlier claim may have
// published and lost the acknowledgement; the age then stays.
const sqlUnsent = `
WITH unsent AS (
    SELECT checkout_session_id FROM public.purchases
    WHERE checkout_session_id = ANY($1) AND status = 'pending'
    ORDER BY checkout_session_id FOR UPDATE
)
UPDATE public.purchases p SET claimed_until = NULL,
    first_published_at = CASE WHEN p.claimed_until <> p.first_published_at + make_interval(secs => $2)
        OR p.claimed_until IS NULL THEN p.first_published_at END
FROM unsent u WHERE p.checkout_session_id = u.checkout_session_id`

// ReleaseUnsent implements relay.Outbox.
func (db *DB) ReleaseUnsent(ctx context.Context, ids []string) error {
	if _, err := db.pool.Exec(ctx, sqlUnsent, ids, relay.ClaimTimeout.Seconds()); err != nil {
		return fmt.Errorf("release %d unsent claims: %w", len(ids), err)
	}
	return nil
}

func markColumns(marks []relay.Mark) (ids []string, generations []int32, sequences []int64) {
	ids = make([]string, len(marks))
	generations, sequences = make([]int32, len(marks)), make([]int64, len(marks))
	for i, m := range marks {
		ids[i] = m.ID
		generations[i], sequences[i] = int32(m.Generation), int64(m.Sequence) //nolint:gosec // both count up from 1
	}
	return ids, generations, sequences
}
