// Package intake is step 1: a verified event of Stripe becomes a purchase, is recorded once together with the
// customer's profile, and is answered 200 after the commit, never before.
//
// Its promise: a webhook answered 200 is on the ledger. Nothing here waits for the queue or for TikTok.
package intake

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"purchase-relay/internal/purchase"
)

// Ledger records what an event says. Implementations owe: one transaction that is committed when Record
// returns nil; an event, and a session's same or earlier state, recorded once however often and concurrently
// they come (then Duplicate); an error means that the caller may try the same event again.
type Ledger interface {
	Record(ctx context.Context, r purchase.Receipt) (purchase.Recorded, error)
}

// errNoCheckout refuses an event of one of our types that has no checkout session to speak of.
var errNoCheckout = errors.New("an event about a checkout without a session object and a usable session id in data.object")

// Propose says what an event means for the ledger: the purchase in the state that the event proposes, and
// whether it concerns us at all. It is a pure function; whether the state moves anything forward is decided
// against the ledger (purchase.Advances). The error says that the event is malformed.
func Propose(e purchase.Event, modes map[string]bool, received time.Time) (p purchase.Purchase, ours bool, err error) {
	switch e.Type {
	case purchase.TypeCompleted, purchase.TypeAsyncSucceeded, purchase.TypeAsyncFailed:
	default:
		return p, false, nil
	}
	c := e.Checkout
	if c == nil {
		return p, false, errNoCheckout
	}
	if !modes[c.Mode] {
		return p, false, nil
	}
	if !purchase.ValidID(c.ID) {
		return p, false, errNoCheckout
	}
	p = purchase.Purchase{
		ID: c.ID, Mode: c.Mode, Livemode: e.Livemode,
		Customer: validOrNone(c.Customer), Subscription: validOrNone(c.Subscription),
	}
	if c.AmountTotal != nil && *c.AmountTotal >= 0 {
		p.AmountMinor = c.AmountTotal
	}
	if purchase.ValidCurrency(c.Currency) {
		p.Currency = strings.ToLower(c.Currency)
	}
	p.Status, p.Reason = proposedStatus(e.Type, c.PaymentStatus)
	if p.Status == purchase.StatusAwaitingPayment || p.Status == purchase.StatusPaymentFailed {
		return p, true, nil
	}
	p.At = e.Created
	if p.At.IsZero() {
		p.At = received.UTC().Truncate(time.Second)
	}
	if p.Email = purchase.NormaliseEmail(c.Email); p.Email == "" {
		p.Email = purchase.NormaliseEmail(c.CustomerEmail)
	}
	if p.Email == "" {
		p.Status, p.Reason = purchase.StatusRejected, purchase.ReasonInvalidEmail
		return p, true, nil
	}
	p.Keys = purchase.NewMatchKeys(p.Email, c)
	return p, true, nil
}

// proposedStatus reads the payment's state. Only the word "paid" counts as money: a payment_status that
// Stripe has not told us about waits visibly, like an unpaid one.
func proposedStatus(eventType, paymentStatus string) (purchase.Status, purchase.Reason) {
	switch {
	case eventType == purchase.TypeAsyncFailed:
		return purchase.StatusPaymentFailed, purchase.ReasonNone
	case eventType == purchase.TypeAsyncSucceeded, paymentStatus == "paid":
		return purchase.StatusPending, purchase.ReasonNone
	case paymentStatus == "no_payment_required":
		return purchase.StatusSkipped, purchase.ReasonNoPayment
	default:
		return purchase.StatusAwaitingPayment, purchase.ReasonNone
	}
}

// ParseModes reads CHECKOUT_MODES: subscription, payment or both, comma-separated.
func ParseModes(list []string) (map[string]bool, error) {
	modes := make(map[string]bool, len(list))
	for _, m := range list {
		if m != "subscription" && m != "payment" {
			return nil, fmt.Errorf("checkout mode %q is neither subscription nor payment", m)
		}
		modes[m] = true
	}
	if len(modes) == 0 {
		return nil, errors.New("no checkout mode given: name subscription, payment or both")
	}
	return modes, nil
}

func validOrNone(id string) string {
	if purchase.ValidID(id) {
		return id
	}
	return ""
}
