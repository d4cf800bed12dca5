package purchase

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"time"
)

// Decision is what to do with an event.
type Decision string

// The decisions.
const (
	DecisionIgnore  Decision = "ignore"  // its type or checkout mode is not configured
	DecisionForeign Decision = "foreign" // its connected account is not configured
	DecisionFetch   Decision = "fetch"   // it is thin: fetch its object first
	DecisionRecord  Decision = "record"
)

// The errors of FromEvent.
var (
	errNoType     = errors.New("event has no type")
	errNoCheckout = errors.New("data.object is not a checkout session with a valid id")
	errNoInvoice  = errors.New("data.object is not an invoice with a valid id")
)

// FromEvent decides what to do with an event. For DecisionRecord it returns the purchase in the state that
// the event proposes; the ledger applies that state if it Advances the purchase. An error means a malformed
// event: a retry cannot succeed.
func FromEvent(event Event, rules Rules, received time.Time) (Purchase, Decision, error) {
	switch {
	case event.Type == "":
		return Purchase{}, "", errNoType
	case !slices.Contains(rules.Types(), event.Type):
		return Purchase{}, DecisionIgnore, nil
	case event.Account != "" && !rules.Accounts.Contains(event.Account):
		return Purchase{}, DecisionForeign, nil
	case event.Thin:
		return Purchase{}, DecisionFetch, nil
	case event.Type == TypeInvoicePaid:
		return fromInvoice(event, rules, received)
	}
	return fromCheckout(event, rules, received)
}

func fromCheckout(event Event, rules Rules, received time.Time) (Purchase, Decision, error) {
	c := event.Checkout
	switch {
	case c == nil:
		return Purchase{}, "", errNoCheckout
	case !rules.Modes[c.Mode]:
		return Purchase{}, DecisionIgnore, nil
	case !ValidID(c.ID):
		return Purchase{}, "", errNoCheckout
	}
	p := Purchase{
		ID: c.ID, Kind: KindCheckout, Mode: c.Mode, Livemode: event.Livemode,
		AmountMinor: rules.Value.CheckoutAmount(c), Currency: currencyOrEmpty(c.Currency),
		Customer: idOrEmpty(c.Customer), Subscription: idOrEmpty(c.Subscription),
		Payment: cmp.Or(idOrEmpty(c.PaymentIntent), idOrEmpty(c.Invoice)),
	}
	p.Status, p.Reason = paymentState(event.Type, c)
	if p.Status == StatusAwaitingPayment || p.Status == StatusPaymentFailed {
		return p, DecisionRecord, nil
	}
	p.At = paidAt(event, received)
	if p.Reason == ReasonNoPayment && c.Mode == modeSubscription {
		if c.Discount == nil || *c.Discount == 0 {
			p.Kind = KindTrial
		}
		p.Trial = rules.FirstPayment && p.Subscription != ""
		p.PeriodStart = cmp.Or(event.Created, p.At)
	}
	p.Email = cmp.Or(NormaliseEmail(c.Email), NormaliseEmail(c.CustomerEmail), NormaliseEmail(c.ExpandedEmail))
	if p.Email == "" {
		p.Status, p.Reason, p.Trial = StatusRejected, ReasonInvalidEmail, false
		return p, DecisionRecord, nil
	}
	addMatchKeys(&p, c, rules)
	return p, DecisionRecord, nil
}

// paymentState returns the state of a checkout's payment. The amount precedes payment_status: Stripe reports
// some free checkouts as paid. An unknown payment_status counts as unpaid, which remains visible.
func paymentState(eventType string, c *Checkout) (Status, Reason) {
	switch {
	case eventType == TypeAsyncFailed:
		return StatusPaymentFailed, ReasonNone
	case c.Free():
		return StatusSkipped, ReasonNoPayment
	case eventType == TypeAsyncSucceeded, c.PaymentStatus == "paid":
		return StatusPending, ReasonNone
	case c.PaymentStatus == "no_payment_required":
		return StatusSkipped, ReasonNoPayment
	default:
		return StatusAwaitingPayment, ReasonNone
	}
}

// addMatchKeys adds match keys and contents. Without consent, and for staff, it adds none and skips a
// purchase that would be sent.
func addMatchKeys(p *Purchase, c *Checkout, rules Rules) {
	switch {
	case !rules.Consent.Given(c):
		p.Withheld = ReasonNoConsent
	case rules.Staff.Contains(p.Email):
		p.Withheld = ReasonInternal
	default:
		var dropped []Dropped
		p.Keys, p.Dropped = NewMatchKeys(p.Email, c)
		p.Content, dropped = NewContent(p.Email, c)
		p.Dropped = append(p.Dropped, dropped...)
		p.LimitedDataUse = LimitsDataUse(c)
		if rules.ClickWindow > 0 {
			p.ClickExpires = ClickExpiry(c, rules.ClickWindow)
		}
	}
	sentTrial := p.Kind == KindTrial && rules.TrialEvent != ""
	switch {
	case p.Status != StatusPending && !sentTrial:
	case p.Withheld != ReasonNone:
		p.Status, p.Reason = StatusSkipped, p.Withheld
	case sentTrial:
		p.Status, p.Reason, p.EventName = StatusPending, ReasonNone, rules.TrialEvent
	}
}

func fromInvoice(event Event, rules Rules, received time.Time) (Purchase, Decision, error) {
	i := event.Invoice
	switch {
	case i == nil || !ValidID(i.ID):
		return Purchase{}, "", errNoInvoice
	case !i.MayBeFirstPayment():
		return Purchase{}, DecisionIgnore, nil
	}
	return Purchase{
		ID: i.ID, Kind: KindFirstPayment, Status: StatusPending, Mode: modeSubscription, Livemode: event.Livemode,
		At: paidAt(event, received), PeriodStart: i.PreviousPeriodStart(),
		AmountMinor: rules.Value.InvoiceAmount(i), Currency: currencyOrEmpty(i.Currency),
		Customer: idOrEmpty(i.Customer), Subscription: i.Subscription,
	}, DecisionRecord, nil
}

// paidAt returns the event's own time, at most the time of receipt. Stripe's test clocks run ahead, and
// TikTok rejects future times.
func paidAt(event Event, received time.Time) time.Time {
	if event.Created.IsZero() || event.Created.After(received) {
		return received.UTC().Truncate(time.Second)
	}
	return event.Created
}

// currencyOrEmpty returns a currency code in lower case, or "" if it is malformed.
func currencyOrEmpty(code string) string {
	if ValidCurrency(code) {
		return strings.ToLower(code)
	}
	return ""
}

// idOrEmpty returns id, or "" if it is invalid.
func idOrEmpty(id string) string {
	if ValidID(id) {
		return id
	}
	return ""
}
