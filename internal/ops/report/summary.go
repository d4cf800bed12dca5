package report

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/purchase"
)

// Summary holds the totals of a period and a mode. A purchase belongs to the time at which it was paid or,
// while unpaid, first received.
type Summary struct {
	Counts    map[purchase.Status]int // purchases by status; a status with none may be missing
	Sales                             // of the whole period
	Steps     []Sales                 // of each of the period's steps
	Attention int                     // in groups that need attention
	Oldest    time.Time               // the oldest undelivered purchase of any time; zero: none
	OldestNow time.Time               // the oldest undelivered purchase of the period; zero: none
	LastEvent time.Time               // the last webhook of any time; zero: never
	Groups    []Group                 // by status, reason and code, largest first
	Coverage  Coverage
	Delays    Delays // from payment to acceptance
}

// Sales counts paid purchases by what became of them. Trials are none.
type Sales struct {
	Paid          int // at Stripe, whatever became of them
	Accepted      int // by TikTok
	Waiting       int
	LeftOut       int // skipped on purpose: outside of the accepted share
	NewBuyers     int // first sales of their profiles
	Returning     int // later sales; a rejected sale has no known buyer
	FirstPayments int // first payments after trials
	NoValue       int // of Accepted, sent without a value
	Values        []Value
}

// NotAccepted returns the sales that are dead, rejected, or skipped without a token.
func (s Sales) NotAccepted() int { return s.Paid - s.Accepted - s.Waiting - s.LeftOut }

// Intended returns the sales that TikTok is to get.
func (s Sales) Intended() int { return s.Paid - s.LeftOut }

func (s *Sales) add(t *Sales) {
	s.Paid, s.Accepted = s.Paid+t.Paid, s.Accepted+t.Accepted
	s.Waiting, s.LeftOut = s.Waiting+t.Waiting, s.LeftOut+t.LeftOut
	s.NewBuyers, s.Returning = s.NewBuyers+t.NewBuyers, s.Returning+t.Returning
	s.FirstPayments, s.NoValue = s.FirstPayments+t.FirstPayments, s.NoValue+t.NoValue
	for _, v := range t.Values {
		at, found := slices.BinarySearchFunc(s.Values, v, compareValues)
		if !found {
			s.Values = slices.Insert(s.Values, at, Value{Currency: v.Currency})
		}
		s.Values[at].PaidMinor += v.PaidMinor
		s.Values[at].AcceptedMinor += v.AcceptedMinor
	}
}

// SumSales adds up the sales of steps.
func SumSales(steps []Sales) (sum Sales) {
	for i := range steps {
		sum.add(&steps[i])
	}
	return sum
}

// Value is an amount of one currency, in Stripe's smallest unit. Lists are in alphabetical order.
type Value struct {
	Currency      string `json:"currency"` // upper case
	PaidMinor     int64  `json:"paid_minor"`
	AcceptedMinor int64  `json:"accepted_minor"` // sum of the values that TikTok accepted
}

func compareValues(a, b Value) int { return cmp.Compare(a.Currency, b.Currency) }

// Group counts purchases of one status, reason and code.
type Group struct {
	Status purchase.Status
	Reason purchase.Reason
	Code   *int // TikTok's last code, for dead and retrying; nil: none
	Count  int
}

// NeedsAttention reports whether an operator must decide about the group: give access by hand, or replay it.
func (g Group) NeedsAttention() bool {
	return g.Status == purchase.StatusRejected || g.Status == purchase.StatusDead
}

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

// saleColumns are the sums of rollup_sales, saleTerms the same of a paid change, in this order.
const saleColumns = `paid, accepted, waiting, left_out, new_buyers, old_buyers, first_payments, no_value,
    minor, sent_minor`

const saleTerms = `n - trials AS paid, CASE WHEN status = 'delivered' THEN n - trials ELSE 0 END AS accepted,
    CASE WHEN ` + waitingState + ` THEN n - trials ELSE 0 END AS waiting,
    CASE WHEN ` + leftOutState + ` THEN n - trials ELSE 0 END AS left_out, first_sales AS new_buyers,
    CASE WHEN status <> 'rejected' THEN n - trials - first_sales ELSE 0 END AS old_buyers, first_payments,
    no_value, minor, sent_minor`

const saleSums = `sum(paid)::bigint, sum(accepted)::bigint, sum(waiting)::bigint, sum(left_out)::bigint,
    sum(new_buyers)::bigint, sum(old_buyers)::bigint, sum(first_payments)::bigint, sum(no_value)::bigint,
    sum(minor), sum(sent_minor)`

// The queries of a summary add totals and the changes that are not folded yet: in one snapshot they equal
// the ledger. $1 and $2 are the period, $3 is the mode, $4 and $5 are the whole UTC days that may be
// read as such.

const sqlRollupTotals = `
SELECT status, reason, code, sum(n)::bigint FROM (
    SELECT status, reason, code, n FROM public.rollup_totals
    WHERE NOT daily AND at >= $1 AND at < $4 AND ($3::boolean IS NULL OR livemode = $3)
    UNION ALL
    SELECT status, reason, code, n FROM public.rollup_totals
    WHERE daily AND at >= $4 AND at < $5 AND ($3::boolean IS NULL OR livemode = $3)
    UNION ALL
    SELECT status, reason, code, n FROM public.rollup_totals
    WHERE NOT daily AND at >= $5 AND at < $2 AND ($3::boolean IS NULL OR livemode = $3)
    UNION ALL
    SELECT status, reason, code, n FROM public.rollup_changes
    WHERE at >= $1 AND at < $2 AND ($3::boolean IS NULL OR livemode = $3)
) r GROUP BY 1, 2, 3 HAVING sum(n) <> 0`

// $6 are the starts of the steps.
const sqlRollupSales = `
SELECT width_bucket(at, $6::timestamptz[]) - 1, currency,
    sum(paid)::bigint, sum(accepted)::bigint, sum(waiting)::bigint, sum(left_out)::bigint,
    sum(new_buyers)::bigint, sum(old_buyers)::bigint, sum(first_payments)::bigint, sum(no_value)::bigint,
    LEAST(sum(minor), 9223372036854775807)::bigint, LEAST(sum(sent_minor), 9223372036854775807)::bigint
FROM (
    SELECT at, currency, ` + saleColumns + ` FROM public.rollup_sales
    WHERE NOT daily AND at >= $1 AND at < $4 AND ($3::boolean IS NULL OR livemode = $3)
    UNION ALL
    SELECT at, currency, ` + saleColumns + ` FROM public.rollup_sales
    WHERE daily AND at >= $4 AND at < $5 AND ($3::boolean IS NULL OR livemode = $3)
    UNION ALL
    SELECT at, currency, ` + saleColumns + ` FROM public.rollup_sales
    WHERE NOT daily AND at >= $5 AND at < $2 AND ($3::boolean IS NULL OR livemode = $3)
    UNION ALL
    SELECT at, currency, ` + saleTerms + `
    FROM public.rollup_changes
    WHERE at >= $1 AND at < $2 AND ($3::boolean IS NULL OR livemode = $3) AND ` + paidState + `
) s GROUP BY 1, 2 HAVING sum(paid) <> 0 ORDER BY 1, 2`

const sqlRollupDelays = `
SELECT delay, sum(n)::bigint FROM (
    SELECT delay, n FROM public.rollup_delays
    WHERE NOT daily AND at >= $1 AND at < $4 AND ($3::boolean IS NULL OR livemode = $3)
    UNION ALL
    SELECT delay, n FROM public.rollup_delays
    WHERE daily AND at >= $4 AND at < $5 AND ($3::boolean IS NULL OR livemode = $3)
    UNION ALL
    SELECT delay, n FROM public.rollup_delays
    WHERE NOT daily AND at >= $5 AND at < $2 AND ($3::boolean IS NULL OR livemode = $3)
    UNION ALL
    SELECT delay, n FROM public.rollup_changes
    WHERE delay >= 0 AND at >= $1 AND at < $2 AND ($3::boolean IS NULL OR livemode = $3)
) d GROUP BY delay HAVING sum(n) <> 0`

// $6 are the starts of the steps.
const sqlRollupKeys = `
SELECT width_bucket(at, $6::timestamptz[]) - 1, ` + keySums + `
FROM (
    SELECT at, ` + keyColumns + ` FROM public.rollup_keys
    WHERE NOT daily AND at >= $1 AND at < $4 AND ($3::boolean IS NULL OR livemode = $3)
    UNION ALL
    SELECT at, ` + keyColumns + ` FROM public.rollup_keys
    WHERE daily AND at >= $4 AND at < $5 AND ($3::boolean IS NULL OR livemode = $3)
    UNION ALL
    SELECT at, ` + keyColumns + ` FROM public.rollup_keys
    WHERE NOT daily AND at >= $5 AND at < $2 AND ($3::boolean IS NULL OR livemode = $3)
    UNION ALL
    SELECT at, ` + keyColumns + `
    FROM public.rollup_changes WHERE at >= $1 AND at < $2 AND ($3::boolean IS NULL OR livemode = $3)
) r GROUP BY 1 HAVING sum(keyed) <> 0 ORDER BY 1`

// Each of the six combinations reads the first entry of an index. The second column leaves out what is
// outside of the period.
const sqlOldestWaiting = `
SELECT min(ever.at), min(now.at)
FROM unnest(ARRAY['pending', 'published', 'retrying']) w (status), unnest(ARRAY[true, false]) m (livemode)
CROSS JOIN LATERAL (
    SELECT COALESCE(p.purchased_at, p.created_at) AS at FROM public.purchases p
    WHERE p.status = w.status AND p.livemode = m.livemode
    ORDER BY COALESCE(p.purchased_at, p.created_at) LIMIT 1) ever
LEFT JOIN LATERAL (
    SELECT COALESCE(p.purchased_at, p.created_at) AS at FROM public.purchases p
    WHERE p.status = w.status AND p.livemode = m.livemode
        AND COALESCE(p.purchased_at, p.created_at) >= $1 AND COALESCE(p.purchased_at, p.created_at) < $2
    ORDER BY COALESCE(p.purchased_at, p.created_at) LIMIT 1) now ON true
WHERE $3::boolean IS NULL OR m.livemode = $3`

// Summary returns the totals of a period; livemode nil means both modes. They come from the rollup and are
// exact: changes that are not folded yet are added. The cost depends on the period, not on the number of
// purchases.
func (r *Reader) Summary(ctx context.Context, p Period, livemode *bool) (Summary, error) {
	s := Summary{Counts: make(map[purchase.Status]int), Delays: make(Delays)}
	s.Steps = make([]Sales, len(p.steps()))
	firstDay, endDay := p.wholeDays()
	err := pgx.BeginTxFunc(ctx, r.db.Pool(), snapshot(), func(tx pgx.Tx) error {
		var batch pgx.Batch
		totals := batch.Queue(sqlRollupTotals, p.From, p.Until, livemode, firstDay, endDay)
		totals.Query(func(rows pgx.Rows) (err error) {
			s.Groups, err = r.readGroups(rows)
			return err
		})
		first, end := p.daysWithinSteps()
		sales := batch.Queue(sqlRollupSales, p.From, p.Until, livemode, first, end, p.steps())
		sales.Query(func(rows pgx.Rows) error { return r.readSales(rows, s.Steps) })
		keys := batch.Queue(sqlRollupKeys, p.From, p.Until, livemode, firstDay, endDay, []time.Time{p.From})
		keys.Query(func(rows pgx.Rows) error {
			fields := append([]any{new(int)}, keyFields(&s.Coverage)...)
			return r.db.ForEach("rollup", rows, fields, func() error { return nil })
		})
		batch.Queue(sqlRollupDelays, p.From, p.Until, livemode, firstDay, endDay).Query(func(rows pgx.Rows) error {
			var step, n int
			return r.db.ForEach("rollup", rows, []any{&step, &n}, func() error { s.Delays[step] = n; return nil })
		})
		batch.Queue(sqlOldestWaiting, p.From, p.Until, livemode).QueryRow(func(row pgx.Row) error {
			var ever, now *time.Time
			err := row.Scan(&ever, &now)
			s.Oldest, s.OldestNow = ledger.OrZero(ever), ledger.OrZero(now)
			return err
		})
		batch.Queue(sqlLastWebhook).QueryRow(func(row pgx.Row) error { return scanTime(row, &s.LastEvent) })
		return tx.SendBatch(ctx, &batch).Close()
	})
	if err != nil {
		return s, fmt.Errorf("read summary: %w", err)
	}
	s.Sales = SumSales(s.Steps)
	for _, g := range s.Groups {
		s.Counts[g.Status] += g.Count
		if g.NeedsAttention() {
			s.Attention += g.Count
		}
	}
	return s, nil
}

// readGroups reads counts by status, reason and code, largest first.
func (r *Reader) readGroups(rows pgx.Rows) (groups []Group, err error) {
	groups, err = ledger.Collect(r.db, "rollup", rows, func(row pgx.CollectableRow) (g Group, err error) {
		var code string
		if err = row.Scan(&g.Status, &g.Reason, &code, &g.Count); err == nil {
			g.Code, err = parseCode(code)
		}
		return g, err
	})
	slices.SortFunc(groups, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Status, b.Status),
			cmp.Compare(a.Reason, b.Reason), cmp.Compare(ledger.OrZero(a.Code), ledger.OrZero(b.Code)))
	})
	return groups, err
}

// readSales adds rows, one for each step and currency, to the steps.
func (r *Reader) readSales(rows pgx.Rows, steps []Sales) error {
	var step int
	var v Value
	var t Sales
	fields := []any{
		&step, &v.Currency, &t.Paid, &t.Accepted, &t.Waiting, &t.LeftOut, &t.NewBuyers, &t.Returning,
		&t.FirstPayments, &t.NoValue, &v.PaidMinor, &v.AcceptedMinor,
	}
	return r.db.ForEach("rollup", rows, fields, func() error {
		v.Currency = strings.ToUpper(v.Currency)
		if t.Values = nil; v.Currency != "" {
			t.Values = []Value{v}
		}
		steps[step].add(&t)
		return nil
	})
}

// keyFields returns the destinations of keySums.
func keyFields(c *Coverage) []any {
	fields := []any{&c.Of}
	for i := range c.With {
		fields = append(fields, &c.With[i])
	}
	return append(fields, &c.Late, &c.Strong)
}

// Coverage counts match keys by the steps of a period; one without purchases is missing. livemode nil means
// both modes.
func (r *Reader) Coverage(ctx context.Context, p Period, livemode *bool) ([]DayCoverage, error) {
	steps := p.steps()
	first, end := p.daysWithinSteps()
	rows, err := r.db.Pool().Query(ctx, sqlRollupKeys, p.From, p.Until, livemode, first, end, steps)
	if err != nil {
		return nil, fmt.Errorf("count match keys: %w", err)
	}
	days, err := ledger.Collect(r.db, "rollup", rows, func(row pgx.CollectableRow) (d DayCoverage, err error) {
		var step int
		err = row.Scan(append([]any{&step}, keyFields(&d.Coverage)...)...)
		if err == nil {
			d.At = steps[step]
		}
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
) s GROUP BY 1, 2, 3 HAVING sum(n) <> 0`

// Groups counts all purchases by status, reason and code, largest first; livemode nil means both modes.
func (r *Reader) Groups(ctx context.Context, livemode *bool) ([]Group, error) {
	rows, err := r.db.Pool().Query(ctx, sqlRollupStatuses, livemode)
	if err != nil {
		return nil, fmt.Errorf("count purchases: %w", err)
	}
	groups, err := r.readGroups(rows)
	if err != nil {
		return nil, fmt.Errorf("count purchases: %w", err)
	}
	return groups, nil
}
