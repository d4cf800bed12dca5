package maintenance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// The least ages of what may be pruned.
const (
	// LeastPruneAge keeps de-duplication: Stripe lists an event for 30 days, and may send it again by hand
	// that long.
	LeastPruneAge = 35 * 24 * time.Hour
	// LeastAttemptAge is past RETRY_MAX_AGE's limit: an attempt's outcome may be told again until then, and
	// is counted once.
	LeastAttemptAge = 7 * 24 * time.Hour
)

// Pruning says what leaves the ledger: purchases that ended before a time, with their attempts and Stripe's
// events; events that no purchase is left of; and, where they have an age of their own, attempts of finished
// purchases that stay.
//
// A purchase that Stripe spoke of since then stays. So does everything that is on its way, and, unless it is
// named in Also, what waits for a person (dead, rejected) or for Stripe (awaiting_payment).
type Pruning struct {
	Before   time.Time
	Attempts time.Time // attempts before it go, too; not after Before: they go with their purchase
	Also     []purchase.Status
}

// Prunable are the statuses that leave without being named: nothing more will come of them.
func Prunable() []purchase.Status {
	return []purchase.Status{purchase.StatusDelivered, purchase.StatusSkipped, purchase.StatusPaymentFailed}
}

// PrunableByName are the statuses that leave only when they are named.
func PrunableByName() []purchase.Status {
	return []purchase.Status{purchase.StatusDead, purchase.StatusRejected, purchase.StatusAwaitingPayment}
}

// Statuses are those that leave.
func (p *Pruning) Statuses() []purchase.Status { return append(Prunable(), p.Also...) }

// Staying are the statuses that might leave by name and were not named.
func (p *Pruning) Staying() []purchase.Status {
	return slices.DeleteFunc(PrunableByName(), func(s purchase.Status) bool { return slices.Contains(p.Also, s) })
}

// Check returns what is wrong with a pruning.
func (p *Pruning) Check(now time.Time) error {
	switch {
	case p.Before.After(now.Add(-LeastPruneAge)):
		return fmt.Errorf("purchases and events stay for at least %d days: "+
			"Stripe may send an event again for 30, and it must be known", int(LeastPruneAge.Hours()/24))
	case p.Attempts.After(now.Add(-LeastAttemptAge)):
		return fmt.Errorf("attempts stay for at least %d days", int(LeastAttemptAge.Hours()/24))
	}
	for _, s := range p.Also {
		if !slices.Contains(PrunableByName(), s) {
			return errors.New("only dead, rejected and awaiting_payment can be pruned by name; " +
				"what is on its way never is")
		}
	}
	return nil
}

// Pruned counts what left the ledger, or would.
type Pruned struct {
	Groups   []report.Group // purchases by status and reason, in this order; without codes
	Attempts int
	Events   int
	Trials   int // what was kept to join trials and their first payments
}

// Purchases is how many of them there are.
func (p *Pruned) Purchases() (n int) {
	for _, g := range p.Groups {
		n += g.Count
	}
	return n
}

// Add counts n more purchases of a status and reason.
func (p *Pruned) Add(status purchase.Status, reason purchase.Reason, n int) {
	for i := range p.Groups {
		if g := &p.Groups[i]; g.Status == status && g.Reason == reason {
			g.Count += n
			return
		}
	}
	order := append(Prunable(), PrunableByName()...)
	p.Groups = append(p.Groups, report.Group{Status: status, Reason: reason, Count: n})
	slices.SortFunc(p.Groups, func(a, b report.Group) int {
		return cmp.Or(slices.Index(order, a.Status)-slices.Index(order, b.Status), cmp.Compare(a.Reason, b.Reason))
	})
}

// Pruning works in steps of so many rows, a transaction of some ten milliseconds each, and rests after each
// for a multiple of the time that it took: a busy Postgres is pruned more slowly, and most of it belongs to
// everybody else.
const (
	pruneStep    = 500
	pruneRest    = 4
	pruneTimeout = time.Minute // of one step
)

const sqlCountPrunableAttempts = `
SELECT count(*)
FROM public.purchases p JOIN public.attempts a ON a.checkout_session_id = p.checkout_session_id
WHERE p.status = ANY($1::text[]) AND COALESCE(p.purchased_at, p.created_at) < $2::timestamptz AND a.at < $2`

// CountPrunable counts what a pruning would remove, without the events that no purchase is left of.
func (j *Jobs) CountPrunable(ctx context.Context, p Pruning) (Pruned, error) {
	found, err := j.CountEnded(ctx, p.Statuses(), p.Before)
	if err != nil || !p.Attempts.After(p.Before) {
		return found, err
	}
	row := j.db.Pool().QueryRow(ctx, sqlCountPrunableAttempts, p.Statuses(), p.Attempts)
	if err := row.Scan(&found.Attempts); err != nil {
		return found, fmt.Errorf("count the attempts: %w", err)
	}
	return found, nil
}

// What may leave the ledger: $1 statuses, $2 the time before which it must have ended, and since when Stripe
// must not have spoken of it. What ended before was paid, or heard of, before: so the index on the time finds
// it.
const prunable = `COALESCE(p.purchased_at, p.created_at) < $2::timestamptz
    AND COALESCE(p.finished_at, p.updated_at) < $2
    AND NOT EXISTS (SELECT FROM public.stripe_events e
        WHERE e.checkout_session_id = p.checkout_session_id AND e.received_at >= $2)`

const sqlCountPrunable = `
SELECT p.status, p.reason, count(*) FROM public.purchases p
WHERE p.status = ANY($1::text[]) AND ` + prunable + ` GROUP BY 1, 2`

// CountEnded counts the purchases of some statuses that ended before a time and that Stripe has not spoken of
// since then.
func (j *Jobs) CountEnded(
	ctx context.Context, statuses []purchase.Status, before time.Time,
) (found Pruned, err error) {
	rows, err := j.db.Pool().Query(ctx, sqlCountPrunable, statuses, before)
	if err != nil {
		return found, fmt.Errorf("count what ended before %s: %w", before.Format(time.DateOnly), err)
	}
	var status purchase.Status
	var reason purchase.Reason
	var n int
	_, err = pgx.ForEachRow(rows, []any{&status, &reason, &n}, func() error {
		found.Add(status, reason, n)
		return nil
	})
	if err != nil {
		return found, fmt.Errorf("count what ended before %s: %w", before.Format(time.DateOnly), err)
	}
	return found, nil
}

// Prune removes what a pruning says, in small steps, and returns what it removed, also beside an error: the rest
// is still there and may be pruned later. progress is called after each step. It waits for no other transaction
// and locks only the rows that leave.
func (j *Jobs) Prune(ctx context.Context, p Pruning, progress func(Pruned)) (Pruned, error) {
	w := &pruner{db: j.db, Pruning: p, progress: progress}
	type phase struct {
		what string
		step step
	}
	var phases []phase
	each := func(what string, of func(status purchase.Status, livemode bool) step) {
		for _, status := range p.Statuses() {
			phases = append(phases, phase{what, of(status, true)}, phase{what, of(status, false)})
		}
	}
	each("purchases", w.purchases)
	phases = append(phases, phase{"events", w.events}, phase{"trials", w.trials})
	if p.Attempts.After(p.Before) {
		each("attempts", w.attempts)
	}
	for _, phase := range phases {
		if err := w.walk(ctx, phase.step); err != nil {
			return w.done, fmt.Errorf("prune %s: %w", phase.what, ledger.Explain(err))
		}
	}
	if err := w.emptyFigures(ctx); err != nil {
		return w.done, fmt.Errorf("prune the rollup: %w", ledger.Explain(err))
	}
	return w.done, nil
}

// pruner is the state of one pruning.
type pruner struct {
	db *ledger.DB
	Pruning
	progress func(Pruned)
	done     Pruned
}

// cursor is how far a walk came, in the order of time and id. The zero cursor is the beginning.
type cursor struct {
	at time.Time
	id string
}

// step removes some rows after a cursor and returns how far it came; more reports whether rows may be left.
type step func(ctx context.Context, from cursor) (to cursor, more bool, err error)

func (w *pruner) walk(ctx context.Context, s step) error {
	for from, more := (cursor{}), true; more; {
		began := time.Now()
		var err error
		if from, more, err = bounded(ctx, s, from); err != nil {
			return err
		}
		w.progress(w.done)
		if err := rest(ctx, pruneRest*time.Since(began)); err != nil {
			return err
		}
	}
	return nil
}

func bounded(ctx context.Context, s step, from cursor) (cursor, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, pruneTimeout)
	defer cancel()
	return s(ctx, from)
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// One step from a place on, of one status and mode: the purchases with their attempts and events. Whoever
// works on a row has it: it is passed by, and nobody is waited for.
const sqlPrunePurchases = `
WITH chosen AS (
    SELECT p.checkout_session_id, COALESCE(p.purchased_at, p.created_at) AS at FROM public.purchases p
    WHERE p.status = $1 AND p.livemode = $3 AND COALESCE(p.purchased_at, p.created_at) >= $4::timestamptz
        AND (COALESCE(p.purchased_at, p.created_at) > $4 OR p.checkout_session_id > $5) AND ` + prunable + `
    ORDER BY COALESCE(p.purchased_at, p.created_at), p.checkout_session_id LIMIT $6
    FOR UPDATE OF p SKIP LOCKED
), gone AS (
    DELETE FROM public.purchases p USING chosen c WHERE p.checkout_session_id = c.checkout_session_id
    RETURNING p.checkout_session_id, p.reason, c.at
), tried AS (
    DELETE FROM public.attempts WHERE checkout_session_id IN (SELECT checkout_session_id FROM gone) RETURNING 1
), heard AS (
    DELETE FROM public.stripe_events WHERE checkout_session_id IN (SELECT checkout_session_id FROM gone) RETURNING 1
), place AS (
    SELECT at, checkout_session_id AS id FROM gone ORDER BY at DESC, checkout_session_id DESC LIMIT 1
)
SELECT g.reason, count(*), (SELECT count(*) FROM tried), (SELECT count(*) FROM heard),
    (SELECT at FROM place), (SELECT id FROM place)
FROM gone g GROUP BY g.reason`

func (w *pruner) purchases(status purchase.Status, livemode bool) step {
	return func(ctx context.Context, from cursor) (cursor, bool, error) {
		rows, err := w.db.Pool().Query(ctx, sqlPrunePurchases,
			status, w.Before, livemode, from.at, from.id, pruneStep)
		if err != nil {
			return from, false, err
		}
		var reason purchase.Reason
		var n, attempts, events, all int
		_, err = pgx.ForEachRow(rows, []any{&reason, &n, &attempts, &events, &from.at, &from.id}, func() error {
			w.done.Add(status, reason, n)
			all += n
			return nil
		})
		if err != nil {
			return from, false, err
		}
		w.done.Attempts, w.done.Events = w.done.Attempts+attempts, w.done.Events+events // the same in each row
		return from, all == pruneStep, nil
	}
}

// Events that no purchase is left of: they came late to one that was pruned.
const sqlPruneEvents = `
WITH chosen AS (
    SELECT event_id, checkout_session_id, received_at FROM public.stripe_events
    WHERE received_at < $1::timestamptz AND received_at >= $2::timestamptz AND (received_at > $2 OR event_id > $3)
    ORDER BY received_at, event_id LIMIT $4
), old AS (
    SELECT e.event_id FROM public.stripe_events e JOIN chosen c ON e.event_id = c.event_id
    WHERE NOT EXISTS (SELECT FROM public.purchases p WHERE p.checkout_session_id = c.checkout_session_id)
    ORDER BY e.event_id FOR UPDATE OF e SKIP LOCKED
), gone AS (
    DELETE FROM public.stripe_events e USING old o WHERE e.event_id = o.event_id RETURNING 1
)
SELECT received_at, event_id, (SELECT count(*) FROM gone) FROM chosen ORDER BY received_at DESC, event_id DESC LIMIT 1`

func (w *pruner) events(ctx context.Context, from cursor) (cursor, bool, error) {
	return w.next(ctx, from, &w.done.Events, sqlPruneEvents, w.Before, from.at, from.id, pruneStep)
}

// Of subscriptions: those whose first payment is long made, those of which no trial came with the first
// invoice, and trials that ended without a payment (Stripe's longest lasts two years). An invoice that comes
// later finds no trial, and so is no first payment.
const sqlPruneTrials = `
WITH chosen AS (
    SELECT subscription_id FROM public.trials WHERE subscription_id > $2 ORDER BY subscription_id LIMIT $3
), old AS (
    SELECT t.subscription_id FROM public.trials t JOIN chosen c ON t.subscription_id = c.subscription_id
    WHERE t.purchase_id IS NOT NULL AND t.invoice_at < $1::timestamptz
        OR t.checkout_session_id IS NULL AND t.held_at < $1
        OR t.started_at < $1::timestamptz - interval '2 years'
    ORDER BY t.subscription_id FOR UPDATE OF t SKIP LOCKED
), gone AS (
    DELETE FROM public.trials t USING old o WHERE t.subscription_id = o.subscription_id RETURNING 1
)
SELECT now(), subscription_id, (SELECT count(*) FROM gone) FROM chosen ORDER BY subscription_id DESC LIMIT 1`

func (w *pruner) trials(ctx context.Context, from cursor) (cursor, bool, error) {
	return w.next(ctx, from, &w.done.Trials, sqlPruneTrials, w.Before, from.id, pruneStep)
}

// Attempts that are older than purchases have to be, of one status and mode. Rows that another
// transaction has are left for a later pruning, here and below: a pruning waits for nobody.
const sqlPruneAttempts = `
WITH chosen AS (
    SELECT p.checkout_session_id AS id, COALESCE(p.purchased_at, p.created_at) AS at FROM public.purchases p
    WHERE p.status = $1 AND p.livemode = $3
        AND COALESCE(p.purchased_at, p.created_at) >= $4::timestamptz
        AND COALESCE(p.purchased_at, p.created_at) < $2
        AND (COALESCE(p.purchased_at, p.created_at) > $4 OR p.checkout_session_id > $5)
    ORDER BY COALESCE(p.purchased_at, p.created_at), p.checkout_session_id LIMIT $6
), old AS (
    SELECT checkout_session_id, attempt_id FROM public.attempts
    WHERE checkout_session_id IN (SELECT id FROM chosen) AND at < $2::timestamptz
    ORDER BY checkout_session_id, attempt_id FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM public.attempts a USING old o
    WHERE a.checkout_session_id = o.checkout_session_id AND a.attempt_id = o.attempt_id RETURNING 1
)
SELECT at, id, (SELECT count(*) FROM gone) FROM chosen ORDER BY at DESC, id DESC LIMIT 1`

func (w *pruner) attempts(status purchase.Status, livemode bool) step {
	return func(ctx context.Context, from cursor) (cursor, bool, error) {
		return w.next(ctx, from, &w.done.Attempts, sqlPruneAttempts,
			status, w.Attempts, livemode, from.at, from.id, pruneStep)
	}
}

// next runs a statement that returns how far it came and how many rows it removed; no row: none is left.
func (w *pruner) next(
	ctx context.Context, from cursor, count *int, sql string, args ...any,
) (cursor, bool, error) {
	var n int
	switch err := w.db.Pool().QueryRow(ctx, sql, args...).Scan(&from.at, &from.id, &n); {
	case errors.Is(err, pgx.ErrNoRows):
		return from, false, nil
	case err != nil:
		return from, false, err
	}
	*count += n
	return from, true, nil
}

// Of hours of which nothing is left, the rollup keeps nothing.
const sqlPruneHours = `
DELETE FROM public.rollup_hours WHERE (hour, livemode) IN (
    SELECT hour, livemode FROM public.rollup_hours WHERE hour < $1 AND paid = 0 AND accepted = 0
    ORDER BY hour, livemode LIMIT $2 FOR UPDATE SKIP LOCKED) AND paid = 0 AND accepted = 0`

const sqlPruneDelays = `
DELETE FROM public.rollup_delays WHERE (daily, at, livemode, delay) IN (
    SELECT daily, at, livemode, delay FROM public.rollup_delays WHERE at < $1 AND n = 0
    ORDER BY daily, at, livemode, delay LIMIT $2 FOR UPDATE SKIP LOCKED) AND n = 0`

// emptyFigures removes the rollup's rows that count nothing any more. They are made anew where something
// comes to be counted.
func (w *pruner) emptyFigures(ctx context.Context) error {
	if _, err := report.New(w.db).Fold(ctx); err != nil {
		return err
	}
	for _, sql := range []string{sqlPruneHours, sqlPruneDelays} {
		err := w.walk(ctx, func(ctx context.Context, from cursor) (cursor, bool, error) {
			tag, err := w.db.Pool().Exec(ctx, sql, w.Before, pruneStep)
			return from, tag.RowsAffected() == pruneStep, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
