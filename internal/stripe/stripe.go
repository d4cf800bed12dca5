// Package stripe is the client of Stripe: it verifies and decodes webhooks, lists events, fetches the objects
// of thin events, and reads and creates webhook endpoints. No other package imports stripe-go.
package stripe

import (
	"bytes"
	"cmp"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"
	"github.com/tidwall/gjson"

	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
)

// Tolerance is the maximum difference between a signature's timestamp and now, as in Stripe's libraries.
const Tolerance = 300 * time.Second

// Webhook verifies and decodes webhook bodies. It is safe for concurrent use.
type Webhook struct {
	secrets atomic.Pointer[[]secret.String]
	now     func() time.Time
}

// ParseSecrets splits a comma-separated list of signing secrets. problems lists empty secrets, which would
// accept a body signed with the empty key, and malformed ones. It does not contain their values.
func ParseSecrets(list secret.String) (secrets []secret.String, problems []string) {
	for part := range strings.SplitSeq(list.Reveal(), ",") {
		part = strings.TrimSpace(part)
		switch {
		case part == "":
			problems = append(problems, "a signing secret is empty")
		case !strings.HasPrefix(part, "whsec_") || part == "whsec_" || strings.ContainsFunc(part, notGraphic):
			problems = append(problems, "a signing secret does not look like whsec_…")
		default:
			secrets = append(secrets, secret.String(part))
		}
	}
	return secrets, problems
}

// notGraphic reports whether no secret contains r: lines of a file that should be a list, or a cut write.
func notGraphic(r rune) bool { return r <= ' ' || r > '~' }

// NewWebhook returns a Webhook that accepts a signature by any of the secrets, for a rotation or for a live
// and a test endpoint.
func NewWebhook(secrets []secret.String, now func() time.Time) *Webhook {
	w := &Webhook{now: now}
	w.SetSecrets(secrets)
	return w
}

// SetSecrets replaces the secrets. A concurrent Verify uses the old ones or the new ones.
func (w *Webhook) SetSecrets(secrets []secret.String) {
	usable := slices.DeleteFunc(slices.Clone(secrets), func(s secret.String) bool { return s == "" })
	w.secrets.Store(&usable)
}

// The errors of Verify, as values of a log field.
var (
	ErrMissing   = errors.New("missing")
	ErrMalformed = errors.New("malformed")
	ErrWrong     = errors.New("wrong")
	ErrStale     = errors.New("stale")
	ErrFuture    = errors.New("from the future")
)

// Verify checks the Stripe-Signature header of an unmodified body.
func (w *Webhook) Verify(body []byte, header string) error {
	cause := ErrWrong
	for _, s := range *w.secrets.Load() {
		err := webhook.ValidatePayloadWithTolerance(body, header, s.Reveal(), Tolerance)
		switch {
		case err == nil:
			return w.checkFuture(header)
		case errors.Is(err, webhook.ErrNotSigned):
			return ErrMissing
		case errors.Is(err, webhook.ErrTooOld):
			return ErrStale
		case errors.Is(err, webhook.ErrInvalidHeader):
			cause = ErrMalformed
		}
	}
	return cause
}

// checkFuture rejects a timestamp in the future. The library accepts it, and the signature could be replayed
// until then.
func (w *Webhook) checkFuture(header string) error {
	for part := range strings.SplitSeq(header, ",") {
		stamp, ok := strings.CutPrefix(part, "t=")
		if !ok {
			continue
		}
		seconds, err := strconv.ParseInt(stamp, 10, 64)
		if err != nil {
			return ErrMalformed
		}
		if time.Unix(seconds, 0).After(w.now().Add(Tolerance)) {
			return ErrFuture
		}
	}
	return nil
}

// ErrNotEvent is returned for a signed body that is not an event.
var ErrNotEvent = errors.New("decode event: not a JSON object with non-empty strings id and type")

// maxDepth bounds an event's nesting. Stripe's events have ten levels. gjson validates to any depth, at 100
// bytes of stack per level.
const maxDepth = 100

// Decode decodes a verified body of any api_version; the library's types accept only one, and no events of
// old accounts. A field of an unexpected JSON type counts as missing. The error is ErrNotEvent.
func (*Webhook) Decode(body []byte) (purchase.Event, error) { return decode(body) }

func decode(body []byte) (purchase.Event, error) {
	if !shallow(body) || !gjson.ValidBytes(body) {
		return purchase.Event{}, ErrNotEvent
	}
	var event purchase.Event
	var object gjson.Result
	var account, context string
	livemode, known := false, false
	gjson.ParseBytes(body).ForEach(func(key, v gjson.Result) bool {
		switch key.Str {
		case "id":
			event.ID = text(v)
		case "type":
			event.Type = text(v)
		case "object":
			event.Thin = strings.HasPrefix(text(v), "v2.")
		case "account":
			account = accountOf(v)
		case "context":
			context = accountOf(v)
		case "related_object":
			event.Related = purchase.Related{
				ID: text(v.Get("id")), Type: text(v.Get("type")), URL: text(v.Get("url")),
			}
		case "created":
			event.Created = cmp.Or(unixTime(v), rfc3339(v))
		case "livemode":
			livemode, known = v.Type == gjson.True, v.IsBool()
		case "data":
			object = v.Get("object")
		}
		return true
	})
	if event.Thin {
		event.Type = strings.TrimPrefix(event.Type, "v1.")
	}
	if event.ID == "" || event.Type == "" {
		return purchase.Event{}, ErrNotEvent
	}
	event.Account = cmp.Or(account, context)
	if object.IsObject() {
		objectLivemode := setObject(&event, object)
		livemode = livemode || !known && objectLivemode
	}
	event.Livemode = livemode
	return event, nil
}

// setObject decodes an event's object and returns the object's livemode.
func setObject(event *purchase.Event, object gjson.Result) (livemode bool) {
	if event.Type == purchase.TypeInvoicePaid {
		event.Invoice, livemode = invoice(object)
	} else {
		event.Checkout, livemode = checkout(object)
	}
	return livemode
}

// accountOf decodes an event's account or context; "": none. The context of an organisation is a path that
// ends with the account.
func accountOf(v gjson.Result) string {
	path := text(v)
	if v.Type == gjson.Null || v.Type == gjson.String && path == "" {
		return ""
	}
	if account := path[strings.LastIndexByte(path, '/')+1:]; purchase.ValidID(account) {
		return account
	}
	return unknownAccount
}

// unknownAccount replaces a malformed account id.
const unknownAccount = "?"

// checkout decodes a checkout session and its livemode.
func checkout(object gjson.Result) (c *purchase.Checkout, livemode bool) {
	c = &purchase.Checkout{}
	object.ForEach(func(key, v gjson.Result) bool {
		switch key.Str {
		case "id":
			c.ID = text(v)
		case "mode":
			c.Mode = text(v)
		case "payment_status":
			c.PaymentStatus = text(v)
		case "livemode":
			livemode = v.Type == gjson.True
		case "amount_total":
			c.AmountTotal = integer(v) // nil if malformed: 0 would be a free sale
		case "total_details":
			c.Discount = integer(v.Get("amount_discount"))
			c.Tax, c.Shipping = integer(v.Get("amount_tax")), integer(v.Get("amount_shipping"))
		case "currency":
			c.Currency = text(v)
		case "customer":
			c.Customer, c.ExpandedEmail = idOf(v), emailOf(v)
		case "subscription":
			c.Subscription = idOf(v)
		case "payment_intent":
			c.PaymentIntent = idOf(v)
		case "invoice":
			c.Invoice = idOf(v)
		case "customer_email":
			c.CustomerEmail = text(v)
		case "customer_details":
			c.Email, c.Phone, c.Name = text(v.Get("email")), text(v.Get("phone")), text(v.Get("name"))
			a := v.Get("address")
			c.Address = purchase.Address{
				City: text(a.Get("city")), State: text(a.Get("state")), PostalCode: text(a.Get("postal_code")),
				Country: text(a.Get("country")),
			}
		case "client_reference_id":
			c.Reference = text(v)
		case "locale":
			c.Locale = text(v)
		case "created":
			c.Created = unixTime(v)
		case "metadata":
			c.Metadata, c.NonStrings = metadata(v)
		}
		return true
	})
	return c, livemode
}

// invoice decodes a paid invoice and its livemode. Since API version 2025-03-31 the subscription is in its
// parent, and the taxes are total_taxes.
func invoice(object gjson.Result) (i *purchase.Invoice, livemode bool) {
	i = &purchase.Invoice{
		ID: text(object.Get("id")), Customer: idOf(object.Get("customer")),
		Reason: text(object.Get("billing_reason")), AmountPaid: integer(object.Get("amount_paid")),
		Currency: text(object.Get("currency")), Tax: taxOf(object),
		Shipping: integer(object.Get("shipping_cost.amount_subtotal")), Created: unixTime(object.Get("created")),
		PeriodStart: unixTime(object.Get("period_start")), PeriodEnd: unixTime(object.Get("period_end")),
	}
	for _, path := range []string{"parent.subscription_details.subscription", "subscription"} {
		if i.Subscription == "" {
			i.Subscription = idOf(object.Get(path))
		}
	}
	return i, object.Get("livemode").Type == gjson.True
}

// taxOf returns the sum of an invoice's taxes; nil: unknown. The field depends on the API version.
func taxOf(object gjson.Result) *int64 {
	for _, field := range []string{"total_taxes", "total_tax_amounts"} {
		list := object.Get(field)
		if !list.IsArray() {
			continue
		}
		sum := int64(0)
		for _, tax := range list.Array() {
			if n := integer(tax.Get("amount")); n != nil && *n > 0 && sum <= math.MaxInt64-*n {
				sum += *n
			}
		}
		return &sum
	}
	return integer(object.Get("tax"))
}

// rfc3339 decodes the time of a thin event in whole seconds, in the range of unixTime. Zero: unknown.
func rfc3339(v gjson.Result) time.Time {
	at, err := time.Parse(time.RFC3339, text(v))
	if err != nil || at.Unix() <= 0 || at.Year() > 9999 {
		return time.Time{}
	}
	return at.UTC().Truncate(time.Second)
}

// unixTime decodes Unix seconds from 1970 to 9999, the range of Postgres and TikTok. Zero: unknown.
func unixTime(v gjson.Result) time.Time {
	if n := integer(v); n != nil && *n > 0 && *n < 253402300800 {
		return time.Unix(*n, 0).UTC()
	}
	return time.Time{}
}

// shallow reports whether the nesting of a JSON body is below maxDepth.
func shallow(body []byte) bool {
	if bytes.Count(body, []byte{'{'})+bytes.Count(body, []byte{'['}) < maxDepth {
		return true // common case, without a loop over every byte
	}
	depth, quoted := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth >= maxDepth {
				return false
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return true
}

func text(v gjson.Result) string {
	if v.Type == gjson.String {
		return v.Str
	}
	return ""
}

// integer decodes an integer of up to 64 bits; nil: not an integer.
func integer(v gjson.Result) *int64 {
	n, err := strconv.ParseInt(v.Raw, 10, 64)
	if v.Type != gjson.Number || err != nil {
		return nil
	}
	return &n
}

// idOf decodes an id, or the id of an expanded object.
func idOf(v gjson.Result) string {
	if v.IsObject() {
		return text(v.Get("id"))
	}
	return text(v)
}

// emailOf decodes the address of an expanded customer.
func emailOf(v gjson.Result) string {
	if v.IsObject() {
		return text(v.Get("email"))
	}
	return ""
}

// metadata decodes a session's metadata: its strings, and the keys of other types.
func metadata(object gjson.Result) (values map[string]string, nonStrings map[string]bool) {
	values = make(map[string]string)
	if object.IsObject() {
		object.ForEach(func(key, v gjson.Result) bool {
			switch v.Type {
			case gjson.String:
				values[key.Str] = v.Str
			case gjson.Null:
			default:
				if nonStrings == nil {
					nonStrings = make(map[string]bool)
				}
				nonStrings[key.Str] = true
			}
			return true
		})
	}
	return values, nonStrings
}
