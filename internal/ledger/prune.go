package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/purchase"
)

// Pruning works in steps of so many rows, a transaction of some ten milliseconds each, and rests after each for a multiple of the time that
// it took: a busy Postgres is pruned more slowly, and most of it belongs to everybody else.
const (
	pruneStep    = 500
	pruneRest    = 4
	pruneTimeout = time.Minute // of one step
)

// CountPrunable says what a pruning would remove; events that would be left alone without it are not counted.
func (db *DB) CountPrunable(ctx context.Context, p purchase.Pruning) (purchase.Pruned, error) {
	found, err := db.CountEnded(ctx, p.Statuses(), p.Before)
	if err != nil || !p.Attempts.After(p.Before) {
		return found, err
	}
	if err := db.pool.QueryRow(ctx, sqlCountPrunableAttempts, p.Statuses(), p.Attempts).Scan(&found.Attempts); err != nil {
		return found, fmt.Errorf("count the attempts: %w", err)
	}
	return found, nil
}

// CountEnded counts the purchases of some statuses that ended before a time and that Stripe has not spoken of since then.
func (db *DB) CountEnded(ctx context.Context, statuses []purchase.Status, before time.Time) (found purchase.Pruned, err error) {
	rows, err := db.pool.Query(ctx, sqlCountPrunable, statuses, before)
	if err != nil {
		return found, fmt.Errorf("count what ended before %s: %w", before.Format(time.DateOnly), err)
	}
	var status purchase.Status
	var reason purchase.Reason
	var n int
	if _, err = pgx.ForEachRow(rows, []any{&status, &reason, &n}, func() error { found.Add(status, reason, n); return nil }); err != nil {
		return found, fmt.Errorf("count what ended before %s: %w", before.Format(time.DateOnly), err)
	}
	return found, nil
}

// Prune removes what a pruning says, in small steps, and returns what it removed, also beside an error: then the rest is still there, and
// may be pruned later. progress is called after each step. It waits for nobody and locks nothing but the rows that leave.
func (db *DB) Prune(ctx context.Context, p purchase.Pruning, progress func(purchase.Pruned)) (purchase.Pruned, error) {
	w := &pruning{db: db, Pruning: p, progress: progress}
	for _, status := range p.Statuses() {
		for _, livemode := range []bool{true, false} {
			if err := w.walk(ctx, w.purchases(status, livemode)); err != nil {
				return w.done, fmt.Errorf("prune purchases: %w", explain(err))
			}
		}
	}
	if err := w.walk(ctx, w.events); err != nil {
		return w.done, fmt.Errorf("prune events: %w", explain(err))
	}
	if err := w.walk(ctx, w.trials); err != nil {
		return w.done, fmt.Errorf("prune trials: %w", explain(err))
	}
	if p.Attempts.After(p.Before) {
		for _, status := range p.Statuses() {
			for _, livemode := range []bool{true, false} {
				if err := w.walk(ctx, w.attempts(status, livemode)); err != nil {
					return w.done, fmt.Errorf("prune attempts: %w", explain(err))
				}
			}
		}
	}
	if err := w.emptyFigures(ctx); err != nil {
		return w.done, fmt.Errorf("prune the rollup: %w", explain(err))
	}
	return w.done, nil
}

// pruning is one under way.
type pruning struct {
	db *DB
	purchase.Pruning
	progress func(purchase.Pruned)
	done     purchase.Pruned
}

// place is where a walk has come to, in the order of time and id. The zero place is the beginning.
type place struct {
	at time.Time
	id string
}

// step removes some rows after a place and returns where it ended; more says that it is worth another one.
type step func(ctx context.Context, from place) (to place, more bool, err error)

func (w *pruning) walk(ctx context.Context, s step) error {
	for from, more := (place{}), true; more; {
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

func bounded(ctx context.Context, s step, from place) (place, bool, error) {
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

func (w *pruning) purchases(status purchase.Status, livemode bool) step {
	return func(ctx context.Context, from place) (place, bool, error) {
		rows, err := w.db.pool.Query(ctx, sqlPrunePurchases, status, w.Before, livemode, from.at, from.id, pruneStep)
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

func (w *pruning) events(ctx context.Context, from place) (place, bool, error) {
	return w.next(ctx, from, &w.done.Events, sqlPruneEvents, w.Before, from.at, from.id, pruneStep)
}

func (w *pruning) trials(ctx context.Context, from place) (place, bool, error) {
	return w.next(ctx, from, &w.done.Trials, sqlPruneTrials, w.Before, from.id, pruneStep)
}

func (w *pruning) attempts(status purchase.Status, livemode bool) step {
	return func(ctx context.Context, from place) (place, bool, error) {
		return w.next(ctx, from, &w.done.Attempts, sqlPruneAttempts, status, w.Attempts, livemode, from.at, from.id, pruneStep)
	}
}

// next runs a step that says where it ended and how many rows it removed; no row: nothing is left to look at.
func (w *pruning) next(ctx context.Context, from place, count *int, sql string, args ...any) (place, bool, error) {
	var n int
	switch err := w.db.pool.QueryRow(ctx, sql, args...).Scan(&from.at, &from.id, &n); {
	case errors.Is(err, pgx.ErrNoRows):
		return from, false, nil
	case err != nil:
		return from, false, err
	}
	*count += n
	return from, true, nil
}

// emptyFigures removes the rollup's rows that count nothing any more. They are made anew where something comes to be counted.
func (w *pruning) emptyFigures(ctx context.Context) error {
	if _, err := w.db.Fold(ctx); err != nil {
		return err
	}
	for _, sql := range []string{sqlPruneHours, sqlPruneDelays} {
		err := w.walk(ctx, func(ctx context.Context, from place) (place, bool, error) {
			tag, err := w.db.pool.Exec(ctx, sql, w.Before, pruneStep)
			return from, tag.RowsAffected() == pruneStep, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// DropEnvelopes removes the messages of purchases that TikTok accepted before an age, at most limit per call,
// and returns how many. They are never sent again, and hold what a buyer's browser told. Of several replicas
// one does it at a time; rows that are in use are left for later.
func (db *DB) DropEnvelopes(ctx context.Context, age time.Duration, limit int) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, pruneTimeout)
	defer cancel()
	err = pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		var mine bool
		if err := tx.QueryRow(ctx, sqlLockEnvelopes).Scan(&mine); err != nil || !mine {
			return err
		}
		tag, err := tx.Exec(ctx, sqlDropEnvelopes, age.Seconds(), limit)
		n = int(tag.RowsAffected())
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("drop the messages of delivered purchases: %w", err)
	}
	return n, nil
}
