package purchase_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"purchase-relay/internal/purchase"
)

func TestMajor_UsesStripesDecimals(t *testing.T) {
	for _, tc := range []struct {
		minor    int64
		currency string
		want     string
	}{
		{2999, "usd", "29.99"},
		{0, "usd", "0.00"},
		{5, "USD", "0.05"},
		{100, "eur", "1.00"},
		{-250, "usd", "-2.50"},
		{800, "jpy", "800"},
		{12345, "kwd", "12.345"},
		{7, "bhd", "0.007"},
		{500, "isk", "5.00"}, // two decimals at Stripe, unlike in ISO 4217
		{500, "ugx", "5.00"},
		{500, "huf", "5.00"},
		{500, "twd", "5.00"},
		{9007199254740993, "usd", "90071992547409.93"}, // past 2^53, where a float would round
	} {
		if got := purchase.Major(tc.minor, tc.currency); got != tc.want {
			t.Errorf("Major(%d, %q) = %s, want %s", tc.minor, tc.currency, got, tc.want)
		}
	}
	for currencies, want := range map[string]int{
		"BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF": 0, "BHD JOD KWD OMR TND": 3,
	} {
		for currency := range strings.FieldsSeq(currencies) {
			if got := purchase.Decimals(currency); got != want {
				t.Errorf("Decimals(%q) = %d, want %d", currency, got, want)
			}
		}
	}
}

func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{
		"cs_live_a1B2-_": true, strings.Repeat("a", 255): true, strings.Repeat("a", 256): false, "": false,
		"cs.1": false, "cs_*": false, "cs_>": false, "cs 1": false, "cs_\x00": false, "cs_é": false,
		"cs_1\n": false,
	} {
		if got := purchase.ValidID(id); got != want {
			t.Errorf("ValidID(%q) = %t, want %t", id, got, want)
		}
	}
}

type paymentState struct {
	status purchase.Status
	reason purchase.Reason
}

func TestAdvances_MovesOneWay(t *testing.T) {
	states := []paymentState{ // lowest first
		{"", ""},
		{purchase.StatusAwaitingPayment, ""},
		{purchase.StatusPaymentFailed, ""},
		{purchase.StatusRejected, purchase.ReasonInvalidEmail},
		{purchase.StatusSkipped, purchase.ReasonNoPayment},
		{purchase.StatusPending, ""},
	}
	check := func(from, to paymentState, want bool) {
		t.Helper()
		if got := purchase.Advances(from.status, from.reason, to.status, to.reason); got != want {
			t.Errorf("Advances(%v, %v) = %t, want %t", from, to, got, want)
		}
	}
	for i, from := range states {
		for j, to := range states[1:] {
			check(from, to, j+1 > i)
		}
	}
	for _, paid := range []purchase.Status{
		purchase.StatusPublished, purchase.StatusRetrying, purchase.StatusDelivered, purchase.StatusDead,
		purchase.StatusSkipped,
	} {
		for _, to := range states[1:] {
			check(paymentState{paid, purchase.ReasonRefused}, to, false)
		}
	}
}

func TestSettle_OrderIndependent(t *testing.T) {
	results := []purchase.Status{purchase.StatusRetrying, purchase.StatusDelivered, purchase.StatusDead}
	rapid.Check(t, func(t *rapid.T) {
		reported := rapid.SliceOfN(rapid.SampledFrom(results), 1, 6).Draw(t, "reported")
		want := purchase.StatusRetrying
		for _, r := range reported {
			if r == purchase.StatusDelivered || want != purchase.StatusDelivered && r == purchase.StatusDead {
				want = r
			}
		}
		order := rapid.Permutation(append(reported, reported...)).Draw(t, "order")
		got := purchase.StatusPublished
		for _, r := range order {
			got, _ = purchase.Settle(got, 1, r, 1)
		}
		if got != want {
			t.Fatalf("status after %v = %s, want %s", order, got, want)
		}
	})
}

func TestSettle_OlderGeneration(t *testing.T) {
	const pending, delivered, dead = purchase.StatusPending, purchase.StatusDelivered, purchase.StatusDead
	for name, tc := range map[string]struct {
		status           purchase.Status
		generation       int
		result           purchase.Status
		resultGeneration int
		want             purchase.Status
	}{
		"dead before a replay":      {pending, 2, dead, 1, pending},
		"delivered before a replay": {pending, 2, delivered, 1, delivered},
		"dead after delivered":      {delivered, 1, dead, 9, delivered},
	} {
		t.Run(name, func(t *testing.T) {
			got, changed := purchase.Settle(tc.status, tc.generation, tc.result, tc.resultGeneration)
			if got != tc.want || changed != (tc.want != tc.status) {
				t.Errorf("status = %s, changed %t, want %s", got, changed, tc.want)
			}
		})
	}
}
