package ledgertest

import (
	"context"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// failer is a test, rapid's or Go's own.
type failer interface {
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// CheckRollup counts the ledger row by row and compares the rollup with it.
func (l *Ledger) CheckRollup(t failer, livemode *bool, since time.Time) {
	ctx := context.Background()
	got, err := l.Summary(ctx, since, livemode)
	if err != nil {
		t.Fatal(err)
	}
	want := l.count(t, since.Truncate(time.Hour), livemode)
	counts := map[purchase.Status]int{}
	for _, g := range got.Groups {
		counts[g.Status] += g.Count
	}
	if diff := cmp.Diff(want.Counts, counts, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("the groups (-ledger +rollup):\n%s", diff)
	}
	var paid, accepted int
	for _, h := range got.Hours {
		paid, accepted = paid+h.Paid, accepted+h.Accepted
	}
	if paid != want.Paid || accepted != want.Accepted {
		t.Fatalf("the chart has %d paid, %d accepted, the ledger %d and %d", paid, accepted, want.Paid, want.Accepted)
	}
	got.Oldest, got.LastEvent, got.Hours, got.Groups = time.Time{}, time.Time{}, nil, nil
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("since %s, mode %v (-ledger +rollup):\n%s", since, livemode, diff)
	}
	days, err := l.Coverage(ctx, since, livemode)
	if err != nil {
		t.Fatal(err)
	}
	var sum report.Coverage
	for _, d := range days {
		if d.At.Truncate(24*time.Hour) != d.At {
			t.Fatalf("%s is no day", d.At)
		}
		sum.Of, sum.Strong, sum.Late = sum.Of+d.Of, sum.Strong+d.Strong, sum.Late+d.Late
		for i := range sum.With {
			sum.With[i] += d.With[i]
		}
	}
	if diff := cmp.Diff(l.count(t, since.Truncate(24*time.Hour), livemode).Coverage, sum); diff != "" {
		t.Fatalf("by days since %s (-ledger +rollup):\n%s", since, diff)
	}
	groups, err := l.Groups(ctx, livemode)
	if err != nil {
		t.Fatal(err)
	}
	clear(counts)
	for _, g := range groups {
		counts[g.Status] += g.Count
	}
	if diff := cmp.Diff(l.count(t, time.Time{}, livemode).Counts, counts, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("of all times (-ledger +rollup):\n%s", diff)
	}
}

// count sums the ledger up row by row, in Go.
func (l *Ledger) count(t failer, since time.Time, livemode *bool) report.Summary {
	s := report.Summary{Counts: map[purchase.Status]int{}, Delays: report.Delays{}}
	rows, err := l.Conn.Query(context.Background(), `SELECT status, reason, COALESCE(upper(currency), ''), COALESCE(amount_minor, 0), match_keys,
			purchased_at, finished_at, kind, sent_minor
		FROM purchases WHERE COALESCE(purchased_at, created_at) >= $1 AND ($2::boolean IS NULL OR livemode = $2) ORDER BY 3`, since, livemode)
	if err != nil {
		t.Fatal(err)
	}
	var status purchase.Status
	var reason purchase.Reason
	var currency string
	var minor int64
	var sent *int64
	var keys *int16
	var at, finished *time.Time
	var kind purchase.Kind
	fields := []any{&status, &reason, &currency, &minor, &keys, &at, &finished, &kind, &sent}
	_, err = pgx.ForEachRow(rows, fields, func() error {
		s.Counts[status]++
		if keys != nil {
			s.Coverage.Of++
			for bit := range s.Coverage.With {
				s.Coverage.With[bit] += int(*keys >> bit & 1)
			}
			if *keys&5 != 0 {
				s.Coverage.Strong++
			}
			if *keys&purchase.LateClick != 0 {
				s.Coverage.Late++
			}
		}
		if status == purchase.StatusDead || status == purchase.StatusRejected {
			s.Attention++
		}
		if status == purchase.StatusDelivered {
			if at != nil && finished != nil {
				step := 0
				for took := finished.Sub(*at).Seconds(); took > 0.1*1.1892071150027210667; took /= 1.1892071150027210667 { // the fourth root of 2
					step++
				}
				s.Delays[step]++
			}
		}
		if !purchase.Paid(status, reason, kind) {
			return nil
		}
		s.Paid++
		delivered := int64(0)
		if status == purchase.StatusDelivered {
			s.Accepted++
			if sent == nil {
				s.NoValue++
			} else {
				delivered = *sent
			}
		}
		if currency == "" {
			return nil
		}
		if n := len(s.Values); n == 0 || s.Values[n-1].Currency != currency {
			s.Values = append(s.Values, report.Value{Currency: currency})
		}
		v := &s.Values[len(s.Values)-1]
		v.PaidMinor += minor
		v.AcceptedMinor += delivered
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
