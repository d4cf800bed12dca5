// Package purchase is the vocabulary of the product: what was bought, by whom (match keys), for how
// much (minor units and currency), where it stands (statuses) and how it ended (outcomes). It does no
// I/O; beside the standard library it imports Unicode's tables (golang.org/x/text, x/net/idna) alone.
//
// A purchase's way, each arrow one of the steps:
//
//	awaiting_payment ──▶ payment_failed ──▶ pending ──▶ published ⇄ retrying ──▶ delivered | dead | skipped
//	        (intake)            (intake)     (relay)             (delivery, written by the recorder)
//
// Beside it stand rejected (paid, but without a usable e-mail address) and skipped at once, with the reason
// no_payment (no money moved), no_consent (the buyer's) or internal (the merchant's own staff).
package purchase

import (
	"errors"
	"strings"
	"time"
)

// The Stripe event types that concern a purchase. All others are ignored.
const (
	TypeCompleted      = "checkout.session.completed"
	TypeAsyncSucceeded = "checkout.session.async_payment_succeeded"
	TypeAsyncFailed    = "checkout.session.async_payment_failed"
	TypeInvoicePaid    = "invoice.paid" // a trial's first payment, where those count
)

// Event is one verified event of Stripe, narrowed to what the product reads. Fields that Stripe left
// out, sent as null or sent in an unexpected JSON type are zero.
type Event struct {
	ID       string
	Type     string
	Created  time.Time // the event's own time, whole seconds, UTC; zero when Stripe gave none
	Livemode bool
	Account  string    // the connected account that it belongs to; "": the endpoint's own
	Thin     bool      // a v2 event whose object is not fetched yet; Type is without its "v1."
	Related  Related   // of a thin event: where its object is
	Checkout *Checkout // data.object; nil when it is missing or no JSON object
	Invoice  *Invoice  // data.object of TypeInvoicePaid, in place of the checkout
}

// Related is a thin event's reference to its object, as Stripe sent it.
type Related struct {
	ID, Type, URL string
}

// ErrReference refuses a thin event whose reference to its object has no usable form.
var ErrReference = errors.New("thin event without a usable related_object")

// Checkout is the checkout session of an Event as Stripe sent it: nothing is checked or normalised.
type Checkout struct {
	ID            string
	Mode          string // subscription, payment or setup
	PaymentStatus string // paid, unpaid or no_payment_required
	AmountTotal   *int64 // smallest unit of Currency, as Stripe counts it; nil: unknown
	Discount      *int64 // total_details.amount_discount; nil: unknown
	Tax, Shipping *int64 // total_details.amount_tax and amount_shipping; nil: unknown
	Currency      string // lower case ISO 4217, "": unknown
	Customer      string // cus_…
	Subscription  string // sub_…
	Email         string // customer_details.email
	CustomerEmail string // customer_email, only a prefill
	ExpandedEmail string // the e-mail address of a customer that is expanded
	Phone         string // customer_details.phone
	Name          string // customer_details.name
	Address       Address
	Reference     string    // client_reference_id
	Locale        string    // the buyer's language; "auto" or "": the browser's
	Created       time.Time // when the session began; zero: unknown
	Metadata      map[string]string
	NotText       map[string]bool // keys of the metadata whose value is neither a text nor null
}

// Address is customer_details.address, as far as it is a match key.
type Address struct {
	City, State, PostalCode, Country string
}

// Invoice is a paid invoice as Stripe sent it.
type Invoice struct {
	ID           string
	Subscription string // "": of none
	Customer     string
	AmountPaid   *int64
	Tax          *int64 // part of AmountPaid; nil: unknown
	Shipping     *int64 // part of AmountPaid, without its tax; nil: unknown
	Currency     string
	Reason       string    // billing_reason
	Created      time.Time // zero: unknown
	PeriodStart  time.Time // of the period that it looks back on: a trial's first one looks back on the trial; zero: unknown
	PeriodEnd    time.Time // zero: unknown
}

// Kind says what makes a purchase one.
type Kind string

// The kinds.
const (
	KindCheckout     Kind = "checkout"      // a checkout that was paid, or is to be
	KindTrial        Kind = "trial"         // a subscription's checkout without money and without a discount
	KindFirstPayment Kind = "first_payment" // the first invoice with money after a trial
)

// Purchase is what the ledger holds of one checkout session.
type Purchase struct {
	ID           string // the checkout session's id; TikTok's event_id
	Status       Status
	Reason       Reason // why it is skipped, rejected or dead; "" otherwise
	Mode         string
	Livemode     bool
	AmountMinor  *int64    // smallest unit of Currency; nil: unknown
	Currency     string    // lower case, three letters; "": unknown
	At           time.Time // when it was paid (the paying event's created, at most its receipt); zero while unpaid
	Email        string    // normalised, plain: for the profile, never for the queue
	Customer     string    // Stripe's customer id, "" when unknown or unusable
	Subscription string    // Stripe's subscription id, "" when unknown or unusable
	Keys         MatchKeys // hashed or public: fit for the queue

	Kind           Kind      // "" is a checkout
	EventName      string    // "": the worker's own; of a trial that is sent as one
	Withheld       Reason    // why nothing may be sent about this buyer: ReasonNoConsent, ReasonInternal; "": it may
	Trial          bool      // its match keys are kept for the subscription's first payment
	PeriodStart    time.Time // when the trial, or the period that an invoice looks back on, began by Stripe's clock; zero: unknown
	LimitedDataUse bool
	Content        *Content
	ClickExpires   time.Time // when the click id becomes older than CLICK_WINDOW; zero: unknown
	Dropped        []Dropped // of the keys, for the metrics
}

// LateClick reports whether the click id was older than CLICK_WINDOW when the purchase was paid: TikTok does not attribute it then.
func (p *Purchase) LateClick() bool {
	return p.Keys.TTCLID != "" && !p.ClickExpires.IsZero() && p.At.After(p.ClickExpires)
}

// Mask is that of the match keys, with LateClick.
func (p *Purchase) Mask() int16 {
	mask := p.Keys.Mask()
	if p.LateClick() {
		mask |= LateClick
	}
	return mask
}

// Disposition is what became of one event; it is the webhook's answer.
type Disposition string

// The dispositions.
const (
	Processed       Disposition = "processed"
	AwaitingPayment Disposition = "awaiting_payment"
	Duplicate       Disposition = "duplicate"
	Rejected        Disposition = "rejected"
	Ignored         Disposition = "ignored"
	Held            Disposition = "held"          // an invoice that waits for its trial, or for an earlier one
	Foreign         Disposition = "other_account" // ignored: of a connected account that does not count
	Malformed       Disposition = "malformed"     // nothing was recorded, and nothing would be the next time
)

// ValidID says whether a Stripe id may become a key, a NATS subject token and a message id: 1 to 255
// letters, digits, '_' and '-'. Stripe documents ids of up to 255 characters; dots, wildcards and blanks
// would change the meaning of a subject.
func ValidID(id string) bool { return consists(id, 255, "_-") }

// consists says whether a text is 1 to most ASCII letters, digits and the others. (A regular expression costs ten times as much, and
// every webhook asks a dozen times.)
func consists(s string, most int, others string) bool {
	if s == "" || len(s) > most {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte(others, c) >= 0:
		default:
			return false
		}
	}
	return true
}

// Tellable returns a foreign id or type for logs and people, or "[not an id]" where it has another form: it might be anything,
// somebody's address above all.
func Tellable(s string) string {
	if consists(s, 255, "_.-") {
		return s
	}
	return "[not an id]"
}

// Source is where an event came from.
type Source string

// The sources.
const (
	SourceWebhook  Source = "webhook"
	SourceBackfill Source = "backfill" // Stripe's list of events
)

// Receipt is one verified event and the purchase that it proposes, on the way to the ledger.
type Receipt struct {
	Event    Event
	Source   Source
	Received time.Time
	Purchase Purchase
	Claim    bool // a purchase to be sent is claimed by the process that records it
	DryRun   bool // the ledger decides as always and writes nothing
}

// Disposition is the answer that a receipt gets when it moves the ledger forward.
func (r *Receipt) Disposition() Disposition {
	switch r.Purchase.Status {
	case StatusAwaitingPayment:
		return AwaitingPayment
	case StatusRejected:
		return Rejected
	default:
		return Processed
	}
}

// Recorded is what became of a Receipt on the ledger.
type Recorded struct {
	Disposition    Disposition
	ProfileID      string // "" when the receipt makes no profile
	ProfileCreated bool   // false: it was there and was updated
	CustomerBefore string // the profile's customer id, where this purchase brings another one; "": the same, or none

	Message []byte    // of a purchase that was claimed: what is to be published
	Claimed time.Time // since when it counts as handed to the queue; zero: it was not claimed

	FirstPayment string // the purchase that a trial and its invoice became; "": none
	Conflict     string // the session under which the event's id was recorded before; "": none, or the same
	LateClick    bool   // its click id is older than CLICK_WINDOW
}
