package message

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"purchase-relay/internal/purchase"
)

// Envelope is a purchase on its way to TikTok. It is encoded once and stored in the ledger. The relay, the
// sweeper and a replay publish the same bytes, so that TikTok gets the same body each time. It holds no plain
// personal data.
type Envelope struct {
	Version     int                `json:"version"`
	EventID     string             `json:"event_id"` // the checkout session's id
	Livemode    bool               `json:"livemode"`
	PurchasedAt int64              `json:"purchased_at"`           // Unix seconds, UTC
	AmountMinor *int64             `json:"amount_minor,omitempty"` // smallest unit, as Stripe counts it
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
	if p.Kind == purchase.KindTrial { // no money moved: its event has no value, not one of 0
		e.AmountMinor, e.Currency = nil, ""
	}
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("encode purchase %q: %w", p.ID, err)
	}
	return json.Marshal(e)
}

// DecodeEnvelope decodes and validates a purchase message. Consumers validate every message because the
// server does not check the right to publish on reply subjects. The error is ErrNewer or names the invalid
// field.
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
			return errors.New("a match key is not hashed")
		}
	}
	return nil
}

// ValidEventName reports whether name has the form of TikTok's event names: StartTrial, CompletePayment.
func ValidEventName(name string) bool {
	return purchase.ValidID(name) && len(name) <= 50 && !strings.ContainsAny(name, "_-")
}
