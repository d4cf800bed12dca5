package e2e

import (
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
)

// A first payment without its webhook is a difference until a backfill records it. A trial that is sent as
// its own event, a renewal and a held invoice are none.
func TestReconcile_ComparesTrialsAndFirstPayments(t *testing.T) {
	t.Parallel()
	rules := []string{"TRIAL_EVENT_NAME=StartTrial", "FIRST_PAYMENT=true"}
	s := newStripeStack(t, rules...)
	s.env = append(s.env, rules...)
	reconcile := func(want int, part string) {
		t.Helper()
		if code, out := s.run(nil, "reconcile", "--since", "30d"); code != want || !strings.Contains(out, part) {
			t.Errorf("reconcile: exit code %d, want %d and %q in\n%s", code, want, part, out)
		}
	}
	list := func(bodies ...[]byte) {
		t.Helper()
		for _, body := range bodies {
			if err := s.api.Add(body); err != nil {
				t.Fatal(err)
			}
		}
	}
	trial := func(daysAgo int) stripegen.Checkout {
		c := stripegen.NewCheckout().Trial()
		c.Created = time.Now().AddDate(0, 0, -daysAgo).UTC().Truncate(time.Second)
		return c
	}
	const week = 7 * 24 * time.Hour

	running := trial(2)
	list(running.Event())
	s.deliver(arrivals(running.Event()))
	s.awaitCount("delivered", 1)
	reconcile(0, "No difference")

	converted := trial(25)
	invoices := converted.Invoices(week, week, 4) // over 0, the first payment, two renewals
	list(converted.Event())
	for _, i := range invoices {
		list(i.Event())
	}
	s.deliver(arrivals(converted.Event(), invoices[0].Event()))
	s.awaitCount("delivered", 2)
	reconcile(3, "1 missing")
	reconcile(3, invoices[1].InvoiceID)
	s.deliver(arrivals(invoices[2].Event())) // a renewal, held until the first payment
	reconcile(3, invoices[1].InvoiceID)

	lost := trial(20) // without any webhook
	lostInvoices := lost.Invoices(week, week, 2)
	list(lost.Event(), lostInvoices[1].Event())
	reconcile(3, "2 missing")
	reconcile(3, lostInvoices[1].InvoiceID)

	if code, out := s.run(nil, "backfill", "--since", "30d"); code != 0 {
		t.Fatalf("backfill: exit code %d, want 0\n%s", code, out)
	}
	s.awaitCount("delivered", 5)
	reconcile(0, "No difference")
	s.checkOnlyDelivered(running.SessionID, converted.SessionID, invoices[1].InvoiceID, lost.SessionID,
		lostInvoices[1].InvoiceID)
	const notice = "<strong>2</strong> purchases backfilled"
	if _, text := httpGet(s.admin + "/?range=30d&mode=all"); !strings.Contains(text, notice) {
		t.Errorf("the overview lacks %q", notice)
	}
}
