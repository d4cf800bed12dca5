// Package stripegen imitates Stripe: it generates events in Stripe's shape, signs and posts them as webhooks,
// delayed, duplicated and reordered on request, and serves a stand-in for Stripe's API. It shares no code
// with the product.
package stripegen

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"maps"
	"strings"
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

// fields are those of an object in JSON.
type fields = map[string]any

// snapshot returns the body of the event with the whole object.
func (e event) snapshot(object fields) []byte {
	body := fields{
		"id": e.EventID, "object": "event", "api_version": e.APIVersion, "created": e.Created.Unix(),
		"data": fields{"object": object}, "livemode": e.Livemode, "pending_webhooks": 1,
		"request": fields{"id": nil, "idempotency_key": nil}, "type": e.Type,
	}
	if e.Account != "" {
		body["account"] = e.Account
	}
	return encode(body)
}

// thin returns the body of the thin event about the same change. It has an id of its own.
func (e event) thin(objectType, path, id string) []byte {
	return encode(fields{
		"id": ID("evt_test_", 24), "object": "v2.core.event", "context": orNull(e.Account),
		"created": e.Created.UTC().Format("2006-01-02T15:04:05.000Z07:00"), "livemode": e.Livemode, "reason": nil,
		"related_object": fields{"id": id, "type": objectType, "url": path + id}, "type": "v1." + e.Type,
	})
}

// encode returns JSON with Stripe's indentation.
func encode(v any) []byte {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic(err) // a value in Checkout.Odd that JSON cannot hold
	}
	return text
}

// orNull returns a string, or null for the empty one.
func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// Checkout is one event about a checkout session. A nil pointer becomes null, as does "" where possible.
type Checkout struct {
	event
	SessionID          string
	sessionCreated     time.Time // zero: a minute before the event
	Mode               string    // subscription, payment, setup
	PaymentStatus      string    // paid, unpaid, no_payment_required
	paymentMethod      string    // such as konbini; "": card
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
	c.Type, c.paymentMethod, c.PaymentStatus = "checkout.session.completed", method, "unpaid"
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
	c.sessionCreated = cmp.Or(c.sessionCreated, c.Created.Add(-time.Minute))
	c.EventID, c.Created, c.Type, c.PaymentStatus = ID("evt_", 24), c.Created.Add(after), eventType, status
	return c
}

// Event returns the body of the webhook.
func (c Checkout) Event() []byte {
	created := cmp.Or(c.sessionCreated, c.Created.Add(-time.Minute))
	customer, metadata := orNull(c.Customer), fields{}
	if c.ExpandedEmail != "" {
		customer = fields{"id": c.Customer, "object": "customer", "email": c.ExpandedEmail}
	}
	for key, value := range c.Metadata {
		metadata[key] = value
	}
	maps.Copy(metadata, c.Odd)
	details := fields{
		"address": fields{
			"city": orNull(c.City), "country": orNull(c.Country), "line1": nil, "line2": nil,
			"postal_code": orNull(c.Zip), "state": orNull(c.State),
		},
		"email": c.Email, "name": c.Name, "phone": c.Phone, "tax_exempt": "none", "tax_ids": []string{},
	}
	if c.NoDetails {
		details = nil
	}
	session := fields{
		"id": c.SessionID, "object": "checkout.session", "livemode": c.Livemode, "mode": c.Mode,
		"status": "complete", "payment_status": c.PaymentStatus, "currency": c.Currency,
		"amount_subtotal": c.AmountTotal, "amount_total": c.AmountTotal, "total_details": fields{
			"amount_discount": c.Discount, "amount_shipping": c.Shipping, "amount_tax": c.Tax,
		},
		"payment_method_types": []string{cmp.Or(c.paymentMethod, "card")}, "subscription": orNull(c.Subscription),
		"customer": customer, "customer_details": details, "customer_email": c.CustomerEmail,
		"client_reference_id": orNull(c.Reference), "locale": orNull(c.Locale), "metadata": metadata,
		"created": created.Unix(), "expires_at": created.AddDate(0, 0, 1).Unix(), "success_url": c.SuccessURL,
		"cancel_url": "https://shop.example/cancel", "allow_promotion_codes": false, "ui_mode": "hosted",
		"automatic_tax":              fields{"enabled": false, "liability": nil, "status": nil},
		"billing_address_collection": "auto", "phone_number_collection": fields{"enabled": true},
		"custom_fields": []string{}, "shipping_options": []string{},
	}
	for name := range strings.FieldsSeq("after_expiration client_secret consent consent_collection " +
		"currency_conversion customer_creation invoice payment_intent payment_link presentment_details " +
		"recovered_from setup_intent shipping_cost submit_type url") {
		session[name] = nil
	}
	return c.snapshot(session)
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
		last := list[len(list)-1]
		last.PeriodStart = last.PeriodEnd
		end := last.PeriodEnd.Add(length)
		list = append(list, last.next("subscription_cycle", amount, end, end.Add(time.Hour)))
	}
	return list
}

// next returns another invoice of the subscription, whose period began with that of i.
func (i Invoice) next(reason string, amountPaid int64, periodEnd, created time.Time) Invoice {
	i.EventID, i.InvoiceID, i.Reason, i.AmountPaid = ID("evt_", 24), ID("in_", 24), reason, amountPaid
	i.PeriodEnd, i.Created = periodEnd, created
	return i
}

// EndsTrial returns the invoice that ends a trial early. Its period is empty.
func (i Invoice) EndsTrial(at time.Time) Invoice {
	i.PeriodStart = at
	return i.next("subscription_update", i.AmountPaid, at, at)
}

// Manual returns an invoice that the merchant issues by hand during the same period.
func (i Invoice) Manual(at time.Time, amountPaid int64) Invoice {
	return i.next("manual", amountPaid, at, at)
}

// Event returns the body of the webhook.
func (i Invoice) Event() []byte {
	invoice := fields{
		"id": i.InvoiceID, "object": "invoice", "livemode": i.Livemode, "created": i.Created.Unix(),
		"amount_due": i.AmountPaid, "amount_paid": i.AmountPaid, "amount_remaining": 0, "subtotal": i.AmountPaid,
		"total": i.AmountPaid, "currency": "usd", "attempt_count": 1, "attempted": true, "status": "paid",
		"billing_reason": i.Reason, "collection_method": "charge_automatically", "metadata": fields{},
		"customer": orNull(i.Customer), "customer_email": nil, "shipping_cost": nil,
		"lines":        fields{"object": "list", "data": []string{}, "has_more": false},
		"period_start": i.PeriodStart.Unix(), "period_end": i.PeriodEnd.Unix(),
	}
	if i.APIVersion < "2025-03-31" {
		invoice["subscription"], invoice["tax"] = orNull(i.Subscription), i.Tax
	} else {
		details := fields{"metadata": fields{}, "subscription": i.Subscription}
		invoice["parent"] = fields{"type": "subscription_details", "subscription_details": details}
		invoice["total_taxes"] = []fields{{"amount": i.Tax, "tax_behavior": "exclusive"}}
	}
	if i.Shipping != 0 {
		invoice["shipping_cost"] = fields{"amount_subtotal": i.Shipping, "amount_total": i.Shipping}
	}
	return i.snapshot(invoice)
}

// Thin returns the body of the webhook to a destination with thin payloads.
func (i Invoice) Thin() []byte { return i.thin("invoice", "/v1/invoices/", i.InvoiceID) }
