package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// A trial that is sent as an event of its own is no payment at Stripe, and no difference. A first payment
// whose webhook was lost is one, until a backfill brings it; a renewal, or an invoice that waits for an
// earlier one, is none.
func TestReconcile_ComparesTrialsAndFirstPayments(t *testing.T) {
	t.Parallel()
	rules := []string{"TRIAL_EVENT_NAME=StartTrial", "FIRST_PAYMENT=true"}
	s := newShop(t, rules...)
	s.env = append(s.env, rules...)
	reconcile := func(want int, says string) {
		t.Helper()
		if code, out := s.run("reconcile", "--since", "30d"); code != want || !strings.Contains(out, says) {
			t.Errorf("reconcile = %d, want %d and %q in\n%s", code, want, says, out)
		}
	}
	list := func(bodies ...[]byte) {
		t.Helper()
		for _, body := range bodies {
			if err := s.list.Add(body); err != nil {
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
	s.deliver([][]byte{running.Event()})
	s.settled(1)
	reconcile(0, "No difference")

	converted := trial(25)
	invoices := converted.Invoices(week, week, 4) // nothing, the first payment, two renewals
	list(converted.Event())
	for _, i := range invoices {
		list(i.Event())
	}
	s.deliver([][]byte{converted.Event(), invoices[0].Event()})
	s.settled(2)
	reconcile(3, "1 missing")
	reconcile(3, invoices[1].InvoiceID)
	s.deliver([][]byte{invoices[2].Event()}) // a renewal that came: it waits for the first payment
	reconcile(3, invoices[1].InvoiceID)

	lost := trial(20) // neither its webhook nor that of its payment came
	lostInvoices := lost.Invoices(week, week, 2)
	list(lost.Event(), lostInvoices[1].Event())
	reconcile(3, "2 missing")
	reconcile(3, lostInvoices[1].InvoiceID)

	if code, out := s.run("backfill", "--since", "30d"); code != 0 {
		t.Fatalf("backfill = %d, want 0\n%s", code, out)
	}
	s.settled(5)
	reconcile(0, "No difference")
	for _, id := range []string{invoices[1].InvoiceID, lostInvoices[1].InvoiceID} {
		if got := s.purchase(id).Status; got != "delivered" {
			t.Errorf("%s is %s, want delivered", id, got)
		}
	}
	received := s.sim.Received()
	for _, renewal := range []string{invoices[2].InvoiceID, invoices[3].InvoiceID} {
		if slices.ContainsFunc(received, func(e tiktoksim.Event) bool { return e.EventID == renewal }) {
			t.Errorf("TikTok has the renewal %s", renewal)
		}
	}
	told := fmt.Sprintf("<strong>%d</strong> purchases backfilled", 2)
	if _, text := get(s.admin + "/?range=30d"); !strings.Contains(text, told) {
		t.Errorf("the overview lacks %q", told)
	}
}
