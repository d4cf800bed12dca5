package message

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"purchase-relay/internal/purchase"
)

// Envelope is a purchase for the queue. It is encoded once and stored in the ledger; the relay, the sweeper
// and replays publish the same bytes, so TikTok gets the same body each time. It contains no plain personal
// data.
type Envelope struct {
	Version     int                `json:"version"`
	EventID     string             `json:"event_id"` // the checkout session's id
	Livemode    bool               `json:"livemode"`
	PurchasedAt int64              `json:"purchased_at"`           // Unix seconds, UTC
	AmountMinor *int64             `json:"amount_minor,omitempty"` // smallest unit of the currency, as at Stripe
	Currency    string             `json:"currency,omitempty"`     // lower case
	Keys        purchase.MatchKeys `json:"match_keys"`

	Event          string            `json:"event,omitempty"` // event name; "": TIKTOK_EVENT_NAME
	LimitedDataUse bool              `json:"limited_data_use,omitempty"`
	Content        *purchase.Content `json:"content,omitempty"`
}

// EncodeEnvelope encodes a purchase for the queue.
func EncodeEnvelope(p *purchase.Purchase) ([]byte, error) {
	e := Envelope{
		Version: Version, EventID: p.ID, Livemode: p.Livemode, PurchasedAt: p.At.Unix(),
		AmountMinor: p.AmountMinor, Currency: p.Currency, Keys: p.Keys,
		Event: p.EventName, LimitedDataUse: p.LimitedDataUse, Content: p.Content,
	}
	if p.Kind == purchase.KindTrial { // its event has no value, rather than 0
		e.AmountMinor, e.Currency = nil, ""
	}
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("encode purchase %q: %w", p.ID, err)
	}
	return json.Marshal(e)
}

// DecodeEnvelope decodes and validates a purchase message. Consumers must validate: the server does not
// enforce publish permissions for reply subjects. The error is ErrNewer or describes the invalid field.
func DecodeEnvelope(data []byte) (Envelope, error) {
	var e Envelope
	if err := decode(data, &e, &e.Version); err != nil {
		return Envelope{}, err
	}
	return e, e.check()
}

func (e *Envelope) check() error {
	switch {
	case !purchase.ValidID(e.EventID):
		return errors.New("event_id is malformed")
	case e.PurchasedAt <= 0:
		return errors.New("purchased_at is not a time")
	case e.Currency != "" && !purchase.ValidCurrency(e.Currency):
		return errors.New("currency is malformed")
	case e.AmountMinor != nil && *e.AmountMinor < 0:
		return errors.New("amount_minor is negative")
	case e.Event != "" && !ValidEventName(e.Event):
		return errors.New("event is malformed")
	}
	k := &e.Keys
	for _, hash := range [...]string{k.Email, k.Phone, k.ExternalID, k.FirstName, k.LastName, k.Zip} {
		if hash != "" && !purchase.IsHash(hash) {
			return errors.New("match key is not hashed")
		}
	}
	return nil
}

// ValidEventName reports whether name has the form of TikTok's event names: StartTrial, CompletePayment.
func ValidEventName(name string) bool {
	return purchase.ValidID(name) && len(name) <= 50 && !strings.ContainsAny(name, "_-")
}
