package purchase

import (
	"errors"
	"time"
)

// The Stripe event types that may concern a purchase. All others are ignored.
const (
	TypeCompleted      = "checkout.session.completed"
	TypeAsyncSucceeded = "checkout.session.async_payment_succeeded"
	TypeAsyncFailed    = "checkout.session.async_payment_failed"
	TypeInvoicePaid    = "invoice.paid" // with FIRST_PAYMENT: the first payment after a trial
)

// EventTypes lists them. The list must not be changed.
func EventTypes() []string { return eventTypes[:] }

// The last one counts with FIRST_PAYMENT only.
var eventTypes = [...]string{TypeCompleted, TypeAsyncSucceeded, TypeAsyncFailed, TypeInvoicePaid}

// Event is one verified event of Stripe, narrowed to what the product reads. Fields that Stripe left out,
// or sent as null or in an unexpected JSON type, are zero.
type Event struct {
	ID       string
	Type     string
	Created  time.Time // the event's own time, whole seconds, UTC; zero when Stripe gave none
	Livemode bool
	Account  string    // the connected account of the event; "": the endpoint's own
	Thin     bool      // a v2 event whose object is not fetched yet; Type is without its "v1."
	Related  Related   // of a thin event: the reference to its object
	Checkout *Checkout // data.object; nil when it is missing or no JSON object
	Invoice  *Invoice  // data.object of TypeInvoicePaid, in place of the checkout
}

// Related is a thin event's reference to its object, as Stripe sent it.
type Related struct {
	ID, Type, URL string
}

// ErrReference refuses a thin event whose reference to its object has no usable form.
var ErrReference = errors.New("thin event without a usable related_object")

// Checkout is the checkout session of an Event as Stripe sent it, neither checked nor normalised.
type Checkout struct {
	ID            string
	Mode          string // subscription, payment or setup
	PaymentStatus string // paid, unpaid or no_payment_required
	AmountTotal   *int64 // smallest unit of Currency; nil: unknown
	Discount      *int64 // total_details.amount_discount; nil: unknown
	Tax, Shipping *int64 // total_details.amount_tax and amount_shipping; nil: unknown
	Currency      string // lower case ISO 4217, "": unknown
	Customer      string // cus_…
	Subscription  string // sub_…
	Email         string // customer_details.email
	CustomerEmail string // customer_email, only a prefill
	ExpandedEmail string // the e-mail address of an expanded customer
	Phone         string // customer_details.phone
	Name          string // customer_details.name
	Address       Address
	Reference     string    // client_reference_id
	Locale        string    // the buyer's language; "auto" or "": the browser's
	Created       time.Time // when the session began; zero: unknown
	Metadata      map[string]string
	NotText       map[string]bool // metadata keys whose value is neither a string nor null
}

// Address holds the match keys of customer_details.address.
type Address struct {
	City, State, PostalCode, Country string
}

// Invoice is a paid invoice as Stripe sent it.
type Invoice struct {
	ID           string
	Subscription string // "": none
	Customer     string
	AmountPaid   *int64
	Tax          *int64 // part of AmountPaid; nil: unknown
	Shipping     *int64 // part of AmountPaid, without its tax; nil: unknown
	Currency     string
	Reason       string    // billing_reason
	Created      time.Time // zero: unknown
	PeriodStart  time.Time // of the period before the invoice: after a trial, the trial's; zero: unknown
	PeriodEnd    time.Time // zero: unknown
}
