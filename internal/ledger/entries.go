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

// A page of a list: $1 mode, $2 and $3 the time from and until, $4 and $5 the place to go on from, $6 reason, $7 code, $9 without any code, $8 how many.
const pageOf = `COALESCE(purchased_at, created_at) >= $2::timestamptz AND COALESCE(purchased_at, created_at) < $3::timestamptz
        AND COALESCE(purchased_at, created_at) <= $4::timestamptz AND (COALESCE(purchased_at, created_at) < $4::timestamptz OR checkout_session_id < $5)
        AND ($6 = '' OR reason = $6) AND ($7::int IS NULL OR last_code = $7) AND (NOT $9::boolean OR last_code IS NULL)
    ORDER BY COALESCE(purchased_at, created_at) DESC, checkout_session_id DESC LIMIT $8`

// Each mode by its own part of the index, then merged.
const liveEntries = `
SELECT` + entryColumns + `
FROM (
    (SELECT` + entryColumns + ` FROM public.purchases WHERE livemode AND $1::boolean IS DISTINCT FROM false AND `

const testEntries = `)
    UNION ALL
    (SELECT` + entryColumns + ` FROM public.purchases WHERE NOT livemode AND $1::boolean IS DISTINCT FROM true AND `

const mergedEntries = `)
) p ORDER BY COALESCE(purchased_at, created_at) DESC, checkout_session_id DESC LIMIT $8`

const sqlEntries = liveEntries + pageOf + testEntries + pageOf + mergedEntries

const sqlEntriesByStatus = liveEntries + `status = $10 AND ` + pageOf + testEntries + `status = $10 AND ` + pageOf + mergedEntries

const entriesAlone = `
SELECT` + entryColumns + `
FROM public.purchases WHERE ($1::boolean IS NULL OR livemode = $1) AND ($10 = '' OR status = $10) AND `

const sqlEntriesByCode = entriesAlone + `last_code <> 0 AND ` + pageOf

// Each way of finding has its own index. A profile stands for its address: the profile of the other mode
// is found with it.
const sqlEntriesFound = entriesAlone + found + `AND ` + pageOf

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
		entries, err := Collect(db, "entries", rows, scanEntry)
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

const entryColumns = `
    checkout_session_id, status, reason, profile_id::text, mode, livemode, amount_minor, currency, purchased_at, stripe_customer_id, stripe_subscription_id,
    generation, first_published_at, published_at, stream_sequence, swept_at, attempts, last_attempt_at, last_class, last_code, last_error, tiktok_request_id,
    finished_at, created_at, updated_at, kind, trial_session_id, sent_minor`

const found = `checkout_session_id IN (
    SELECT $11 UNION SELECT checkout_session_id FROM public.stripe_events WHERE event_id = $11
    UNION SELECT checkout_session_id FROM public.purchases WHERE stripe_customer_id = $11
    UNION SELECT q.checkout_session_id FROM public.profiles p
        JOIN public.profiles o ON o.livemode IN (true, false) AND o.email = p.email
        JOIN public.purchases q ON q.profile_id = o.id WHERE p.id = $13::uuid
    UNION SELECT q.checkout_session_id FROM public.profiles p JOIN public.purchases q ON q.profile_id = p.id
        WHERE p.livemode IN (true, false) AND p.email = $12) `

const sqlEntry = `
SELECT` + entryColumns + `
FROM public.purchases WHERE checkout_session_id = $1`

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

// The live profile comes first.
const sqlProfileByEmail = `
SELECT id::text FROM public.profiles WHERE livemode IN (true, false) AND email = $1
ORDER BY livemode DESC LIMIT 1`

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
