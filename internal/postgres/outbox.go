package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/contract"
)

// Claim takes up to most pending purchases, oldest first, for this caller alone and for contract.ClaimFor.
func (db *DB) Claim(ctx context.Context, most int) ([]contract.Claim, error) {
	rows, err := db.pool.Query(ctx, sqlClaim, most, contract.ClaimFor.Seconds())
	if err != nil {
		return nil, fmt.Errorf("claim pending purchases: %w", err)
	}
	claims, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c contract.Claim, err error) {
		return c, row.Scan(&c.ID, &c.Livemode, &c.Generation, &c.FirstPublished, &c.Envelope)
	})
	if err != nil {
		return nil, fmt.Errorf("claim pending purchases: %w", err)
	}
	return claims, nil
}

// Published marks claims as published. An outcome that was quicker stands, and so does a newer generation.
func (db *DB) Published(ctx context.Context, marks []contract.Mark) error {
	if len(marks) == 0 {
		return nil
	}
	slices.SortFunc(marks, func(a, b contract.Mark) int { return strings.Compare(a.ID, b.ID) })
	ids, generations, sequences := make([]string, len(marks)), make([]int32, len(marks)), make([]int64, len(marks))
	for i, m := range marks {
		ids[i], generations[i], sequences[i] = m.ID, int32(m.Generation), int64(m.Sequence) //nolint:gosec // both were counted up from 1
	}
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		// An UPDATE locks in the order of its plan; the recorder may hold some of these rows.
		if _, err := tx.Exec(ctx, sqlLockPurchases, ids); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sqlPublished, ids, generations, sequences)
		return err
	})
	if err != nil {
		return fmt.Errorf("mark %d purchases published: %w", len(marks), err)
	}
	return nil
}

// Released gives claims back at once.
func (db *DB) Released(ctx context.Context, ids []string) error {
	if _, err := db.pool.Exec(ctx, sqlReleased, ids); err != nil {
		return fmt.Errorf("release %d claims: %w", len(ids), err)
	}
	return nil
}
