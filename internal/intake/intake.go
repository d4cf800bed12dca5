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

// Rules are what an operator decides about checkouts.
type Rules struct {
	Modes        map[string]bool  // the checkout modes that count
	Consent      purchase.Consent // before anything is sent
	Staff        purchase.Domains // the merchant's own: what they buy is no sale
	TrialEvent   string           // the event that a trial is sent as; "": it is skipped
	FirstPayment bool             // the first invoice with money after a trial is a purchase
	ClickWindow  time.Duration    // a click id that is older at the purchase counts as late; 0: none does
}

// errNoInvoice refuses an event about an invoice that has none to speak of.
var errNoInvoice = errors.New("an event about an invoice without an invoice object and a usable id in data.object")

// Propose says what an event means for the ledger: the purchase in the state that the event proposes, and
// whether it concerns us at all. It is a pure function; whether the state moves anything forward is decided
// against the ledger (purchase.Advances, purchase.Trial). The error says that the event is malformed.
func Propose(e purchase.Event, rules Rules, received time.Time) (p purchase.Purchase, ours bool, err error) {
	switch e.Type {
	case purchase.TypeCompleted, purchase.TypeAsyncSucceeded, purchase.TypeAsyncFailed:
		return rules.checkout(e, received)
	case purchase.TypeInvoicePaid:
		if rules.FirstPayment {
			return payment(e, received)
		}
	}
	return p, false, nil
}

// payment proposes a trial's first payment. Invoices without a subscription or without money are none, nor is a subscription's
// very first one: that belongs to its checkout.
func payment(e purchase.Event, received time.Time) (p purchase.Purchase, ours bool, err error) {
	i := e.Invoice
	switch {
	case i == nil || !purchase.ValidID(i.ID):
		return p, false, errNoInvoice
	case !purchase.ValidID(i.Subscription) || i.Beginning || i.AmountPaid == nil || *i.AmountPaid <= 0:
		return p, false, nil
	}
	p = purchase.Purchase{
		ID: i.ID, Kind: purchase.KindFirstPayment, Status: purchase.StatusPending, Mode: "subscription", Livemode: e.Livemode, At: timeOf(e, received),
		Customer: validOrNone(i.Customer), Subscription: i.Subscription, AmountMinor: i.AmountPaid, Currency: currencyOf(i.Currency), PeriodStart: i.PeriodStart,
	}
	return p, true, nil
}

func timeOf(e purchase.Event, received time.Time) time.Time {
	if e.Created.IsZero() {
		return received.UTC().Truncate(time.Second)
	}
	return e.Created
}

func currencyOf(code string) string {
	if purchase.ValidCurrency(code) {
		return strings.ToLower(code)
	}
	return ""
}

func (rules *Rules) checkout(e purchase.Event, received time.Time) (p purchase.Purchase, ours bool, err error) {
	c := e.Checkout
	switch {
	case c == nil:
		return p, false, errNoCheckout
	case !rules.Modes[c.Mode]:
		return p, false, nil
	case !purchase.ValidID(c.ID):
		return p, false, errNoCheckout
	}
	p = purchase.Purchase{
		ID: c.ID, Kind: purchase.KindCheckout, Mode: c.Mode, Livemode: e.Livemode, Currency: currencyOf(c.Currency),
		Customer: validOrNone(c.Customer), Subscription: validOrNone(c.Subscription),
	}
	if c.AmountTotal != nil && *c.AmountTotal >= 0 {
		p.AmountMinor = c.AmountTotal
	}
	p.Status, p.Reason = proposedStatus(e.Type, c.PaymentStatus)
	if p.Status == purchase.StatusAwaitingPayment || p.Status == purchase.StatusPaymentFailed {
		return p, true, nil
	}
	p.At = timeOf(e, received)
	if p.Email = purchase.NormaliseEmail(c.Email); p.Email == "" {
		p.Email = purchase.NormaliseEmail(c.CustomerEmail)
	}
	if p.Reason == purchase.ReasonNoPayment {
		p.Kind, p.Trial = purchase.KindTrial, rules.FirstPayment && p.Subscription != ""
	}
	if p.Email == "" {
		p.Status, p.Reason, p.Trial = purchase.StatusRejected, purchase.ReasonInvalidEmail, false
		return p, true, nil
	}
	rules.gate(&p, c)
	return p, true, nil
}

// gate decides whether a purchase is sent, and with what. Of one that must not be sent no match key is kept at all.
func (rules *Rules) gate(p *purchase.Purchase, c *purchase.Checkout) {
	switch {
	case !rules.Consent.Given(c):
		p.Withheld = purchase.ReasonNoConsent
	case rules.Staff.Hold(p.Email):
		p.Withheld = purchase.ReasonInternal
	default:
		p.Keys, p.Dropped = purchase.NewMatchKeys(p.Email, c)
		content, dropped := purchase.NewContent(p.Email, c)
		p.Content, p.Dropped = content, append(p.Dropped, dropped...)
		p.LimitedDataUse = purchase.Limited(c)
		if rules.ClickWindow > 0 {
			p.ClickExpires = purchase.ClickExpiry(c, rules.ClickWindow)
		}
	}
	switch sent := p.Kind == purchase.KindCheckout || rules.TrialEvent != ""; {
	case sent && p.Withheld != purchase.ReasonNone:
		p.Status, p.Reason = purchase.StatusSkipped, p.Withheld
	case sent && p.Kind == purchase.KindTrial:
		p.Status, p.Reason, p.EventName = purchase.StatusPending, purchase.ReasonNone, rules.TrialEvent
	}
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
