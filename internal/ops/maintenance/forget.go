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

// Person holds the ids of one customer's rows.
type Person struct {
	Profiles      []string // live and test
	Customers     []string // Stripe's customer ids
	Subscriptions []string
	Purchases     []Purchase
	Others        []string // sessions and invoices of trials without a purchase on the ledger
}

// Purchase is one of a person's purchases.
type Purchase struct {
	ID   string
	Sent bool // accepted by TikTok
}

// Sent returns the event ids that TikTok has accepted.
func (p *Person) Sent() (ids []string) {
	for _, bought := range p.Purchases {
		if bought.Sent {
			ids = append(ids, bought.ID)
		}
	}
	return ids
}

// Queued returns the ids whose messages may be in the queue.
func (p *Person) Queued() []string { return append(p.ids(), p.Others...) }

// ForgetCustomer erases a customer: the content first, then the queue's messages by calling erase, then the
// address and the links that the rest was found by. It can be repeated after an error. It starts over if a
// new purchase was recorded meanwhile. Person includes what TikTok accepted until the end. The error is
// report.ErrNotFound if there is no such customer.
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
		if person, done, err := j.Unlink(ctx, email, person); err != nil || done {
			return person, err
		}
	}
}

// Forget erases the content of a customer's rows: messages with match keys, also those of trials, and
// TikTok's messages and request ids. Undelivered purchases become skipped (forgotten). The links stay until
// Unlink, because the queue must be erased first. It can be repeated. The error is report.ErrNotFound if
// there is no such customer.
func (j *Jobs) Forget(ctx context.Context, email string) (p Person, err error) {
	err = j.withPerson(ctx, email, func(tx pgx.Tx, found Person) error {
		p = found
		return eraseContent(ctx, tx, &p)
	})
	return p, err
}

const sqlForgetLinks = `
UPDATE public.purchases SET profile_id = NULL, stripe_customer_id = NULL, stripe_subscription_id = NULL,
    stripe_payment_id = NULL
WHERE checkout_session_id = ANY($1::text[])`

// A later invoice of a deleted trial is no first payment.
const sqlForgetTrials = `
WITH locked AS (
    SELECT t.subscription_id FROM public.trials t WHERE ` + trialsOfPerson + `
    ORDER BY t.subscription_id FOR UPDATE
)
DELETE FROM public.trials t USING locked l WHERE t.subscription_id = l.subscription_id`

const sqlForgetProfile = `
WITH locked AS (SELECT id FROM public.profiles WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE)
DELETE FROM public.profiles p USING locked l WHERE p.id = l.id`

// Unlink deletes the customer's profiles and trials and the purchases' links to them and to Stripe's
// customer. Session and event ids stay, so that redelivered webhooks remain duplicates. It returns the
// customer as read in its transaction: TikTok may have accepted more since. false: nothing was done, because
// the customer has purchases that are not in seen.
func (j *Jobs) Unlink(ctx context.Context, email string, seen Person) (p Person, done bool, err error) {
	err = j.withPerson(ctx, email, func(tx pgx.Tx, found Person) error {
		p = found
		done = slices.Equal(found.Profiles, seen.Profiles) && slices.Equal(found.ids(), seen.ids())
		if !done {
			return nil
		}
		if err := eraseContent(ctx, tx, &found); err != nil { // an outcome may have been recorded since Forget
			return err
		}
		// Purchases, profiles, trials: the order in which a webhook locks.
		return execAll(ctx, tx,
			statement{sqlForgetLinks, []any{found.ids()}},
			statement{sqlForgetProfile, []any{found.Profiles}},
			statement{sqlForgetTrials, found.trialArgs()})
	})
	return p, done, err
}

const sendable = `(status IN ('pending', 'published', 'retrying', 'dead')
        OR status = 'skipped' AND reason IN ('not_configured', 'test_purchase'))`

const sqlForgetContent = `
UPDATE public.purchases SET envelope = NULL, last_error = NULL, tiktok_request_id = NULL,
    next_attempt_at = NULL,
    status = CASE WHEN ` + sendable + ` THEN 'skipped' ELSE status END,
    reason = CASE WHEN ` + sendable + ` THEN 'forgotten' ELSE reason END,
    finished_at = CASE WHEN ` + sendable + ` THEN COALESCE(finished_at, now()) ELSE finished_at END,
    updated_at = now()
WHERE checkout_session_id = ANY($1::text[])`

const sqlForgetAttempts = `
WITH locked AS (
    SELECT checkout_session_id, attempt_id FROM public.attempts
    WHERE checkout_session_id = ANY($1::text[]) AND (message <> '' OR request_id <> '')
    ORDER BY checkout_session_id, attempt_id FOR UPDATE
)
UPDATE public.attempts a SET message = '', request_id = '' FROM locked l
WHERE a.checkout_session_id = l.checkout_session_id AND a.attempt_id = l.attempt_id`

// From now on a first payment becomes skipped (forgotten).
const sqlForgetTrialKeys = `
WITH locked AS (
    SELECT t.subscription_id FROM public.trials t WHERE ` + trialsOfPerson + `
    ORDER BY t.subscription_id FOR UPDATE
)
UPDATE public.trials t SET envelope = NULL, click_expires_at = NULL FROM locked l
    WHERE t.subscription_id = l.subscription_id`

// eraseContent erases messages and TikTok's answers.
func eraseContent(ctx context.Context, tx pgx.Tx, p *Person) error {
	return execAll(ctx, tx,
		statement{sqlForgetContent, []any{p.ids()}},
		statement{sqlForgetAttempts, []any{p.ids()}},
		statement{sqlForgetTrialKeys, p.trialArgs()})
}

type statement struct {
	sql  string
	args []any
}

func execAll(ctx context.Context, tx pgx.Tx, statements ...statement) error {
	for _, s := range statements {
		if _, err := tx.Exec(ctx, s.sql, s.args...); err != nil {
			return fmt.Errorf("erase rows: %w", ledger.Explain(err))
		}
	}
	return nil
}

// trialArgs returns the arguments of trialsOfPerson.
func (p *Person) trialArgs() []any { return []any{p.Profiles, p.Customers, p.Subscriptions, p.ids()} }

func (p *Person) ids() []string {
	ids := make([]string, len(p.Purchases))
	for i := range p.Purchases {
		ids[i] = p.Purchases[i].ID
	}
	return ids
}

// withPerson finds a customer in both modes and calls do while it holds the locks of the purchases and of
// the address, on which webhooks wait. Errors do not contain the address.
func (j *Jobs) withPerson(ctx context.Context, email string, do func(tx pgx.Tx, found Person) error) error {
	err := pgx.BeginFunc(ctx, j.db.Pool(), func(tx pgx.Tx) error {
		p, err := find(ctx, tx, purchase.NormaliseEmail(email))
		if err != nil {
			return err
		}
		return do(tx, p)
	})
	if err != nil {
		return fmt.Errorf("forget customer: %w", err)
	}
	return nil
}

const sqlForgetProfiles = `
SELECT id::text FROM public.profiles WHERE livemode IN (true, false) AND email = $1 ORDER BY id`

// Trials may have ids whose purchases were pruned.
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

// The profiles' purchases, and those of the same customer or subscription without a profile: unpaid and
// rejected ones.
const sqlForgetPurchases = `
SELECT checkout_session_id, status = 'delivered' FROM public.purchases
WHERE profile_id = ANY($1::uuid[])
    OR profile_id IS NULL
        AND (stripe_customer_id = ANY($2::text[]) OR stripe_subscription_id = ANY($3::text[]))
ORDER BY checkout_session_id FOR UPDATE`

// The person's trials and held invoices, by any id, because purchases may have been pruned. Those of
// another profile are left out.
const trialsOfPerson = `
    (t.profile_id = ANY($1::uuid[]) OR t.checkout_session_id = ANY($4::text[]) OR t.purchase_id = ANY($4)
        OR NOT EXISTS (SELECT FROM public.profiles o WHERE o.id = t.profile_id)
            AND (t.stripe_customer_id = ANY($2::text[]) OR t.subscription_id = ANY($3::text[])))`

// Trials' sessions and invoices whose purchases were pruned, but may still be in the queue.
const sqlForgetOthers = `
SELECT COALESCE(array_agg(DISTINCT u.id), '{}')
FROM public.trials t, unnest(ARRAY[t.checkout_session_id, t.invoice_id, t.purchase_id]) AS u (id)
WHERE u.id IS NOT NULL AND u.id <> ALL($4) AND ` + trialsOfPerson

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
	var bought Purchase
	// An unreadable row is an error here: it must not be left out.
	if _, err := pgx.ForEachRow(rows, []any{&bought.ID, &bought.Sent}, func() error {
		p.Purchases = append(p.Purchases, bought)
		return nil
	}); err != nil {
		return p, err
	}
	return p, tx.QueryRow(ctx, sqlForgetOthers, p.trialArgs()...).Scan(&p.Others)
}
