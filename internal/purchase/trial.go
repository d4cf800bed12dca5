package purchase

import "time"

// Trial is what is known of a subscription that began without money: a trial, or a period that a discount
// made free. Session "": nothing yet.
type Trial struct {
	Session  string // the checkout's id
	Livemode bool
	Started  time.Time // by Stripe's clock, also where that is ahead of ours
	Withheld Reason    // why its first payment is not sent: ReasonNoConsent, ReasonInternal; "": it is
}

// The billing reasons that matter. An invoice of any other reason is a plan's.
const (
	reasonCreate  = "subscription_create"                    // a subscription's very first one: it belongs to its checkout
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

// beginning is how far the clocks of a checkout and of its subscription may lie apart. No trial and no plan is shorter than a day.
const beginning = 12 * time.Hour

// First reports whether an invoice with money is the trial's first payment whatever else may come: the period
// that it looks back on began with the trial, or it looks back on none. A renewal looks back on a later
// period.
func (t *Trial) First(invoice *Purchase) bool {
	return t.Session != "" && invoice.ID != "" && (invoice.PeriodStart.IsZero() || !invoice.PeriodStart.After(t.Started.Add(beginning)))
}

// HeldFor is how long an invoice that is not a first payment for sure is held for an earlier one. Stripe
// repeats its events for three days; an invoice that has not come by then was not paid, and the held one's
// money is the first.
const HeldFor = 73 * time.Hour

// Earlier reports whether an invoice comes before another one of the same subscription.
func Earlier(invoice, other *Purchase) bool {
	if a, b := invoice.PeriodStart, other.PeriodStart; !a.IsZero() && !b.IsZero() && !a.Equal(b) {
		return a.Before(b)
	}
	return invoice.At.Before(other.At)
}
