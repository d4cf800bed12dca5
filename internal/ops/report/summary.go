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

// Summary is the ledger at a glance, over a range of time and a mode. A purchase belongs to the hour in which
// it was paid, or first received while it is unpaid.
type Summary struct {
	Counts    map[purchase.Status]int // purchases by status; a status without any may be missing
	Paid      int                     // paid at Stripe, whatever became of their delivery
	Accepted  int                     // of these, accepted by TikTok
	NoValue   int                     // of the accepted, sent without a value
	Attention int                     // dead or rejected: a person must decide
	Oldest    time.Time               // the oldest undelivered purchase, whatever the range; zero: none
	LastEvent time.Time               // the last webhook about a purchase, whatever the range; zero: never
	Values    []Value                 // by currency, in the currency's order
	Hours     []Hour                  // in their order; an hour without purchases is missing
	Groups    []Group                 // by status, reason and code, the largest first
	Coverage  Coverage
	Delays    Delays // from payment to acceptance
}

// Value is the money of one currency, in its smallest unit as Stripe counts it.
type Value struct {
	Currency      string `json:"currency"` // upper case
	PaidMinor     int64  `json:"paid_minor"`
	AcceptedMinor int64  `json:"accepted_minor"` // the values of the events that TikTok accepted
}

// Hour counts the purchases that were paid in one hour, and how many of these TikTok has accepted by now.
type Hour struct {
	At             time.Time
	Paid, Accepted int
}

// Group counts purchases of one status, reason and code.
type Group struct {
	Status purchase.Status
	Reason purchase.Reason
	Code   *int // TikTok's last, of dead and retrying ones; nil: none
	Count  int
}

// Replayable reports whether a replay may take all purchases of a group together.
func (g Group) Replayable() bool {
	return g.Status == purchase.StatusDead ||
		g.Status == purchase.StatusSkipped && g.Reason == purchase.ReasonNotConfigured
}

// The counts of match keys, in the order of keyFields.
const keyColumns = `keyed, key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page, key_name,
    key_address, key_late, key_strong`

const keySums = `sum(keyed)::bigint, sum(key_email)::bigint, sum(key_phone)::bigint, sum(key_ttclid)::bigint,
    sum(key_ttp)::bigint, sum(key_ip)::bigint, sum(key_user_agent)::bigint, sum(key_page)::bigint,
    sum(key_name)::bigint, sum(key_address)::bigint, sum(key_late)::bigint, sum(key_strong)::bigint`

// The totals since $1, by hours until the first whole day, $3, and by days from there, and what is not yet
// folded into them: in one snapshot they are the ledger. $2 is the mode. A row tells of what it is grouped
// by: status (0b01 is missing), currency (0b10), or of everything (0b11).
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
    FROM public.rollup_totals WHERE NOT daily AND at >= $1 AND at < $3 AND ($2::boolean IS NULL OR livemode = $2)
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
    SELECT hour, paid, accepted FROM public.rollup_hours WHERE hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT hour, CASE WHEN ` + paidState + ` THEN n - trials ELSE 0 END,
        CASE WHEN status = 'delivered' THEN n - trials ELSE 0 END
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
SELECT min(o.at)
FROM unnest(ARRAY['pending', 'published', 'retrying']) w (status), unnest(ARRAY[true, false]) m (livemode)
CROSS JOIN LATERAL (
    SELECT COALESCE(p.purchased_at, p.created_at) AS at FROM public.purchases p
    WHERE p.status = w.status AND p.livemode = m.livemode
    ORDER BY COALESCE(p.purchased_at, p.created_at) LIMIT 1) o
WHERE $1::boolean IS NULL OR m.livemode = $1`

// Summary counts the purchases since the beginning of the hour of a time; livemode nil means both modes. The
// figures come from the rollup and are exact: what is not yet folded into it is added. What it costs depends
// on the range alone, not on how many purchases there are.
func (r *Reader) Summary(ctx context.Context, since time.Time, livemode *bool) (Summary, error) {
	s := Summary{Counts: make(map[purchase.Status]int), Delays: make(Delays)}
	since = since.UTC().Truncate(time.Hour)
	wholeDays := since.Add(24*time.Hour - 1).Truncate(24 * time.Hour)
	err := pgx.BeginTxFunc(ctx, r.db.Pool(), snapshot(), func(tx pgx.Tx) error {
		var batch pgx.Batch
		batch.Queue(sqlRollupTotals, since, livemode,
			wholeDays).Query(func(rows pgx.Rows) error { return r.readTotals(rows, &s) })
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
		batch.Queue(sqlOldestWaiting, livemode).QueryRow(func(row pgx.Row) error { return scanTime(row, &s.Oldest) })
		batch.Queue(sqlLastWebhook).QueryRow(func(row pgx.Row) error { return scanTime(row, &s.LastEvent) })
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

// The kinds of rows that sqlRollupTotals returns, as its GROUPING says: a bit is set for what a row is not
// grouped by.
const (
	rowOfStanding = 0b01
	rowOfCurrency = 0b10
	rowOfAll      = 0b11
)

func (r *Reader) readTotals(rows pgx.Rows, s *Summary) error {
	var kind, n, paid, accepted, noValue int
	var g Group
	var code string
	var v Value
	var c Coverage
	fields := append([]any{
		&kind, &g.Status, &g.Reason, &code, &v.Currency, &n, &paid, &accepted, &v.PaidMinor, &v.AcceptedMinor, &noValue,
	}, keyFields(&c)...)
	err := r.db.ForEach("rollup", rows, fields, func() (err error) {
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
	slices.SortFunc(s.Values, func(a, b Value) int { return cmp.Compare(a.Currency, b.Currency) })
	slices.SortFunc(s.Groups, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Status, b.Status), cmp.Compare(a.Reason, b.Reason))
	})
	return err
}

// keyFields are where the statements' counts of match keys go, in their order.
func keyFields(c *Coverage) []any {
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

// Coverage counts match keys by the day of UTC since the beginning of a day; a day without any purchase is
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

// Groups counts the purchases of all times by status, reason and code, the largest group first; livemode nil
// means both modes.
func (r *Reader) Groups(ctx context.Context, livemode *bool) ([]Group, error) {
	rows, err := r.db.Pool().Query(ctx, sqlRollupStatuses, livemode)
	if err != nil {
		return nil, fmt.Errorf("count the ledger: %w", err)
	}
	groups, err := ledger.Collect(r.db, "rollup", rows, scanGroup)
	if err != nil {
		return nil, fmt.Errorf("count the ledger: %w", err)
	}
	return groups, nil
}

func scanGroup(row pgx.CollectableRow) (g Group, err error) {
	var code string
	if err := row.Scan(&g.Status, &g.Reason, &code, &g.Count); err != nil {
		return g, err
	}
	g.Code, err = codeOf(code)
	return g, err
}
