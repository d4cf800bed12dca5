// Package stripe is the neighbour that calls us: it verifies the signature of a webhook and reads the
// narrow part of an event that the product needs. It alone imports stripe-go.
package stripe

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"
	"github.com/tidwall/gjson"

	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
)

// Tolerance is how far a signature's timestamp may be from now, in either direction. Stripe's own default.
const Tolerance = 300 * time.Second

// Webhook verifies and reads webhook bodies. It is safe for concurrent use.
type Webhook struct {
	secrets []string
	now     func() time.Time
}

// ParseSecrets splits a comma-separated list of signing secrets. An empty secret would accept a body signed
// with the empty key, and one of another form is a mistake: problems lists what is wrong, without the values.
func ParseSecrets(list secret.Text) (secrets []secret.Text, problems []string) {
	for part := range strings.SplitSeq(list.Reveal(), ",") {
		part = strings.TrimSpace(part)
		switch {
		case part == "":
			problems = append(problems, "a signing secret in the list is empty")
		case !strings.HasPrefix(part, "whsec_") || part == "whsec_":
			problems = append(problems, "a signing secret does not look like whsec_…: copy it from the endpoint's page in Stripe's dashboard")
		default:
			secrets = append(secrets, secret.Text(part))
		}
	}
	return secrets, problems
}

// NewWebhook returns a Webhook that accepts a body signed with any of the secrets: the old and the new one
// during a rotation, or those of a live and a test endpoint.
func NewWebhook(secrets []secret.Text, now func() time.Time) *Webhook {
	w := &Webhook{now: now}
	for _, s := range secrets {
		if s != "" {
			w.secrets = append(w.secrets, s.Reveal())
		}
	}
	return w
}

// The refusals of Verify.
var (
	ErrMissing = errors.New("missing")
	ErrInvalid = errors.New("malformed")
	ErrWrong   = errors.New("wrong")
	ErrStale   = errors.New("stale")
	ErrFuture  = errors.New("from the future")
)

// Verify checks the Stripe-Signature header over the body as received. The error is one of ErrMissing,
// ErrInvalid, ErrWrong, ErrStale or ErrFuture.
func (w *Webhook) Verify(body []byte, header string) error {
	refusal := ErrWrong
	for _, s := range w.secrets {
		err := webhook.ValidatePayloadWithTolerance(body, header, s, Tolerance)
		switch {
		case err == nil:
			return w.notFromTheFuture(header)
		case errors.Is(err, webhook.ErrNotSigned):
			return ErrMissing
		case errors.Is(err, webhook.ErrTooOld):
			return ErrStale
		case errors.Is(err, webhook.ErrInvalidHeader):
			refusal = ErrInvalid
		}
	}
	return refusal
}

// notFromTheFuture closes a gap of the library: it accepts any timestamp ahead of now, and such a signature
// could be replayed until then.
func (w *Webhook) notFromTheFuture(header string) error {
	for part := range strings.SplitSeq(header, ",") {
		stamp, ok := strings.CutPrefix(part, "t=")
		if !ok {
			continue
		}
		seconds, err := strconv.ParseInt(stamp, 10, 64)
		if err != nil {
			return ErrInvalid
		}
		if time.Unix(seconds, 0).After(w.now().Add(Tolerance)) {
			return ErrFuture
		}
	}
	return nil
}

// ErrNotEvent refuses a signed body that is no event: no JSON object with a non-empty string id and type.
var ErrNotEvent = errors.New("not an event: no JSON object with a non-empty string id and type")

// maxDepth is how deep an event may be nested. Stripe's go ten deep; gjson's check of the grammar would follow a hostile one to any
// depth, at a hundred bytes of stack a level.
const maxDepth = 100

// Decode reads a verified body, whatever the event's api_version: the library's own types refuse every other
// version, and old accounts' events. A field of an unexpected type counts as missing: metadata may be [], data may be missing,
// created may be a text. The error is ErrNotEvent.
func (w *Webhook) Decode(body []byte) (purchase.Event, error) {
	if !shallow(body) || !gjson.ValidBytes(body) {
		return purchase.Event{}, ErrNotEvent
	}
	var event purchase.Event
	var object gjson.Result
	livemode, known := false, false
	gjson.ParseBytes(body).ForEach(func(key, v gjson.Result) bool {
		switch key.Str {
		case "id":
			event.ID = text(v)
		case "type":
			event.Type = text(v)
		case "object":
			event.Thin = strings.HasPrefix(text(v), "v2.")
		case "created":
			event.Created = moment(v)
		case "livemode":
			livemode, known = v.Type == gjson.True, v.IsBool()
		case "data":
			object = v.Get("object")
		}
		return true
	})
	if event.ID == "" || event.Type == "" {
		return purchase.Event{}, ErrNotEvent
	}
	switch {
	case object.IsObject() && event.Type == purchase.TypeInvoicePaid:
		var of bool
		event.Invoice, of = invoice(object)
		livemode = livemode || !known && of
	case object.IsObject():
		var of bool
		event.Checkout, of = checkout(object)
		livemode = livemode || !known && of
	}
	event.Livemode = livemode
	return event, nil
}

// checkout reads a checkout session; livemode is its own.
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
			c.AmountTotal = whole(v) // nil where it cannot be read: 0 would be a sale for nothing
		case "currency":
			c.Currency = text(v)
		case "customer":
			c.Customer = idOf(v)
		case "subscription":
			c.Subscription = idOf(v)
		case "customer_email":
			c.CustomerEmail = text(v)
		case "customer_details":
			c.Email, c.Phone, c.Name = text(v.Get("email")), text(v.Get("phone")), text(v.Get("name"))
			a := v.Get("address")
			c.Address = purchase.Address{
				City: text(a.Get("city")), State: text(a.Get("state")), PostalCode: text(a.Get("postal_code")), Country: text(a.Get("country")),
			}
		case "client_reference_id":
			c.Reference = text(v)
		case "locale":
			c.Locale = text(v)
		case "created":
			c.Created = moment(v)
		case "metadata":
			c.Metadata, c.NotText = texts(v)
		}
		return true
	})
	return c, livemode
}

// invoice reads a paid invoice; livemode is its own. Since API version 2025-03-31 the subscription is that of its parent.
func invoice(object gjson.Result) (i *purchase.Invoice, livemode bool) {
	i = &purchase.Invoice{
		ID: text(object.Get("id")), Customer: idOf(object.Get("customer")), AmountPaid: whole(object.Get("amount_paid")), Currency: text(object.Get("currency")),
		Beginning: text(object.Get("billing_reason")) == "subscription_create", PeriodStart: moment(object.Get("period_start")),
	}
	for _, place := range []string{"parent.subscription_details.subscription", "subscription"} {
		if i.Subscription == "" {
			i.Subscription = idOf(object.Get(place))
		}
	}
	return i, object.Get("livemode").Type == gjson.True
}

// moment reads Unix seconds. Years 1970 to 9999: what both Postgres and TikTok take. Anything else counts as unknown.
func moment(v gjson.Result) time.Time {
	if n := whole(v); n != nil && *n > 0 && *n < 253402300800 {
		return time.Unix(*n, 0).UTC()
	}
	return time.Time{}
}

// shallow says whether a text is nested less deep than maxDepth, as far as it is JSON.
func shallow(body []byte) bool {
	if bytes.Count(body, []byte{'{'})+bytes.Count(body, []byte{'['}) < maxDepth { // a usual event, without a look at every byte
		return true
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

// whole reads a whole number, also past 2^53; nil: it is none.
func whole(v gjson.Result) *int64 {
	n, err := strconv.ParseInt(v.Raw, 10, 64)
	if v.Type != gjson.Number || err != nil {
		return nil
	}
	return &n
}

// idOf reads an id, also that of an object which was expanded.
func idOf(v gjson.Result) string {
	if v.IsObject() {
		return text(v.Get("id"))
	}
	return text(v)
}

// texts reads metadata: its texts, and which of its values are none.
func texts(metadata gjson.Result) (values map[string]string, notText map[string]bool) {
	values = make(map[string]string)
	if metadata.IsObject() {
		metadata.ForEach(func(key, v gjson.Result) bool {
			switch v.Type {
			case gjson.String:
				values[key.Str] = v.Str
			case gjson.Null:
			default:
				if notText == nil {
					notText = make(map[string]bool)
				}
				notText[key.Str] = true
			}
			return true
		})
	}
	return values, notText
}
