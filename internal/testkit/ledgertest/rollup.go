package ledgertest

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// Since returns the open period that begins with the quarter hour of a time, as one step.
func Since(at time.Time) report.Period {
	from := at.UTC().Truncate(report.Quarter)
	until := time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	return report.Period{From: from, Until: until, Steps: []time.Time{from}}
}

// CheckRollup compares every report that is read from the rollup with a count of the ledger's rows, by the
// days of a time zone.
func (l *Ledger) CheckRollup(t rapid.TB, livemode *bool, p report.Period) {
	t.Helper()
	ctx := context.Background()
	equal := func(what string, want, got any) {
		t.Helper()
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%s from %s until %s, mode %v (-ledger +rollup):\n%s", what, p.From, p.Until, livemode, diff)
		}
	}
	got, err := l.Summary(ctx, p, livemode)
	if err != nil {
		t.Fatal(err)
	}
	want := l.count(t, p.From, p.Until, livemode)
	equal("groups", want.Counts, counts(got.Groups))
	for i, step := range got.Steps {
		until := p.Until
		if i+1 < len(p.Steps) {
			until = p.Steps[i+1]
		}
		equal("sales of a step", l.count(t, p.Steps[i], until, livemode).Sales, step)
	}
	got.Oldest, got.OldestNow, got.LastEvent = time.Time{}, time.Time{}, time.Time{} // not counted
	got.Steps, got.Groups = nil, nil
	equal("summary", want, got)

	days, err := l.Coverage(ctx, p, livemode)
	if err != nil {
		t.Fatal(err)
	}
	var sum report.Coverage
	for _, d := range days {
		if !slices.Contains(p.Steps, d.At) {
			t.Fatalf("coverage of %s, want a day of %v", d.At, p.Steps)
		}
		sum.Of, sum.Strong, sum.Late = sum.Of+d.Of, sum.Strong+d.Strong, sum.Late+d.Late
		for i := range sum.With {
			sum.With[i] += d.With[i]
		}
	}
	equal("coverage", want.Coverage, sum)

	groups, err := l.Groups(ctx, livemode)
	if err != nil {
		t.Fatal(err)
	}
	ever := l.count(t, time.Time{}, Since(time.Time{}).Until, livemode)
	equal("groups of all time", ever.Counts, counts(groups))
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
	FirstSale    bool
}

// count sums up the ledger row by row.
func (l *Ledger) count(t rapid.TB, from, until time.Time, livemode *bool) report.Summary {
	t.Helper()
	result, err := l.Conn.Query(context.Background(), `
		SELECT status, reason, kind, COALESCE(upper(currency), '') AS currency, COALESCE(amount_minor, 0),
			sent_minor, match_keys, purchased_at, finished_at, first_sale
		FROM purchases
		WHERE COALESCE(purchased_at, created_at) >= $1 AND COALESCE(purchased_at, created_at) < $2
			AND ($3::boolean IS NULL OR livemode = $3)
		ORDER BY currency`, from, until, livemode)
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
		if r.Status == purchase.StatusDead || r.Status == purchase.StatusRejected {
			s.Attention++
		}
		if delivered && r.At != nil && r.Finished != nil {
			s.Delays[delayStep(r.Finished.Sub(*r.At))]++
		}
		if r.Keys != nil {
			cover(&s.Coverage, *r.Keys)
		}
		if state := purchase.StateOfSale(r.Status, r.Reason, r.Kind); state != "" {
			sell(&s.Sales, r, state)
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

// sell adds a sale to the totals. The rows are in order of currency.
func sell(s *report.Sales, r row, state purchase.SaleState) {
	s.Paid++
	switch state {
	case purchase.SaleAccepted:
		s.Accepted++
	case purchase.SaleWaiting:
		s.Waiting++
	case purchase.SaleLeftOut:
		s.LeftOut++
	case purchase.SaleNotAccepted: // the rest
	}
	switch {
	case r.FirstSale:
		s.NewBuyers++
	case r.Status != purchase.StatusRejected:
		s.Returning++
	}
	if r.Kind == purchase.KindFirstPayment {
		s.FirstPayments++
	}
	sent := int64(0)
	switch {
	case state != purchase.SaleAccepted:
	case r.Sent == nil:
		s.NoValue++
	default:
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
