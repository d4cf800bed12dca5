// Package stripegen plays Stripe: it makes checkout events in the shape that Stripe sends, signs them with its own code and
// posts them, again and again until they are taken. It shares no code with what it tests.
package stripegen

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
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
	Livemode           bool
	Created            time.Time
	AmountTotal        *int64
	Currency           *string
	Email              *string // customer_details.email
	CustomerEmail      *string
	Name, Phone        *string
	Country            string
	Customer           string
	Subscription       string
	Metadata           map[string]string
	NoDetails          bool // customer_details is null
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

// Event returns the webhook's body, with the keys and nulls of a real one.
func (c Checkout) Event() []byte {
	object := map[string]any{
		"id": c.SessionID, "object": "checkout.session", "after_expiration": nil, "allow_promotion_codes": false,
		"amount_subtotal": c.AmountTotal, "amount_total": c.AmountTotal, "automatic_tax": map[string]any{"enabled": false, "liability": nil, "status": nil},
		"billing_address_collection": "auto", "cancel_url": "https://shop.example/cancel", "client_reference_id": nil, "client_secret": nil,
		"consent": nil, "consent_collection": nil, "created": c.Created.Unix() - 60, "currency": c.Currency, "currency_conversion": nil,
		"custom_fields": []any{}, "customer": orNull(c.Customer), "customer_creation": nil, "customer_details": c.details(),
		"customer_email": c.CustomerEmail, "expires_at": c.Created.Unix() + 86400, "invoice": nil, "livemode": c.Livemode, "locale": nil,
		"metadata": c.Metadata, "mode": c.Mode, "payment_intent": nil, "payment_link": nil,
		"payment_method_types": []string{"card"}, "payment_status": c.PaymentStatus, "phone_number_collection": map[string]any{"enabled": true},
		"presentment_details": nil, "recovered_from": nil, "setup_intent": nil, "shipping_cost": nil, "shipping_options": []any{},
		"status": "complete", "submit_type": nil, "subscription": orNull(c.Subscription), "success_url": "https://shop.example/thanks",
		"total_details": map[string]any{"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0}, "ui_mode": "hosted", "url": nil,
	}
	if c.Metadata == nil {
		object["metadata"] = map[string]string{}
	}
	body, err := json.MarshalIndent(map[string]any{
		"id": c.EventID, "object": "event", "api_version": c.APIVersion, "created": c.Created.Unix(),
		"data": map[string]any{"object": object}, "livemode": c.Livemode, "pending_webhooks": 1,
		"request": map[string]any{"id": nil, "idempotency_key": nil}, "type": c.Type,
	}, "", "  ")
	if err != nil {
		panic(err) // maps of plain values: cannot happen
	}
	return body
}

func (c Checkout) details() any {
	if c.NoDetails {
		return nil
	}
	return map[string]any{
		"address": map[string]any{"city": nil, "country": orNull(c.Country), "line1": nil, "line2": nil, "postal_code": nil, "state": nil},
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

// Deliver posts a body like Stripe does: again, signed anew, until the answer is 2xx; the wait doubles. It gives up after
// so many attempts.
func (s *Sender) Deliver(ctx context.Context, body []byte, attempts int, wait time.Duration) (Answer, error) {
	var answer Answer
	var err error
	for try := range attempts {
		if answer, err = s.Send(ctx, body); err == nil && answer.Status/100 == 2 {
			return answer, nil
		}
		select {
		case <-ctx.Done():
			return answer, ctx.Err()
		case <-time.After(wait << min(try, 5)):
		}
	}
	if err == nil {
		err = fmt.Errorf("not taken after %d attempts: %d %s", attempts, answer.Status, answer.Body)
	}
	return answer, err
}
