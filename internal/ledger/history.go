package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/purchase"
)

// Histories finds purchases by a checkout session's id, an event's id, or the customer's e-mail address, newest first and
// at most so many, each with its events and attempts in the order of their time. None is no error.
func (db *DB) Histories(ctx context.Context, term string, most int) ([]purchase.History, error) {
	var found []purchase.History
	err := pgx.BeginTxFunc(ctx, db.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		found, err = db.histories(ctx, tx, storable(term), purchase.NormaliseEmail(term), most)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for a purchase: %w", err)
	}
	return found, nil
}

// Each way of finding has its own index.
const sqlHistories = `
SELECT checkout_session_id, status, reason, COALESCE(profile_id::text, ''), mode, livemode, amount_minor, COALESCE(currency, ''), purchased_at,
    COALESCE(stripe_customer_id, ''), COALESCE(stripe_subscription_id, ''), generation, created_at, first_published_at, published_at,
    COALESCE(stream_sequence, 0), finished_at, COALESCE(tiktok_request_id, ''), envelope, kind,
    COALESCE(trial_session_id, ''), match_keys, sent_minor, COALESCE(sent_page, '')
FROM public.purchases
WHERE checkout_session_id IN (
    SELECT $1 UNION SELECT checkout_session_id FROM public.stripe_events WHERE event_id = $1
    UNION SELECT q.checkout_session_id FROM public.profiles p JOIN public.purchases q ON q.profile_id = p.id
        WHERE p.livemode IN (true, false) AND p.email = $2)
ORDER BY created_at DESC, checkout_session_id LIMIT $3`

func (db *DB) histories(
	ctx context.Context, tx pgx.Tx, term, email string, most int,
) ([]purchase.History, error) {
	rows, err := tx.Query(ctx, sqlHistories, term, email, most)
	if err != nil {
		return nil, err
	}
	found, err := Collect(db, "history", rows, scanHistory)
	if err != nil {
		return nil, err
	}
	byID := make(map[string]*purchase.History, len(found))
	ids := make([]string, len(found))
	for i := range found {
		ids[i], byID[found[i].ID] = found[i].ID, &found[i]
	}
	if err := db.readEvents(ctx, tx, ids, byID); err != nil {
		return nil, err
	}
	if err := db.readConversions(ctx, tx, ids, byID); err != nil {
		return nil, err
	}
	return found, db.readAttempts(ctx, tx, ids, byID)
}

const sqlConversions = `SELECT trial_session_id, checkout_session_id, created_at FROM public.purchases WHERE trial_session_id = ANY($1)`

// readConversions finds what trials became.
func (db *DB) readConversions(ctx context.Context, tx pgx.Tx, ids []string,
	byID map[string]*purchase.History,
) error {
	rows, err := tx.Query(ctx, sqlConversions, ids)
	if err != nil {
		return err
	}
	var trial, id string
	var at time.Time
	return db.ForEach("history", rows, []any{&trial, &id, &at}, func() error {
		byID[trial].FirstPayment, byID[trial].Converted = id, at.UTC()
		return nil
	})
}

func scanHistory(row pgx.CollectableRow) (h purchase.History, err error) {
	var at, first, published, finished *time.Time
	var sequence int64
	var sent purchase.Sent
	err = row.Scan(&h.ID, &h.Status, &h.Reason, &h.ProfileID, &h.Mode, &h.Livemode, &h.AmountMinor, &h.Currency,
		&at, &h.Customer, &h.Subscription, &h.Generation, &h.Received, &first, &published, &sequence, &finished,
		&h.RequestID, &h.Envelope, &h.Kind, &h.TrialSession, &h.KeyMask, &sent.Minor, &sent.Page)
	if h.Status == purchase.StatusDelivered {
		if h.KeyMask != nil {
			sent.Keys = *h.KeyMask &^ purchase.LateClick
		}
		h.Sent = &sent
	}
	h.At, h.FirstPublished, h.Published, h.Finished = orZero(at), orZero(first), orZero(published), orZero(finished)
	h.Sequence = uint64(max(sequence, 0))
	return h, err
}

const sqlReceptions = `
SELECT checkout_session_id, event_id, type, created_at, received_at, disposition FROM public.stripe_events
WHERE checkout_session_id = ANY($1) ORDER BY received_at, event_id`

func (db *DB) readEvents(ctx context.Context, tx pgx.Tx, ids []string,
	byID map[string]*purchase.History,
) error {
	rows, err := tx.Query(ctx, sqlReceptions, ids)
	if err != nil {
		return err
	}
	var id string
	var e purchase.Reception
	var created *time.Time
	fields := []any{&id, &e.EventID, &e.Type, &created, &e.Received, &e.Disposition}
	return db.ForEach("history", rows, fields, func() error {
		e.Created = orZero(created)
		byID[id].Events = append(byID[id].Events, e)
		return nil
	})
}

const sqlAttempts = `
SELECT checkout_session_id, attempt_id, generation, at, took_ms, class, code, message, request_id FROM public.attempts
WHERE checkout_session_id = ANY($1) ORDER BY at, attempt_id`

func (db *DB) readAttempts(ctx context.Context, tx pgx.Tx, ids []string,
	byID map[string]*purchase.History,
) error {
	rows, err := tx.Query(ctx, sqlAttempts, ids)
	if err != nil {
		return err
	}
	var id string
	var a purchase.Attempt
	var took int64
	var code *int
	fields := []any{&id, &a.ID, &a.Generation, &a.At, &took, &a.Class, &code, &a.Message, &a.RequestID}
	return db.ForEach("history", rows, fields, func() error {
		a.Took, a.Code = time.Duration(took)*time.Millisecond, nil
		if code != nil {
			a.Code = new(*code)
		}
		byID[id].Attempts = append(byID[id].Attempts, a)
		return nil
	})
}
