package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/purchase"
)

// Summary counts the purchases since a time; livemode nil means both modes. A purchase belongs to the time it was
// paid, or first heard of while it is unpaid.
func (db *DB) Summary(ctx context.Context, since time.Time, livemode *bool) (purchase.Summary, error) {
	s := purchase.Summary{Counts: make(map[purchase.Status]int)}
	rows, err := db.pool.Query(ctx, sqlSummary, since, livemode)
	if err != nil {
		return s, fmt.Errorf("summarise the ledger: %w", err)
	}
	var (
		status   purchase.Status
		currency string
		count    int
		minor    int64
		oldest   time.Time
	)
	values := make(map[string]int)
	_, err = pgx.ForEachRow(rows, []any{&status, &currency, &count, &minor, &oldest}, func() error {
		s.Counts[status] += count
		switch status {
		case purchase.StatusDead, purchase.StatusRejected:
			s.Attention += count
		case purchase.StatusPending, purchase.StatusPublished, purchase.StatusRetrying:
			if s.Oldest.IsZero() || oldest.Before(s.Oldest) {
				s.Oldest = oldest
			}
		case purchase.StatusAwaitingPayment, purchase.StatusPaymentFailed:
			return nil // no money yet
		default:
		}
		if currency == "" {
			return nil
		}
		i, ok := values[currency]
		if !ok {
			i = len(s.Values)
			values[currency] = i
			s.Values = append(s.Values, purchase.Value{Currency: currency})
		}
		s.Values[i].PaidMinor += minor
		if status == purchase.StatusDelivered {
			s.Values[i].AcceptedMinor += minor
		}
		return nil
	})
	if err != nil {
		return s, fmt.Errorf("summarise the ledger: %w", err)
	}
	return s, nil
}

// Newest says when the newest purchase was paid or first heard of (zero: there is none).
func (db *DB) Newest(ctx context.Context) (time.Time, error) {
	var at *time.Time
	if err := db.pool.QueryRow(ctx, sqlNewest).Scan(&at); err != nil {
		return time.Time{}, fmt.Errorf("look for the newest purchase: %w", err)
	}
	return orZero(at), nil
}

// OutboxState says how many purchases wait for the relay, and since when the oldest does (zero: none).
func (db *DB) OutboxState(ctx context.Context) (pending int, oldest time.Time, err error) {
	var at *time.Time
	if err := db.pool.QueryRow(ctx, sqlOutboxState).Scan(&pending, &at); err != nil {
		return 0, time.Time{}, fmt.Errorf("read the outbox: %w", err)
	}
	return pending, orZero(at), nil
}
