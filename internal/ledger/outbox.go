package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/message"
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

// Claim takes up to most pending purchases, oldest first, for this caller alone and for contract.ClaimFor.
func (db *DB) Claim(ctx context.Context, most int) ([]message.Claim, error) {
	return db.claim(ctx, "relay", "claim pending purchases", sqlClaim, most, message.ClaimFor.Seconds())
}

// What the queue may have lost: no word of it for the grace, by this clock and not by a worker's. A row that the queue still
// holds is asked for once a grace, not once a sweep.
//
// An outcome may reach a replayed purchase before the relay claims it: the row is in flight and has no
// first publish yet. Its age then counts from the stream's time of the message, else from the outcome's
// recording.
const sqlOverdue = `
UPDATE public.purchases SET claimed_until = now() + make_interval(secs => $3),
    first_published_at = COALESCE(first_published_at, published_at, updated_at)
WHERE checkout_session_id IN (
    SELECT checkout_session_id FROM public.purchases
    WHERE status IN ('published', 'retrying') AND GREATEST(updated_at, swept_at) < now() - make_interval(secs => $2)
        AND (claimed_until IS NULL OR claimed_until < now())
    ORDER BY published_at LIMIT $1 FOR UPDATE SKIP LOCKED)
RETURNING checkout_session_id, livemode, generation, first_published_at, envelope`

// Overdue takes up to most purchases that should be in the queue and of which there was no word for the grace, for this
// caller alone and for contract.ClaimFor.
func (db *DB) Overdue(ctx context.Context, grace time.Duration, most int) ([]message.Claim, error) {
	return db.claim(ctx, "sweeper", "look for overdue purchases", sqlOverdue, most, grace.Seconds(),
		message.ClaimFor.Seconds())
}

// errNoEnvelope refuses a purchase without a message: it cannot be published.
var errNoEnvelope = errors.New("the row has no envelope")

// claim returns the claims of a statement that claims rows. Where all of its rows had to be left out there
// may be others behind them.
func (db *DB) claim(
	ctx context.Context, where, what, statement string, args ...any,
) ([]message.Claim, error) {
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

func scanClaim(row pgx.CollectableRow) (c message.Claim, err error) {
	err = row.Scan(&c.ID, &c.Livemode, &c.Generation, &c.FirstPublished, &c.Envelope)
	if err == nil && len(c.Envelope) == 0 {
		err = errNoEnvelope
	}
	return c, err
}

// An outcome that overtook this mark has told all that it says: then nothing is written. The mark's generation is the higher one
// where the stream knew the lower one's message id. The rows are locked in key order, as everywhere.
const sqlPublished = `
WITH marks AS (
    SELECT m.id, m.generation, m.sequence, m.age, m.first
    FROM unnest($1::text[], $2::int[], $3::bigint[], $4::float8[], $5::timestamptz[])
        AS m (id, generation, sequence, age, first)
), open AS (
    SELECT p.checkout_session_id FROM public.purchases p JOIN marks m ON p.checkout_session_id = m.id
    WHERE p.generation <= m.generation AND (p.status = 'pending' OR p.published_at IS NULL) AND (m.first IS NULL OR m.first = p.first_published_at)
    ORDER BY p.checkout_session_id FOR UPDATE OF p
)
UPDATE public.purchases p SET
    status = CASE WHEN p.status = 'pending' THEN 'published' ELSE p.status END, generation = m.generation,
    published_at = now() - make_interval(secs => m.age),
    stream_sequence = COALESCE(NULLIF(m.sequence, 0), p.stream_sequence), claimed_until = NULL, updated_at = now()
FROM marks m JOIN open o ON o.checkout_session_id = m.id
WHERE p.checkout_session_id = m.id AND p.generation <= m.generation AND (p.status = 'pending' OR p.published_at IS NULL)`

// Published marks claims as published. An outcome that was quicker stands, and so does a newer generation.
func (db *DB) Published(ctx context.Context, marks []message.Mark) error {
	if len(marks) == 0 {
		return nil
	}
	ages, firsts := make([]float64, len(marks)), make([]*time.Time, len(marks))
	for i, m := range marks {
		ages[i], firsts[i] = m.Age.Seconds(), nullableTime(m.First)
	}
	ids, generations, sequences := columnsOf(marks)
	if _, err := db.pool.Exec(ctx, sqlPublished, ids, generations, sequences, ages, firsts); err != nil {
		return fmt.Errorf("mark %d purchases published: %w", len(marks), err)
	}
	return nil
}

// An UPDATE alone locks in the order of its plan, and waits in a circle with others that have some of the
// rows.
const sqlReleased = `
WITH open AS (
    SELECT checkout_session_id FROM public.purchases
    WHERE checkout_session_id = ANY($1) AND status IN ('pending', 'published', 'retrying')
    ORDER BY checkout_session_id FOR UPDATE
)
UPDATE public.purchases p SET claimed_until = NULL FROM open o
WHERE p.checkout_session_id = o.checkout_session_id AND p.status IN ('pending', 'published', 'retrying')`

// An outcome that was quicker stands.
const sqlSwept = `
UPDATE public.purchases p SET
    status = 'published', generation = m.generation, published_at = now(), stream_sequence = m.sequence, swept_at = now(),
    claimed_until = NULL, updated_at = now()
FROM unnest($1::text[], $2::int[], $3::bigint[]) AS m (id, generation, sequence)
WHERE p.checkout_session_id = m.id AND p.generation < m.generation AND p.status IN ('published', 'retrying')`

const sqlStillQueued = `
UPDATE public.purchases SET swept_at = now(), claimed_until = NULL
WHERE checkout_session_id = ANY($1) AND status IN ('published', 'retrying')`

// Swept records what the queue said to the sweeper: published again under a new generation, still queued, no answer.
func (db *DB) Swept(ctx context.Context, published []message.Mark, queued, unanswered []string) error {
	ids := slices.Concat(queued, unanswered)
	for _, m := range published {
		ids = append(ids, m.ID)
	}
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlLockPurchases, ids); err != nil { // all at once: the recorder takes them in key order, too
			return err
		}
		if err := mark(ctx, tx, sqlSwept, published); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlStillQueued, queued); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sqlReleased, unanswered)
		return err
	})
	if err != nil {
		return fmt.Errorf("record the sweep of %d purchases: %w", len(ids), err)
	}
	return nil
}

// Of what was looked at: a replay in between began a new age under a new generation.
const sqlExpire = `
UPDATE public.purchases p SET status = 'dead', reason = 'expired', finished_at = now(), claimed_until = NULL, updated_at = now()
FROM unnest($1::text[], $2::int[]) AS m (id, generation)
WHERE p.checkout_session_id = m.id AND p.generation = m.generation AND p.status IN ('published', 'retrying')
    AND p.first_published_at <= now() - make_interval(secs => $3)
RETURNING p.checkout_session_id`

// Expire ends those of the purchases as dead (expired) that were first published at least maxAge ago, by the
// ledger's clock, unless an outcome or a replay was recorded since, and returns their ids.
func (db *DB) Expire(
	ctx context.Context, marks []message.Mark, maxAge time.Duration,
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

// mark writes marks by a statement that takes ids, generations and sequences.
func mark(ctx context.Context, tx pgx.Tx, statement string, marks []message.Mark) error {
	if len(marks) == 0 {
		return nil
	}
	slices.SortFunc(marks, func(a, b message.Mark) int { return strings.Compare(a.ID, b.ID) })
	ids, generations, sequences := columnsOf(marks)
	// An UPDATE locks in the order of its plan; the recorder may hold some of these rows.
	if _, err := tx.Exec(ctx, sqlLockPurchases, ids); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, statement, ids, generations, sequences)
	return err
}

// Released gives claims back at once.
func (db *DB) Released(ctx context.Context, ids []string) error {
	if _, err := db.pool.Exec(ctx, sqlReleased, ids); err != nil {
		return fmt.Errorf("release %d claims: %w", len(ids), err)
	}
	return nil
}

// The claim that set first_published_at is known by its end. Another one may follow a publish whose
// answer was lost.
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

// Unsent ends claims of purchases that were not published by them. Where the first claim of all is among
// them, the purchase's age does not count yet.
func (db *DB) Unsent(ctx context.Context, ids []string) error {
	if _, err := db.pool.Exec(ctx, sqlUnsent, ids, message.ClaimFor.Seconds()); err != nil {
		return fmt.Errorf("release %d unsent claims: %w", len(ids), err)
	}
	return nil
}

func columnsOf(marks []message.Mark) (ids []string, generations []int32, sequences []int64) {
	ids, generations, sequences = make([]string, len(marks)), make([]int32, len(marks)), make([]int64, len(marks))
	for i, m := range marks {
		ids[i], generations[i], sequences[i] = m.ID, int32(m.Generation), int64(m.Sequence) //nolint:gosec // both were counted up from 1
	}
	return ids, generations, sequences
}
