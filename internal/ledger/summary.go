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
			s.Hours, err = collect(db, "rollup", rows, func(row pgx.CollectableRow) (h purchase.Hour, err error) {
				err = row.Scan(&h.At, &h.Paid, &h.Accepted)
				h.At = h.At.UTC()
				return h, err
			})
			return err
		})
		batch.Queue(sqlRollupDelays, since, livemode, wholeDays).Query(func(rows pgx.Rows) error {
			var step, n int
			return forEach(db, "rollup", rows, []any{&step, &n}, func() error { s.Delays[step] = n; return nil })
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

func (db *DB) readTotals(rows pgx.Rows, s *purchase.Summary) error {
	var kind, n, paid, accepted, noValue int
	var g purchase.Group
	var code string
	var v purchase.Value
	var c purchase.Coverage
	fields := append([]any{
		&kind, &g.Status, &g.Reason, &code, &v.Currency, &n, &paid, &accepted, &v.PaidMinor, &v.AcceptedMinor, &noValue,
	}, keyFields(&c)...)
	err := forEach(db, "rollup", rows, fields, func() (err error) {
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

// Coverage counts match keys by the day of UTC since the beginning of a day; a day without any purchase is missing. livemode nil
// means both modes.
func (db *DB) Coverage(ctx context.Context, since time.Time, livemode *bool) ([]purchase.DayCoverage, error) {
	rows, err := db.pool.Query(ctx, sqlRollupKeys, since.UTC().Truncate(24*time.Hour), livemode)
	if err != nil {
		return nil, fmt.Errorf("count match keys: %w", err)
	}
	days, err := collect(db, "rollup", rows, func(row pgx.CollectableRow) (d purchase.DayCoverage, err error) {
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

// Groups counts the purchases of all times by status, reason and code, the largest group first; livemode nil means both modes.
func (db *DB) Groups(ctx context.Context, livemode *bool) ([]purchase.Group, error) {
	rows, err := db.pool.Query(ctx, sqlRollupStatuses, livemode)
	if err != nil {
		return nil, fmt.Errorf("count the ledger: %w", err)
	}
	groups, err := collect(db, "rollup", rows, scanGroup)
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

// Fold adds the changes since the last time to the rollup's totals and says how many hours they touched. Its cost depends on
// how many changes there are, not on the ledger's size. Of several replicas one does it at a time.
func (db *DB) Fold(ctx context.Context) (hours int, err error) {
	mine := false
	err = pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, sqlLockRollup).Scan(&mine); err != nil || !mine {
			return err
		}
		rows, err := tx.Query(ctx, sqlFold)
		if err != nil {
			return err
		}
		var hour, day time.Time
		var touched, days []time.Time
		err = forEach(db, "rollup", rows, []any{&hour, &day}, func() error {
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

// OutboxState says how many purchases wait for the relay, and since when the oldest does (zero: none).
func (db *DB) OutboxState(ctx context.Context) (pending int, oldest time.Time, err error) {
	var at *time.Time
	if err := db.pool.QueryRow(ctx, sqlOutboxState).Scan(&pending, &at); err != nil {
		return 0, time.Time{}, fmt.Errorf("read the outbox: %w", err)
	}
	return pending, orZero(at), nil
}
