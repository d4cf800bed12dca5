package purchase

import (
	"fmt"
	"slices"
)

// Status is the state of a purchase, with the values of the ledger and the API.
type Status string

// The statuses, in the order of a purchase's progress.
const (
	StatusAwaitingPayment Status = "awaiting_payment" // checked out with a delayed payment method
	StatusPaymentFailed   Status = "payment_failed"   // the delayed payment failed
	StatusRejected        Status = "rejected"         // paid without a usable e-mail address
	StatusPending         Status = "pending"          // committed, not published
	StatusPublished       Status = "published"        // in the queue
	StatusRetrying        Status = "retrying"         // the last attempt failed
	StatusDelivered       Status = "delivered"        // accepted by TikTok
	StatusDead            Status = "dead"             // dead-lettered, with a reason
	StatusSkipped         Status = "skipped"          // intentionally not sent, with a reason
)

// Statuses returns every status, in the order of the constants.
func Statuses() []Status {
	return []Status{
		StatusAwaitingPayment, StatusPaymentFailed, StatusRejected, StatusPending, StatusPublished,
		StatusRetrying, StatusDelivered, StatusDead, StatusSkipped,
	}
}

// ParseStatus parses a status; "" returns "".
func ParseStatus(text string) (Status, error) {
	if status := Status(text); text == "" || slices.Contains(Statuses(), status) {
		return status, nil
	}
	return "", fmt.Errorf("status is not one of %v", Statuses())
}

// Reason is why a purchase is skipped, rejected or dead. It is a small closed set: also a metric's label.
type Reason string

// The reasons.
const (
	ReasonNone          Reason = ""
	ReasonNoPayment     Reason = "no_payment"     // skipped: a trial, a full discount or a free order
	ReasonNotConfigured Reason = "not_configured" // skipped: the worker has no access token
	ReasonTestPurchase  Reason = "test_purchase"  // skipped: livemode=false and TIKTOK_TEST_MODE=skip
	ReasonNoConsent     Reason = "no_consent"     // skipped: the buyer did not consent
	ReasonInternal      Reason = "internal"       // skipped: the merchant's own staff
	ReasonForgotten     Reason = "forgotten"      // skipped: the buyer's data was removed before delivery
	ReasonInvalidEmail  Reason = "invalid_email"  // rejected
	ReasonRefused       Reason = "refused"        // dead: TikTok rejects the event for its content
	ReasonExpired       Reason = "expired"        // dead: older than RETRY_MAX_AGE
	ReasonCrash         Reason = "crash"          // dead: it crashed the worker repeatedly
)

// rank orders the payment states: an event may only raise a purchase's rank.
func rank(s Status, r Reason) int {
	switch {
	case s == "":
		return 0 // not recorded
	case s == StatusAwaitingPayment:
		return 1
	case s == StatusPaymentFailed:
		return 2
	case s == StatusRejected:
		return 3
	case s == StatusSkipped && r == ReasonNoPayment:
		return 4
	default:
		return 5 // paid, whatever its delivery status
	}
}

// Paid reports whether a purchase was paid, whatever its delivery status. A trial is never paid, even if it
// is sent as an event.
func Paid(s Status, r Reason, k Kind) bool {
	switch {
	case s == StatusAwaitingPayment, s == StatusPaymentFailed, s == StatusSkipped && r == ReasonNoPayment:
		return false
	default:
		return k != KindTrial
	}
}

// SaleState is what became of a paid purchase. Every sale has exactly one.
type SaleState string

// The states of a sale.
const (
	SaleAccepted    SaleState = "accepted"     // by TikTok
	SaleWaiting     SaleState = "waiting"      // for the queue, a worker or the next attempt
	SaleNotAccepted SaleState = "not_accepted" // dead, rejected, or skipped without a token
	SaleLeftOut     SaleState = "left_out"     // skipped on purpose: outside of the accepted share
)

// SaleStates returns every state of a sale, in the order of the constants.
func SaleStates() []SaleState {
	return []SaleState{SaleAccepted, SaleWaiting, SaleNotAccepted, SaleLeftOut}
}

// LeftOutReasons returns why sales are skipped on purpose.
func LeftOutReasons() []Reason {
	return []Reason{ReasonTestPurchase, ReasonNoConsent, ReasonInternal, ReasonForgotten}
}

// StateOfSale returns what became of a sale; "": the purchase is none, see Paid.
func StateOfSale(s Status, r Reason, k Kind) SaleState {
	if !Paid(s, r, k) {
		return ""
	}
	switch s {
	case StatusDelivered:
		return SaleAccepted
	case StatusPending, StatusPublished, StatusRetrying:
		return SaleWaiting
	case StatusSkipped:
		if slices.Contains(LeftOutReasons(), r) {
			return SaleLeftOut
		}
	default: // dead or rejected
	}
	return SaleNotAccepted
}

// Advances reports whether an event moves a purchase from one payment state to the next; from is "" for a
// purchase that is not recorded. The order is awaiting_payment, payment_failed, rejected, unpaid by design
// (no_payment), paid. A paid purchase never leaves that state.
func Advances(from Status, fromReason Reason, to Status, toReason Reason) bool {
	return rank(to, toReason) > rank(from, fromReason)
}

// Settle applies a worker's result to a purchase and reports whether its status changed. Results arrive in
// any order and more than once:
//   - delivered is final and applies in any generation;
//   - dead and skipped yield to delivered only;
//   - any other result of an older generation (before a replay or a sweep) is ignored.
func Settle(status Status, generation int, result Status, resultGeneration int) (next Status, changed bool) {
	switch status {
	case StatusPending, StatusPublished, StatusRetrying:
		if result == StatusDelivered || resultGeneration >= generation {
			return result, result != status
		}
	case StatusDead, StatusSkipped:
		if result == StatusDelivered {
			return StatusDelivered, true
		}
	default: // delivered is final; the other statuses were never sent
	}
	return status, false
}
