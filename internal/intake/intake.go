// Package intake is step 1: a verified event of Stripe becomes a purchase, is recorded once together with the
// customer's profile, and is answered 200 after the commit, never before.
//
// Its promise: a webhook answered 200 is on the ledger. Nothing here waits for the queue or for TikTok.
package intake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
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
	Modes        map[string]bool     // the checkout modes that count
	Consent      purchase.Consent    // before anything is sent
	Staff        purchase.Domains    // the merchant's own: what they buy is no sale
	TrialEvent   string              // the event that a trial is sent as; "": it is skipped
	FirstPayment bool                // the first invoice with money after a trial is a purchase
	Value        purchase.ValueBasis // which part of a payment is its value
	Accounts     Accounts            // connected accounts whose sales count beside the endpoint's own
	ClickWindow  time.Duration       // a click id that is older at the purchase counts as late; 0: none does
}

// errNoInvoice refuses an event about an invoice that has none to speak of.
var errNoInvoice = errors.New("an event about an invoice without an invoice object and a usable id in data.object")

// Propose returns the purchase in the state that an event proposes, and whether the event concerns us at all.
// It is a pure function; whether the state moves anything forward is decided against the ledger
// (purchase.Advances, purchase.Subscription). The error says that the event is malformed.
func Propose(e purchase.Event, rules Rules, received time.Time) (p purchase.Purchase, ours bool, err error) {
	switch {
	case !rules.Counts(e.Type), rules.Foreign(e):
		return p, false, nil
	case e.Type == purchase.TypeInvoicePaid:
		return rules.payment(e, received)
	}
	return rules.checkout(e, received)
}

// Counts reports whether events of a type may concern a purchase.
func (rules *Rules) Counts(eventType string) bool { return slices.Contains(rules.Types(), eventType) }

// Foreign reports whether an event is of a connected account whose sales do not count.
func (rules *Rules) Foreign(e purchase.Event) bool {
	return e.Account != "" && !rules.Accounts.Hold(e.Account)
}

// payment proposes a first payment.
func (rules *Rules) payment(e purchase.Event, received time.Time) (p purchase.Purchase, ours bool, err error) {
	i := e.Invoice
	switch {
	case i == nil || !purchase.ValidID(i.ID):
		return p, false, errNoInvoice
	case !i.MayBeFirst():
		return p, false, nil
	}
	p = purchase.Purchase{
		ID: i.ID, Kind: purchase.KindFirstPayment, Status: purchase.StatusPending, Mode: "subscription", Livemode: e.Livemode,
		At: timeOf(e, received), Customer: validOrNone(i.Customer), Subscription: i.Subscription,
		AmountMinor: rules.Value.OfInvoice(i), Currency: currencyOf(i.Currency), PeriodStart: i.LooksBackTo(),
	}
	return p, true, nil
}

// timeOf is an event's own time. One ahead of our clock is clamped to the receipt: a test clock's, or our
// clock is slow, and TikTok refuses times of the future.
func timeOf(e purchase.Event, received time.Time) time.Time {
	if e.Created.IsZero() || e.Created.After(received) {
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
		Customer: validOrNone(c.Customer), Subscription: validOrNone(c.Subscription), AmountMinor: rules.Value.OfCheckout(c),
	}
	p.Status, p.Reason = proposedStatus(e.Type, c)
	if p.Status == purchase.StatusAwaitingPayment || p.Status == purchase.StatusPaymentFailed {
		return p, true, nil
	}
	p.At = timeOf(e, received)
	for _, email := range []string{c.Email, c.CustomerEmail, c.ExpandedEmail} {
		if p.Email == "" {
			p.Email = purchase.NormaliseEmail(email)
		}
	}
	if p.Reason == purchase.ReasonNoPayment && c.Mode == "subscription" {
		if c.Discount == nil || *c.Discount == 0 {
			p.Kind = purchase.KindTrial
		}
		p.Trial = rules.FirstPayment && p.Subscription != ""
		p.PeriodStart = cmp.Or(e.Created, p.At)
	}
	if p.Email == "" {
		p.Status, p.Reason, p.Trial = purchase.StatusRejected, purchase.ReasonInvalidEmail, false
		return p, true, nil
	}
	rules.gate(&p, c)
	return p, true, nil
}

// gate decides whether a purchase is sent, and with what. Of one that must not be sent no match key is kept
// at all.
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
	switch sent := p.Status == purchase.StatusPending || p.Kind == purchase.KindTrial && rules.TrialEvent != ""; {
	case sent && p.Withheld != purchase.ReasonNone:
		p.Status, p.Reason = purchase.StatusSkipped, p.Withheld
	case sent && p.Kind == purchase.KindTrial:
		p.Status, p.Reason, p.EventName = purchase.StatusPending, purchase.ReasonNone, rules.TrialEvent
	}
}

// proposedStatus reads the payment's state. Money decides before Stripe's word: a checkout of nothing is no
// sale, also where it is called paid. Of the words only "paid" counts as money: a payment_status that is not
// known to us waits visibly, like an unpaid one.
func proposedStatus(eventType string, c *purchase.Checkout) (purchase.Status, purchase.Reason) {
	switch {
	case eventType == purchase.TypeAsyncFailed:
		return purchase.StatusPaymentFailed, purchase.ReasonNone
	case c.Free():
		return purchase.StatusSkipped, purchase.ReasonNoPayment
	case eventType == purchase.TypeAsyncSucceeded, c.PaymentStatus == "paid":
		return purchase.StatusPending, purchase.ReasonNone
	case c.PaymentStatus == "no_payment_required":
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

// Accounts are the connected accounts whose sales count; All: every one's.
type Accounts struct {
	All   bool
	named map[string]bool
}

// Hold reports whether an account's sales count.
func (a Accounts) Hold(account string) bool { return a.All || a.named[account] }

// ParseAccounts reads CONNECT_ACCOUNTS: ids of the form acct_…, or all.
func ParseAccounts(list []string) (Accounts, error) {
	a := Accounts{named: make(map[string]bool, len(list))}
	for _, account := range list {
		account = strings.TrimSpace(account)
		switch rest, ok := strings.CutPrefix(account, "acct_"); {
		case account == "":
		case account == "all":
			a.All = true
		case !ok || !purchase.ValidID(rest):
			return Accounts{}, fmt.Errorf("%.100q is neither an account acct_… nor all", account)
		default:
			a.named[account] = true
		}
	}
	if a.All && len(a.named) > 0 {
		return Accounts{}, errors.New("all stands alone, without further accounts")
	}
	return a, nil
}

func validOrNone(id string) string {
	if purchase.ValidID(id) {
		return id
	}
	return ""
}
