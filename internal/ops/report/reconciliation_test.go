package report_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/ledgertest"
)

func TestReconcile_FindsEachDifference(t *testing.T) {
	t.Parallel()
	day := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	payment := func(id string, at time.Duration, minor int64, currency string) report.Payment {
		return report.Payment{ID: id, At: day.Add(at), AmountMinor: &minor, Currency: currency}
	}
	noAmount := report.Payment{ID: "cs_no_amount", At: day}
	listed := []report.Payment{
		payment("cs_fine", 0, 100, "usd"),
		payment("cs_fine", time.Second, 100, "usd"), // a second event
		payment("cs_yen", 23*time.Hour, 800, "jpy"),
		payment("cs_next", 24*time.Hour, 100, "usd"),
		noAmount,
	}
	for _, id := range []string{
		"cs_missing", "cs_unpaid", "cs_trial", "cs_amount", "cs_currency", "cs_queued", "cs_dead", "cs_skipped",
		"cs_rejected",
	} {
		listed = append(listed, payment(id, time.Hour, 100, "usd"))
	}
	var recorded []report.LedgerPayment
	record := func(p report.Payment, status purchase.Status, reason purchase.Reason) {
		r := report.LedgerPayment{Payment: p, Status: status, Reason: reason}
		if status == purchase.StatusDelivered && p.ID != "cs_next" { // cs_next was sent without its value
			r.SentMinor = p.AmountMinor
		}
		recorded = append(recorded, r)
	}
	record(listed[0], purchase.StatusDelivered, "")
	record(listed[2], purchase.StatusDelivered, "")
	record(listed[3], purchase.StatusDelivered, "")
	record(noAmount, purchase.StatusDelivered, "")
	record(payment("cs_unpaid", time.Hour, 100, "usd"), purchase.StatusAwaitingPayment, "")
	record(payment("cs_trial", time.Hour, 100, "usd"), purchase.StatusSkipped, purchase.ReasonNoPayment)
	record(payment("cs_amount", time.Hour, 300, "usd"), purchase.StatusDelivered, "")
	record(payment("cs_currency", time.Hour, 100, "eur"), purchase.StatusDelivered, "")
	record(payment("cs_queued", time.Hour, 100, "usd"), purchase.StatusRetrying, "")
	record(payment("cs_dead", time.Hour, 100, "usd"), purchase.StatusDead, purchase.ReasonExpired)
	record(payment("cs_skipped", time.Hour, 100, "usd"), purchase.StatusSkipped, purchase.ReasonNotConfigured)
	record(payment("cs_rejected", time.Hour, 100, "usd"), purchase.StatusRejected, purchase.ReasonInvalidEmail)
	record(payment("cs_unknown", time.Hour, 100, "usd"), purchase.StatusDelivered, "")

	r := report.Reconciliation{Days: report.Reconcile(listed, recorded)}
	type differ = map[report.Difference][]string
	totals := func(count int, minor int64) report.Totals { return report.Totals{Count: count, Minor: minor} }
	want := []report.ReconciledDay{
		{Day: day, Paid: totals(1, 0), Ledger: totals(1, 0), Accepted: totals(1, 0), Differ: differ{}},
		{Day: day, Currency: "EUR", Ledger: totals(1, 100), Accepted: totals(1, 100), Differ: differ{}},
		{
			Day: day, Currency: "JPY", Paid: totals(1, 800), Ledger: totals(1, 800), Accepted: totals(1, 800),
			Differ: differ{},
		},
		{
			Day: day, Currency: "USD", Paid: totals(10, 1000), Ledger: totals(7, 900), Accepted: totals(3, 500),
			Differ: differ{
				report.DiffMissing: {"cs_missing", "cs_trial", "cs_unpaid"},
				report.DiffAmount:  {"cs_amount", "cs_currency"},
				report.DiffWaiting: {"cs_queued"}, report.DiffDead: {"cs_dead"}, report.DiffSkipped: {"cs_skipped"},
				report.DiffRejected: {"cs_rejected"}, report.DiffUnknown: {"cs_unknown"},
			},
		},
		{
			Day: day.Add(24 * time.Hour), Currency: "USD", Paid: totals(1, 100), Ledger: totals(1, 100),
			Accepted: totals(1, 0), Differ: differ{},
		},
	}
	if diff := cmp.Diff(want, r.Days); diff != "" {
		t.Errorf("days (-want +got):\n%s", diff)
	}
	if n := r.ToReview(); n != 8 {
		t.Errorf("to review = %d, want 8", n)
	}
	rows := r.Rows()
	if len(rows) != 6 || len(rows[0]) != 15 {
		t.Fatalf("%d rows of %d columns, want 6 of 15", len(rows), len(rows[0]))
	}
	wantRow := []string{
		"2026-01-02", "USD", "10", "10.00", "7", "9.00", "3", "5.00", "cs_missing cs_trial cs_unpaid", "cs_unknown",
		"cs_amount cs_currency", "cs_rejected", "cs_dead", "cs_skipped", "cs_queued",
	}
	if diff := cmp.Diff(wantRow, rows[4]); diff != "" {
		t.Errorf("row (-want +got):\n%s", diff)
	}
	for _, d := range report.Differences() {
		if d.Meaning() == "" {
			t.Errorf("%s has no meaning", d)
		}
	}
}

func TestReader_PaymentsOfScopeAndIDs(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	for id, change := range map[string]func(p *purchase.Purchase){
		"cs_in":         func(*purchase.Purchase) {},
		"cs_before":     func(p *purchase.Purchase) { p.At = base.Add(-time.Hour) },
		"cs_payment":    func(p *purchase.Purchase) { p.Mode = "payment" },
		"cs_test":       func(p *purchase.Purchase) { p.Livemode = false },
		"in_invoice":    func(p *purchase.Purchase) { p.Kind, p.Mode = "", "setup" },
		"cs_sent_trial": func(p *purchase.Purchase) { p.Kind = purchase.KindTrial },
	} {
		r := ledgertest.Receipt("evt_"+id, id, purchase.StatusPending, "")
		change(&r.Purchase)
		l.MustRecord(r)
	}
	l.MustRecord(ledgertest.Receipt("evt_unpaid", "cs_unpaid", purchase.StatusAwaitingPayment, ""))
	scope := report.Scope{
		Since: base, Until: base.Add(time.Minute), Livemode: true, Modes: []string{"subscription"},
	}
	for name, tc := range map[string]struct{ ids, want []string }{
		"scope": {nil, []string{"cs_in pending"}},
		"with ids": {
			[]string{"cs_in", "cs_before", "cs_before", "cs_test", "cs_unknown"},
			[]string{"cs_in pending", "cs_before pending"},
		},
		"unpaid": {[]string{"cs_unpaid"}, []string{"cs_in pending", "cs_unpaid awaiting_payment"}},
	} {
		list, err := l.Payments(t.Context(), scope, tc.ids)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range list {
			got = append(got, p.ID+" "+string(p.Status))
			if p.ID != "cs_unpaid" && (*p.AmountMinor != 2999 || p.Currency != "usd") {
				t.Errorf("%s: %s = %d %s, want 2999 usd", name, p.ID, *p.AmountMinor, p.Currency)
			}
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestReader_ReconciliationRoundTrip(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	wantNone := func(livemode bool) {
		t.Helper()
		if r, err := l.Reconciliation(t.Context(), livemode); err != nil || !r.Made.IsZero() {
			t.Errorf("livemode %t: reconciliation = %+v, %v, want none", livemode, r, err)
		}
	}
	wantNone(true)
	for i := range 2 {
		day := report.ReconciledDay{
			Day: base, Currency: "USD", Paid: report.Totals{Count: i, Minor: 1 << 53},
			Differ: map[report.Difference][]string{report.DiffMissing: {"cs_1"}},
		}
		want := report.Reconciliation{
			Made: base.Add(time.Duration(i) * time.Hour), Since: base, Until: base, Livemode: true,
			Days: []report.ReconciledDay{day},
		}
		if err := l.PutReconciliation(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		got, err := l.Reconciliation(t.Context(), true)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("reconciliation, error %v (-want +got):\n%s", err, diff)
		}
	}
	wantNone(false)
}
