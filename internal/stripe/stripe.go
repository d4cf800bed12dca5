// Package stripe is the neighbour that calls us: it verifies the signature of a webhook and reads the
// narrow part of an event that the product needs. It alone imports stripe-go.
package stripe

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"

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

// wire is the part of an event that is read. Its fields are lenient: encoding/json skips a value of another
// type and goes on, which Decode allows; so metadata may be [], data may be missing, created may be a text.
type wire struct {
	ID       string `json:"id"`
	Type     string `json:"type"`
	Object   string `json:"object"`
	Created  int64  `json:"created"`
	Livemode *bool  `json:"livemode"`
	Data     struct {
		Object json.RawMessage `json:"object"`
	} `json:"data"`
}

type wireCheckout struct {
	ID            string `json:"id"`
	Mode          string `json:"mode"`
	PaymentStatus string `json:"payment_status"`
	Livemode      *bool  `json:"livemode"`
	Currency      string `json:"currency"`
	Customer      any    `json:"customer"`     // an id, or the whole object when expanded
	Subscription  any    `json:"subscription"` // likewise
	CustomerEmail string `json:"customer_email"`
	Details       struct {
		Email string `json:"email"`
		Phone string `json:"phone"`
	} `json:"customer_details"`
	Metadata map[string]any `json:"metadata"`
	// Raw, because a lenient *int64 would point to 0 where the value cannot be read: a sale for nothing.
	AmountTotal json.RawMessage `json:"amount_total"`
}

// Decode reads a verified body, whatever the event's api_version: the library's own types refuse every other
// version, and old accounts' events. The error is ErrNotEvent.
func (w *Webhook) Decode(body []byte) (purchase.Event, error) {
	var e wire
	if !lenient(body, &e) || e.ID == "" || e.Type == "" {
		return purchase.Event{}, ErrNotEvent
	}
	event := purchase.Event{
		ID: e.ID, Type: e.Type, Livemode: e.Livemode != nil && *e.Livemode,
		Thin: strings.HasPrefix(e.Object, "v2."),
	}
	// Years 1970 to 9999: what both Postgres and TikTok take. Anything else counts as unknown.
	if e.Created > 0 && e.Created < 253402300800 {
		event.Created = time.Unix(e.Created, 0).UTC()
	}
	var c wireCheckout
	if len(e.Data.Object) == 0 || e.Data.Object[0] != '{' || !lenient(e.Data.Object, &c) {
		return event, nil
	}
	if e.Livemode == nil {
		event.Livemode = c.Livemode != nil && *c.Livemode
	}
	event.Checkout = &purchase.Checkout{
		ID: c.ID, Mode: c.Mode, PaymentStatus: c.PaymentStatus, AmountTotal: amountOf(c.AmountTotal), Currency: c.Currency,
		Customer: idOf(c.Customer), Subscription: idOf(c.Subscription),
		Email: c.Details.Email, CustomerEmail: c.CustomerEmail, Phone: c.Details.Phone, Metadata: texts(c.Metadata),
	}
	return event, nil
}

// lenient unmarshals and forgives values of an unexpected type; their fields stay zero.
func lenient(data []byte, into any) bool {
	err := json.Unmarshal(data, into)
	var wrongType *json.UnmarshalTypeError
	return err == nil || errors.As(err, &wrongType)
}

func amountOf(raw json.RawMessage) *int64 {
	var minor *int64
	if json.Unmarshal(raw, &minor) != nil {
		return nil
	}
	return minor
}

func idOf(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case map[string]any:
		id, _ := v["id"].(string)
		return id
	}
	return ""
}

func texts(metadata map[string]any) map[string]string {
	m := make(map[string]string, len(metadata))
	for k, v := range metadata {
		if s, ok := v.(string); ok {
			m[k] = s
		}
	}
	return m
}
