// Package purchase is the domain: the meaning of a Stripe event (FromEvent), the buyer's match keys, the
// value and contents, and the status transitions. It does no I/O and imports only the standard library and
// Unicode tables.
//
// A purchase passes through these statuses:
//
//	awaiting_payment → payment_failed → pending → published ⇄ retrying → delivered | dead | skipped
//	      (intake)        (intake)      (relay)          (delivery, written by the recorder)
//
// A purchase is rejected if it was paid without a usable e-mail address, and skipped immediately for
// no_payment, no_consent or internal.
package purchase

import (
	"strings"
	"time"
)

// Kind is the kind of a purchase.
type Kind string

// The kinds.
const (
	KindCheckout     Kind = "checkout"      // a paid checkout
	KindTrial        Kind = "trial"         // a subscription's free checkout without a discount
	KindFirstPayment Kind = "first_payment" // the first paid invoice after a trial
)

// Purchase is one checkout session or one first payment.
type Purchase struct {
	ID           string // of the checkout session or the invoice; also TikTok's event_id
	Status       Status
	Reason       Reason // why it is skipped, rejected or dead; "" otherwise
	Mode         string
	Livemode     bool
	AmountMinor  *int64    // smallest unit of Currency; nil: unknown
	Currency     string    // lower case, three letters; "": unknown
	At           time.Time // of the payment, see paidAt; zero while unpaid
	Email        string    // normalised plain text: for the profile, never for the queue
	Customer     string    // Stripe's customer id; "": unknown or invalid
	Subscription string    // Stripe's subscription id; "": unknown or invalid
	Payment      string    // Stripe's id of the payment intent or the invoice; "": unknown, or the ID itself
	Keys         MatchKeys // hashed or public: safe for the queue

	Kind           Kind      // "" is a checkout
	EventName      string    // TikTok's event for a trial; "": the worker's TIKTOK_EVENT_NAME
	Withheld       Reason    // why nothing may be sent: ReasonNoConsent or ReasonInternal
	Trial          bool      // match keys are stored for the subscription's first payment
	PeriodStart    time.Time // of the trial, or of the period before an invoice; zero: unknown
	LimitedDataUse bool
	Content        *Content
	ClickExpires   time.Time // when the click id exceeds CLICK_WINDOW; zero: unknown
	Dropped        []Dropped // unusable keys, for the metrics
}

// LateClick reports whether the click was older than CLICK_WINDOW at the payment. TikTok does not attribute
// such a click.
func (p *Purchase) LateClick() bool {
	return p.Keys.TTCLID != "" && !p.ClickExpires.IsZero() && p.At.After(p.ClickExpires)
}

// Mask returns the mask of the match keys with LateClickMask.
func (p *Purchase) Mask() int16 {
	mask := p.Keys.Mask()
	if p.LateClick() {
		mask |= LateClickMask
	}
	return mask
}

// Disposition is the result of one event, and the webhook's answer.
type Disposition string

// The dispositions.
const (
	Processed       Disposition = "processed"
	AwaitingPayment Disposition = "awaiting_payment"
	Duplicate       Disposition = "duplicate"
	Rejected        Disposition = "rejected"
	Ignored         Disposition = "ignored"
	Held            Disposition = "held"          // an invoice that waits for its trial or an earlier invoice
	Foreign         Disposition = "other_account" // ignored: from a connected account that is not configured
	Malformed       Disposition = "malformed"     // not recorded; a retry cannot succeed
)

// ValidID reports whether a Stripe id is safe as a key, a NATS subject token and a message ID: 1 to 255
// letters, digits, '_' and '-'. Stripe documents ids of up to 255 characters. Dots, wildcards and blanks
// have a meaning in a subject.
func ValidID(id string) bool { return alphanumeric(id, 255, "_-") }

// alphanumeric reports whether s has 1 to max ASCII letters, digits and bytes of extra. A regular expression
// is ten times slower, and each webhook needs a dozen calls.
func alphanumeric(s string, max int, extra string) bool {
	if s == "" || len(s) > max {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte(extra, c) >= 0:
		default:
			return false
		}
	}
	return true
}

// LogSafe returns an external id or type, or "[not an id]": anything else may contain an e-mail address.
func LogSafe(s string) string {
	if alphanumeric(s, 255, "_.-") {
		return s
	}
	return "[not an id]"
}

// Source is the origin of an event.
type Source string

// The sources.
const (
	SourceWebhook  Source = "webhook"
	SourceBackfill Source = "backfill" // Stripe's list of events
)

// Receipt is a verified event with its proposed purchase, to be recorded.
type Receipt struct {
	Event    Event
	Source   Source
	Received time.Time
	Purchase Purchase
	Claim    bool // claim a pending purchase for this process to publish
	DryRun   bool // decide as usual, write nothing
}

// Disposition returns the result of recording a receipt that advances its purchase.
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

// Recorded is the result of recording a Receipt.
type Recorded struct {
	Disposition      Disposition
	ProfileID        string // "": no profile
	ProfileCreated   bool   // false: the profile was updated
	PreviousCustomer string // the profile's former customer id, if it changed

	Message []byte    // encoded message of a claimed purchase
	Claimed time.Time // time of the claim, which counts as the first publish; zero: not claimed

	FirstPayment string // id of the first payment that this receipt completed; "": none
	Conflict     string // another session recorded under the same event id; "": none
	LateClick    bool   // the click is older than CLICK_WINDOW
}
