// Package purchase is the domain: what an event of Stripe means (FromEvent), what was bought, by whom
// (match keys) and for how much, its status and how statuses may change. It does no I/O. Beside the
// standard library it imports Unicode's tables only (golang.org/x/text, x/net/idna).
//
// The statuses of a purchase, each arrow one of the steps:
//
//	awaiting_payment ──▶ payment_failed ──▶ pending ──▶ published ⇄ retrying ──▶ delivered | dead | skipped
//	        (intake)            (intake)     (relay)             (delivery, written by the recorder)
//
// A purchase may also be rejected (paid without a usable e-mail address), or skipped immediately:
// no_payment (no money moved), no_consent (the buyer's) or internal (the merchant's own staff).
package purchase

import (
	"strings"
	"time"
)

// Kind is the kind of a purchase.
type Kind string

// The kinds.
const (
	KindCheckout     Kind = "checkout"      // a checkout with money
	KindTrial        Kind = "trial"         // a subscription's checkout without money and without a discount
	KindFirstPayment Kind = "first_payment" // the first invoice with money after a trial
)

// Purchase is one checkout session, or one first payment, on the ledger.
type Purchase struct {
	ID           string // the id of the checkout session or the invoice; TikTok's event_id
	Status       Status
	Reason       Reason // why it is skipped, rejected or dead; "" otherwise
	Mode         string
	Livemode     bool
	AmountMinor  *int64    // smallest unit of Currency; nil: unknown
	Currency     string    // lower case, three letters; "": unknown
	At           time.Time // of the payment: the event's created, at most its receipt; zero while unpaid
	Email        string    // normalised, plain: for the profile, never for the queue
	Customer     string    // Stripe's customer id, "" when unknown or unusable
	Subscription string    // Stripe's subscription id, "" when unknown or unusable
	Keys         MatchKeys // hashed or public: fit for the queue

	Kind           Kind      // "" is a checkout
	EventName      string    // of a trial that is sent; "": the worker's own
	Withheld       Reason    // why nothing may be sent: ReasonNoConsent, ReasonInternal; "": it may
	Trial          bool      // its match keys are kept for the subscription's first payment
	PeriodStart    time.Time // of the trial, or the period before an invoice, by Stripe's clock; zero: unknown
	LimitedDataUse bool
	Content        *Content
	ClickExpires   time.Time // when the click id exceeds CLICK_WINDOW; zero: unknown
	Dropped        []Dropped // of the keys, for the metrics
}

// LateClick reports whether the click id was older than CLICK_WINDOW at the payment: TikTok does not
// attribute it.
func (p *Purchase) LateClick() bool {
	return p.Keys.TTCLID != "" && !p.ClickExpires.IsZero() && p.At.After(p.ClickExpires)
}

// Mask returns the mask of the match keys, with LateClick.
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
	Held            Disposition = "held"          // an invoice held for its trial or an earlier invoice
	Foreign         Disposition = "other_account" // ignored: of a connected account that does not count
	Malformed       Disposition = "malformed"     // nothing was recorded, and nothing would be the next time
)

// ValidID reports whether a Stripe id may be a key, a token of a NATS subject and a message id: 1 to 255
// letters, digits, '_' and '-'. Stripe documents ids of up to 255 characters; dots, wildcards and blanks
// would change a subject's meaning.
func ValidID(id string) bool { return consists(id, 255, "_-") }

// consists reports whether a string has 1 to max ASCII letters, digits and others. A regular expression
// costs ten times as much, and each webhook needs a dozen calls.
func consists(s string, max int, others string) bool {
	if s == "" || len(s) > max {
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

// LogSafe returns an id or type from outside for logs and people, or "[not an id]" where it has another
// form: it may hold an address.
func LogSafe(s string) string {
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

// Disposition returns the disposition of a receipt that moves the ledger forward.
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
	Disposition    Disposition
	ProfileID      string // "": the receipt has no profile
	ProfileCreated bool   // false: the profile was updated
	CustomerBefore string // the profile's earlier customer id where this one differs; "": none differs

	Message []byte    // the message of a claimed purchase
	Claimed time.Time // when it was claimed, which counts as its first publish; zero: it was not

	FirstPayment string // the first payment that a trial and its invoice became; "": none
	Conflict     string // the session under which the event id was recorded before; "": none, or the same
	LateClick    bool   // the click id is older than CLICK_WINDOW
}
