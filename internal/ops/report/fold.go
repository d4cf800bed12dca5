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
    RETURNING at, livemode, status, reason, code, currency, delay, n, minor, sent_minor, no_value,
        ` + keyColumns + `, trials, first_sales, first_payments
), totals AS (
    INSERT INTO public.rollup_totals AS t (daily, at, livemode, status, reason, code, n)
    SELECT daily, CASE WHEN daily THEN date_trunc('day', at, 'UTC') ELSE at END, livemode, status, reason,
        code, sum(n)
    FROM gone CROSS JOIN (VALUES (false), (true)) g (daily) GROUP BY 1, 2, 3, 4, 5, 6
    ON CONFLICT (daily, at, livemode, status, reason, code) DO UPDATE SET n = t.n + excluded.n
), sales AS (
    INSERT INTO public.rollup_sales AS s (daily, at, livemode, currency, ` + saleColumns + `)
    SELECT daily, CASE WHEN daily THEN date_trunc('day', at, 'UTC') ELSE at END, livemode, currency,
        ` + saleSums + `
    FROM (SELECT at, livemode, currency, ` + saleTerms + ` FROM gone WHERE ` + paidState + `) sale
        CROSS JOIN (VALUES (false), (true)) g (daily) GROUP BY 1, 2, 3, 4
    ON CONFLICT (daily, at, livemode, currency) DO UPDATE SET
        paid = s.paid + excluded.paid, accepted = s.accepted + excluded.accepted,
        waiting = s.waiting + excluded.waiting, left_out = s.left_out + excluded.left_out,
        new_buyers = s.new_buyers + excluded.new_buyers, old_buyers = s.old_buyers + excluded.old_buyers,
        first_payments = s.first_payments + excluded.first_payments,
        no_value = s.no_value + excluded.no_value, minor = s.minor + excluded.minor,
        sent_minor = s.sent_minor + excluded.sent_minor
), keys AS (
    INSERT INTO public.rollup_keys AS k (daily, at, livemode, ` + keyColumns + `)
    SELECT daily, CASE WHEN daily THEN date_trunc('day', at, 'UTC') ELSE at END, livemode, ` + keySums + `
    FROM gone CROSS JOIN (VALUES (false), (true)) g (daily) GROUP BY 1, 2, 3
    ON CONFLICT (daily, at, livemode) DO UPDATE SET
        keyed = k.keyed + excluded.keyed, key_email = k.key_email + excluded.key_email,
        key_phone = k.key_phone + excluded.key_phone, key_ttclid = k.key_ttclid + excluded.key_ttclid,
        key_ttp = k.key_ttp + excluded.key_ttp, key_ip = k.key_ip + excluded.key_ip,
        key_user_agent = k.key_user_agent + excluded.key_user_agent,
        key_page = k.key_page + excluded.key_page,
        key_name = k.key_name + excluded.key_name, key_address = k.key_address + excluded.key_address,
        key_late = k.key_late + excluded.key_late, key_strong = k.key_strong + excluded.key_strong
), delays AS (
    INSERT INTO public.rollup_delays AS d (daily, at, livemode, delay, n)
    SELECT daily, CASE WHEN daily THEN date_trunc('day', at, 'UTC') ELSE at END, livemode, delay, sum(n)
    FROM gone CROSS JOIN (VALUES (false), (true)) g (daily) WHERE delay >= 0 GROUP BY 1, 2, 3, 4
    ON CONFLICT (daily, at, livemode, delay) DO UPDATE SET n = d.n + excluded.n
), statuses AS (
    INSERT INTO public.rollup_statuses AS s (livemode, status, reason, code, n)
    SELECT livemode, status, reason, code, sum(n) FROM gone GROUP BY 1, 2, 3, 4 HAVING sum(n) <> 0
    ON CONFLICT (livemode, status, reason, code) DO UPDATE SET n = s.n + excluded.n
)
SELECT DISTINCT at, date_trunc('day', at, 'UTC') FROM gone`

const sqlFoldEmpty = `
DELETE FROM public.rollup_totals WHERE (NOT daily AND at = ANY($1) OR daily AND at = ANY($2)) AND n = 0`

// Fold adds the recorded changes to the rollup's totals and returns how many quarter hours they touched. Its
// cost depends on the number of changes, not on the ledger's size. An advisory lock admits one replica.
func (r *Reader) Fold(ctx context.Context) (quarters int, err error) {
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
		var quarter, day time.Time
		var touched, days []time.Time
		err = r.db.ForEach("rollup", rows, []any{&quarter, &day}, func() error {
			touched, days = append(touched, quarter), append(days, day)
			return nil
		})
		if err != nil || len(touched) == 0 {
			return err
		}
		quarters = len(touched)
		_, err = tx.Exec(ctx, sqlFoldEmpty, touched, days)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("fold rollup: %w", err)
	}
	if !locked {
		return 0, nil
	}
	return quarters, r.vacuumChanges(ctx)
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
