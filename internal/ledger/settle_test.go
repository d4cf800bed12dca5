package ledger_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// Outcomes in any order, in any batches and repeated lead to the same row.
func TestSettle_InAnyOrder(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	session := 0
	rapid.Check(t, func(rt *rapid.T) {
		session++
		id := fmt.Sprintf("cs_%d", session)
		l.Buy(id)
		outcomes := []message.Outcome{
			outcome(id, 1, purchase.StatusRetrying, "a1", base),
			outcome(id, 1, purchase.StatusRetrying, "a2", base.Add(time.Second)),
			outcome(id, 1, purchase.StatusDelivered, "a3", base.Add(2*time.Second)),
		}
		order := rapid.Permutation(append(outcomes, outcomes...)).Draw(rt, "order")
		for len(order) > 0 {
			n := rapid.IntRange(1, len(order)).Draw(rt, "batch")
			if unknown, err := l.Settle(t.Context(), order[:n]); err != nil || len(unknown) > 0 {
				rt.Fatalf("Settle = %v, %v, want none unknown", unknown, err)
			}
			order = order[n:]
		}
		got := ask[string](l, `SELECT concat_ws(' ', status, attempts, last_code, last_error, tiktok_request_id,
			finished_at IS NOT NULL, (SELECT count(*) FROM purchase_attempts a WHERE a.checkout_session_id = $1))
			FROM purchases WHERE checkout_session_id = $1`, id)
		if want := "delivered 3 0 req-a3 t 3"; got != want {
			rt.Fatalf("row = %q, want %q", got, want)
		}
	})
}

// The time of the next attempt is the latest attempt's, and is unknown once the purchase is not retried.
func TestSettle_KeepsTheNextAttempt(t *testing.T) {
	t.Parallel()
	retrying := func(attempt string, at, next time.Time) message.Outcome {
		o := outcome("cs_1", 1, purchase.StatusRetrying, attempt, at)
		o.Next = next
		return o
	}
	first := retrying("a1", base, base.Add(time.Second))
	second := retrying("a2", base.Add(time.Minute), base.Add(time.Hour))
	for name, tc := range map[string]struct {
		outcomes []message.Outcome
		want     *time.Time
	}{
		"in order":      {[]message.Outcome{first, second}, &second.Next},
		"reversed":      {[]message.Outcome{second, first}, &second.Next},
		"repeated":      {[]message.Outcome{second, second}, &second.Next},
		"older worker":  {[]message.Outcome{first, retrying("a2", base.Add(time.Minute), time.Time{})}, nil},
		"dead":          {[]message.Outcome{second, outcome("cs_1", 1, purchase.StatusDead, "a3", base)}, nil},
		"delivered":     {[]message.Outcome{second, delivered("cs_1")}, nil},
		"late retrying": {[]message.Outcome{delivered("cs_1"), second}, nil},
	} {
		l := newLedger(t)
		l.Buy("cs_1")
		for _, o := range tc.outcomes {
			l.MustSettle(o)
		}
		row, err := l.Get(t.Context(), "cs_1")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, row.NextAttempt); diff != "" {
			t.Errorf("%s: next attempt (-want +got):\n%s", name, diff)
		}
	}
	l := newLedger(t)
	l.Buy("cs_1")
	l.MustSettle(second, outcome("cs_1", 1, purchase.StatusDead, "a3", base.Add(time.Hour)))
	l.replay(maintenance.Selection{ID: "cs_1"}, 1)
	if row, err := l.Get(t.Context(), "cs_1"); err != nil || row.NextAttempt != nil {
		t.Errorf("next attempt of a replayed purchase = %v, %v, want none", row.NextAttempt, err)
	}
}

// A forged generation uses up no numbers that replays need: an outcome with 2147483647 blocked every bulk
// replay.
func TestSettle_BoundsTheGeneration(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for _, tc := range []struct {
		generation, want int
		result           purchase.Status
	}{
		{message.MaxGeneration, 1, purchase.StatusDead},
		{3, 1, purchase.StatusRetrying},
		{1 << 19, 1, purchase.StatusDelivered},
		{2, 2, purchase.StatusRetrying}, // of a sweep that is not yet recorded
	} {
		id := fmt.Sprintf("cs_%d", tc.generation)
		l.Buy(id)
		o := outcome(id, tc.generation, tc.result, "a1", base)
		for range 3 { // repeats do not raise it further
			l.MustSettle(o, o)
		}
		got := ask[string](l, `SELECT concat_ws(' ', status, generation, attempts) FROM purchases
			WHERE checkout_session_id = $1`, id)
		if want := fmt.Sprintf("%s %d 1", tc.result, tc.want); got != want {
			t.Errorf("row after generation %d = %q, want %q", tc.generation, got, want)
		}
	}
	l.replay(maintenance.Selection{Status: purchase.StatusDead}, 1)
}

func TestSettle_ReturnsUnknownPurchases(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.Buy("cs_1")
	unknown, err := l.Settle(t.Context(), []message.Outcome{
		delivered("cs_unknown"), outcome("cs_1", 1, purchase.StatusDead, "a1", base),
	})
	if err != nil || !cmp.Equal(unknown, []string{"cs_unknown"}) {
		t.Errorf("Settle = %v, %v, want cs_unknown", unknown, err)
	}
	got := ask[string](l, `SELECT concat_ws(' ', status, reason, last_code, last_error) FROM purchases`)
	if want := "dead refused 40002 said a1"; got != want {
		t.Errorf("row = %s, want %s", got, want)
	}
}

// What TikTok received replaces the envelope's match keys once, with the outcome that delivers the purchase.
func TestSettle_KeepsWhatWasSent(t *testing.T) {
	t.Parallel()
	const email, ttclid, page, late = 1, 4, 64, purchase.LateClickMask
	const shop = "https://shop.example/"
	value := new(int64(2999))
	sent := func(result purchase.Status, attempt string, sent *purchase.Sent) message.Outcome {
		o := outcome("cs_1", 1, result, attempt, base)
		o.Sent = sent
		return o
	}
	const dead, ok = purchase.StatusDead, purchase.StatusDelivered
	for name, tc := range map[string]struct {
		outcomes []message.Outcome
		keys     int16
		want     *purchase.Sent
	}{
		"default page, no value": {
			[]message.Outcome{sent(ok, "a1", &purchase.Sent{Keys: email | ttclid | page, Page: shop})},
			email | ttclid | page | late, &purchase.Sent{Keys: email | ttclid | page, Page: shop},
		},
		"click id left out": {
			[]message.Outcome{sent(ok, "a1", &purchase.Sent{Keys: email, Minor: value})},
			email, &purchase.Sent{Keys: email, Minor: value},
		},
		"second delivery": {
			[]message.Outcome{
				sent(ok, "a1", &purchase.Sent{Keys: email | ttclid, Minor: value}),
				sent(ok, "a2", &purchase.Sent{Keys: email}),
			},
			email | ttclid | late, &purchase.Sent{Keys: email | ttclid, Minor: value},
		},
		"dead, then delivered": {
			[]message.Outcome{sent(dead, "a1", nil), sent(ok, "a2", &purchase.Sent{Keys: email, Minor: value})},
			email, &purchase.Sent{Keys: email, Minor: value},
		},
		"dead": {
			[]message.Outcome{sent(dead, "a1", &purchase.Sent{Keys: email, Minor: value})},
			email | ttclid | late, nil,
		},
	} {
		for _, together := range []bool{true, false} {
			l := newLedger(t)
			r := paid("evt_1", "cs_1")
			r.Purchase.Keys.TTCLID, r.Purchase.ClickExpires = "E.C.P.a", base.AddDate(0, 0, -13)
			l.MustRecord(r)
			for range 2 {
				if together {
					l.MustSettle(tc.outcomes...)
					continue
				}
				for _, o := range tc.outcomes {
					l.MustSettle(o)
				}
			}
			row, err := l.Get(t.Context(), "cs_1")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, row.Sent()); diff != "" {
				t.Errorf("%s, together = %t: sent (-want +got):\n%s", name, together, diff)
			}
			if got := ask[int16](l, `SELECT match_keys FROM purchases`); got != tc.keys {
				t.Errorf("%s, together = %t: match_keys = %b, want %b", name, together, got, tc.keys)
			}
		}
	}
}

// A purchase that TikTok accepts on the first request costs no row in attempts. A second attempt, in any
// order, makes both of them rows. Readers see the same either way.
func TestSettle_KeepsTheOnlyAttemptInTheRow(t *testing.T) {
	t.Parallel()
	accepted := outcome("cs_1", 1, purchase.StatusDelivered, "a1", base)
	accepted.Attempt.TookMS = 57
	failed := outcome("cs_1", 1, purchase.StatusRetrying, "a2", base.Add(time.Second))
	other := outcome("cs_1", 2, purchase.StatusDelivered, "a3", base.Add(time.Minute))
	unusual := outcome("cs_1", 1, purchase.StatusDelivered, "a4", base)
	unusual.Attempt.Message = "accepted"
	duplicate := outcome("cs_1", 1, purchase.StatusDelivered, "a5", base)
	duplicate.Attempt.Code = new(20001)
	skipped := outcome("cs_1", 2, purchase.StatusSkipped, "", base)
	for name, tc := range map[string]struct {
		batches [][]message.Outcome
		rows    int
	}{
		"accepted":           {[][]message.Outcome{{accepted}}, 0},
		"repeated":           {[][]message.Outcome{{accepted, accepted}, {accepted}}, 0},
		"failed first":       {[][]message.Outcome{{failed}, {accepted}}, 2},
		"failed later":       {[][]message.Outcome{{accepted}, {failed}, {accepted, failed}}, 2},
		"in one batch":       {[][]message.Outcome{{accepted, failed}, {accepted}}, 2},
		"accepted twice":     {[][]message.Outcome{{accepted}, {other}, {accepted}}, 2},
		"three":              {[][]message.Outcome{{accepted}, {other, failed}}, 3},
		"another message":    {[][]message.Outcome{{unusual}, {unusual}}, 1},
		"another code":       {[][]message.Outcome{{duplicate}}, 1},
		"another generation": {[][]message.Outcome{{other}, {other}}, 0},
		"failed":             {[][]message.Outcome{{failed}}, 1},
		"later without one":  {[][]message.Outcome{{accepted}, {skipped}}, 0},
	} {
		l := newLedger(t)
		l.Buy("cs_1")
		var want []report.Attempt
		for _, batch := range tc.batches {
			l.MustSettle(batch...)
			for _, o := range batch {
				if o.Attempt == nil {
					continue
				}
				a := report.Attempt{
					ID: o.Attempt.ID, Generation: o.Generation, At: o.Attempt.At, TookMS: o.Attempt.TookMS,
					Class: o.Attempt.Class, Code: o.Attempt.Code, Message: o.Attempt.Message, RequestID: o.Attempt.RequestID,
				}
				if !slices.ContainsFunc(want, func(b report.Attempt) bool { return a.ID == b.ID }) {
					want = append(want, a)
				}
			}
		}
		slices.SortFunc(want, func(a, b report.Attempt) int { return a.At.Compare(b.At) })
		row, err := l.Get(t.Context(), "cs_1")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, row.Attempts); diff != "" || row.AttemptCount != len(want) {
			t.Errorf("%s: counted %d, attempts (-want +got):\n%s", name, row.AttemptCount, diff)
		}
		if n := ask[int](l, `SELECT count(*) FROM attempts`); n != tc.rows {
			t.Errorf("%s: rows = %d, want %d", name, n, tc.rows)
		}
	}
}
