package purchase

import (
	"errors"
	"time"
)

// The Stripe event types that are read.
const (
	TypeCompleted      = "checkout.session.completed"
	TypeAsyncSucceeded = "checkout.session.async_payment_succeeded"
	TypeAsyncFailed    = "checkout.session.async_payment_failed"
	TypeInvoicePaid    = "invoice.paid" // with FIRST_PAYMENT only
)

// EventTypes returns every type. The caller must not modify the slice.
func EventTypes() []string { return allEventTypes[:] }

var allEventTypes = [...]string{TypeCompleted, TypeAsyncSucceeded, TypeAsyncFailed, TypeInvoicePaid}

// Event is one verified Stripe event, reduced to the fields that are used. A field that is missing, null or
// of an unexpected JSON type is zero.
type Event struct {
	ID       string
	Type     string
	Created  time.Time // whole seconds, UTC; zero: unknown
	Livemode bool
	Account  string    // connected account; "": the endpoint's own
	Thin     bool      // a v2 event without its object; Type is without the prefix "v1."
	Related  Related   // reference to the object of a thin event
	Checkout *Checkout // data.object; nil: missing or not a JSON object
	Invoice  *Invoice  // data.object of TypeInvoicePaid
}

// Related is a thin event's related_object, unchecked.
type Related struct{ ID, Type, URL string }

// ErrReference is returned for a thin event with an invalid related_object.
var ErrReference = errors.New("thin event has no valid related_object")

// Checkout is a checkout session as Stripe sent it, neither checked nor normalised.
type Checkout struct {
	ID            string
	Mode          string // subscription, payment or setup
	PaymentStatus string // paid, unpaid or no_payment_required
	AmountTotal   *int64 // smallest unit of Currency; nil: unknown
	Discount      *int64 // total_details.amount_discount; nil: unknown
	Tax, Shipping *int64 // total_details.amount_tax and amount_shipping; nil: unknown
	Currency      string // lower case ISO 4217; "": unknown
	Customer      string // cus_…
	Subscription  string // sub_…
	PaymentIntent string // pi_…, of a single payment
	Invoice       string // in_…, of a subscription
	Email         string // customer_details.email
	CustomerEmail string // customer_email: the prefilled address
	ExpandedEmail string // customer.email, if the customer is expanded
	Phone         string // customer_details.phone
	Name          string // customer_details.name
	Address       Address
	Reference     string    // client_reference_id
	Locale        string    // "auto" or "": the browser's
	Created       time.Time // zero: unknown
	Metadata      map[string]string
	NonStrings    map[string]bool // metadata keys with a value that is neither a string nor null
}

// Address is customer_details.address.
type Address struct{ City, State, PostalCode, Country string }

// Invoice is a paid invoice as Stripe sent it.
type Invoice struct {
	ID           string
	Subscription string // "": none
	Customer     string
	AmountPaid   *int64
	Tax          *int64 // part of AmountPaid; nil: unknown
	Shipping     *int64 // part of AmountPaid, before tax; nil: unknown
	Currency     string
	Reason       string    // billing_reason
	Created      time.Time // zero: unknown
	PeriodStart  time.Time // period_start: the period before the invoice; zero: unknown
	PeriodEnd    time.Time // zero: unknown
}
