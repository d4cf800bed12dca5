package ledger

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/purchase"
)

// Forget removes the content of everything that the ledger holds of a buyer: messages with match keys, those
// of trials included, TikTok's messages and request ids. Purchases that were not delivered end skipped
// (forgotten). The rows can still be found, because the queue has to be erased before Unlink. It may be
// repeated. The error is purchase.ErrUnknown where the ledger has no such buyer.
func (db *DB) Forget(ctx context.Context, email string) (p purchase.Person, err error) {
	err = db.about(ctx, email, func(tx pgx.Tx, found purchase.Person) error {
		p = found
		return content(ctx, tx, &p)
	})
	return p, err
}

// Unlink removes the profiles with the address, the trials, and what links purchases to them or to a customer
// at Stripe. The session and event ids stay, so that Stripe's repeats are known. false: there are purchases
// that Forget has not seen, and nothing was done.
func (db *DB) Unlink(ctx context.Context, email string, seen purchase.Person) (done bool, err error) {
	err = db.about(ctx, email, func(tx pgx.Tx, found purchase.Person) error {
		if done = slices.Equal(found.Profiles, seen.Profiles) && slices.Equal(ids(&found), ids(&seen)); !done {
			return nil
		}
		if err := content(ctx, tx, &found); err != nil { // an outcome may have been recorded since Forget
			return err
		}
		// In the order in which a webhook locks: purchases, profiles, trials.
		return remove(ctx, tx,
			statement{sqlForgetLinks, []any{ids(&found)}},
			statement{sqlForgetProfile, []any{found.Profiles}},
			statement{sqlForgetTrials, traces(&found)})
	})
	return done, err
}

// content removes what was sent, or would be, and what TikTok answered.
func content(ctx context.Context, tx pgx.Tx, p *purchase.Person) error {
	return remove(ctx, tx,
		statement{sqlForgetContent, []any{ids(p)}},
		statement{sqlForgetAttempts, []any{ids(p)}},
		statement{sqlForgetTrialKeys, traces(p)})
}

type statement struct {
	sql  string
	args []any
}

func remove(ctx context.Context, tx pgx.Tx, statements ...statement) error {
	for _, s := range statements {
		if _, err := tx.Exec(ctx, s.sql, s.args...); err != nil {
			return fmt.Errorf("remove the buyer's data: %w", explain(err))
		}
	}
	return nil
}

// traces are the arguments by which trials are found.
func traces(p *purchase.Person) []any { return []any{p.Profiles, p.Customers, p.Subscriptions, ids(p)} }

func ids(p *purchase.Person) []string {
	list := make([]string, len(p.Held))
	for i, h := range p.Held {
		list[i] = h.ID
	}
	return list
}

// about finds a buyer in both modes, locks the purchases, and keeps webhooks about the same address waiting
// meanwhile. The address is in no error.
func (db *DB) about(ctx context.Context, email string, do func(tx pgx.Tx, found purchase.Person) error) error {
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		p, err := find(ctx, tx, purchase.NormaliseEmail(email))
		if err != nil {
			return err
		}
		return do(tx, p)
	})
	if err != nil {
		return fmt.Errorf("forget a customer: %w", err)
	}
	return nil
}

func find(ctx context.Context, tx pgx.Tx, email string) (p purchase.Person, err error) {
	locks := sorted([]string{profileKey{true, email}.lock(), profileKey{false, email}.lock()})
	if _, err := tx.Exec(ctx, sqlLockEmails, locks); err != nil {
		return p, err
	}
	rows, err := tx.Query(ctx, sqlForgetProfiles, email)
	if err != nil {
		return p, err
	}
	if p.Profiles, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		return p, err
	}
	if len(p.Profiles) == 0 {
		return p, purchase.ErrUnknown
	}
	if err := tx.QueryRow(ctx, sqlForgetIDs, p.Profiles).Scan(&p.Customers, &p.Subscriptions); err != nil {
		return p, err
	}
	if rows, err = tx.Query(ctx, sqlForgetHeld, p.Profiles, p.Customers, p.Subscriptions); err != nil {
		return p, err
	}
	var h purchase.Holding
	// No row is left out here: it would stay.
	if _, err := pgx.ForEachRow(rows, []any{&h.ID, &h.Livemode, &h.Sent}, func() error {
		p.Held = append(p.Held, h)
		return nil
	}); err != nil {
		return p, err
	}
	return p, tx.QueryRow(ctx, sqlForgetOthers, traces(&p)...).Scan(&p.Others)
}
