package purchase

import "time"

// Subscription is the state of a subscription that began without money: by a trial, or by a period that a
// discount made free. Its first invoice with money is its first payment. The checkout and the invoices arrive
// in any order.
type Subscription struct {
	Livemode     bool
	Trial        Trial    // Session "": its checkout has not arrived
	Invoice      Purchase // the earliest with money; ID "": none has arrived
	FirstPayment string   // the id of the invoice that became a purchase; "": none has
}

// Trial is the checkout of a subscription that began without money.
type Trial struct {
	Session      string    // the checkout's id
	Started      time.Time // by Stripe's clock, even if that is ahead of ours
	Withheld     Reason    // why the first payment is not sent: ReasonNoConsent, ReasonInternal; "": it is sent
	ClickExpires time.Time // see Purchase
}

// AddTrial returns the state after a trial's checkout. A second checkout of the same subscription changes
// nothing. converts reports whether the held invoice is the first payment: Convert makes its purchase.
func (s Subscription) AddTrial(checkout *Purchase) (next Subscription, converts bool) {
	if s.Trial.Session != "" {
		return s, false
	}
	s.Livemode = checkout.Livemode
	s.Trial = Trial{
		Session: checkout.ID, Started: checkout.PeriodStart, Withheld: checkout.Withheld,
		ClickExpires: checkout.ClickExpires,
	}
	return s, s.Converts(false)
}

// AddInvoice returns the state after an invoice with money and what becomes of the invoice: Processed (the
// first payment: Convert makes its purchase), Held for its trial or an earlier invoice, Duplicate, or Ignored
// (a renewal).
func (s Subscription) AddInvoice(invoice *Purchase) (next Subscription, d Disposition) {
	switch {
	case invoice.ID == s.FirstPayment, invoice.ID == s.Invoice.ID:
		return s, Duplicate
	case s.FirstPayment != "", s.Invoice.ID != "" && !earlier(invoice, &s.Invoice):
		return s, Ignored
	}
	s.Livemode, s.Invoice = invoice.Livemode, *invoice
	if s.Converts(false) {
		return s, Processed
	}
	return s, Held
}

// trialClockSkew is how far the times of a checkout and of its subscription may differ. No trial and no plan
// is shorter than a day.
const trialClockSkew = 12 * time.Hour

// HeldFor is how long an invoice that may be a renewal is held for an earlier one. Stripe repeats its events
// for three days; an earlier invoice that has not arrived by then was not paid, and the held one's money is
// the first.
const HeldFor = 73 * time.Hour

// Converts reports whether the held invoice becomes the first payment. It is certain where the invoice looks
// back on the trial, or on no period; a renewal looks back on a later period. expired: the invoice was held
// for HeldFor.
func (s Subscription) Converts(expired bool) bool {
	if s.Trial.Session == "" || s.Invoice.ID == "" || s.FirstPayment != "" {
		return false
	}
	start := s.Invoice.PeriodStart
	return expired || start.IsZero() || !start.After(s.Trial.Started.Add(trialClockSkew))
}

// Convert makes the held invoice the first payment. stored has the match keys, content and limited data use
// of the trial; nil: its buyer's data were removed.
func (s Subscription) Convert(stored *Purchase) (next Subscription, payment Purchase) {
	payment = s.Invoice
	payment.Kind, payment.Status = KindFirstPayment, StatusPending
	switch {
	case s.Trial.Withheld != ReasonNone:
		payment.Status, payment.Reason = StatusSkipped, s.Trial.Withheld
	case stored == nil:
		payment.Status, payment.Reason = StatusSkipped, ReasonForgotten
	default:
		payment.Keys, payment.Content = stored.Keys, stored.Content
		payment.LimitedDataUse, payment.ClickExpires = stored.LimitedDataUse, s.Trial.ClickExpires
	}
	s.FirstPayment = payment.ID
	return s, payment
}

// earlier reports whether an invoice precedes another one of the same subscription.
func earlier(invoice, other *Purchase) bool {
	if a, b := invoice.PeriodStart, other.PeriodStart; !a.IsZero() && !b.IsZero() && !a.Equal(b) {
		return a.Before(b)
	}
	return invoice.At.Before(other.At)
}

// The billing reasons that matter. An invoice of any other reason is a plan's.
const (
	reasonCreate  = "subscription_create"                    // a subscription's first one: its checkout's
	reasonUpdate  = "subscription_update"                    // a change, the early end of a trial among them
	reasonManual  = "manual"                                 // made by hand or by the API
	reasonPending = "automatic_pending_invoice_item_invoice" // single items between two cycles
)

// MayBeFirst reports whether an invoice may be the first payment after a trial: it is a plan's, and money
// moved. A small manual invoice during a trial is not.
func (i *Invoice) MayBeFirst() bool {
	switch i.Reason {
	case reasonCreate, reasonManual, reasonPending:
		return false
	}
	return ValidID(i.Subscription) && i.AmountPaid != nil && *i.AmountPaid > 0
}

// LooksBackTo returns when the period began that an invoice looks back on. It is zero where Stripe gave none,
// and for the invoice that ends a trial early: that one looks back on nothing, its period begins and ends
// when it is created.
func (i *Invoice) LooksBackTo() time.Time {
	created := i.Created
	if created.IsZero() {
		created = i.PeriodEnd
	}
	if i.Reason == reasonUpdate && within(i.PeriodStart, i.PeriodEnd) && within(i.PeriodStart, created) {
		return time.Time{}
	}
	return i.PeriodStart
}

// within reports whether two of Stripe's times are a second apart at most.
func within(a, b time.Time) bool { return a.Sub(b).Abs() <= time.Second }
