package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/relay"
)

// first_published_at is set by the first claim, before the first send: an acknowledgement that is lost must
// not make the purchase younger.
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

// The queue may have lost a purchase without an outcome for the grace, by the ledger's clock. swept_at limits
// a purchase that the queue still holds to one claim per grace instead of one per sweep.
//
// An outcome may reach a replayed purchase before the relay claims it: the row is in flight and has no
// first publish yet. Its age then counts from the stream's time of the message, else from the outcome's
// recording.
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

// errNoEnvelope is returned for a purchase without a message, which cannot be published.
var errNoEnvelope = errors.New("row has no envelope")

// claimRows returns the claims of a statement that claims rows. Unusable rows are left out; where all of them
// are, the next ones are claimed.
func (db *DB) claimRows(
	ctx context.Context, where, what, statement string, args ...any,
) ([]relay.Claim, error) {
	for {
		rows, err := db.pool.Query(ctx, statement, args...)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		claims, err := Collect(db, where, rows, scanClaim)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
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

// An outcome that was recorded before its mark has set everything already. The mark's generation is the
// higher one after an ambiguous publish. The rows are locked in key order, as everywhere.
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

// MarkPublished implements relay.Outbox. An earlier outcome and a newer generation are kept.
func (db *DB) MarkPublished(ctx context.Context, marks []relay.Mark) error {
	if len(marks) == 0 {
		return nil
	}
	ages, firsts := make([]float64, len(marks)), make([]*time.Time, len(marks))
	for i, m := range marks {
		ages[i], firsts[i] = m.Age.Seconds(), NullTime(m.FirstPublished)
	}
	ids, generations, sequences := columnsOf(marks)
	if _, err := db.pool.Exec(ctx, sqlPublished, ids, generations, sequences, ages, firsts); err != nil {
		return fmt.Errorf("mark %d purchases published: %w", len(marks), err)
	}
	return nil
}

// An UPDATE alone locks in the order of its plan and could deadlock with other writers of these rows.
const sqlReleased = `
WITH open AS (
    SELECT checkout_session_id FROM public.purchases
    WHERE checkout_session_id = ANY($1) AND status IN ('pending', 'published', 'retrying')
    ORDER BY checkout_session_id FOR UPDATE
)
UPDATE public.purchases p SET claimed_until = NULL FROM open o
WHERE p.checkout_session_id = o.checkout_session_id AND p.status IN ('pending', 'published', 'retrying')`

// An earlier outcome is kept.
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
		if _, err := tx.Exec(ctx, sqlLockPurchases, ids); err != nil { // one key order, like the recorder
			return err
		}
		if err := writeMarks(ctx, tx, sqlSwept, published); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlStillQueued, queued); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sqlReleased, unknown)
		return err
	})
	if err != nil {
		return fmt.Errorf("record the sweep of %d purchases: %w", len(ids), err)
	}
	return nil
}

// The generation protects a purchase that was replayed since: its age counts anew.
const sqlExpire = `
UPDATE public.purchases p SET
    status = 'dead', reason = 'expired', finished_at = now(), claimed_until = NULL, updated_at = now()
FROM unnest($1::text[], $2::int[]) AS m (id, generation)
WHERE p.checkout_session_id = m.id AND p.generation = m.generation AND p.status IN ('published', 'retrying')
    AND p.first_published_at <= now() - make_interval(secs => $3)
RETURNING p.checkout_session_id`

// Expire implements relay.SweepLedger.
func (db *DB) Expire(
	ctx context.Context, marks []relay.Mark, maxAge time.Duration,
) (expired []string, err error) {
	ids, generations, _ := columnsOf(marks)
	err = pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		// In key order: an UPDATE locks in the order of its plan.
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

// writeMarks runs a statement that takes IDs, generations and sequences.
func writeMarks(ctx context.Context, tx pgx.Tx, statement string, marks []relay.Mark) error {
	if len(marks) == 0 {
		return nil
	}
	slices.SortFunc(marks, func(a, b relay.Mark) int { return strings.Compare(a.ID, b.ID) })
	ids, generations, sequences := columnsOf(marks)
	// An UPDATE locks in the order of its plan; the recorder may hold some of these rows.
	if _, err := tx.Exec(ctx, sqlLockPurchases, ids); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, statement, ids, generations, sequences)
	return err
}

// Release implements relay.Outbox.
func (db *DB) Release(ctx context.Context, ids []string) error {
	if _, err := db.pool.Exec(ctx, sqlReleased, ids); err != nil {
		return fmt.Errorf("release %d claims: %w", len(ids), err)
	}
	return nil
}

// claimed_until tells whether this claim set first_published_at. An earlier claim may have published and lost
// the acknowledgement: then the age counts.
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

func columnsOf(marks []relay.Mark) (ids []string, generations []int32, sequences []int64) {
	ids = make([]string, len(marks))
	generations, sequences = make([]int32, len(marks)), make([]int64, len(marks))
	for i, m := range marks {
		ids[i] = m.ID
		generations[i], sequences[i] = int32(m.Generation), int64(m.Sequence) //nolint:gosec // both count up from 1
	}
	return ids, generations, sequences
}
