package maintenance

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// Person is what the ledger holds of one buyer, by the ids that it keeps.
type Person struct {
	Profiles      []string // of the live and of the test mode
	Customers     []string // Stripe's ids of the customer
	Subscriptions []string
	Purchases     []Purchase
	Others        []string // sessions and invoices of trials that the ledger holds no purchase of
}

// Purchase is one of a person's purchases.
type Purchase struct {
	ID       string
	Livemode bool
	Sent     bool // TikTok has accepted it
}

// Sent lists the ids under which TikTok holds an event of this person.
func (p *Person) Sent() (ids []string) {
	for _, h := range p.Purchases {
		if h.Sent {
			ids = append(ids, h.ID)
		}
	}
	return ids
}

// Queued lists the ids under which the queue may hold a message about this person.
func (p *Person) Queued() []string {
	ids := make([]string, 0, len(p.Purchases)+len(p.Others))
	for _, h := range p.Purchases {
		ids = append(ids, h.ID)
	}
	return append(ids, p.Others...)
}

// ForgetCustomer removes one buyer: first the content, then the queue's messages by erase, at last the
// address and the links, by which the rest was found. It can be repeated after an error. A purchase that
// comes meanwhile makes another round. The error is report.ErrNotFound where the ledger has no such buyer.
func (j *Jobs) ForgetCustomer(
	ctx context.Context, email string, erase func(ctx context.Context, ids []string) error,
) (Person, error) {
	for {
		person, err := j.Forget(ctx, email)
		if err != nil {
			return person, err
		}
		if err := erase(ctx, person.Queued()); err != nil {
			return person, err
		}
		if done, err := j.Unlink(ctx, email, person); err != nil || done {
			return person, err
		}
	}
}

// Forget removes the content of everything that the ledger holds of a buyer: messages with match keys, those
// of trials included, TikTok's messages and request ids. Purchases that were not delivered end skipped
// (forgotten). The rows can still be found, because the queue has to be erased before Unlink. It may be
// repeated. The error is report.ErrNotFound where the ledger has no such buyer.
func (j *Jobs) Forget(ctx context.Context, email string) (p Person, err error) {
	err = j.about(ctx, email, func(tx pgx.Tx, found Person) error {
		p = found
		return content(ctx, tx, &p)
	})
	return p, err
}

const sqlForgetLinks = `
UPDATE public.purchases SET profile_id = NULL, stripe_customer_id = NULL, stripe_subscription_id = NULL
WHERE checkout_session_id = ANY($1::text[])`

// A first payment that comes later finds no trial, and is none.
const sqlForgetTrials = `
WITH mine AS (
    SELECT t.subscription_id FROM public.trials t WHERE ` + forgetTrials + `
    ORDER BY t.subscription_id FOR UPDATE
)
DELETE FROM public.trials t USING mine m WHERE t.subscription_id = m.subscription_id`

const sqlForgetProfile = `
WITH mine AS (SELECT id FROM public.profiles WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE)
DELETE FROM public.profiles p USING mine m WHERE p.id = m.id`

// Unlink removes the profiles with the address, the trials, and what links purchases to them or to a customer
// at Stripe. The session and event ids stay, so that Stripe's repeats are known. false: there are purchases
// that Forget has not seen, and nothing was done.
func (j *Jobs) Unlink(ctx context.Context, email string, seen Person) (done bool, err error) {
	err = j.about(ctx, email, func(tx pgx.Tx, found Person) error {
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

// What still could be sent.
const sendable = `(status IN ('pending', 'published', 'retrying', 'dead')
        OR status = 'skipped' AND reason IN ('not_configured', 'test_purchase'))`

const sqlForgetContent = `
UPDATE public.purchases SET envelope = NULL, last_error = NULL, tiktok_request_id = NULL,
    status = CASE WHEN ` + sendable + ` THEN 'skipped' ELSE status END,
    reason = CASE WHEN ` + sendable + ` THEN 'forgotten' ELSE reason END,
    finished_at = CASE WHEN ` + sendable + ` THEN COALESCE(finished_at, now()) ELSE finished_at END,
    updated_at = now()
WHERE checkout_session_id = ANY($1::text[])`

const sqlForgetAttempts = `
WITH told AS (
    SELECT checkout_session_id, attempt_id FROM public.attempts
    WHERE checkout_session_id = ANY($1::text[]) AND (message <> '' OR request_id <> '')
    ORDER BY checkout_session_id, attempt_id FOR UPDATE
)
UPDATE public.attempts a SET message = '', request_id = '' FROM told t
WHERE a.checkout_session_id = t.checkout_session_id AND a.attempt_id = t.attempt_id`

// A first payment that comes now ends skipped (forgotten).
const sqlForgetTrialKeys = `
WITH mine AS (
    SELECT t.subscription_id FROM public.trials t WHERE ` + forgetTrials + `
    ORDER BY t.subscription_id FOR UPDATE
)
UPDATE public.trials t SET envelope = NULL, click_expires_at = NULL FROM mine m
    WHERE t.subscription_id = m.subscription_id`

// content removes what was sent, or would be, and what TikTok answered.
func content(ctx context.Context, tx pgx.Tx, p *Person) error {
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
			return fmt.Errorf("remove the buyer's data: %w", ledger.Explain(err))
		}
	}
	return nil
}

// traces are the arguments by which trials are found.
func traces(p *Person) []any { return []any{p.Profiles, p.Customers, p.Subscriptions, ids(p)} }

func ids(p *Person) []string {
	list := make([]string, len(p.Purchases))
	for i, h := range p.Purchases {
		list[i] = h.ID
	}
	return list
}

// about finds a buyer in both modes, locks the purchases, and keeps webhooks about the same address waiting
// meanwhile. The address is in no error.
func (j *Jobs) about(ctx context.Context, email string, do func(tx pgx.Tx, found Person) error) error {
	err := pgx.BeginFunc(ctx, j.db.Pool(), func(tx pgx.Tx) error {
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

// The live and the test profile of an address. The advisory locks keep webhooks away from them.
const sqlForgetProfiles = `
SELECT id::text FROM public.profiles WHERE livemode IN (true, false) AND email = $1 ORDER BY id`

// What Stripe calls the customer, and the subscriptions: as the profiles, their purchases and their
// trials know them. The latter keep what a pruning took from the former.
const sqlForgetIDs = `
WITH known AS (
    SELECT stripe_customer_id AS customer, stripe_subscription_id AS subscription
    FROM public.profiles WHERE id = ANY($1::uuid[])
    UNION
    SELECT stripe_customer_id, stripe_subscription_id FROM public.purchases WHERE profile_id = ANY($1::uuid[])
    UNION SELECT stripe_customer_id, subscription_id FROM public.trials WHERE profile_id = ANY($1::uuid[])
)
SELECT COALESCE(array_agg(DISTINCT customer) FILTER (WHERE customer IS NOT NULL), '{}'),
    COALESCE(array_agg(DISTINCT subscription) FILTER (WHERE subscription IS NOT NULL), '{}') FROM known`

// The profiles' purchases, and those of the same customer or subscription that have no profile: unpaid
// ones, and ones without a usable address.
const sqlForgetPurchases = `
SELECT checkout_session_id, livemode, status = 'delivered' FROM public.purchases
WHERE profile_id = ANY($1::uuid[])
    OR profile_id IS NULL AND (stripe_customer_id = ANY($2::text[]) OR stripe_subscription_id = ANY($3::text[]))
ORDER BY checkout_session_id FOR UPDATE`

// Their trials and held invoices, found by each of the ids: purchases may have been pruned. What belongs
// to another profile stays.
const forgetTrials = `
    (t.profile_id = ANY($1::uuid[]) OR t.checkout_session_id = ANY($4::text[]) OR t.purchase_id = ANY($4)
        OR NOT EXISTS (SELECT FROM public.profiles o WHERE o.id = t.profile_id)
            AND (t.stripe_customer_id = ANY($2::text[]) OR t.subscription_id = ANY($3::text[])))`

// The sessions and invoices of trials: the queue may hold what the ledger does not any more.
const sqlForgetOthers = `
SELECT COALESCE(array_agg(DISTINCT u.id), '{}')
FROM public.trials t, unnest(ARRAY[t.checkout_session_id, t.invoice_id, t.purchase_id]) AS u (id)
WHERE u.id IS NOT NULL AND u.id <> ALL($4) AND ` + forgetTrials + ``

func find(ctx context.Context, tx pgx.Tx, email string) (p Person, err error) {
	if err := ledger.LockAddress(ctx, tx, email); err != nil {
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
		return p, report.ErrNotFound
	}
	if err := tx.QueryRow(ctx, sqlForgetIDs, p.Profiles).Scan(&p.Customers, &p.Subscriptions); err != nil {
		return p, err
	}
	if rows, err = tx.Query(ctx, sqlForgetPurchases, p.Profiles, p.Customers, p.Subscriptions); err != nil {
		return p, err
	}
	var h Purchase
	// No row is left out here: it would stay.
	if _, err := pgx.ForEachRow(rows, []any{&h.ID, &h.Livemode, &h.Sent}, func() error {
		p.Purchases = append(p.Purchases, h)
		return nil
	}); err != nil {
		return p, err
	}
	return p, tx.QueryRow(ctx, sqlForgetOthers, traces(&p)...).Scan(&p.Others)
}
