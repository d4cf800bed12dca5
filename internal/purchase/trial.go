package purchase

import "time"

// Trial is what is known of a subscription's trial. Session "": nothing yet.
type Trial struct {
	Session  string // the checkout's id
	Livemode bool
	Started  time.Time
	Withheld Reason // why its first payment is not sent: ReasonNoConsent, ReasonInternal; "": it is
}

// beginning is how far the clocks of a checkout and of its subscription may lie apart. No trial and no plan is shorter than a day.
const beginning = 12 * time.Hour

// First says whether an invoice with money is the trial's first payment for sure, whatever else may come: the time that it looks
// back on began with the trial. A later one looks back on a later time. Where Stripe does not tell, it is taken for the first.
func (t *Trial) First(invoice *Purchase) bool {
	return t.Session != "" && invoice.ID != "" && (invoice.PeriodStart.IsZero() || !invoice.PeriodStart.After(t.Started.Add(beginning)))
}

// HeldFor is how long an invoice that is not a first payment for sure waits for an earlier one. Stripe repeats its events for
// three days; what has not come by then was not paid, and this one's money is the first.
const HeldFor = 73 * time.Hour

// Earlier says whether an invoice comes before another one of the same subscription.
func Earlier(invoice, other *Purchase) bool {
	if a, b := invoice.PeriodStart, other.PeriodStart; !a.IsZero() && !b.IsZero() && !a.Equal(b) {
		return a.Before(b)
	}
	return invoice.At.Before(other.At)
}
