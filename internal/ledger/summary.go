package ledger

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/purchase"
)

// The counts of match keys, in the order of keyFields.
const keyColumns = `keyed, key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page, key_name, key_address, key_late, key_strong`

const keySums = `sum(keyed)::bigint, sum(key_email)::bigint, sum(key_phone)::bigint, sum(key_ttclid)::bigint, sum(key_ttp)::bigint, sum(key_ip)::bigint,
    sum(key_user_agent)::bigint, sum(key_page)::bigint, sum(key_name)::bigint, sum(key_address)::bigint, sum(key_late)::bigint, sum(key_strong)::bigint`

// The totals since $1, by hours until the first whole day, $3, and by days from there, and what is not yet folded into
// them: in one snapshot they are the ledger. $2 is the mode. A row tells of what it is grouped by: status (0b01 is missing),
// currency (0b10), or of everything (0b11).
const sqlRollupTotals = `
SELECT GROUPING(status, currency), COALESCE(status, ''), COALESCE(reason, ''), COALESCE(code, ''), COALESCE(upper(currency), ''),
    sum(n)::bigint, COALESCE(sum(n - trials) FILTER (WHERE paid), 0)::bigint, COALESCE(sum(n - trials) FILTER (WHERE status = 'delivered'), 0)::bigint,
    LEAST(COALESCE(sum(minor) FILTER (WHERE paid), 0), 9223372036854775807)::bigint,
    LEAST(sum(sent_minor), 9223372036854775807)::bigint, sum(no_value)::bigint,
    ` + keySums + `
FROM (
    SELECT status, reason, code, currency, n, minor, sent_minor, no_value,
        ` + keyColumns + `, trials, ` + paid + ` AS paid
    FROM public.rollup_totals WHERE NOT daily AND at >= $1 AND at < $3 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT status, reason, code, currency, n, minor, sent_minor, no_value,
        ` + keyColumns + `, trials, ` + paid + `
    FROM public.rollup_totals WHERE daily AND at >= $3 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT status, reason, code, currency, n, minor, sent_minor, no_value,
        ` + keyColumns + `, trials, ` + paid + `
    FROM public.rollup_changes WHERE hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
) r
GROUP BY GROUPING SETS ((status, reason, code), (currency), ()) HAVING sum(n) <> 0`

const sqlRollupHours = `
SELECT hour, sum(paid)::bigint, sum(accepted)::bigint FROM (
    SELECT hour, paid, accepted FROM public.rollup_hours WHERE hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT hour, CASE WHEN ` + paid + ` THEN n - trials ELSE 0 END, CASE WHEN status = 'delivered' THEN n - trials ELSE 0 END
    FROM public.rollup_changes WHERE hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
) h GROUP BY hour HAVING sum(paid) <> 0 ORDER BY hour`

const sqlRollupDelays = `
SELECT delay, sum(n)::bigint FROM (
    SELECT delay, n FROM public.rollup_delays WHERE NOT daily AND at >= $1 AND at < $3 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT delay, n FROM public.rollup_delays WHERE daily AND at >= $3 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT delay, n FROM public.rollup_changes WHERE delay >= 0 AND hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
) d GROUP BY delay HAVING sum(n) <> 0`

// Each of the six is the first entry of an index.
const sqlOldestWaiting = `
SELECT min(o.at) FROM (VALUES ('pending', true), ('published', true), ('retrying', true), ('pending', false), ('published', false), ('retrying', false)) w (status, livemode)
CROSS JOIN LATERAL (
    SELECT COALESCE(p.purchased_at, p.created_at) AS at FROM public.purchases p
    WHERE p.status = w.status AND p.livemode = w.livemode ORDER BY COALESCE(p.purchased_at, p.created_at) LIMIT 1) o
WHERE $1::boolean IS NULL OR w.livemode = $1`

// What came by catch-up says nothing of the endpoint. The index by time is read from its end.
const sqlLastEvent = `SELECT max(received_at) FROM public.stripe_events WHERE NOT caught_up`

// Summary counts the purchases since the beginning of the hour of a time; livemode nil means both modes. The figures come from
// the rollup and are exact: what is not yet folded into it is added. What it costs depends on the range alone, not on how many
// purchases there are.
func (db *DB) Summary(ctx context.Context, since time.Time, livemode *bool) (purchase.Summary, error) {
	s := purchase.Summary{Counts: make(map[purchase.Status]int), Delays: make(purchase.Delays)}
	since = since.UTC().Truncate(time.Hour)
	wholeDays := since.Add(24*time.Hour - 1).Truncate(24 * time.Hour)
	err := pgx.BeginTxFunc(ctx, db.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		var batch pgx.Batch
		batch.Queue(sqlRollupTotals, since, livemode,
			wholeDays).Query(func(rows pgx.Rows) error { return db.readTotals(rows, &s) })
		batch.Queue(sqlRollupHours, since, livemode).Query(func(rows pgx.Rows) (err error) {
			s.Hours, err = Collect(db, "rollup", rows, func(row pgx.CollectableRow) (h purchase.Hour, err error) {
				err = row.Scan(&h.At, &h.Paid, &h.Accepted)
				h.At = h.At.UTC()
				return h, err
			})
			return err
		})
		batch.Queue(sqlRollupDelays, since, livemode, wholeDays).Query(func(rows pgx.Rows) error {
			var step, n int
			return db.ForEach("rollup", rows, []any{&step, &n}, func() error { s.Delays[step] = n; return nil })
		})
		batch.Queue(sqlOldestWaiting, livemode).QueryRow(func(row pgx.Row) error { return scanTime(row, &s.Oldest) })
		batch.Queue(sqlLastEvent).QueryRow(func(row pgx.Row) error { return scanTime(row, &s.LastEvent) })
		return tx.SendBatch(ctx, &batch).Close()
	})
	if err != nil {
		return s, fmt.Errorf("summarise the ledger: %w", err)
	}
	for _, g := range s.Groups {
		s.Counts[g.Status] += g.Count
	}
	s.Attention = s.Counts[purchase.StatusDead] + s.Counts[purchase.StatusRejected]
	return s, nil
}

// LastWebhook says when a webhook last brought an event that concerns a purchase, to whichever replica (zero: never).
func (db *DB) LastWebhook(ctx context.Context) (time.Time, error) {
	var at *time.Time
	if err := db.pool.QueryRow(ctx, sqlLastEvent).Scan(&at); err != nil {
		return time.Time{}, fmt.Errorf("look for the last webhook: %w", err)
	}
	return orZero(at), nil
}

// The kinds of rows that sqlRollupTotals returns, as its GROUPING says: a bit is set for what a row is not grouped by.
const (
	rowOfStanding = 0b01
	rowOfCurrency = 0b10
	rowOfAll      = 0b11
)

// What counts as paid: a trial is no sale.
const paid = `status NOT IN ('awaiting_payment', 'payment_failed') AND NOT (status = 'skipped' AND reason = 'no_payment')`

func (db *DB) readTotals(rows pgx.Rows, s *purchase.Summary) error {
	var kind, n, paid, accepted, noValue int
	var g purchase.Group
	var code string
	var v purchase.Value
	var c purchase.Coverage
	fields := append([]any{
		&kind, &g.Status, &g.Reason, &code, &v.Currency, &n, &paid, &accepted, &v.PaidMinor, &v.AcceptedMinor, &noValue,
	}, keyFields(&c)...)
	err := db.ForEach("rollup", rows, fields, func() (err error) {
		switch kind {
		case rowOfStanding:
			g.Count = n
			if g.Code, err = codeOf(code); err == nil {
				s.Groups = append(s.Groups, g)
			}
		case rowOfCurrency:
			if v.Currency != "" && paid > 0 {
				s.Values = append(s.Values, v)
			}
		case rowOfAll:
			s.Paid, s.Accepted, s.NoValue, s.Coverage = paid, accepted, noValue, c
		}
		return err
	})
	slices.SortFunc(s.Values, func(a, b purchase.Value) int { return cmp.Compare(a.Currency, b.Currency) })
	slices.SortFunc(s.Groups, func(a, b purchase.Group) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Status, b.Status), cmp.Compare(a.Reason, b.Reason))
	})
	return err
}

// keyFields are where the statements' counts of match keys go, in their order.
func keyFields(c *purchase.Coverage) []any {
	fields := []any{&c.Of}
	for i := range c.With {
		fields = append(fields, &c.With[i])
	}
	return append(fields, &c.Late, &c.Strong)
}

// Match keys by the day of UTC since $1, a whole day.
const sqlRollupKeys = `
SELECT day, ` + keySums + `
FROM (
    SELECT at AS day, ` + keyColumns + `
    FROM public.rollup_totals WHERE daily AND at >= $1 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT date_trunc('day', hour, 'UTC'), ` + keyColumns + `
    FROM public.rollup_changes WHERE hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
) r GROUP BY day HAVING sum(keyed) <> 0 ORDER BY day`

// Coverage counts match keys by the day of UTC since the beginning of a day; a day without any purchase is missing. livemode nil
// means both modes.
func (db *DB) Coverage(ctx context.Context, since time.Time, livemode *bool) ([]purchase.DayCoverage, error) {
	rows, err := db.pool.Query(ctx, sqlRollupKeys, since.UTC().Truncate(24*time.Hour), livemode)
	if err != nil {
		return nil, fmt.Errorf("count match keys: %w", err)
	}
	days, err := Collect(db, "rollup", rows, func(row pgx.CollectableRow) (d purchase.DayCoverage, err error) {
		err = row.Scan(append([]any{&d.At}, keyFields(&d.Coverage)...)...)
		d.At = d.At.UTC()
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("count match keys: %w", err)
	}
	return days, nil
}

// codeOf reads the rollup's code; "" is none.
func codeOf(text string) (*int, error) {
	if text == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(text)
	return &n, err
}

const sqlRollupStatuses = `
SELECT status, reason, code, sum(n)::bigint FROM (
    SELECT status, reason, code, n FROM public.rollup_statuses WHERE ($1::boolean IS NULL OR livemode = $1)
    UNION ALL
    SELECT status, reason, code, n FROM public.rollup_changes WHERE ($1::boolean IS NULL OR livemode = $1)
) s GROUP BY 1, 2, 3 HAVING sum(n) <> 0 ORDER BY 4 DESC, 1, 2, 3`

// Groups counts the purchases of all times by status, reason and code, the largest group first; livemode nil means both modes.
func (db *DB) Groups(ctx context.Context, livemode *bool) ([]purchase.Group, error) {
	rows, err := db.pool.Query(ctx, sqlRollupStatuses, livemode)
	if err != nil {
		return nil, fmt.Errorf("count the ledger: %w", err)
	}
	groups, err := Collect(db, "rollup", rows, scanGroup)
	if err != nil {
		return nil, fmt.Errorf("count the ledger: %w", err)
	}
	return groups, nil
}

func scanGroup(row pgx.CollectableRow) (g purchase.Group, err error) {
	var code string
	if err := row.Scan(&g.Status, &g.Reason, &code, &g.Count); err != nil {
		return g, err
	}
	g.Code, err = codeOf(code)
	return g, err
}

func scanTime(row pgx.Row, into *time.Time) error {
	var at *time.Time
	err := row.Scan(&at)
	*into = orZero(at)
	return err
}

const sqlFold = `
WITH gone AS (
    DELETE FROM public.rollup_changes
    RETURNING hour, livemode, status, reason, code, currency, delay, n, minor, sent_minor, no_value,
        ` + keyColumns + `, trials
), totals AS (
    INSERT INTO public.rollup_totals AS t (daily, at, livemode, status, reason, code, currency, n, minor, sent_minor,
        no_value, ` + keyColumns + `, trials)
    SELECT daily, CASE WHEN daily THEN date_trunc('day', hour, 'UTC') ELSE hour END, livemode, status, reason, code,
        currency, sum(n), sum(minor), sum(sent_minor), sum(no_value), sum(keyed),
        sum(key_email), sum(key_phone), sum(key_ttclid), sum(key_ttp), sum(key_ip), sum(key_user_agent), sum(key_page),
        sum(key_name), sum(key_address), sum(key_late), sum(key_strong), sum(trials)
    FROM gone CROSS JOIN (VALUES (false), (true)) g (daily) GROUP BY 1, 2, 3, 4, 5, 6, 7
    ON CONFLICT (daily, at, livemode, status, reason, code, currency) DO UPDATE SET
        n = t.n + excluded.n, minor = t.minor + excluded.minor, sent_minor = t.sent_minor + excluded.sent_minor,
        no_value = t.no_value + excluded.no_value, keyed = t.keyed + excluded.keyed,
        key_email = t.key_email + excluded.key_email, key_phone = t.key_phone + excluded.key_phone, key_ttclid = t.key_ttclid + excluded.key_ttclid,
        key_ttp = t.key_ttp + excluded.key_ttp, key_ip = t.key_ip + excluded.key_ip, key_user_agent = t.key_user_agent + excluded.key_user_agent,
        key_page = t.key_page + excluded.key_page, key_name = t.key_name + excluded.key_name, key_address = t.key_address + excluded.key_address,
        key_late = t.key_late + excluded.key_late, key_strong = t.key_strong + excluded.key_strong, trials = t.trials + excluded.trials
), delays AS (
    INSERT INTO public.rollup_delays AS d (daily, at, livemode, delay, n)
    SELECT daily, CASE WHEN daily THEN date_trunc('day', hour, 'UTC') ELSE hour END, livemode, delay, sum(n)
    FROM gone CROSS JOIN (VALUES (false), (true)) g (daily) WHERE delay >= 0 GROUP BY 1, 2, 3, 4
    ON CONFLICT (daily, at, livemode, delay) DO UPDATE SET n = d.n + excluded.n
), hours AS (
    INSERT INTO public.rollup_hours AS h (hour, livemode, paid, accepted)
    SELECT hour, livemode, COALESCE(sum(n - trials) FILTER (WHERE ` + paid + `), 0), COALESCE(sum(n - trials) FILTER (WHERE status = 'delivered'), 0)
    FROM gone GROUP BY 1, 2
    ON CONFLICT (hour, livemode) DO UPDATE SET paid = h.paid + excluded.paid, accepted = h.accepted + excluded.accepted
), statuses AS (
    INSERT INTO public.rollup_statuses AS s (livemode, status, reason, code, n)
    SELECT livemode, status, reason, code, sum(n) FROM gone GROUP BY 1, 2, 3, 4 HAVING sum(n) <> 0
    ON CONFLICT (livemode, status, reason, code) DO UPDATE SET n = s.n + excluded.n
)
SELECT DISTINCT hour, date_trunc('day', hour, 'UTC') FROM gone`

// What has left an hour's status for good leaves the rollup, too. All of a row's sums are 0 with its count.
const sqlFoldEmpty = `DELETE FROM public.rollup_totals WHERE (NOT daily AND at = ANY($1) OR daily AND at = ANY($2)) AND n = 0`

// Fold adds the changes since the last time to the rollup's totals and says how many hours they touched. Its cost depends on
// how many changes there are, not on the ledger's size. Of several replicas one does it at a time.
func (db *DB) Fold(ctx context.Context) (hours int, err error) {
	mine := false
	err = pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		var err error
		if mine, err = TryLock(ctx, tx, LockRollup); err != nil || !mine {
			return err
		}
		rows, err := tx.Query(ctx, sqlFold)
		if err != nil {
			return err
		}
		var hour, day time.Time
		var touched, days []time.Time
		err = db.ForEach("rollup", rows, []any{&hour, &day}, func() error {
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
		return 0, fmt.Errorf("fold the rollup: %w", err)
	}
	if !mine {
		return 0, nil
	}
	return hours, db.tidyChanges(ctx)
}

// tidyAbove is the size, in bytes, from which the notes of changes are tidied: it takes milliseconds.
const tidyAbove = 1 << 20

// What was folded away leaves holes, which every reader passes by. Autovacuum comes once a minute; a role that does not own
// the table is told no, without an error, and relies on that.
const sqlChangesSize = `SELECT pg_relation_size('public.rollup_changes')`

const sqlTidyChanges = `VACUUM (SKIP_LOCKED) public.rollup_changes`

// tidyChanges keeps the notes of changes as small as they are few: each figure's reader passes through all of them. What a
// reader of that moment may still see stays, so it is tried after a folding of nothing, too.
func (db *DB) tidyChanges(ctx context.Context) error {
	var size int64
	if err := db.pool.QueryRow(ctx, sqlChangesSize).Scan(&size); err != nil {
		return fmt.Errorf("look at the rollup: %w", err)
	}
	if size < tidyAbove {
		return nil
	}
	if _, err := db.pool.Exec(ctx, sqlTidyChanges); err != nil {
		return fmt.Errorf("tidy the rollup: %w", err)
	}
	return nil
}

const sqlOutboxState = `SELECT count(*), min(created_at) FROM public.purchases WHERE status = 'pending'`

// OutboxState says how many purchases wait for the relay, and since when the oldest does (zero: none).
func (db *DB) OutboxState(ctx context.Context) (pending int, oldest time.Time, err error) {
	var at *time.Time
	if err := db.pool.QueryRow(ctx, sqlOutboxState).Scan(&pending, &at); err != nil {
		return 0, time.Time{}, fmt.Errorf("read the outbox: %w", err)
	}
	return pending, orZero(at), nil
}
