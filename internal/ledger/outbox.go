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

// Claim takes up to most pending purchases, oldest first, for this caller alone and for contract.ClaimFor.
func (db *DB) Claim(ctx context.Context, most int) ([]message.Claim, error) {
	return db.claim(ctx, "relay", "claim pending purchases", sqlClaim, most, message.ClaimFor.Seconds())
}

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
		claims, err := collect(db, where, rows, scanClaim)
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
