package purchase_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/purchase"
)

// Each way in which the three books can differ is found, with the id, on its day and in its currency.
func TestReconcile(t *testing.T) {
	day := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	payment := func(id string, at time.Duration, minor int64, currency string) purchase.Payment {
		return purchase.Payment{ID: id, At: day.Add(at), AmountMinor: &minor, Currency: currency}
	}
	stands := func(p purchase.Payment, s purchase.Status, r purchase.Reason) purchase.Standing {
		standing := purchase.Standing{Payment: p, Status: s, Reason: r}
		if s == purchase.StatusDelivered && p.ID != "cs_next" { // that one was sent without its value
			standing.SentMinor = p.AmountMinor
		}
		return standing
	}
	paid := []purchase.Payment{
		payment("cs_fine", 0, 100, "usd"), payment("cs_fine", time.Second, 100, "usd"), payment("cs_yen", 23*time.Hour, 800, "jpy"), payment("cs_next", 24*time.Hour, 100, "usd"),
		payment("cs_lost", time.Hour, 100, "usd"), payment("cs_unpaid_here", time.Hour, 100, "usd"), payment("cs_trial_here", time.Hour, 100, "usd"),
		payment("cs_more", time.Hour, 100, "usd"), payment("cs_euro", time.Hour, 100, "usd"), payment("cs_queued", time.Hour, 100, "usd"), payment("cs_dead", time.Hour, 100, "usd"),
		payment("cs_off", time.Hour, 100, "usd"), payment("cs_nobody", time.Hour, 100, "usd"),
		{ID: "cs_worthless", At: day},
	}
	standings := []purchase.Standing{
		stands(paid[0], purchase.StatusDelivered, ""), stands(paid[2], purchase.StatusDelivered, ""), stands(paid[3], purchase.StatusDelivered, ""),
		stands(paid[5], purchase.StatusAwaitingPayment, ""), stands(paid[6], purchase.StatusSkipped, purchase.ReasonNoPayment),
		stands(payment("cs_more", time.Hour, 300, "usd"), purchase.StatusDelivered, ""), stands(payment("cs_euro", time.Hour, 100, "eur"), purchase.StatusDelivered, ""),
		stands(paid[9], purchase.StatusRetrying, ""), stands(paid[10], purchase.StatusDead, purchase.ReasonExpired),
		stands(paid[11], purchase.StatusSkipped, purchase.ReasonNotConfigured), stands(paid[12], purchase.StatusRejected, purchase.ReasonInvalidEmail),
		stands(paid[13], purchase.StatusDelivered, ""), stands(payment("cs_stranger", time.Hour, 100, "usd"), purchase.StatusDelivered, ""),
	}
	r := purchase.Reconciliation{Days: purchase.Reconcile(paid, standings)}
	type differ = map[purchase.Difference][]string
	want := []purchase.ReconciledDay{
		{Day: day, Paid: purchase.Takings{Count: 1}, Ledger: purchase.Takings{Count: 1}, Accepted: purchase.Takings{Count: 1}, Differ: differ{}},
		{Day: day, Currency: "EUR", Ledger: purchase.Takings{Count: 1, Minor: 100}, Accepted: purchase.Takings{Count: 1, Minor: 100}, Differ: differ{}},
		{Day: day, Currency: "JPY", Paid: purchase.Takings{Count: 1, Minor: 800}, Ledger: purchase.Takings{Count: 1, Minor: 800}, Accepted: purchase.Takings{Count: 1, Minor: 800}, Differ: differ{}},
		{
			Day: day, Currency: "USD", Paid: purchase.Takings{Count: 10, Minor: 1000}, Ledger: purchase.Takings{Count: 7, Minor: 900}, Accepted: purchase.Takings{Count: 3, Minor: 500},
			Differ: differ{
				purchase.Missing: {"cs_lost", "cs_trial_here", "cs_unpaid_here"}, purchase.OtherAmount: {"cs_euro", "cs_more"}, purchase.UnderWay: {"cs_queued"},
				purchase.GivenUp: {"cs_dead"}, purchase.LeftOut: {"cs_off"}, purchase.NoAddress: {"cs_nobody"}, purchase.Unheard: {"cs_stranger"},
			},
		},
		{
			Day:      day.Add(24 * time.Hour),
			Currency: "USD",
			Paid:     purchase.Takings{Count: 1, Minor: 100},
			Ledger:   purchase.Takings{Count: 1, Minor: 100},
			Accepted: purchase.Takings{Count: 1},
			Differ:   differ{},
		},
	}
	if diff := cmp.Diff(want, r.Days); diff != "" {
		t.Error(diff)
	}
	if n := r.Open(); n != 8 {
		t.Errorf("%d need somebody", n)
	}
	rows := r.Rows()
	if diff := cmp.Diff([]string{"2026-01-02", "USD", "10", "10.00", "7", "9.00", "3", "5.00", "cs_lost cs_trial_here cs_unpaid_here", "cs_stranger", "cs_euro cs_more", "cs_nobody", "cs_dead", "cs_off", "cs_queued"}, rows[4]); diff != "" || len(rows) != 6 || len(rows[0]) != 15 {
		t.Error(diff)
	}
	for _, kind := range purchase.Differences() {
		if kind.Meaning() == "" {
			t.Errorf("%s has no meaning", kind)
		}
	}
}
