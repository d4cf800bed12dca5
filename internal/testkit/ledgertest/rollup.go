package ledgertest

import (
	"context"
	"math"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// CheckRollup compares every report that is read from the rollup with a count of the ledger's rows.
func (l *Ledger) CheckRollup(t rapid.TB, livemode *bool, since time.Time) {
	t.Helper()
	ctx := context.Background()
	equal := func(what string, want, got any) {
		t.Helper()
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%s since %s, mode %v (-ledger +rollup):\n%s", what, since, livemode, diff)
		}
	}
	got, err := l.Summary(ctx, since, livemode)
	if err != nil {
		t.Fatal(err)
	}
	want := l.count(t, since.Truncate(time.Hour), livemode)
	equal("groups", want.Counts, counts(got.Groups))
	var chart report.Summary
	for _, h := range got.Hours {
		chart.Paid, chart.Accepted = chart.Paid+h.Paid, chart.Accepted+h.Accepted
	}
	equal("chart", [2]int{want.Paid, want.Accepted}, [2]int{chart.Paid, chart.Accepted})
	got.Oldest, got.LastEvent, got.Hours, got.Groups = time.Time{}, time.Time{}, nil, nil // not counted
	equal("summary", want, got)

	days, err := l.Coverage(ctx, since, livemode)
	if err != nil {
		t.Fatal(err)
	}
	var sum report.Coverage
	for _, d := range days {
		equal("day", d.At.Truncate(24*time.Hour), d.At)
		sum.Of, sum.Strong, sum.Late = sum.Of+d.Of, sum.Strong+d.Strong, sum.Late+d.Late
		for i := range sum.With {
			sum.With[i] += d.With[i]
		}
	}
	equal("coverage", l.count(t, since.Truncate(24*time.Hour), livemode).Coverage, sum)

	groups, err := l.Groups(ctx, livemode)
	if err != nil {
		t.Fatal(err)
	}
	equal("groups of all time", l.count(t, time.Time{}, livemode).Counts, counts(groups))
}

func counts(groups []report.Group) map[purchase.Status]int {
	sum := map[purchase.Status]int{}
	for _, g := range groups {
		sum[g.Status] += g.Count
	}
	return sum
}

// row is what the reports count of a purchase.
type row struct {
	Status       purchase.Status
	Reason       purchase.Reason
	Kind         purchase.Kind
	Currency     string
	Amount       int64
	Sent         *int64
	Keys         *int16
	At, Finished *time.Time
}

// count sums up the ledger row by row.
func (l *Ledger) count(t rapid.TB, since time.Time, livemode *bool) report.Summary {
	t.Helper()
	result, err := l.Conn.Query(context.Background(), `
		SELECT status, reason, kind, COALESCE(upper(currency), '') AS currency, COALESCE(amount_minor, 0),
			sent_minor, match_keys, purchased_at, finished_at
		FROM purchases
		WHERE COALESCE(purchased_at, created_at) >= $1 AND ($2::boolean IS NULL OR livemode = $2)
		ORDER BY currency`, since, livemode)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := pgx.CollectRows(result, pgx.RowToStructByPos[row])
	if err != nil {
		t.Fatal(err)
	}
	s := report.Summary{Counts: map[purchase.Status]int{}, Delays: report.Delays{}}
	for _, r := range rows {
		delivered := r.Status == purchase.StatusDelivered
		s.Counts[r.Status]++
		if r.Status == purchase.StatusDead || r.Status == purchase.StatusRejected ||
			r.Status == purchase.StatusSkipped && r.Reason == purchase.ReasonNotConfigured {
			s.Attention++
		}
		if delivered && r.At != nil && r.Finished != nil {
			s.Delays[delayStep(r.Finished.Sub(*r.At))]++
		}
		if r.Keys != nil {
			cover(&s.Coverage, *r.Keys)
		}
		if purchase.Paid(r.Status, r.Reason, r.Kind) {
			pay(&s, r, delivered)
		}
	}
	return s
}

// delayStep returns the step of the histogram: the first ends at 0.1 s, each is a quarter octave wide.
func delayStep(delay time.Duration) (step int) {
	quarter := math.Pow(2, 0.25)
	for took := delay.Seconds(); took > 0.1*quarter; took /= quarter {
		step++
	}
	return step
}

func cover(c *report.Coverage, keys int16) {
	c.Of++
	for bit := range c.With {
		c.With[bit] += int(keys >> bit & 1)
	}
	if keys&5 != 0 { // e-mail address or click id
		c.Strong++
	}
	if keys&purchase.LateClickMask != 0 {
		c.Late++
	}
}

// pay adds a paid purchase to the totals of its currency. The rows are in order of currency.
func pay(s *report.Summary, r row, delivered bool) {
	s.Paid++
	sent := int64(0)
	switch {
	case !delivered:
	case r.Sent == nil:
		s.Accepted++
		s.NoValue++
	default:
		s.Accepted++
		sent = *r.Sent
	}
	if r.Currency == "" {
		return
	}
	if n := len(s.Values); n == 0 || s.Values[n-1].Currency != r.Currency {
		s.Values = append(s.Values, report.Value{Currency: r.Currency})
	}
	v := &s.Values[len(s.Values)-1]
	v.PaidMinor += r.Amount
	v.AcceptedMinor += sent
}
