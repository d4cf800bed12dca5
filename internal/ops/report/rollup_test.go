package report_test

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/testkit/ledgertest"
	"purchase-relay/internal/testkit/wait"
)

// The rollup equals the ledger after any sequence of statements, folded or not.
func TestFold_RollupEqualsLedger(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	recordedStatuses := []purchase.Status{
		purchase.StatusAwaitingPayment, purchase.StatusPaymentFailed, purchase.StatusRejected,
		purchase.StatusSkipped, purchase.StatusPending,
	}
	recordedReasons := map[purchase.Status]purchase.Reason{
		purchase.StatusRejected: purchase.ReasonInvalidEmail, purchase.StatusSkipped: purchase.ReasonNoPayment,
	}
	outcomeStatuses := []purchase.Status{
		purchase.StatusRetrying, purchase.StatusDelivered, purchase.StatusDead, purchase.StatusSkipped,
	}
	var calendars []report.Days
	for _, name := range []string{"UTC", "Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu", "Pacific/Chatham"} {
		calendars = append(calendars, zoneOf(t, name))
	}
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		if round++; round > 25 { // each round runs many statements
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
				livemode := rapid.SampledFrom([]*bool{nil, new(true), new(false)}).Draw(rt, "mode")
				calendar := rapid.SampledFrom(calendars).Draw(rt, "zone")
				from := base.Add(time.Duration(rapid.IntRange(-200, 200).Draw(rt, "from")) * report.Quarter).
					Truncate(report.Quarter)
				until := from.Add(time.Duration(rapid.IntRange(1, 800).Draw(rt, "until")) * report.Quarter)
				p := report.Period{From: from, Until: until, Steps: calendar.Between(from, until)}
				p.Steps[0] = from
				l.CheckRollup(rt, livemode, p)
			},
			"record": func(rt *rapid.T) {
				event++
				status := rapid.SampledFrom(recordedStatuses).Draw(rt, "status")
				reason := recordedReasons[status]
				eventID, id := fmt.Sprintf("evt_%d_%d", round, event), rapid.SampledFrom(ids).Draw(rt, "id")
				r := ledgertest.Receipt(eventID, id, status, reason)
				if !r.Purchase.At.IsZero() {
					later := rapid.IntRange(0, 3*60).Draw(rt, "later")
					r.Purchase.At = base.Add(time.Duration(later) * 14 * time.Minute)
				}
				r.Purchase.Livemode = rapid.Bool().Draw(rt, "live")
				r.Purchase.Currency = rapid.SampledFrom([]string{"usd", "jpy", ""}).Draw(rt, "currency")
				if rapid.Bool().Draw(rt, "no amount") {
					r.Purchase.AmountMinor = nil
				}
				kinds := []purchase.Kind{"", purchase.KindCheckout, purchase.KindTrial}
				r.Purchase.Kind = rapid.SampledFrom(kinds).Draw(rt, "kind")
				if reason == purchase.ReasonNoPayment {
					r.Purchase.Kind = purchase.KindTrial
				}
				r.Purchase.Email = rapid.SampledFrom([]string{"a@example.com", "b@example.com"}).Draw(rt, "buyer")
				if r.Purchase.At.IsZero() || status == purchase.StatusRejected {
					r.Purchase.Email = ""
				}
				optional := func(value, label string) string {
					return rapid.SampledFrom([]string{"", value}).Draw(rt, label)
				}
				keys := &r.Purchase.Keys
				keys.LastName, keys.City = "", optional("berlin", "city")
				keys.FirstName = optional(purchase.HashExternalID("grace"), "name")
				keys.TTCLID = optional("t", "ttclid")
				if rapid.Bool().Draw(rt, "late click") {
					r.Purchase.ClickExpires = base.AddDate(0, 0, -2)
				}
				keys.TTP = optional("t", "ttp")
				keys.PageURL = optional("https://shop.example/", "page")
				_, err := l.Record(l.T.Context(), r)
				must(err)
			},
			"publish": func(rt *rapid.T) {
				claims, err := l.Claim(l.T.Context(), 3)
				must(err)
				var marks []relay.Mark
				for _, c := range claims {
					marks = append(marks, relay.Mark{ID: c.ID, Generation: c.Generation, Sequence: 1})
				}
				must(l.MarkPublished(l.T.Context(), marks))
			},
			"settle": func(rt *rapid.T) {
				var outcomes []message.Outcome
				for _, id := range some.Draw(rt, "settled") {
					event++
					result := rapid.SampledFrom(outcomeStatuses).Draw(rt, "result")
					later := time.Duration(rapid.IntRange(0, 1<<30).Draw(rt, "later")) * time.Microsecond
					generation := rapid.IntRange(1, 3).Draw(rt, "generation")
					o := ledgertest.Outcome(id, generation, result, fmt.Sprintf("a%d", event), base.Add(later))
					if rapid.Bool().Draw(rt, "reported") {
						o.Sent = drawSent(rt)
					}
					outcomes = append(outcomes, o)
				}
				_, err := l.Settle(l.T.Context(), outcomes)
				must(err)
			},
			"sweep": func(rt *rapid.T) {
				swept := relay.Mark{ID: rapid.SampledFrom(ids).Draw(rt, "swept"), Generation: 4, Sequence: 9}
				must(l.RecordSweep(l.T.Context(), []relay.Mark{swept}, nil, nil))
			},
			"expire": func(rt *rapid.T) {
				var marks []relay.Mark
				for _, id := range some.Draw(rt, "expired") {
					marks = append(marks, relay.Mark{ID: id, Generation: rapid.IntRange(1, 4).Draw(rt, "of generation")})
				}
				_, err := l.Expire(l.T.Context(), marks, 0)
				must(err)
			},
			"replay": func(rt *rapid.T) {
				s := maintenance.Selection{IDs: some.Draw(rt, "replayed")}
				_, err := l.Replay(l.T.Context(), s, func(int) {})
				must(err)
			},
			"delete": func(rt *rapid.T) {
				const sql = `DELETE FROM purchases WHERE checkout_session_id = ANY($1)`
				_, err := l.Conn.Exec(l.T.Context(), sql, some.Draw(rt, "deleted"))
				must(err)
			},
			"update by hand": func(rt *rapid.T) {
				value := rapid.SampledFrom([]*int64{nil, new(int64(7))}).Draw(rt, "value")
				const sql = `UPDATE purchases SET match_keys = match_keys # 899, kind = 'trial', amount_minor = 7,
					currency = 'eur', sent_minor = $2 WHERE checkout_session_id = ANY($1)`
				_, err := l.Conn.Exec(l.T.Context(), sql, some.Draw(rt, "updated"), value)
				must(err)
			},
			"fold": func(*rapid.T) { _, err := l.Fold(l.T.Context()); must(err) },
		})
		_, err := l.Conn.Exec(l.T.Context(), `DELETE FROM purchases`)
		must(err)
		_, err = l.Fold(l.T.Context())
		must(err)
		l.CheckRollup(rt, nil, ledgertest.Since(time.Time{}))
		var left int
		must(l.Conn.QueryRow(l.T.Context(), `SELECT (SELECT count(*) FROM rollup_totals)
			+ (SELECT COALESCE(sum(abs(paid) + abs(accepted) + abs(new_buyers) + abs(minor)), 0) FROM rollup_sales)
			+ (SELECT COALESCE(sum(abs(keyed) + abs(key_email)), 0) FROM rollup_keys)
			+ (SELECT count(*) FROM rollup_changes) + (SELECT COALESCE(sum(abs(n)), 0) FROM rollup_delays)
			+ (SELECT COALESCE(sum(abs(n)), 0) FROM rollup_statuses)`).Scan(&left))
		if left != 0 {
			rt.Fatalf("rollup of an empty ledger counts %d, want 0", left)
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

// Dead rows would slow every query of the rollup down.
func TestFold_VacuumsChanges(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	size := func() int { return ledgertest.Ask[int](l, `SELECT pg_relation_size('rollup_changes')`) }
	l.Exec(`INSERT INTO purchases (checkout_session_id, status, mode, livemode, created_at)
		SELECT 'cs_' || i, 'pending', 'payment', true, now() - make_interval(hours => i)
		FROM generate_series(1, 20000) i`)
	if before := size(); before < 1<<20 {
		t.Fatalf("size of the changes = %d bytes, want 1 MiB or more", before)
	}
	// The rows that an open snapshot sees cannot be vacuumed until it ends.
	l.Exec(`BEGIN ISOLATION LEVEL REPEATABLE READ`)
	l.Exec(`SELECT count(*) FROM rollup_changes`)
	if quarters, err := l.Fold(t.Context()); err != nil || quarters < 20000 {
		t.Fatalf("fold = %d quarter hours, %v, want 20000 or more", quarters, err)
	}
	l.Exec(`ROLLBACK`)
	// An autovacuum that works on the table, or reads another one, holds the rows a little longer.
	if !wait.Until(t.Context(), time.Minute, 10*time.Millisecond, func() bool {
		if quarters, err := l.Fold(t.Context()); err != nil || quarters != 0 {
			t.Fatalf("later fold = %d quarter hours, %v, want 0", quarters, err)
		}
		return size() <= 1<<16
	}) {
		t.Errorf("size of the changes = %d bytes, want 64 KiB or less", size())
	}
}
