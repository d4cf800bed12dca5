package report_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/ledgertest"
)

// Each way in which the three books can differ is found, with the id, on its day and in its currency.
func TestReconcile(t *testing.T) {
	t.Parallel()
	day := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	payment := func(id string, at time.Duration, minor int64, currency string) report.Payment {
		return report.Payment{ID: id, At: day.Add(at), AmountMinor: &minor, Currency: currency}
	}
	stands := func(p report.Payment, s purchase.Status, r purchase.Reason) report.LedgerPayment {
		standing := report.LedgerPayment{Payment: p, Status: s, Reason: r}
		if s == purchase.StatusDelivered && p.ID != "cs_next" { // that one was sent without its value
			standing.SentMinor = p.AmountMinor
		}
		return standing
	}
	paid := []report.Payment{
		payment("cs_fine", 0, 100, "usd"), payment("cs_fine", time.Second, 100, "usd"), payment("cs_yen", 23*time.Hour, 800, "jpy"), payment("cs_next", 24*time.Hour, 100, "usd"),
		payment("cs_lost", time.Hour, 100, "usd"), payment("cs_unpaid_here", time.Hour, 100, "usd"), payment("cs_trial_here", time.Hour, 100, "usd"),
		payment("cs_more", time.Hour, 100, "usd"), payment("cs_euro", time.Hour, 100, "usd"), payment("cs_queued", time.Hour, 100, "usd"), payment("cs_dead", time.Hour, 100, "usd"),
		payment("cs_off", time.Hour, 100, "usd"), payment("cs_nobody", time.Hour, 100, "usd"),
		{ID: "cs_worthless", At: day},
	}
	standings := []report.LedgerPayment{
		stands(paid[0], purchase.StatusDelivered, ""), stands(paid[2], purchase.StatusDelivered, ""), stands(paid[3], purchase.StatusDelivered, ""),
		stands(paid[5], purchase.StatusAwaitingPayment, ""), stands(paid[6], purchase.StatusSkipped, purchase.ReasonNoPayment),
		stands(payment("cs_more", time.Hour, 300, "usd"), purchase.StatusDelivered, ""), stands(payment("cs_euro", time.Hour, 100, "eur"), purchase.StatusDelivered, ""),
		stands(paid[9], purchase.StatusRetrying, ""), stands(paid[10], purchase.StatusDead, purchase.ReasonExpired),
		stands(paid[11], purchase.StatusSkipped, purchase.ReasonNotConfigured), stands(paid[12], purchase.StatusRejected, purchase.ReasonInvalidEmail),
		stands(paid[13], purchase.StatusDelivered, ""), stands(payment("cs_stranger", time.Hour, 100, "usd"), purchase.StatusDelivered, ""),
	}
	r := report.Reconciliation{Days: report.Reconcile(paid, standings)}
	type differ = map[report.Difference][]string
	want := []report.ReconciledDay{
		{Day: day, Paid: report.Totals{Count: 1}, Ledger: report.Totals{Count: 1}, Accepted: report.Totals{Count: 1}, Differ: differ{}},
		{Day: day, Currency: "EUR", Ledger: report.Totals{Count: 1, Minor: 100}, Accepted: report.Totals{Count: 1, Minor: 100}, Differ: differ{}},
		{Day: day, Currency: "JPY", Paid: report.Totals{Count: 1, Minor: 800}, Ledger: report.Totals{Count: 1, Minor: 800}, Accepted: report.Totals{Count: 1, Minor: 800}, Differ: differ{}},
		{
			Day: day, Currency: "USD", Paid: report.Totals{Count: 10, Minor: 1000}, Ledger: report.Totals{Count: 7, Minor: 900}, Accepted: report.Totals{Count: 3, Minor: 500},
			Differ: differ{
				report.DiffMissing: {"cs_lost", "cs_trial_here", "cs_unpaid_here"}, report.DiffAmount: {"cs_euro", "cs_more"}, report.DiffWaiting: {"cs_queued"},
				report.DiffDead: {"cs_dead"}, report.DiffSkipped: {"cs_off"}, report.DiffRejected: {"cs_nobody"}, report.DiffUnknown: {"cs_stranger"},
			},
		},
		{
			Day:      day.Add(24 * time.Hour),
			Currency: "USD",
			Paid:     report.Totals{Count: 1, Minor: 100},
			Ledger:   report.Totals{Count: 1, Minor: 100},
			Accepted: report.Totals{Count: 1},
			Differ:   differ{},
		},
	}
	if diff := cmp.Diff(want, r.Days); diff != "" {
		t.Error(diff)
	}
	if n := r.ToReview(); n != 8 {
		t.Errorf("%d need somebody", n)
	}
	rows := r.Rows()
	if diff := cmp.Diff([]string{"2026-01-02", "USD", "10", "10.00", "7", "9.00", "3", "5.00", "cs_lost cs_trial_here cs_unpaid_here", "cs_stranger", "cs_euro cs_more", "cs_nobody", "cs_dead", "cs_off", "cs_queued"}, rows[4]); diff != "" || len(rows) != 6 || len(rows[0]) != 15 {
		t.Error(diff)
	}
	for _, kind := range report.Differences() {
		if kind.Meaning() == "" {
			t.Errorf("%s has no meaning", kind)
		}
	}
}

// The ledger's side of a reconciliation: checkouts of a mode and time, and those that are asked for by their ids.
func TestStandings(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	for i, id := range []string{"cs_in", "cs_before", "cs_payment", "cs_test", "in_invoice", "cs_unpaid", "cs_sent_trial"} {
		r := ledgertest.Receipt("evt_"+id, id, purchase.StatusPending, "")
		if id == "cs_unpaid" {
			r = ledgertest.Receipt("evt_"+id, id, purchase.StatusAwaitingPayment, "")
		}
		switch i {
		case 1:
			r.Purchase.At = base.Add(-time.Hour)
		case 2:
			r.Purchase.Mode = "payment"
		case 3:
			r.Purchase.Livemode = false
		case 4:
			r.Purchase.Kind, r.Purchase.Mode = "", "setup"
		case 6:
			r.Purchase.Kind = purchase.KindTrial
		}
		l.MustRecord(r)
	}
	ids := func(chosen []string) (got []string) {
		t.Helper()
		scope := report.Scope{
			Since:    base,
			Until:    base.Add(time.Minute),
			Livemode: true,
			Modes:    []string{"subscription"},
		}
		list, err := l.Payments(t.Context(), scope, chosen)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			got = append(got, s.ID+" "+string(s.Status))
			if s.ID != "cs_unpaid" && (*s.AmountMinor != 2999 || s.Currency != "usd") {
				t.Errorf("%+v", s)
			}
		}
		return got
	}
	if diff := cmp.Diff([]string{"cs_in pending"}, ids(nil)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"cs_in pending", "cs_before pending"}, ids([]string{"cs_in", "cs_before", "cs_before", "cs_test", "cs_unheard_of"})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"cs_in pending", "cs_unpaid awaiting_payment"}, ids([]string{"cs_unpaid"})); diff != "" {
		t.Error(diff)
	}
}

func TestReconciliationIsKept(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	if r, err := l.Reconciliation(t.Context(), true); err != nil || !r.Made.IsZero() {
		t.Errorf("before any: %+v, %v", r, err)
	}
	for i := range 2 {
		r := report.Reconciliation{Made: base.Add(time.Duration(i) * time.Hour), Since: base, Until: base, Livemode: true, Days: []report.ReconciledDay{{
			Day: base, Currency: "USD", Paid: report.Totals{Count: i, Minor: 1 << 53}, Differ: map[report.Difference][]string{report.DiffMissing: {"cs_1"}},
		}}}
		if err := l.PutReconciliation(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		got, err := l.Reconciliation(t.Context(), true)
		if diff := cmp.Diff(r, got); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
	}
	if r, err := l.Reconciliation(t.Context(), false); err != nil || !r.Made.IsZero() {
		t.Errorf("the other mode's: %+v, %v", r, err)
	}
}
