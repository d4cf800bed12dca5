package purchase

import "time"

// Subscription is the state of a subscription that began free, by a trial or a full discount. Its first paid
// invoice is its first payment. The checkout and the invoices arrive in any order.
type Subscription struct {
	Livemode     bool
	Trial        Trial    // Session "": not received
	Invoice      Purchase // the earliest paid one; ID "": none received
	FirstPayment string   // id of the invoice that became a purchase; "": none
}

// Trial is the checkout of a subscription that began free.
type Trial struct {
	Session      string    // the checkout's id
	Started      time.Time // by Stripe's clock, which may be ahead
	Withheld     Reason    // see Purchase.Withheld
	ClickExpires time.Time // see Purchase.ClickExpires
}

// AddTrial adds a trial's checkout; a second one changes nothing. converts reports whether the held invoice
// is the first payment: call Convert.
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

// AddInvoice adds a paid invoice. The disposition is Processed (the first payment: call Convert), Held (for
// its trial or an earlier invoice), Duplicate, or Ignored (a renewal).
func (s Subscription) AddInvoice(invoice *Purchase) (next Subscription, d Disposition) {
	switch {
	case invoice.ID == s.FirstPayment, invoice.ID == s.Invoice.ID:
		return s, Duplicate
	case s.FirstPayment != "", s.Invoice.ID != "" && !precedes(invoice, &s.Invoice):
		return s, Ignored
	}
	s.Livemode, s.Invoice = invoice.Livemode, *invoice
	if s.Converts(false) {
		return s, Processed
	}
	return s, Held
}

// trialClockSkew bounds the difference between a checkout's time and its subscription's. No trial or plan is
// shorter than a day.
const trialClockSkew = 12 * time.Hour

// InvoiceHoldTime is how long a possible renewal is held for an earlier invoice. Stripe retries events for
// three days; an earlier invoice that has not arrived by then was not paid.
const InvoiceHoldTime = 73 * time.Hour

// Converts reports whether the held invoice becomes the first payment: the period before it is the trial or
// unknown (a renewal follows a later period), or it was held for InvoiceHoldTime (expired).
func (s Subscription) Converts(expired bool) bool {
	if s.Trial.Session == "" || s.Invoice.ID == "" || s.FirstPayment != "" {
		return false
	}
	start := s.Invoice.PeriodStart
	return expired || start.IsZero() || !start.After(s.Trial.Started.Add(trialClockSkew))
}

// Convert makes the held invoice the first payment, with the match keys, content and limited data use of the
// stored trial; nil: the buyer's data was removed.
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

// precedes reports whether an invoice is earlier than another one of the same subscription.
func precedes(invoice, other *Purchase) bool {
	if a, b := invoice.PeriodStart, other.PeriodStart; !a.IsZero() && !b.IsZero() && !a.Equal(b) {
		return a.Before(b)
	}
	return invoice.At.Before(other.At)
}

// The billing reasons that are distinguished. An invoice with any other reason bills a plan.
const (
	billingCreate = "subscription_create"                    // the invoice of the checkout
	billingUpdate = "subscription_update"                    // a change, such as the early end of a trial
	billingManual = "manual"                                 // created by hand or by the API
	billingItems  = "automatic_pending_invoice_item_invoice" // items between two cycles
)

// MayBeFirstPayment reports whether an invoice may be the first payment after a trial: paid, and for a plan
// rather than a single item.
func (i *Invoice) MayBeFirstPayment() bool {
	switch i.Reason {
	case billingCreate, billingManual, billingItems:
		return false
	}
	return ValidID(i.Subscription) && i.AmountPaid != nil && *i.AmountPaid > 0
}

// PreviousPeriodStart returns the start of the period before an invoice; zero: unknown, or the invoice ends a
// trial early. The period of such an invoice starts and ends when the invoice is created.
func (i *Invoice) PreviousPeriodStart() time.Time {
	created := i.Created
	if created.IsZero() {
		created = i.PeriodEnd
	}
	start := i.PeriodStart
	if i.Reason == billingUpdate && withinSecond(start, i.PeriodEnd) && withinSecond(start, created) {
		return time.Time{}
	}
	return start
}

// withinSecond reports whether two of Stripe's times differ by at most a second.
func withinSecond(a, b time.Time) bool { return a.Sub(b).Abs() <= time.Second }
