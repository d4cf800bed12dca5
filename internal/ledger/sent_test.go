package ledger_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// What TikTok got takes the place of what was offered: once, by the outcome that made the purchase delivered,
// and by no other.
func TestSettle_KeepsWhatWasSent(t *testing.T) {
	t.Parallel()
	const email, ttclid, page, late = 1, 4, 64, purchase.LateClickMask
	value := new(int64(2999))
	const shop = "https://shop.example/"
	delivered := func(attempt string, sent purchase.Sent) message.Outcome {
		return sentOutcome("cs_1", purchase.StatusDelivered, attempt, &sent)
	}
	for name, tc := range map[string]struct {
		outcomes []message.Outcome
		keys     int16
		want     *purchase.Sent // as the row has it
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
			row, err := l.Get(t.Context(), "cs_1")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, row.Sent()); diff != "" {
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
