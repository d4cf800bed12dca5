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

// The minimum ages of pruned rows.
const (
	// MinPruneAge preserves de-duplication: Stripe can resend an event for 30 days.
	MinPruneAge = 35 * 24 * time.Hour
	// MinAttemptAge exceeds RETRY_MAX_AGE: until then an outcome may be redelivered and must be counted once.
	MinAttemptAge = 7 * 24 * time.Hour
)

// Pruning selects the rows to delete: purchases that ended before a time, with their attempts and events,
// and events without a purchase. In-flight purchases stay, and so do those with a later event. Dead,
// rejected and awaiting_payment purchases are deleted only if Also names their status.
type Pruning struct {
	Before   time.Time
	Attempts time.Time // if after Before: delete older attempts of the purchases that stay, too
	Also     []purchase.Status
}

// Prunable returns the statuses that are always pruned: they are final.
func Prunable() []purchase.Status {
	return []purchase.Status{purchase.StatusDelivered, purchase.StatusSkipped, purchase.StatusPaymentFailed}
}

// PrunableByName returns the statuses that are pruned only if named.
func PrunableByName() []purchase.Status {
	return []purchase.Status{purchase.StatusDead, purchase.StatusRejected, purchase.StatusAwaitingPayment}
}

// Statuses returns the statuses to prune.
func (p *Pruning) Statuses() []purchase.Status { return append(Prunable(), p.Also...) }

// Unnamed returns the statuses that are prunable by name and not named.
func (p *Pruning) Unnamed() []purchase.Status {
	named := func(s purchase.Status) bool { return slices.Contains(p.Also, s) }
	return slices.DeleteFunc(PrunableByName(), named)
}

// Check validates a pruning.
func (p *Pruning) Check(now time.Time) error {
	switch {
	case p.Before.After(now.Add(-MinPruneAge)):
		return fmt.Errorf("purchases and events must be at least %d days old: Stripe can resend an event for 30",
			int(MinPruneAge.Hours()/24))
	case p.Attempts.After(now.Add(-MinAttemptAge)):
		return fmt.Errorf("attempts must be at least %d days old", int(MinAttemptAge.Hours()/24))
	}
	for _, s := range p.Also {
		if !slices.Contains(PrunableByName(), s) {
			return errors.New("only dead, rejected and awaiting_payment can be pruned by name")
		}
	}
	return nil
}

// Pruned counts deleted or prunable rows.
type Pruned struct {
	Groups   []report.Group // purchases by status and reason, in this order; without codes
	Attempts int
	Events   int
	Trials   int // rows that link trials to their first payments
}

// Purchases returns the number of purchases.
func (p *Pruned) Purchases() (n int) {
	for _, g := range p.Groups {
		n += g.Count
	}
	return n
}

// Add adds n purchases of a status and reason.
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

// Each step is a transaction of some ten milliseconds, followed by a rest of restFactor times its duration:
// the slower Postgres is, the slower the pruning.
const (
	pruneStep    = 500 // rows
	restFactor   = 4
	pruneTimeout = time.Minute // of one step
)

const sqlCountPrunableAttempts = `
SELECT count(*)
FROM public.purchases p JOIN public.attempts a ON a.checkout_session_id = p.checkout_session_id
WHERE p.status = ANY($1::text[]) AND COALESCE(p.purchased_at, p.created_at) < $2::timestamptz AND a.at < $2`

// CountPrunable counts what Prune would delete, except events without a purchase.
func (j *Jobs) CountPrunable(ctx context.Context, p Pruning) (Pruned, error) {
	found, err := j.CountEnded(ctx, p.Statuses(), p.Before)
	if err != nil || !p.Attempts.After(p.Before) {
		return found, err
	}
	row := j.db.Pool().QueryRow(ctx, sqlCountPrunableAttempts, p.Statuses(), p.Attempts)
	if err := row.Scan(&found.Attempts); err != nil {
		return found, fmt.Errorf("count attempts: %w", err)
	}
	return found, nil
}

// $1 statuses; $2 a time before which the purchase ended and since which it has no event. The first
// condition follows from the second and uses the index.
const prunable = `COALESCE(p.purchased_at, p.created_at) < $2::timestamptz
    AND COALESCE(p.finished_at, p.updated_at) < $2
    AND NOT EXISTS (SELECT FROM public.stripe_events e
        WHERE e.checkout_session_id = p.checkout_session_id AND e.received_at >= $2)`

const sqlCountPrunable = `
SELECT p.status, p.reason, count(*) FROM public.purchases p
WHERE p.status = ANY($1::text[]) AND ` + prunable + ` GROUP BY 1, 2`

// CountEnded counts the purchases of some statuses that ended before a time and have no event since then.
func (j *Jobs) CountEnded(
	ctx context.Context, statuses []purchase.Status, before time.Time,
) (found Pruned, err error) {
	rows, err := j.db.Pool().Query(ctx, sqlCountPrunable, statuses, before)
	if err != nil {
		return found, fmt.Errorf("count ended purchases: %w", err)
	}
	var status purchase.Status
	var reason purchase.Reason
	var n int
	_, err = pgx.ForEachRow(rows, []any{&status, &reason, &n}, func() error {
		found.Add(status, reason, n)
		return nil
	})
	if err != nil {
		return found, fmt.Errorf("count ended purchases: %w", err)
	}
	return found, nil
}

// Prune deletes the selected rows in small steps and returns what it deleted, even with an error; it can be
// repeated. progress is called after each step. It waits for no other transaction and locks only rows that
// it deletes.
func (j *Jobs) Prune(ctx context.Context, p Pruning, progress func(Pruned)) (Pruned, error) {
	w := &pruner{db: j.db, Pruning: p, progress: progress}
	type phase struct {
		table string
		step  step
	}
	var phases []phase
	add := func(table string, stepOf func(status purchase.Status, livemode bool) step) {
		for _, status := range p.Statuses() {
			phases = append(phases, phase{table, stepOf(status, true)}, phase{table, stepOf(status, false)})
		}
	}
	add("purchases", w.purchases)
	phases = append(phases, phase{"events", w.events}, phase{"trials", w.trials})
	if p.Attempts.After(p.Before) {
		add("attempts", w.attempts)
	}
	for _, phase := range phases {
		if err := w.walk(ctx, phase.step); err != nil {
			return w.done, fmt.Errorf("prune %s: %w", phase.table, ledger.Explain(err))
		}
	}
	if err := w.pruneRollup(ctx); err != nil {
		return w.done, fmt.Errorf("prune rollup: %w", ledger.Explain(err))
	}
	if err := w.deleteAll(ctx, sqlPruneCounts); err != nil {
		return w.done, fmt.Errorf("prune TikTok's counts: %w", ledger.Explain(err))
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

// cursor is a position in the order of time and id. The zero cursor is the start.
type cursor struct {
	at time.Time
	id string
}

// step deletes up to pruneStep rows after a cursor and returns the new cursor; more reports whether rows
// may be left.
type step func(ctx context.Context, from cursor) (to cursor, more bool, err error)

func (w *pruner) walk(ctx context.Context, s step) error {
	for from, more := (cursor{}), true; more; {
		start := time.Now()
		stepCtx, cancel := context.WithTimeout(ctx, pruneTimeout)
		var err error
		from, more, err = s(stepCtx, from)
		cancel()
		if err != nil {
			return err
		}
		w.progress(w.done)
		if err := sleep(ctx, restFactor*time.Since(start)); err != nil {
			return err
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// One step of purchases of one status and mode, with their attempts and events. Locked rows are skipped.
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
), attempts AS (
    DELETE FROM public.attempts
    WHERE checkout_session_id IN (SELECT checkout_session_id FROM gone) RETURNING 1
), events AS (
    DELETE FROM public.stripe_events
    WHERE checkout_session_id IN (SELECT checkout_session_id FROM gone) RETURNING 1
), last AS (
    SELECT at, checkout_session_id AS id FROM gone ORDER BY at DESC, checkout_session_id DESC LIMIT 1
)
SELECT g.reason, count(*), (SELECT count(*) FROM attempts), (SELECT count(*) FROM events),
    (SELECT at FROM last), (SELECT id FROM last)
FROM gone g GROUP BY g.reason`

func (w *pruner) purchases(status purchase.Status, livemode bool) step {
	return func(ctx context.Context, from cursor) (cursor, bool, error) {
		rows, err := w.db.Pool().Query(ctx, sqlPrunePurchases,
			status, w.Before, livemode, from.at, from.id, pruneStep)
		if err != nil {
			return from, false, err
		}
		var reason purchase.Reason
		var n, attempts, events, deleted int
		_, err = pgx.ForEachRow(rows, []any{&reason, &n, &attempts, &events, &from.at, &from.id}, func() error {
			w.done.Add(status, reason, n)
			deleted += n
			return nil
		})
		if err != nil {
			return from, false, err
		}
		w.done.Attempts, w.done.Events = w.done.Attempts+attempts, w.done.Events+events // the same in each row
		return from, deleted == pruneStep, nil
	}
}

// Events without a purchase: they arrived after it was pruned.
const sqlPruneEvents = `
WITH chosen AS (
    SELECT event_id, checkout_session_id, received_at FROM public.stripe_events
    WHERE received_at < $1::timestamptz AND received_at >= $2::timestamptz
        AND (received_at > $2 OR event_id > $3)
    ORDER BY received_at, event_id LIMIT $4
), old AS (
    SELECT e.event_id FROM public.stripe_events e JOIN chosen c ON e.event_id = c.event_id
    WHERE NOT EXISTS (SELECT FROM public.purchases p WHERE p.checkout_session_id = c.checkout_session_id)
    ORDER BY e.event_id FOR UPDATE OF e SKIP LOCKED
), gone AS (
    DELETE FROM public.stripe_events e USING old o WHERE e.event_id = o.event_id RETURNING 1
)
SELECT received_at, event_id, (SELECT count(*) FROM gone) FROM chosen
ORDER BY received_at DESC, event_id DESC LIMIT 1`

func (w *pruner) events(ctx context.Context, from cursor) (cursor, bool, error) {
	return w.next(ctx, from, &w.done.Events, sqlPruneEvents, w.Before, from.at, from.id, pruneStep)
}

// Three kinds: the first payment was made, the trial of a held invoice never came, or the trial ended
// without a payment (Stripe's longest lasts two years). A later invoice finds no trial and is no first
// payment.
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

// next runs a statement that returns its last position and how many rows it deleted, or no row at the end.
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

// A row without sales or keyed purchases has no other sums.
const sqlPruneSales = `
DELETE FROM public.rollup_sales WHERE (daily, at, livemode, currency) IN (
    SELECT daily, at, livemode, currency FROM public.rollup_sales WHERE at < $1 AND paid = 0
    ORDER BY daily, at, livemode, currency LIMIT $2 FOR UPDATE SKIP LOCKED) AND paid = 0`

const sqlPruneKeys = `
DELETE FROM public.rollup_keys WHERE (daily, at, livemode) IN (
    SELECT daily, at, livemode FROM public.rollup_keys WHERE at < $1 AND keyed = 0
    ORDER BY daily, at, livemode LIMIT $2 FOR UPDATE SKIP LOCKED) AND keyed = 0`

const sqlPruneDelays = `
DELETE FROM public.rollup_delays WHERE (daily, at, livemode, delay) IN (
    SELECT daily, at, livemode, delay FROM public.rollup_delays WHERE at < $1 AND n = 0
    ORDER BY daily, at, livemode, delay LIMIT $2 FOR UPDATE SKIP LOCKED) AND n = 0`

// pruneRollup deletes the rollup's rows whose counts are 0.
func (w *pruner) pruneRollup(ctx context.Context) error {
	if _, err := report.New(w.db).Fold(ctx); err != nil {
		return err
	}
	for _, sql := range []string{sqlPruneSales, sqlPruneKeys, sqlPruneDelays} {
		if err := w.deleteAll(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// deleteAll repeats a statement with a time and a limit until it deletes fewer rows.
func (w *pruner) deleteAll(ctx context.Context, sql string) error {
	return w.walk(ctx, func(ctx context.Context, from cursor) (cursor, bool, error) {
		tag, err := w.db.Pool().Exec(ctx, sql, w.Before, pruneStep)
		return from, tag.RowsAffected() == pruneStep, err
	})
}

// The recorder prunes the history.
const sqlPruneCounts = `
DELETE FROM public.tiktok_counts WHERE (pixel_id, event, day) IN (
    SELECT pixel_id, event, day FROM public.tiktok_counts
    WHERE day < ($1::timestamptz AT TIME ZONE 'UTC')::date
    ORDER BY pixel_id, event, day LIMIT $2 FOR UPDATE SKIP LOCKED)`
