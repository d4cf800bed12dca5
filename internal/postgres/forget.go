package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/purchase"
)

// Forget takes the content from everything that the ledger holds of a customer: messages with match keys, TikTok's words and request ids.
// What was not delivered is not sent any more and ends skipped (forgotten). The purchases can still be found: the queue has to be looked
// through before Unlink. Doing it again is harmless. The error is purchase.ErrUnknown where there is no such customer.
func (db *DB) Forget(ctx context.Context, email string) (p purchase.Person, err error) {
	err = db.about(ctx, email, func(tx pgx.Tx, found purchase.Person) error {
		p = found
		return eachOf(ctx, tx, ids(p), sqlForgetContent, sqlForgetAttempts, sqlForgetTrials)
	})
	return p, err
}

// Unlink removes the customer: the profile with the address, and what connects purchases with it or with a customer at Stripe. What is
// left says of a session that it was bought, and so is known when Stripe tells of it again. false: there are purchases that Forget has not
// seen, and nothing was done.
func (db *DB) Unlink(ctx context.Context, email string, seen purchase.Person) (done bool, err error) {
	err = db.about(ctx, email, func(tx pgx.Tx, found purchase.Person) error {
		if done = found.ProfileID == seen.ProfileID && slices.Equal(ids(found), ids(seen)); !done {
			return nil
		}
		if err := eachOf(ctx, tx, ids(seen), sqlForgetContent, sqlForgetAttempts, sqlForgetTrials, sqlForgetLinks); err != nil { // an outcome may have come
			return err
		}
		if _, err := tx.Exec(ctx, sqlForgetProfile, found.ProfileID); err != nil {
			return fmt.Errorf("remove the profile: %w", explain(err))
		}
		return nil
	})
	return done, err
}

func ids(p purchase.Person) (list []string) {
	for _, h := range p.Held {
		list = append(list, h.ID)
	}
	return list
}

func eachOf(ctx context.Context, tx pgx.Tx, ids []string, statements ...string) error {
	for _, sql := range statements {
		if _, err := tx.Exec(ctx, sql, ids); err != nil {
			return fmt.Errorf("remove what is held of a customer: %w", explain(err))
		}
	}
	return nil
}

// about finds a customer and keeps webhooks about the same address, and everything else about those purchases, waiting meanwhile. The
// address is in no error.
func (db *DB) about(ctx context.Context, email string, do func(tx pgx.Tx, found purchase.Person) error) error {
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		email := purchase.NormaliseEmail(email)
		if _, err := tx.Exec(ctx, sqlLockEmails, []string{email}); err != nil {
			return err
		}
		var p purchase.Person
		switch err := tx.QueryRow(ctx, sqlForgetPerson, email).Scan(&p.ProfileID); {
		case errors.Is(err, pgx.ErrNoRows):
			return purchase.ErrUnknown
		case err != nil:
			return err
		}
		rows, err := tx.Query(ctx, sqlForgetHeld, p.ProfileID)
		if err != nil {
			return err
		}
		var h purchase.Holding
		var until *time.Time
		if _, err := pgx.ForEachRow(rows, []any{&h.ID, &h.Livemode, &h.Sent, &until}, func() error {
			p.Held = append(p.Held, h)
			if until != nil && until.After(p.Until) {
				p.Until = *until
			}
			return nil
		}); err != nil {
			return err
		}
		return do(tx, p)
	})
	if err != nil {
		return fmt.Errorf("forget a customer: %w", err)
	}
	return nil
}
