package purchase

import (
	"errors"
	"strings"
)

// Status is where a purchase stands. The values are the ledger's and the API's.
type Status string

// The statuses, in the order in which a purchase may pass through them.
const (
	StatusAwaitingPayment Status = "awaiting_payment" // checked out with a delayed method, not paid yet
	StatusPaymentFailed   Status = "payment_failed"   // the delayed payment failed
	StatusRejected        Status = "rejected"         // no usable e-mail address: nobody to give access to
	StatusPending         Status = "pending"          // committed, not yet in the queue
	StatusPublished       Status = "published"        // in the queue
	StatusRetrying        Status = "retrying"         // TikTok refused it for now
	StatusDelivered       Status = "delivered"        // accepted by TikTok
	StatusDead            Status = "dead"             // given up on, with a reason
	StatusSkipped         Status = "skipped"          // on purpose not sent, with a reason
)

// Statuses lists every status once, in the order of the constants.
func Statuses() []Status {
	return []Status{
		StatusAwaitingPayment, StatusPaymentFailed, StatusRejected, StatusPending, StatusPublished,
		StatusRetrying, StatusDelivered, StatusDead, StatusSkipped,
	}
}

// ParseStatus reads a status; "" is "".
func ParseStatus(text string) (Status, error) {
	if text == "" {
		return "", nil
	}
	names := make([]string, 0, len(Statuses()))
	for _, s := range Statuses() {
		if string(s) == text {
			return s, nil
		}
		names = append(names, string(s))
	}
	return "", errors.New("status is one of " + strings.Join(names, ", "))
}

// Reason says why a purchase was skipped, rejected or given up on. It is a small closed set: also a
// metric's label.
type Reason string

// The reasons.
const (
	ReasonNone          Reason = ""
	ReasonNoPayment     Reason = "no_payment"     // skipped: a trial, a full discount or a free order
	ReasonNotConfigured Reason = "not_configured" // skipped: the worker has no access token
	ReasonTestPurchase  Reason = "test_purchase"  // skipped: livemode=false and TIKTOK_TEST_MODE=skip
	ReasonNoConsent     Reason = "no_consent"     // skipped: the buyer said no, or nothing where an answer is required
	ReasonInternal      Reason = "internal"       // skipped: the merchant's own staff
	ReasonForgotten     Reason = "forgotten"      // skipped: its customer's data were removed before it was delivered
	ReasonInvalidEmail  Reason = "invalid_email"  // rejected
	ReasonRefused       Reason = "refused"        // dead: TikTok refuses this event for its content
	ReasonExpired       Reason = "expired"        // dead: older than RETRY_MAX_AGE
	ReasonCrash         Reason = "crash"          // dead: the worker stumbles over it, again and again
)

// rank orders the states of the payment side: an event may only move a purchase upwards.
func rank(s Status, r Reason) int {
	switch {
	case s == "":
		return 0 // not on the ledger
	case s == StatusAwaitingPayment:
		return 1
	case s == StatusPaymentFailed:
		return 2
	case s == StatusRejected:
		return 3
	case s == StatusSkipped && r == ReasonNoPayment:
		return 4
	default:
		return 5 // paid, wherever its delivery stands
	}
}

// Paid reports whether money moved for a purchase, whatever became of its delivery. A trial is no sale, also where
// it is sent as an event of its own.
func Paid(s Status, r Reason, k Kind) bool {
	switch {
	case s == StatusAwaitingPayment, s == StatusPaymentFailed, s == StatusSkipped && r == ReasonNoPayment:
		return false
	default:
		return k != KindTrial
	}
}

// Advances says whether an event that proposes (to, toReason) moves a purchase forward that stands at
// (from, fromReason); from is "" when the ledger does not know it. Payment states move one way:
// awaiting_payment, payment_failed, rejected, a trial, paid. Paid always wins and is never left.
func Advances(from Status, fromReason Reason, to Status, toReason Reason) bool {
	return rank(to, toReason) > rank(from, fromReason)
}

// Settle says where a purchase stands after the worker reported result: next is the new status and
// changed whether it differs. Outcomes may come in any order and more than once, so that the rule is:
// delivered always stands; an end (dead, skipped) stands against everything of its own or an older
// generation; a report from before the present generation (a replay made the purchase pending again)
// moves nothing but delivered.
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
	default: // delivered is never left, and what was never sent has no outcome
	}
	return status, false
}
