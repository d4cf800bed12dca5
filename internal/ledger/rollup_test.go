package ledger_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/relay"
)

// Whatever happens to purchases, by whatever statement, the rollup says what the ledger says: before and after it is folded.
func TestRollupIsTheLedger(t *testing.T) {
	l := newLedger(t)
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		if round++; round > 25 { // each takes many statements
			return
		}
		ids := make([]string, rapid.IntRange(1, 8).Draw(rt, "purchases"))
		for i := range ids {
			ids[i] = fmt.Sprintf("cs_%d_%d", round, i)
		}
		some := rapid.SliceOfNDistinct(rapid.SampledFrom(ids), 1, len(ids), rapid.ID[string])
		event := 0
		must := func(err error) {
			if err != nil {
				rt.Fatal(err)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"": func(rt *rapid.T) {
				l.rollupIsTheLedger(rt, rapid.SampledFrom([]*bool{nil, new(true), new(false)}).Draw(rt, "mode"), base.Add(time.Duration(rapid.IntRange(-40, 40).Draw(rt, "since"))*time.Hour))
			},
			"record": func(rt *rapid.T) {
				event++
				status := rapid.SampledFrom([]purchase.Status{purchase.StatusAwaitingPayment, purchase.StatusPaymentFailed, purchase.StatusRejected, purchase.StatusSkipped, purchase.StatusPending}).Draw(rt, "status")
				reason := map[purchase.Status]purchase.Reason{purchase.StatusRejected: purchase.ReasonInvalidEmail, purchase.StatusSkipped: purchase.ReasonNoPayment}[status]
				r := receipt(fmt.Sprintf("evt_%d_%d", round, event), rapid.SampledFrom(ids).Draw(rt, "id"), status, reason)
				if !r.Purchase.At.IsZero() {
					r.Purchase.At = base.Add(time.Duration(rapid.IntRange(0, 3*60).Draw(rt, "minute")) * 20 * time.Minute)
				}
				r.Purchase.Livemode = rapid.Bool().Draw(rt, "live")
				r.Purchase.Currency = rapid.SampledFrom([]string{"usd", "jpy", ""}).Draw(rt, "currency")
				if rapid.Bool().Draw(rt, "no amount") {
					r.Purchase.AmountMinor = nil
				}
				if r.Purchase.Kind = rapid.SampledFrom([]purchase.Kind{"", purchase.KindCheckout, purchase.KindTrial}).Draw(rt, "kind"); reason == purchase.ReasonNoPayment {
					r.Purchase.Kind = purchase.KindTrial
				}
				r.Purchase.Keys.LastName, r.Purchase.Keys.City = "", rapid.SampledFrom([]string{"", "berlin"}).Draw(rt, "city")
				r.Purchase.Keys.FirstName = rapid.SampledFrom([]string{"", purchase.HashExternalID("grace")}).Draw(rt, "name")
				r.Purchase.Keys.TTCLID = rapid.SampledFrom([]string{"", "t"}).Draw(rt, "ttclid")
				if rapid.Bool().Draw(rt, "clicked long ago") {
					r.Purchase.ClickExpires = base.AddDate(0, 0, -2)
				}
				r.Purchase.Keys.TTP = rapid.SampledFrom([]string{"", "t"}).Draw(rt, "ttp")
				r.Purchase.Keys.PageURL = rapid.SampledFrom([]string{"", "https://shop.example/"}).Draw(rt, "page")
				_, err := l.Record(l.t.Context(), r)
				must(err)
			},
			"publish": func(rt *rapid.T) {
				claims, err := l.Claim(l.t.Context(), 3)
				must(err)
				var marks []relay.Mark
				for _, c := range claims {
					marks = append(marks, relay.Mark{ID: c.ID, Generation: c.Generation, Sequence: 1})
				}
				must(l.MarkPublished(l.t.Context(), marks))
			},
			"settle": func(rt *rapid.T) {
				var outcomes []message.Outcome
				for _, id := range some.Draw(rt, "settled") {
					event++
					result := rapid.SampledFrom([]purchase.Status{purchase.StatusRetrying, purchase.StatusDelivered, purchase.StatusDead, purchase.StatusSkipped}).Draw(rt, "result")
					later := time.Duration(rapid.IntRange(0, 1<<30).Draw(rt, "later")) * time.Microsecond
					generation := rapid.IntRange(1, 3).Draw(rt, "generation")
					o := outcome(id, generation, result, fmt.Sprintf("a%d", event), base.Add(later))
					if rapid.Bool().Draw(rt, "reported") {
						o.Sent = drawSent(rt)
					}
					outcomes = append(outcomes, o)
				}
				_, err := l.Settle(l.t.Context(), outcomes)
				must(err)
			},
			"sweep": func(rt *rapid.T) {
				must(l.RecordSweep(l.t.Context(), []relay.Mark{{ID: rapid.SampledFrom(ids).Draw(rt, "swept"), Generation: 4, Sequence: 9}}, nil, nil))
			},
			"expire": func(rt *rapid.T) {
				var marks []relay.Mark
				for _, id := range some.Draw(rt, "expired") {
					marks = append(marks, relay.Mark{ID: id, Generation: rapid.IntRange(1, 4).Draw(rt, "of generation")})
				}
				_, err := l.Expire(l.t.Context(), marks, 0)
				must(err)
			},
			"replay": func(rt *rapid.T) {
				_, err := l.Replay(l.t.Context(), purchase.Selection{IDs: some.Draw(rt, "replayed")}, func(int) {})
				must(err)
			},
			"delete": func(rt *rapid.T) {
				_, err := l.conn.Exec(l.t.Context(), `DELETE FROM purchases WHERE checkout_session_id = ANY($1)`, some.Draw(rt, "deleted"))
				must(err)
			},
			"mend by hand": func(rt *rapid.T) {
				value := rapid.SampledFrom([]*int64{nil, new(int64(7))}).Draw(rt, "value")
				_, err := l.conn.Exec(l.t.Context(), `UPDATE purchases SET match_keys = match_keys # 899, kind = 'trial',
					amount_minor = 7, currency = 'eur', sent_minor = $2 WHERE checkout_session_id = ANY($1)`, some.Draw(rt, "mended"), value)
				must(err)
			},
			"fold": func(*rapid.T) { _, err := l.Fold(l.t.Context()); must(err) },
		})
		_, err := l.conn.Exec(l.t.Context(), `DELETE FROM purchases`)
		must(err)
		_, err = l.Fold(l.t.Context())
		must(err)
		l.rollupIsTheLedger(rt, nil, time.Time{})
		var left int
		must(l.conn.QueryRow(l.t.Context(), `SELECT (SELECT count(*) FROM rollup_totals) + (SELECT COALESCE(sum(abs(paid) + abs(accepted)), 0) FROM rollup_hours) + (SELECT count(*) FROM rollup_changes) + (SELECT COALESCE(sum(abs(n)), 0) FROM rollup_delays)
			+ (SELECT COALESCE(sum(abs(n)), 0) FROM rollup_statuses)`).Scan(&left))
		if left != 0 {
			rt.Fatalf("of an empty ledger %d are left in the rollup", left)
		}
	})
}

func drawSent(rt *rapid.T) *purchase.Sent {
	values := []*int64{nil, new(int64(0)), new(int64(2999)), new(int64(500))}
	return &purchase.Sent{
		Keys:  rapid.Int16Range(0, 1<<purchase.MatchKeyKinds-1).Draw(rt, "sent keys"),
		Minor: rapid.SampledFrom(values).Draw(rt, "sent value"),
		Page:  rapid.SampledFrom([]string{"", "https://shop.example/"}).Draw(rt, "sent page"),
	}
}

// fataler is a test, rapid's or Go's own.
type fataler interface {
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// rollupIsTheLedger counts the ledger row by row and compares.
func (l *testLedger) rollupIsTheLedger(t fataler, livemode *bool, since time.Time) {
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
	var sum purchase.Coverage
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

// count sums the ledger up, row by row and without its help.
func (l *testLedger) count(t fataler, since time.Time, livemode *bool) purchase.Summary {
	s := purchase.Summary{Counts: map[purchase.Status]int{}, Delays: purchase.Delays{}}
	rows, err := l.conn.Query(context.Background(), `SELECT status, reason, COALESCE(upper(currency), ''), COALESCE(amount_minor, 0), match_keys,
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
		if status == purchase.StatusAwaitingPayment || status == purchase.StatusPaymentFailed || status == purchase.StatusSkipped && reason == purchase.ReasonNoPayment {
			return nil
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
		if kind == purchase.KindTrial {
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
			s.Values = append(s.Values, purchase.Value{Currency: currency})
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

// A flood of changes leaves nothing behind that slows readers down: they pass through all of the notes' pages.
func TestFoldingLeavesNoHoles(t *testing.T) {
	l := newLedger(t)
	size := func() int { return ask[int](l, `SELECT pg_relation_size('rollup_changes')`) }
	if _, err := l.conn.Exec(t.Context(), `INSERT INTO purchases (checkout_session_id, status, mode, livemode, created_at)
		SELECT 'cs_' || i, 'pending', 'payment', true, now() - make_interval(hours => i) FROM generate_series(1, 20000) i`); err != nil {
		t.Fatal(err)
	}
	if before := size(); before < 1<<20 {
		t.Fatalf("only %d bytes of changes", before)
	}
	// Somebody looks at the ledger meanwhile: what it may still see stays until it is done.
	looking, err := l.conn.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := looking.Exec(t.Context(), `SELECT count(*) FROM rollup_changes`); err != nil {
		t.Fatal(err)
	}
	if hours, err := l.Fold(t.Context()); err != nil || hours < 20000 {
		t.Fatalf("%d hours, %v", hours, err)
	}
	if err := looking.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if hours, err := l.Fold(t.Context()); err != nil || hours != 0 {
		t.Fatalf("%d hours, %v", hours, err)
	}
	if after := size(); after > 1<<16 {
		t.Errorf("%d bytes after folding", after)
	}
}

// Every filter, alone and with others, pages through exactly the rows that match, newest first, whatever the page's size.
func TestEntriesPageThroughEverything(t *testing.T) {
	l := newLedger(t)
	for i := range 60 {
		r := receipt(fmt.Sprintf("evt_%d", i), fmt.Sprintf("cs_%02d", i), purchase.StatusPending, "")
		r.Purchase.At = base.Add(time.Duration(i/4) * 5 * time.Hour) // four share each time
		r.Purchase.Livemode = i%3 > 0
		r.Purchase.Customer = fmt.Sprintf("cus_%d", i%5)
		r.Purchase.Email = fmt.Sprintf("buyer%d@example.com", i%5)
		l.record(r)
		o := outcome(r.Purchase.ID, 1, []purchase.Status{purchase.StatusDelivered, purchase.StatusDead, purchase.StatusRetrying}[i%7%3], "a", base)
		o.Attempt.Code = new([]int{0, 40002, 50000}[i%7%3])
		if _, err := l.Settle(t.Context(), []message.Outcome{o}); err != nil {
			t.Fatal(err)
		}
	}
	profile := ask[string](l, `SELECT id::text FROM profiles WHERE livemode AND email = 'buyer3@example.com'`)
	if id, err := l.ProfileByEmail(t.Context(), " Buyer3@Example.com"); err != nil || id != profile {
		t.Errorf("profile %q, %v", id, err)
	}
	for name, tc := range map[string]struct {
		filter purchase.Filter
		where  string
	}{
		"all":             {purchase.Filter{}, `true`},
		"live":            {purchase.Filter{Livemode: new(true)}, `livemode`},
		"test":            {purchase.Filter{Livemode: new(false)}, `NOT livemode`},
		"dead":            {purchase.Filter{Status: purchase.StatusDead}, `status = 'dead'`},
		"live delivered":  {purchase.Filter{Status: purchase.StatusDelivered, Livemode: new(true)}, `status = 'delivered' AND livemode`},
		"code":            {purchase.Filter{Code: new(40002)}, `last_code = 40002`},
		"code 0":          {purchase.Filter{Code: new(0)}, `last_code = 0`},
		"code and status": {purchase.Filter{Code: new(40002), Status: purchase.StatusDelivered}, `false`},
		"a day":           {purchase.Filter{Day: base}, `purchased_at >= '2026-01-02 00:00Z' AND purchased_at < '2026-01-03 00:00Z'`},
		"dead of a day":   {purchase.Filter{Day: base, Status: purchase.StatusDead}, `status = 'dead' AND purchased_at < '2026-01-03 00:00Z'`},
		"a customer":      {purchase.Filter{Query: "cus_2"}, `stripe_customer_id = 'cus_2'`},
		"an address":      {purchase.Filter{Query: "BUYER3@example.com", Livemode: new(true)}, `livemode AND stripe_customer_id = 'cus_3'`},
		"a profile":       {purchase.Filter{Query: profile}, `stripe_customer_id = 'cus_3'`},
		"an event":        {purchase.Filter{Query: "evt_7"}, `checkout_session_id = 'cs_07'`},
		"a session":       {purchase.Filter{Query: " cs_07 "}, `checkout_session_id = 'cs_07'`},
		"a stranger":      {purchase.Filter{Query: "%"}, `false`},
		"a reason":        {purchase.Filter{Status: purchase.StatusDead, Reason: purchase.ReasonExpired}, `false`},
	} {
		want := ask[string](l, `SELECT COALESCE(string_agg(checkout_session_id, ' ' ORDER BY purchased_at DESC, checkout_session_id DESC), '') FROM purchases WHERE `+tc.where)
		for _, limit := range []int{1, 7, 60} {
			got, pages := "", 0
			f := tc.filter
			f.Limit = limit
			for {
				page, err := l.Entries(t.Context(), f)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				for _, e := range page {
					if got != "" {
						got += " "
					}
					got += e.ID
				}
				if pages++; len(page) < limit || pages > 61 {
					break
				}
				if f.After, err = purchase.ParseCursor(page[len(page)-1].Position().Cursor()); err != nil {
					t.Fatal(err)
				}
			}
			if got != want {
				t.Errorf("%s by %d:\n%s\nwant\n%s", name, limit, got, want)
			}
		}
	}
}
