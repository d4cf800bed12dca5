package ledger

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"purchase-relay/internal/purchase"
)

var profileForm = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// Entries lists purchases from the newest to the oldest, at most f.Limit of them. Every filter has its index; statements are
// planned for the values at hand, because a plan for any value would read the wrong one.
func (db *DB) Entries(ctx context.Context, f purchase.Filter) ([]purchase.Entry, error) {
	from, until := any(pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}), any(pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true})
	after := until
	if !f.Day.IsZero() {
		day := f.Day.UTC().Truncate(24 * time.Hour)
		from, until = day, day.AddDate(0, 0, 1)
	}
	if !f.After.At.IsZero() {
		after = f.After.At
	}
	args := []any{pgx.QueryExecModeCacheDescribe, f.Livemode, from, until, after, f.After.ID, string(f.Reason), code32(f.Code), f.Limit, f.NoCode}
	statement := sqlEntries
	switch query := strings.TrimSpace(f.Query); {
	case query != "":
		statement = sqlEntriesFound
		profile := ""
		if profileForm.MatchString(query) {
			profile = query
		}
		args = append(args, string(f.Status), storable(query), purchase.NormaliseEmail(query), nullable(profile))
	case f.Code != nil && *f.Code != 0:
		statement = sqlEntriesByCode
		args = append(args, string(f.Status))
	case f.Status != "":
		statement = sqlEntriesByStatus
		args = append(args, string(f.Status))
	}
	for wanted := f.Limit; ; {
		args[limitArgument] = wanted
		rows, err := db.pool.Query(ctx, statement, args...)
		if err != nil {
			return nil, fmt.Errorf("list purchases: %w", err)
		}
		entries, err := collect(db, "entries", rows, scanEntry)
		if err != nil {
			return nil, fmt.Errorf("list purchases: %w", err)
		}
		// A page that lacks an unreadable row is filled up: a short one is taken for the last.
		read := int(rows.CommandTag().RowsAffected())
		if read < wanted || len(entries) >= f.Limit {
			return entries[:min(len(entries), f.Limit)], nil
		}
		wanted += read - len(entries)
	}
}

// limitArgument is the place of f.Limit among a statement's arguments.
const limitArgument = 8

// Entry returns a purchase's row and its history. The error is purchase.ErrUnknown where the ledger does not hold it.
func (db *DB) Entry(ctx context.Context, id string) (e purchase.Entry, h purchase.History, err error) {
	err = pgx.BeginTxFunc(ctx, db.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, sqlEntry, storable(id))
		if err != nil {
			return err
		}
		if e, err = pgx.CollectExactlyOneRow(rows, scanEntry); err != nil {
			return err
		}
		found, err := db.histories(ctx, tx, e.ID, "", 1)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return pgx.ErrNoRows
		}
		h = found[0]
		return nil
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return e, h, fmt.Errorf("purchase %s: %w", id, purchase.ErrUnknown)
	case err != nil:
		return e, h, fmt.Errorf("read purchase %s: %w", id, err)
	}
	return e, h, nil
}

// ProfileByEmail returns the id of the profile with this address; "" where there is none.
func (db *DB) ProfileByEmail(ctx context.Context, email string) (id string, err error) {
	err = db.pool.QueryRow(ctx, sqlProfileByEmail, purchase.NormaliseEmail(email)).Scan(&id)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return "", fmt.Errorf("look for a profile: %w", err) // the address is not repeated
	}
	return id, nil
}

func scanEntry(row pgx.CollectableRow) (e purchase.Entry, err error) {
	err = row.Scan(&e.ID, &e.Status, &e.Reason, &e.ProfileID, &e.Mode, &e.Livemode, &e.AmountMinor, &e.Currency,
		&e.PurchasedAt, &e.Customer, &e.Subscription, &e.Generation, &e.FirstPublished, &e.Published, &e.Sequence,
		&e.Swept, &e.Attempts, &e.LastAttempt, &e.LastClass, &e.LastCode, &e.LastError, &e.RequestID, &e.Finished,
		&e.Created, &e.Updated, &e.Kind, &e.TrialSession, &e.SentMinor)
	for _, at := range []*time.Time{e.PurchasedAt, e.FirstPublished, e.Published, e.Swept, e.LastAttempt, e.Finished, &e.Created, &e.Updated} {
		if at != nil {
			*at = at.UTC()
		}
	}
	return e, err
}
