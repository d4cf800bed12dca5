package report

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/logsafe"
)

const sqlFold = `
WITH gone AS (
    DELETE FROM public.rollup_changes
    RETURNING hour, livemode, status, reason, code, currency, delay, n, minor, sent_minor, no_value,
        ` + keyColumns + `, trials
), totals AS (
    INSERT INTO public.rollup_totals AS t (daily, at, livemode, status, reason, code, currency, n, minor,
        sent_minor, no_value, ` + keyColumns + `, trials)
    SELECT daily, CASE WHEN daily THEN date_trunc('day', hour, 'UTC') ELSE hour END, livemode, status, reason,
        code, currency, sum(n), sum(minor), sum(sent_minor), sum(no_value), sum(keyed),
        sum(key_email), sum(key_phone), sum(key_ttclid), sum(key_ttp), sum(key_ip), sum(key_user_agent),
        sum(key_page), sum(key_name), sum(key_address), sum(key_late), sum(key_strong), sum(trials)
    FROM gone CROSS JOIN (VALUES (false), (true)) g (daily) GROUP BY 1, 2, 3, 4, 5, 6, 7
    ON CONFLICT (daily, at, livemode, status, reason, code, currency) DO UPDATE SET
        n = t.n + excluded.n, minor = t.minor + excluded.minor,
        sent_minor = t.sent_minor + excluded.sent_minor, no_value = t.no_value + excluded.no_value,
        keyed = t.keyed + excluded.keyed, key_email = t.key_email + excluded.key_email,
        key_phone = t.key_phone + excluded.key_phone, key_ttclid = t.key_ttclid + excluded.key_ttclid,
        key_ttp = t.key_ttp + excluded.key_ttp, key_ip = t.key_ip + excluded.key_ip,
        key_user_agent = t.key_user_agent + excluded.key_user_agent,
        key_page = t.key_page + excluded.key_page,
        key_name = t.key_name + excluded.key_name, key_address = t.key_address + excluded.key_address,
        key_late = t.key_late + excluded.key_late, key_strong = t.key_strong + excluded.key_strong,
        trials = t.trials + excluded.trials
), delays AS (
    INSERT INTO public.rollup_delays AS d (daily, at, livemode, delay, n)
    SELECT daily, CASE WHEN daily THEN date_trunc('day', hour, 'UTC') ELSE hour END, livemode, delay, sum(n)
    FROM gone CROSS JOIN (VALUES (false), (true)) g (daily) WHERE delay >= 0 GROUP BY 1, 2, 3, 4
    ON CONFLICT (daily, at, livemode, delay) DO UPDATE SET n = d.n + excluded.n
), hours AS (
    INSERT INTO public.rollup_hours AS h (hour, livemode, paid, accepted)
    SELECT hour, livemode, COALESCE(sum(n - trials) FILTER (WHERE ` + paidState + `), 0),
        COALESCE(sum(n - trials) FILTER (WHERE status = 'delivered'), 0)
    FROM gone GROUP BY 1, 2
    ON CONFLICT (hour, livemode) DO UPDATE
        SET paid = h.paid + excluded.paid, accepted = h.accepted + excluded.accepted
), statuses AS (
    INSERT INTO public.rollup_statuses AS s (livemode, status, reason, code, n)
    SELECT livemode, status, reason, code, sum(n) FROM gone GROUP BY 1, 2, 3, 4 HAVING sum(n) <> 0
    ON CONFLICT (livemode, status, reason, code) DO UPDATE SET n = s.n + excluded.n
)
SELECT DISTINCT hour, date_trunc('day', hour, 'UTC') FROM gone`

// If a row's count is 0, so are its sums.
const sqlFoldEmpty = `
DELETE FROM public.rollup_totals WHERE (NOT daily AND at = ANY($1) OR daily AND at = ANY($2)) AND n = 0`

// Fold adds the recorded changes to the rollup's totals and returns how many hours they touched. Its cost
// depends on the number of changes, not on the ledger's size. An advisory lock admits one replica.
func (r *Reader) Fold(ctx context.Context) (hours int, err error) {
	locked := false
	err = pgx.BeginFunc(ctx, r.db.Pool(), func(tx pgx.Tx) error {
		var err error
		if locked, err = ledger.TryLock(ctx, tx, ledger.LockRollup); err != nil || !locked {
			return err
		}
		rows, err := tx.Query(ctx, sqlFold)
		if err != nil {
			return err
		}
		var hour, day time.Time
		var touched, days []time.Time
		err = r.db.ForEach("rollup", rows, []any{&hour, &day}, func() error {
			touched, days = append(touched, hour), append(days, day)
			return nil
		})
		if err != nil || len(touched) == 0 {
			return err
		}
		hours = len(touched)
		_, err = tx.Exec(ctx, sqlFoldEmpty, touched, days)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("fold rollup: %w", err)
	}
	if !locked {
		return 0, nil
	}
	return hours, r.vacuumChanges(ctx)
}

// vacuumMinSize is the size of rollup_changes, in bytes, from which Fold vacuums the table.
const vacuumMinSize = 1 << 20

const sqlChangesSize = `SELECT pg_relation_size('public.rollup_changes')`

// A role that does not own the table gets a warning, no error; autovacuum, once a minute, is left then.
const sqlVacuumChanges = `VACUUM (SKIP_LOCKED) public.rollup_changes`

// vacuumChanges removes the dead rows that every query of the rollup would scan. Rows that an open snapshot
// still sees remain, so Fold also calls it when there was nothing to fold.
func (r *Reader) vacuumChanges(ctx context.Context) error {
	var size int64
	if err := r.db.Pool().QueryRow(ctx, sqlChangesSize).Scan(&size); err != nil {
		return fmt.Errorf("read rollup size: %w", err)
	}
	if size < vacuumMinSize {
		return nil
	}
	if _, err := r.db.Pool().Exec(ctx, sqlVacuumChanges); err != nil {
		return fmt.Errorf("vacuum rollup: %w", err)
	}
	return nil
}

const (
	foldInterval = 2 * time.Second // totals are exact in between as well, and a little slower
	foldTimeout  = time.Minute     // many changes may wait when no ingest ran for long
)

// KeepFolded returns a function that folds until ctx ends.
func (r *Reader) KeepFolded(log *zap.Logger) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		tick := time.NewTicker(foldInterval)
		defer tick.Stop()
		var failures logsafe.Changes
		for {
			bounded, cancel := context.WithTimeout(ctx, foldTimeout)
			_, err := r.Fold(bounded)
			cancel()
			switch {
			case err == nil:
				failures = logsafe.Changes{}
			case ctx.Err() == nil && failures.Failed(err):
				log.Warn("Rollup fold failed; retrying", zap.Error(err),
					zap.String("effect", "dashboard totals stay exact and become slower"))
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}
}
