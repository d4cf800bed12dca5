// Package stripegen plays Stripe: it makes checkout events in the shape that Stripe sends, signs them with its own code and
// posts them, late, twice and out of order if asked to, again and again until they are taken; and it lists them as Stripe's
// API does. It shares no code with what it tests.
package stripegen

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"time"
)

// Checkout is one event about a checkout session. NewCheckout fills it with a plausible paid subscription; nil is what
// Stripe sends as null.
type Checkout struct {
	EventID, SessionID string
	Type, APIVersion   string
	Mode               string // subscription, payment, setup
	PaymentStatus      string // paid, unpaid, no_payment_required
	PaymentMethod      string // card, konbini, sepa_debit …; "" is card
	Livemode           bool
	Created            time.Time // of the event
	SessionCreated     time.Time // zero: a minute before the event
	AmountTotal        *int64
	Discount           int64 // total_details
	Tax, Shipping      int64 // total_details, parts of AmountTotal
	Currency           *string
	Email              *string // customer_details.email
	CustomerEmail      *string
	Name, Phone        *string
	Country            string
	City, State, Zip   string // "" is null
	Reference          string // client_reference_id; "" is null
	Locale             string // "" is null
	Customer           string
	ExpandedEmail      string // the customer is expanded, with this e-mail address
	Subscription       string
	Account            string // of a connected account: the event's top-level account
	Metadata           map[string]string
	Odd                map[string]any // more metadata, of any JSON type: Stripe sends texts alone
	NoDetails          bool           // customer_details is null
}

const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// ID makes an id of Stripe's form.
func ID(prefix string, length int) string {
	raw := make([]byte, length)
	_, _ = rand.Read(raw) // never fails
	for i, b := range raw {
		raw[i] = alphabet[int(b)%len(alphabet)]
	}
	return prefix + string(raw)
}

// NewCheckout makes a paid test-mode subscription with everything a well-run shop knows of its buyer.
func NewCheckout() Checkout {
	email := "buyer." + ID("", 8) + "@example.com"
	name, phone, currency, amount := "Sample Buyer", "+12133734253", "usd", int64(2999)
	click := "E.C.P." + ID("", 24)
	return Checkout{
		EventID: ID("evt_", 24), SessionID: ID("cs_test_a1", 56), Type: "checkout.session.completed", APIVersion: "2025-06-30.basil",
		Mode: "subscription", PaymentStatus: "paid", Created: time.Now().UTC().Truncate(time.Second),
		AmountTotal: &amount, Currency: &currency, Email: &email, Name: &name, Phone: &phone, Country: "US",
		Customer: ID("cus_", 14), Subscription: ID("sub_", 24),
		Metadata: map[string]string{
			"ttclid": click, "ttp": ID("", 27), "client_ip": "203.0.113.7",
			"user_agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15",
			"page_url":   "https://shop.example/checkout?ttclid=" + click, "referrer": "https://www.tiktok.com/",
		},
	}
}

// Live turns a checkout into one with real money.
func (c Checkout) Live() Checkout {
	c.Livemode, c.SessionID = true, ID("cs_live_a1", 56)
	return c
}

// Delayed turns a checkout into the completed one of a payment method whose money comes later, such as konbini,
// sepa_debit or us_bank_account. AsyncSucceeded or AsyncFailed makes the event that follows it.
func (c Checkout) Delayed(method string) Checkout {
	c.Type, c.PaymentMethod, c.PaymentStatus = "checkout.session.completed", method, "unpaid"
	return c
}

// AsyncSucceeded returns the event that Stripe makes so long after c when the money has come: another event about the
// same session, which is paid now.
func (c Checkout) AsyncSucceeded(after time.Duration) Checkout {
	return c.later(after, "checkout.session.async_payment_succeeded", "paid")
}

// AsyncFailed returns the event that Stripe makes so long after c when no money came: another event about the same
// session, which stays unpaid.
func (c Checkout) AsyncFailed(after time.Duration) Checkout {
	return c.later(after, "checkout.session.async_payment_failed", "unpaid")
}

func (c Checkout) later(after time.Duration, kind, status string) Checkout {
	c.SessionCreated = c.began()
	c.EventID, c.Created, c.Type, c.PaymentStatus = ID("evt_", 24), c.Created.Add(after), kind, status
	return c
}

// began is when the session was created: it stays the same in all events about it.
func (c Checkout) began() time.Time {
	if c.SessionCreated.IsZero() {
		return c.Created.Add(-time.Minute)
	}
	return c.SessionCreated
}

// Event returns the webhook's body, with the keys and nulls of a real one.
func (c Checkout) Event() []byte {
	return event(c.EventID, c.Type, c.APIVersion, c.Account, c.Created, c.Livemode, c.object())
}

// Thin returns the body of the thin event about the same: the session is left to be fetched. Its event id is
// another one, as Stripe's is where both kinds of destination exist.
func (c Checkout) Thin() []byte {
	return thin("v1."+c.Type, c.Account, c.Created, c.Livemode, "checkout.session", c.SessionID, sessionsPath+c.SessionID)
}

func (c Checkout) object() map[string]any {
	var customer any
	if customer = orNull(c.Customer); c.ExpandedEmail != "" {
		customer = map[string]any{"id": c.Customer, "object": "customer", "email": c.ExpandedEmail}
	}
	return map[string]any{
		"id": c.SessionID, "object": "checkout.session", "after_expiration": nil, "allow_promotion_codes": false,
		"amount_subtotal": c.AmountTotal, "amount_total": c.AmountTotal, "automatic_tax": map[string]any{"enabled": false, "liability": nil, "status": nil},
		"billing_address_collection": "auto", "cancel_url": "https://shop.example/cancel", "client_reference_id": orNull(c.Reference), "client_secret": nil,
		"consent": nil, "consent_collection": nil, "created": c.began().Unix(), "currency": c.Currency, "currency_conversion": nil,
		"custom_fields": []any{}, "customer": customer, "customer_creation": nil, "customer_details": c.details(),
		"customer_email": c.CustomerEmail, "expires_at": c.began().Add(24 * time.Hour).Unix(), "invoice": nil, "livemode": c.Livemode, "locale": orNull(c.Locale),
		"metadata": c.metadata(), "mode": c.Mode, "payment_intent": nil, "payment_link": nil,
		"payment_method_types": []string{cmp.Or(c.PaymentMethod, "card")}, "payment_status": c.PaymentStatus, "phone_number_collection": map[string]any{"enabled": true},
		"presentment_details": nil, "recovered_from": nil, "setup_intent": nil, "shipping_cost": nil, "shipping_options": []any{},
		"status": "complete", "submit_type": nil, "subscription": orNull(c.Subscription), "success_url": "https://shop.example/thanks",
		"total_details": map[string]any{"amount_discount": c.Discount, "amount_shipping": c.Shipping, "amount_tax": c.Tax}, "ui_mode": "hosted", "url": nil,
	}
}

// Where the stand-in for Stripe's API has the objects.
const (
	sessionsPath = "/v1/checkout/sessions/"
	invoicesPath = "/v1/invoices/"
)

func event(id, kind, version, account string, created time.Time, livemode bool, object map[string]any) []byte {
	all := map[string]any{
		"id": id, "object": "event", "api_version": version, "created": created.Unix(),
		"data": map[string]any{"object": object}, "livemode": livemode, "pending_webhooks": 1,
		"request": map[string]any{"id": nil, "idempotency_key": nil}, "type": kind,
	}
	if account != "" { // events of one's own have no such key
		all["account"] = account
	}
	return indent(all)
}

func thin(kind, account string, created time.Time, livemode bool, object, id, url string) []byte {
	return indent(map[string]any{
		"id": ID("evt_test_", 24), "object": "v2.core.event", "type": kind, "created": created.UTC().Format("2006-01-02T15:04:05.000Z07:00"),
		"livemode": livemode, "context": orNull(account), "reason": nil, "related_object": map[string]any{"id": id, "type": object, "url": url},
	})
}

func indent(all map[string]any) []byte {
	body, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		panic(err) // maps of plain values: cannot happen
	}
	return body
}

func (c Checkout) metadata() map[string]any {
	all := make(map[string]any, len(c.Metadata)+len(c.Odd))
	for key, value := range c.Metadata {
		all[key] = value
	}
	maps.Copy(all, c.Odd)
	return all
}

// Trial turns a subscription into one that begins with a trial: nothing to pay yet.
func (c Checkout) Trial() Checkout {
	nothing := int64(0)
	c.PaymentStatus, c.AmountTotal = "no_payment_required", &nothing
	return c
}

// Free turns a checkout into one that a discount makes free. Stripe calls it paid.
func (c Checkout) Free() Checkout {
	c.Discount, c.AmountTotal = 2999, new(int64(0))
	return c
}

// Invoice is an invoice.paid event of a subscription.
type Invoice struct {
	EventID, InvoiceID, Subscription, Customer string
	APIVersion                                 string
	Reason                                     string // billing_reason
	AmountPaid                                 int64
	Tax, Shipping                              int64 // parts of AmountPaid
	Account                                    string
	Currency                                   string
	Livemode                                   bool
	Created                                    time.Time // of the event
	PeriodStart, PeriodEnd                     time.Time // of the time that it looks back on
}

// Invoices makes the first n invoices of a trial's subscription, as Stripe does: one of nothing at its beginning, then, from the
// trial's end on, one with money a cycle. Each looks back on the time before it.
func (c Checkout) Invoices(trial, cycle time.Duration, n int) []Invoice {
	list := make([]Invoice, n)
	start, end := c.Created, c.Created
	for i := range list {
		in := Invoice{
			EventID: ID("evt_", 24), InvoiceID: ID("in_", 24), Subscription: c.Subscription, Customer: c.Customer, APIVersion: c.APIVersion,
			Reason: "subscription_cycle", AmountPaid: 2999, Currency: "usd", Livemode: c.Livemode, Created: end.Add(time.Hour), PeriodStart: start, PeriodEnd: end,
		}
		switch i {
		case 0:
			in.Reason, in.AmountPaid, in.Created = "subscription_create", 0, c.Created
			end = end.Add(trial)
		default:
			start, end = end, end.Add(cycle)
		}
		list[i] = in
	}
	return list
}

// EndsTrial turns an invoice into the one that ends a trial early: it is made then, and looks back on no
// time.
func (i Invoice) EndsTrial(at time.Time) Invoice {
	i.EventID, i.InvoiceID, i.Reason = ID("evt_", 24), ID("in_", 24), "subscription_update"
	i.Created, i.PeriodStart, i.PeriodEnd = at, at, at
	return i
}

// Manual turns an invoice into a small one that was made by hand at some time. Its period is what it looks
// back on.
func (i Invoice) Manual(at time.Time, amount int64) Invoice {
	i.EventID, i.InvoiceID, i.Reason, i.AmountPaid = ID("evt_", 24), ID("in_", 24), "manual", amount
	i.Created, i.PeriodEnd = at, at
	return i
}

// Event returns the webhook's body.
func (i Invoice) Event() []byte {
	return event(i.EventID, "invoice.paid", i.APIVersion, i.Account, i.Created, i.Livemode, i.object())
}

// Thin returns the body of the thin event about the same, with another event id.
func (i Invoice) Thin() []byte {
	return thin("v1.invoice.paid", i.Account, i.Created, i.Livemode, "invoice", i.InvoiceID, invoicesPath+i.InvoiceID)
}

// object has the subscription and the taxes where the API version has them: since 2025-03-31 in the invoice's
// parent, and in total_taxes.
func (i Invoice) object() map[string]any {
	object := map[string]any{
		"id": i.InvoiceID, "object": "invoice", "amount_due": i.AmountPaid, "amount_paid": i.AmountPaid, "amount_remaining": 0, "attempt_count": 1, "attempted": true,
		"billing_reason": i.Reason, "collection_method": "charge_automatically", "created": i.Created.Unix(), "currency": i.Currency, "customer": orNull(i.Customer),
		"customer_email": nil, "lines": map[string]any{"object": "list", "data": []any{}, "has_more": false}, "livemode": i.Livemode, "metadata": map[string]any{},
		"period_end": i.PeriodEnd.Unix(), "period_start": i.PeriodStart.Unix(), "status": "paid", "subtotal": i.AmountPaid, "total": i.AmountPaid,
	}
	if i.Shipping > 0 {
		object["shipping_cost"] = map[string]any{"amount_subtotal": i.Shipping, "amount_tax": 0, "amount_total": i.Shipping}
	}
	if i.APIVersion >= "2025-03-31" {
		object["total_taxes"] = []any{map[string]any{"amount": i.Tax, "tax_behavior": "exclusive", "type": "tax_rate_details"}}
		object["parent"] = map[string]any{
			"type": "subscription_details", "quote_details": nil, "subscription_details": map[string]any{"metadata": map[string]any{}, "subscription": i.Subscription},
		}
	} else {
		object["tax"], object["subscription"] = i.Tax, orNull(i.Subscription)
	}
	return object
}

func (c Checkout) details() any {
	if c.NoDetails {
		return nil
	}
	return map[string]any{
		"address": map[string]any{"city": orNull(c.City), "country": orNull(c.Country), "line1": nil, "line2": nil, "postal_code": orNull(c.Zip), "state": orNull(c.State)},
		"email":   c.Email, "name": c.Name, "phone": c.Phone, "tax_exempt": "none", "tax_ids": []any{},
	}
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// Sign returns the Stripe-Signature header of a body: scheme v1, HMAC-SHA256 over "<time>.<body>".
func Sign(body []byte, secret string, at time.Time) string {
	stamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(stamp + "."))
	mac.Write(body)
	return "t=" + stamp + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}

// Sender posts events to one endpoint.
type Sender struct {
	URL, Secret string
	Client      *http.Client     // nil: one with a timeout of 30 s
	Now         func() time.Time // nil: time.Now
}

// Answer is what the endpoint said.
type Answer struct {
	Status int
	Body   string
	Took   time.Duration
}

// Send posts a body once, signed now.
func (s *Sender) Send(ctx context.Context, body []byte) (Answer, error) {
	now := time.Now
	if s.Now != nil {
		now = s.Now
	}
	return s.Post(ctx, body, Sign(body, s.Secret, now()))
}

// Post posts a body once with any signature header.
func (s *Sender) Post(ctx context.Context, body []byte, signature string) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	req.Header.Set("User-Agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)")
	req.Header.Set("Stripe-Signature", signature)
	client := s.Client
	if client == nil {
		client = &http.Client{Timeout: 30 * time.Second}
	}
	began := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return Answer{}, err
	}
	return Answer{Status: resp.StatusCode, Body: string(bytes.TrimSpace(answer)), Took: time.Since(began)}, nil
}

// Deliver posts a body like Stripe does: again, signed anew, until the answer is 2xx; the wait doubles, up to 32 times the
// first one. After so many attempts, 1 at least, it gives up with an error and the last attempt's answer, whose Status is 0
// when there was none. When ctx ends, it returns its error and the last answer.
func (s *Sender) Deliver(ctx context.Context, body []byte, attempts int, wait time.Duration) (Answer, error) {
	for try := 0; ; try++ {
		answer, err := s.Send(ctx, body)
		switch {
		case err == nil && answer.Status/100 == 2:
			return answer, nil
		case try+1 < attempts:
		case err == nil:
			return answer, fmt.Errorf("not taken after %d attempts: %d %s", try+1, answer.Status, answer.Body)
		default:
			return answer, err
		}
		select {
		case <-ctx.Done():
			return answer, ctx.Err()
		case <-time.After(wait << min(try, 5)):
		}
	}
}
