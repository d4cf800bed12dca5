package ledger_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// What TikTok got takes the place of what was offered: once, by the outcome that made the purchase delivered,
// and by no other.
func TestSettle_KeepsWhatWasSent(t *testing.T) {
	t.Parallel()
	const email, ttclid, page, late = 1, 4, 64, purchase.LateClick
	value := new(int64(2999))
	const shop = "https://shop.example/"
	delivered := func(attempt string, sent purchase.Sent) message.Outcome {
		return sentOutcome("cs_1", purchase.StatusDelivered, attempt, &sent)
	}
	for name, tc := range map[string]struct {
		outcomes []message.Outcome
		keys     int16
		want     *purchase.Sent // as the history has it
	}{
		"the default page and no value": {
			[]message.Outcome{delivered("a1", purchase.Sent{Keys: email | ttclid | page, Page: shop})},
			email | ttclid | page | late, &purchase.Sent{Keys: email | ttclid | page, Page: shop},
		},
		"a click id that was left out": {
			[]message.Outcome{delivered("a1", purchase.Sent{Keys: email, Minor: value})},
			email, &purchase.Sent{Keys: email, Minor: value},
		},
		"twice, the first one counts": {
			[]message.Outcome{
				delivered("a1", purchase.Sent{Keys: email | ttclid, Minor: value}), delivered("a2", purchase.Sent{Keys: email}),
			},
			email | ttclid | late, &purchase.Sent{Keys: email | ttclid, Minor: value},
		},
		"dead before": {
			[]message.Outcome{
				sentOutcome("cs_1", purchase.StatusDead, "a1", nil), delivered("a2", purchase.Sent{Keys: email, Minor: value}),
			},
			email, &purchase.Sent{Keys: email, Minor: value},
		},
		"on a dead one": {
			[]message.Outcome{sentOutcome("cs_1", purchase.StatusDead, "a1", &purchase.Sent{Keys: email, Minor: value})},
			email | ttclid | late, nil,
		},
	} {
		for _, together := range []bool{true, false} {
			l := newLedger(t)
			r := receipt("evt_1", "cs_1", purchase.StatusPending, "")
			r.Purchase.Keys.TTCLID, r.Purchase.ClickExpires = "E.C.P.a", base.AddDate(0, 0, -13)
			l.record(r)
			var batches [][]message.Outcome
			if together {
				batches = [][]message.Outcome{tc.outcomes}
			} else {
				for i := range tc.outcomes {
					batches = append(batches, tc.outcomes[i:i+1])
				}
			}
			for _, batch := range append(batches, batches...) {
				if _, err := l.Settle(t.Context(), batch); err != nil {
					t.Fatal(err)
				}
			}
			_, history, err := l.Entry(t.Context(), "cs_1")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, history.Sent); diff != "" {
				t.Errorf("%s, in one batch %v: sent (-want +got):\n%s", name, together, diff)
			}
			if got := ask[int16](l, `SELECT match_keys FROM purchases`); got != tc.keys {
				t.Errorf("%s, in one batch %v: match_keys = %b, want %b", name, together, got, tc.keys)
			}
		}
	}
}

func sentOutcome(id string, result purchase.Status, attempt string, sent *purchase.Sent) message.Outcome {
	o := outcome(id, 1, result, attempt, base)
	o.Sent = sent
	return o
}

// No figure says that TikTok accepted money of which it was never told: two currencies that it does not list,
// one that it does, sent with and without a value, another sum than was paid, and a trial.
func TestSummary_CountsTheValuesThatWereSent(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for id, tc := range map[string]struct {
		currency string
		kind     purchase.Kind
		sent     *purchase.Sent
	}{
		"cs_xof":     {"xof", "", &purchase.Sent{Keys: 1}},
		"cs_gel":     {"gel", "", &purchase.Sent{Keys: 1}},
		"cs_usd":     {"usd", "", &purchase.Sent{Keys: 1, Minor: new(int64(2999))}},
		"cs_net":     {"usd", "", &purchase.Sent{Keys: 1, Minor: new(int64(2520))}},
		"cs_without": {"usd", "", &purchase.Sent{Keys: 1}},
		"cs_trial":   {"usd", purchase.KindTrial, &purchase.Sent{Keys: 1}},
		"cs_waiting": {"usd", "", nil},
	} {
		r := receipt("evt_"+id, id, purchase.StatusPending, "")
		r.Purchase.Currency, r.Purchase.Kind = tc.currency, tc.kind
		l.record(r)
		if tc.sent != nil {
			if _, err := l.Settle(
				t.Context(),
				[]message.Outcome{sentOutcome(id, purchase.StatusDelivered, "a1", tc.sent)},
			); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 { // before and after folding
		s, err := l.Summary(t.Context(), base.Add(-time.Hour), nil)
		if err != nil {
			t.Fatal(err)
		}
		want := []purchase.Value{
			{Currency: "GEL", PaidMinor: 2999},
			{Currency: "USD", PaidMinor: 4 * 2999, AcceptedMinor: 2999 + 2520},
			{Currency: "XOF", PaidMinor: 2999},
		}
		if diff := cmp.Diff(want, s.Values); diff != "" {
			t.Errorf("values (-want +got):\n%s", diff)
		}
		if s.Accepted != 5 || s.NoValue != 3 {
			t.Errorf("accepted %d, without a value %d, want 5 and 3", s.Accepted, s.NoValue)
		}
		if _, err := l.Fold(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
