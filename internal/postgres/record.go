package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/contract"
	"purchase-relay/internal/purchase"
)

// Record writes one webhook event in one transaction: the event's id, and, where it moves its session forward, the
// profile and the purchase with its encoded message. It returns after the commit. An error leaves nothing behind or,
// when the commit's answer was lost, everything: then the same event is a duplicate next time.
func (db *DB) Record(ctx context.Context, r purchase.Receipt) (purchase.Recorded, error) {
	recorded := purchase.Recorded{Disposition: purchase.Duplicate}
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		forward, err := opens(ctx, tx, &r)
		if err != nil || !forward {
			return err
		}
		recorded.Disposition = r.Disposition()
		if p := &r.Purchase; p.Status == purchase.StatusPending || p.Status == purchase.StatusSkipped {
			if err := tx.QueryRow(ctx, sqlUpsertProfile, p.Email, nullable(p.Customer), nullable(p.Subscription), p.At).
				Scan(&recorded.ProfileID, &recorded.ProfileCreated); err != nil {
				return fmt.Errorf("upsert the profile: %w", err)
			}
		}
		return put(ctx, tx, &r, recorded.ProfileID)
	})
	if err != nil {
		return purchase.Recorded{}, fmt.Errorf("record session %s: %w", r.Purchase.ID, err)
	}
	return recorded, nil
}

// opens remembers the event and says whether it moves its session forward. One round trip.
func opens(ctx context.Context, tx pgx.Tx, r *purchase.Receipt) (bool, error) {
	var batch pgx.Batch
	batch.Queue(sqlLockSession, r.Purchase.ID)
	batch.Queue(sqlInsertEvent, storable(r.Event.ID), r.Event.Type, r.Purchase.ID, r.Event.Livemode,
		nullableTime(r.Event.Created), r.Received)
	batch.Queue(sqlSessionState, r.Purchase.ID)
	results := tx.SendBatch(ctx, &batch)
	defer func() { _ = results.Close() }() // its error is that of the reads below
	if _, err := results.Exec(); err != nil {
		return false, fmt.Errorf("lock the session: %w", err)
	}
	inserted, err := results.Exec()
	if err != nil {
		return false, fmt.Errorf("remember the event: %w", err)
	}
	var status purchase.Status
	var reason purchase.Reason
	if err := results.QueryRow().Scan(&status, &reason); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return false, fmt.Errorf("read the session's state: %w", err)
	}
	return inserted.RowsAffected() == 1 && purchase.Advances(status, reason, r.Purchase.Status, r.Purchase.Reason), results.Close()
}

// put writes the purchase in its new state, with its message where it is to be sent.
func put(ctx context.Context, tx pgx.Tx, r *purchase.Receipt, profileID string) error {
	p := r.Purchase
	var envelope []byte
	var finished *time.Time
	switch p.Status {
	case purchase.StatusPending:
		p.Keys.ExternalID = purchase.HashExternalID(profileID)
		var err error
		if envelope, err = contract.EncodeEnvelope(&p); err != nil {
			return err
		}
	case purchase.StatusSkipped, purchase.StatusRejected:
		finished = &r.Received
	default: // unpaid: nothing to send, nothing ended
	}
	var batch pgx.Batch
	batch.Queue(sqlPutPurchase, p.ID, p.Status, p.Reason, nullable(profileID), p.Mode, p.Livemode, p.AmountMinor, nullable(p.Currency),
		nullableTime(p.At), nullable(p.Customer), nullable(p.Subscription), envelope, finished)
	batch.Queue(sqlEventDisposition, storable(r.Event.ID), r.Disposition())
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("write the purchase: %w", err)
	}
	return nil
}

// storable makes any signed text a value that Postgres can keep: valid UTF-8, no NUL, bounded for the index.
func storable(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) > 500 {
		s = strings.ToValidUTF8(s[:500], "")
	}
	return s
}
