// Package stripegen imitates Stripe: it generates events in Stripe's shape, signs and posts them as webhooks,
// delayed, duplicated and reordered on request, and serves a stand-in for Stripe's API. It shares no code
// with the product.
package stripegen

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"embed"
	"encoding/json"
	"maps"
	"strings"
	"text/template"
	"time"
)

const (
	idAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	amount     = 2999 // of a checkout and of an invoice
)

// ID returns a random id in Stripe's form.
func ID(prefix string, length int) string {
	id := make([]byte, length)
	_, _ = rand.Read(id) // never fails
	for i, b := range id {
		id[i] = idAlphabet[int(b)%len(idAlphabet)]
	}
	return prefix + string(id)
}

// event is what the events about all objects have in common.
type event struct {
	EventID, Type, APIVersion string
	Account                   string // connected account; "": the event has no such key
	Livemode                  bool
	Created                   time.Time
}

// snapshot returns the body of the event with the whole object.
func (e event) snapshot(object string) []byte {
	return indent(execute("event.json", struct {
		event
		Object string
	}{e, object}))
}

// thin returns the body of the thin event about the same change. It has an id of its own.
func (e event) thin(objectType, path, id string) []byte {
	return indent(execute("thin.json", struct {
		event
		ObjectType, ObjectID, URL string
	}{e, objectType, id, path + id}))
}

// Checkout is one event about a checkout session. A nil pointer becomes null, as does "" where possible.
type Checkout struct {
	event
	SessionID          string
	SessionCreated     time.Time // zero: a minute before the event
	Mode               string    // subscription, payment, setup
	PaymentStatus      string    // paid, unpaid, no_payment_required
	PaymentMethod      string    // such as konbini; "": card
	AmountTotal        *int64
	Currency           *string
	Discount           int64
	Tax, Shipping      int64 // parts of AmountTotal
	Subscription       string
	Customer           string
	ExpandedEmail      string // not "": the customer is expanded and has this address
	CustomerEmail      *string
	NoDetails          bool // customer_details is null
	Email, Name, Phone *string
	Country            string
	City, State, Zip   string
	Reference          string // client_reference_id
	Locale             string
	SuccessURL         string
	Metadata           map[string]string
	Odd                map[string]any // metadata of types that Stripe does not send
}

// NewCheckout returns a paid test-mode subscription with all match keys.
func NewCheckout() Checkout {
	click := "E.C.P." + ID("", 24)
	return Checkout{
		event: event{
			EventID: ID("evt_", 24), Type: "checkout.session.completed", APIVersion: "2025-06-30.basil",
			Created: time.Now().UTC().Truncate(time.Second),
		},
		SessionID: ID("cs_test_a1", 56), Mode: "subscription", PaymentStatus: "paid",
		AmountTotal: new(int64(amount)), Currency: new("usd"),
		Subscription: ID("sub_", 24), Customer: ID("cus_", 14),
		Email: new("buyer." + ID("", 8) + "@example.com"), Name: new("Sample Buyer"), Phone: new("+12133734253"),
		Country: "US", SuccessURL: "https://shop.example/thanks",
		Metadata: map[string]string{
			"ttclid": click, "ttp": ID("", 27), "client_ip": "203.0.113.7",
			"user_agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15",
			"page_url":   "https://shop.example/checkout?ttclid=" + click, "referrer": "https://www.tiktok.com/",
		},
	}
}

// Live returns c in live mode, under another session id.
func (c Checkout) Live() Checkout {
	c.Livemode, c.SessionID = true, ID("cs_live_a1", 56)
	return c
}

// Trial returns c as the start of a trial: nothing to pay yet.
func (c Checkout) Trial() Checkout {
	c.PaymentStatus, c.AmountTotal = "no_payment_required", new(int64(0))
	return c
}

// Free returns c with a discount of the whole amount. Stripe calls it paid.
func (c Checkout) Free() Checkout {
	c.Discount, c.AmountTotal = amount, new(int64(0))
	return c
}

// Delayed returns c as completed but unpaid, with a delayed payment method such as konbini. AsyncSucceeded or
// AsyncFailed returns the event that follows.
func (c Checkout) Delayed(method string) Checkout {
	c.Type, c.PaymentMethod, c.PaymentStatus = "checkout.session.completed", method, "unpaid"
	return c
}

// AsyncSucceeded returns the later event about the same session: the payment succeeded.
func (c Checkout) AsyncSucceeded(after time.Duration) Checkout {
	return c.next(after, "checkout.session.async_payment_succeeded", "paid")
}

// AsyncFailed returns the later event about the same session: the payment failed.
func (c Checkout) AsyncFailed(after time.Duration) Checkout {
	return c.next(after, "checkout.session.async_payment_failed", "unpaid")
}

func (c Checkout) next(after time.Duration, eventType, status string) Checkout {
	c.SessionCreated = c.sessionCreated()
	c.EventID, c.Created, c.Type, c.PaymentStatus = ID("evt_", 24), c.Created.Add(after), eventType, status
	return c
}

func (c Checkout) sessionCreated() time.Time {
	if c.SessionCreated.IsZero() {
		return c.Created.Add(-time.Minute)
	}
	return c.SessionCreated
}

// Event returns the body of the webhook.
func (c Checkout) Event() []byte {
	c.SessionCreated, c.PaymentMethod = c.sessionCreated(), cmp.Or(c.PaymentMethod, "card")
	return c.snapshot(execute("session.json", c))
}

// Thin returns the body of the webhook to a destination with thin payloads.
func (c Checkout) Thin() []byte {
	return c.thin("checkout.session", "/v1/checkout/sessions/", c.SessionID)
}

// Invoice is an invoice.paid event of a subscription.
type Invoice struct {
	event
	InvoiceID, Subscription, Customer string
	Reason                            string // billing_reason
	AmountPaid                        int64
	Tax, Shipping                     int64     // parts of AmountPaid
	PeriodStart, PeriodEnd            time.Time // the time before the invoice
}

// Invoices returns the first n invoices of a trial's subscription: one of 0 when the trial starts, then a
// paid one when it ends and after each cycle.
func (c Checkout) Invoices(trial, cycle time.Duration, n int) []Invoice {
	first := Invoice{
		event: c.event, InvoiceID: ID("in_", 24), Subscription: c.Subscription, Customer: c.Customer,
		Reason: "subscription_create", PeriodStart: c.Created, PeriodEnd: c.Created,
	}
	first.EventID, first.Type = ID("evt_", 24), "invoice.paid"
	list := []Invoice{first}
	for length := trial; len(list) < n; length = cycle {
		next := list[len(list)-1]
		next.EventID, next.InvoiceID = ID("evt_", 24), ID("in_", 24)
		next.Reason, next.AmountPaid = "subscription_cycle", amount
		next.PeriodStart, next.PeriodEnd = next.PeriodEnd, next.PeriodEnd.Add(length)
		next.Created = next.PeriodEnd.Add(time.Hour)
		list = append(list, next)
	}
	return list
}

// EndsTrial returns the invoice that ends a trial early. Its period is empty.
func (i Invoice) EndsTrial(at time.Time) Invoice {
	i.EventID, i.InvoiceID, i.Reason = ID("evt_", 24), ID("in_", 24), "subscription_update"
	i.Created, i.PeriodStart, i.PeriodEnd = at, at, at
	return i
}

// Manual returns an invoice that the merchant issues by hand during the same period.
func (i Invoice) Manual(at time.Time, amountPaid int64) Invoice {
	i.EventID, i.InvoiceID, i.Reason, i.AmountPaid = ID("evt_", 24), ID("in_", 24), "manual", amountPaid
	i.Created, i.PeriodEnd = at, at
	return i
}

// Event returns the body of the webhook.
func (i Invoice) Event() []byte { return i.snapshot(execute("invoice.json", i)) }

// Thin returns the body of the webhook to a destination with thin payloads.
func (i Invoice) Thin() []byte { return i.thin("invoice", "/v1/invoices/", i.InvoiceID) }

//go:embed templates
var templateFiles embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"id": ID, "json": toJSON, "orNull": orNull, "merge": merge,
}).ParseFS(templateFiles, "templates/*"))

func execute(name string, data any) string {
	var text strings.Builder
	if err := templates.ExecuteTemplate(&text, name, data); err != nil {
		panic(err) // a mistake in the template
	}
	return text.String()
}

func indent(text string) []byte {
	var body bytes.Buffer
	if err := json.Indent(&body, []byte(strings.TrimSpace(text)), "", "  "); err != nil {
		panic(err) // a mistake in the template
	}
	return body.Bytes()
}

func toJSON(value any) (string, error) {
	text, err := json.Marshal(value)
	return string(text), err
}

func orNull(s string) (string, error) {
	if s == "" {
		return "null", nil
	}
	return toJSON(s)
}

func merge(texts map[string]string, others map[string]any) map[string]any {
	all := map[string]any{}
	for key, value := range texts {
		all[key] = value
	}
	maps.Copy(all, others)
	return all
}
