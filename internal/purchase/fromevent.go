package purchase

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"time"
)

// Decision is what is to be done with an event.
type Decision string

// The decisions.
const (
	DecisionIgnore  Decision = "ignore"  // its type or its checkout mode does not count
	DecisionForeign Decision = "foreign" // it belongs to a connected account that does not count
	DecisionFetch   Decision = "fetch"   // it is thin: its object must be fetched first
	DecisionRecord  Decision = "record"  // the purchase is to be recorded
)

// The causes of a malformed event.
var (
	errNoType     = errors.New("event without a type")
	errNoCheckout = errors.New("checkout event without a session object with a usable id in data.object")
	errNoInvoice  = errors.New("invoice event without an invoice object with a usable id in data.object")
)

// FromEvent decides what an event means and, for DecisionRecord, returns the purchase in the state that the
// event proposes. The ledger decides whether that state moves the purchase forward (Advances). An
// error means that the event is malformed; repeating it cannot help.
func FromEvent(event Event, rules Rules, received time.Time) (Purchase, Decision, error) {
	switch {
	case event.Type == "":
		return Purchase{}, "", errNoType
	case !slices.Contains(rules.Types(), event.Type):
		return Purchase{}, DecisionIgnore, nil
	case event.Account != "" && !rules.Accounts.Contain(event.Account):
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
		AmountMinor: rules.Value.OfCheckout(c), Currency: validCurrency(c.Currency),
		Customer: validID(c.Customer), Subscription: validID(c.Subscription),
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

// paymentState returns the state of a checkout's payment. The amount decides before payment_status: a
// checkout of 0 is no sale, even where Stripe calls it paid. Only "paid" counts as money; an unknown
// payment_status stays visible as unpaid.
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

// addMatchKeys adds match keys and contents. Of a buyer who gave no consent or is staff none is kept, and an
// event that would be sent is skipped.
func addMatchKeys(p *Purchase, c *Checkout, rules Rules) {
	switch {
	case !rules.Consent.Given(c):
		p.Withheld = ReasonNoConsent
	case rules.Staff.Contain(p.Email):
		p.Withheld = ReasonInternal
	default:
		var dropped []Dropped
		p.Keys, p.Dropped = NewMatchKeys(p.Email, c)
		p.Content, dropped = NewContent(p.Email, c)
		p.Dropped = append(p.Dropped, dropped...)
		p.LimitedDataUse = Limited(c)
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
	case !i.MayBeFirst():
		return Purchase{}, DecisionIgnore, nil
	}
	return Purchase{
		ID: i.ID, Kind: KindFirstPayment, Status: StatusPending, Mode: modeSubscription, Livemode: event.Livemode,
		At: paidAt(event, received), AmountMinor: rules.Value.OfInvoice(i), Currency: validCurrency(i.Currency),
		Customer: validID(i.Customer), Subscription: i.Subscription, PeriodStart: i.LooksBackTo(),
	}, DecisionRecord, nil
}

// paidAt returns the event's own time. A time after the receipt becomes the receipt's: it is a test clock's
// or our clock is slow, and TikTok refuses future times.
func paidAt(event Event, received time.Time) time.Time {
	if event.Created.IsZero() || event.Created.After(received) {
		return received.UTC().Truncate(time.Second)
	}
	return event.Created
}

// validCurrency returns a currency code in lower case, "" where it has another form.
func validCurrency(code string) string {
	if ValidCurrency(code) {
		return strings.ToLower(code)
	}
	return ""
}

// validID returns an id, "" where it is unusable.
func validID(id string) string {
	if ValidID(id) {
		return id
	}
	return ""
}
