package report

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/purchase"
)

// Summary holds the totals of a time range and a mode. A purchase belongs to the hour in which it was paid
// or, while unpaid, first received.
type Summary struct {
	Counts    map[purchase.Status]int // purchases by status; a status with none may be missing
	Paid      int                     // paid at Stripe, delivered or not
	Accepted  int                     // of Paid, accepted by TikTok
	NoValue   int                     // of Accepted, sent without a value
	Attention int                     // in groups that need attention
	Oldest    time.Time               // the oldest undelivered purchase of any time; zero: none
	LastEvent time.Time               // the last webhook of any time; zero: never
	Values    []Value                 // by currency, in alphabetical order
	Hours     []Hour                  // in order; an hour without purchases is missing
	Groups    []Group                 // by status, reason and code, largest first
	Coverage  Coverage
	Delays    Delays // from payment to acceptance
}

// Value is an amount of one currency, in Stripe's smallest unit.
type Value struct {
	Currency      string `json:"currency"` // upper case
	PaidMinor     int64  `json:"paid_minor"`
	AcceptedMinor int64  `json:"accepted_minor"` // sum of the values that TikTok accepted
}

// Hour counts the purchases paid in one hour and how many of these TikTok has accepted by now.
type Hour struct {
	At             time.Time
	Paid, Accepted int
}

// Group counts purchases of one status, reason and code.
type Group struct {
	Status purchase.Status
	Reason purchase.Reason
	Code   *int // TikTok's last code, for dead and retrying; nil: none
	Count  int
}

// NeedsAttention reports whether an operator must decide about the group: give access by hand, or replay it.
func (g Group) NeedsAttention() bool { return g.Status == purchase.StatusRejected || g.Replayable() }

// Replayable reports whether the group can be replayed as a whole.
func (g Group) Replayable() bool {
	return g.Status == purchase.StatusDead ||
		g.Status == purchase.StatusSkipped && g.Reason == purchase.ReasonNotConfigured
}

// keyColumns and keySums are in the order of keyFields.
const keyColumns = `keyed, key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page,
    key_name, key_address, key_late, key_strong`

const keySums = `sum(keyed)::bigint, sum(key_email)::bigint, sum(key_phone)::bigint, sum(key_ttclid)::bigint,
    sum(key_ttp)::bigint, sum(key_ip)::bigint, sum(key_user_agent)::bigint, sum(key_page)::bigint,
    sum(key_name)::bigint, sum(key_address)::bigint, sum(key_late)::bigint, sum(key_strong)::bigint`

// Totals since $1: by hour until the first whole day, $3, then by day, and the changes that are not folded
// yet. In one snapshot they equal the ledger. $2 is the mode. GROUPING returns one of the by… constants
// below.
const sqlRollupTotals = `
SELECT GROUPING(status, currency), COALESCE(status, ''), COALESCE(reason, ''), COALESCE(code, ''),
    COALESCE(upper(currency), ''), sum(n)::bigint, COALESCE(sum(n - trials) FILTER (WHERE paid), 0)::bigint,
    COALESCE(sum(n - trials) FILTER (WHERE status = 'delivered'), 0)::bigint,
    LEAST(COALESCE(sum(minor) FILTER (WHERE paid), 0), 9223372036854775807)::bigint,
    LEAST(sum(sent_minor), 9223372036854775807)::bigint, sum(no_value)::bigint,
    ` + keySums + `
FROM (
    SELECT status, reason, code, currency, n, minor, sent_minor, no_value,
        ` + keyColumns + `, trials, ` + paidState + ` AS paid
    FROM public.rollup_totals
    WHERE NOT daily AND at >= $1 AND at < $3 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT status, reason, code, currency, n, minor, sent_minor, no_value,
        ` + keyColumns + `, trials, ` + paidState + `
    FROM public.rollup_totals WHERE daily AND at >= $3 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT status, reason, code, currency, n, minor, sent_minor, no_value,
        ` + keyColumns + `, trials, ` + paidState + `
    FROM public.rollup_changes WHERE hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
) r
GROUP BY GROUPING SETS ((status, reason, code), (currency), ()) HAVING sum(n) <> 0`

const sqlRollupHours = `
SELECT hour, sum(paid)::bigint, sum(accepted)::bigint FROM (
    SELECT hour, paid, accepted FROM public.rollup_hours
    WHERE hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT hour, CASE WHEN ` + paidState + ` THEN n - trials ELSE 0 END,
        CASE WHEN status = 'delivered' THEN n - trials ELSE 0 END
    FROM public.rollup_changes WHERE hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
) h GROUP BY hour HAVING sum(paid) <> 0 ORDER BY hour`

const sqlRollupDelays = `
SELECT delay, sum(n)::bigint FROM (
    SELECT delay, n FROM public.rollup_delays
    WHERE NOT daily AND at >= $1 AND at < $3 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT delay, n FROM public.rollup_delays
    WHERE daily AND at >= $3 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT delay, n FROM public.rollup_changes
    WHERE delay >= 0 AND hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
) d GROUP BY delay HAVING sum(n) <> 0`

// Each of the six combinations reads the first entry of an index.
const sqlOldestWaiting = `
SELECT min(o.at)
FROM unnest(ARRAY['pending', 'published', 'retrying']) w (status), unnest(ARRAY[true, false]) m (livemode)
CROSS JOIN LATERAL (
    SELECT COALESCE(p.purchased_at, p.created_at) AS at FROM public.purchases p
    WHERE p.status = w.status AND p.livemode = m.livemode
    ORDER BY COALESCE(p.purchased_at, p.created_at) LIMIT 1) o
WHERE $1::boolean IS NULL OR m.livemode = $1`

// Summary returns the totals since the start of the hour of since; livemode nil means both modes. They come
// from the rollup and are exact: changes that are not folded yet are added. The cost depends on the range,
// not on the number of purchases.
func (r *Reader) Summary(ctx context.Context, since time.Time, livemode *bool) (Summary, error) {
	s := Summary{Counts: make(map[purchase.Status]int), Delays: make(Delays)}
	since = since.UTC().Truncate(time.Hour)
	wholeDays := since.Add(24*time.Hour - 1).Truncate(24 * time.Hour)
	err := pgx.BeginTxFunc(ctx, r.db.Pool(), snapshot(), func(tx pgx.Tx) error {
		var batch pgx.Batch
		batch.Queue(sqlRollupTotals, since, livemode, wholeDays).Query(func(rows pgx.Rows) error {
			return r.readTotals(rows, &s)
		})
		batch.Queue(sqlRollupHours, since, livemode).Query(func(rows pgx.Rows) (err error) {
			s.Hours, err = ledger.Collect(r.db, "rollup", rows, func(row pgx.CollectableRow) (h Hour, err error) {
				err = row.Scan(&h.At, &h.Paid, &h.Accepted)
				h.At = h.At.UTC()
				return h, err
			})
			return err
		})
		batch.Queue(sqlRollupDelays, since, livemode, wholeDays).Query(func(rows pgx.Rows) error {
			var step, n int
			return r.db.ForEach("rollup", rows, []any{&step, &n}, func() error { s.Delays[step] = n; return nil })
		})
		batch.Queue(sqlOldestWaiting, livemode).QueryRow(func(row pgx.Row) error {
			return scanTime(row, &s.Oldest)
		})
		batch.Queue(sqlLastWebhook).QueryRow(func(row pgx.Row) error { return scanTime(row, &s.LastEvent) })
		return tx.SendBatch(ctx, &batch).Close()
	})
	if err != nil {
		return s, fmt.Errorf("read summary: %w", err)
	}
	for _, g := range s.Groups {
		s.Counts[g.Status] += g.Count
		if g.NeedsAttention() {
			s.Attention += g.Count
		}
	}
	return s, nil
}

// The values of GROUPING in sqlRollupTotals: a bit is set for a column that a row is not grouped by.
const (
	byStatus   = 0b01
	byCurrency = 0b10
	total      = 0b11
)

func (r *Reader) readTotals(rows pgx.Rows, s *Summary) error {
	var grouping, n, paid, accepted, noValue int
	var g Group
	var code string
	var v Value
	var c Coverage
	fields := append([]any{
		&grouping, &g.Status, &g.Reason, &code, &v.Currency, &n, &paid, &accepted, &v.PaidMinor, &v.AcceptedMinor,
		&noValue,
	}, keyFields(&c)...)
	err := r.db.ForEach("rollup", rows, fields, func() (err error) {
		switch grouping {
		case byStatus:
			g.Count = n
			if g.Code, err = parseCode(code); err == nil {
				s.Groups = append(s.Groups, g)
			}
		case byCurrency:
			if v.Currency != "" && paid > 0 {
				s.Values = append(s.Values, v)
			}
		case total:
			s.Paid, s.Accepted, s.NoValue, s.Coverage = paid, accepted, noValue, c
		}
		return err
	})
	slices.SortFunc(s.Values, func(a, b Value) int { return cmp.Compare(a.Currency, b.Currency) })
	slices.SortFunc(s.Groups, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Status, b.Status),
			cmp.Compare(a.Reason, b.Reason))
	})
	return err
}

// keyFields returns the destinations of keySums.
func keyFields(c *Coverage) []any {
	fields := []any{&c.Of}
	for i := range c.With {
		fields = append(fields, &c.With[i])
	}
	return append(fields, &c.Late, &c.Strong)
}

const sqlRollupKeys = `
SELECT day, ` + keySums + `
FROM (
    SELECT at AS day, ` + keyColumns + `
    FROM public.rollup_totals WHERE daily AND at >= $1 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT date_trunc('day', hour, 'UTC'), ` + keyColumns + `
    FROM public.rollup_changes WHERE hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
) r GROUP BY day HAVING sum(keyed) <> 0 ORDER BY day`

// Coverage counts match keys by UTC day since the start of the day of since; a day without purchases is
// missing. livemode nil means both modes.
func (r *Reader) Coverage(ctx context.Context, since time.Time, livemode *bool) ([]DayCoverage, error) {
	rows, err := r.db.Pool().Query(ctx, sqlRollupKeys, since.UTC().Truncate(24*time.Hour), livemode)
	if err != nil {
		return nil, fmt.Errorf("count match keys: %w", err)
	}
	days, err := ledger.Collect(r.db, "rollup", rows, func(row pgx.CollectableRow) (d DayCoverage, err error) {
		err = row.Scan(append([]any{&d.At}, keyFields(&d.Coverage)...)...)
		d.At = d.At.UTC()
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("count match keys: %w", err)
	}
	return days, nil
}

// parseCode parses the rollup's code; "" is none.
func parseCode(text string) (*int, error) {
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

// Groups counts all purchases by status, reason and code, largest first; livemode nil means both modes.
func (r *Reader) Groups(ctx context.Context, livemode *bool) ([]Group, error) {
	rows, err := r.db.Pool().Query(ctx, sqlRollupStatuses, livemode)
	if err != nil {
		return nil, fmt.Errorf("count purchases: %w", err)
	}
	groups, err := ledger.Collect(r.db, "rollup", rows, func(row pgx.CollectableRow) (g Group, err error) {
		var code string
		if err = row.Scan(&g.Status, &g.Reason, &code, &g.Count); err == nil {
			g.Code, err = parseCode(code)
		}
		return g, err
	})
	if err != nil {
		return nil, fmt.Errorf("count purchases: %w", err)
	}
	return groups, nil
}
