package tiktok

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// currencies are those that TikTok accepts.
const currencies = " AED ARS AUD BDT BHD BIF BOB BRL CAD CHF CLP CNY COP CRC CZK DKK DZD EGP EUR GBP GTQ" +
	" HKD HNL HUF IDR ILS INR ISK JPY KES KHR KRW KWD KZT MAD MOP MXN MYR NGN NIO NOK NZD OMR PEN PHP PKR" +
	" PLN PYG QAR RON RUB SAR SEK SGD THB TRY TWD UAH USD VES VND ZAR "

// SupportsCurrency reports whether TikTok accepts a currency (any case).
func SupportsCurrency(currency string) bool {
	return purchase.ValidCurrency(currency) && strings.Contains(currencies, " "+strings.ToUpper(currency)+" ")
}

// eventsBody is the Events API 2.0 body.
type eventsBody struct {
	EventSource   string  `json:"event_source"`
	EventSourceID string  `json:"event_source_id"`
	TestEventCode string  `json:"test_event_code,omitempty"`
	Data          []event `json:"data"`
}

type event struct {
	Event      string     `json:"event"`
	EventTime  int64      `json:"event_time"`
	EventID    string     `json:"event_id"`
	User       user       `json:"user"`
	Properties properties `json:"properties"`
	Page       *page      `json:"page,omitempty"`
	Limited    bool       `json:"limited_data_use,omitempty"`
}

type user struct {
	Email      string `json:"email,omitempty"`
	Phone      string `json:"phone,omitempty"`
	ExternalID string `json:"external_id,omitempty"`
	TTCLID     string `json:"ttclid,omitempty"`
	TTP        string `json:"ttp,omitempty"`
	IP         string `json:"ip,omitempty"`
	UserAgent  string `json:"user_agent,omitempty"`
	FirstName  string `json:"first_name,omitempty"`
	LastName   string `json:"last_name,omitempty"`
	Zip        string `json:"zip_code,omitempty"`
	City       string `json:"city,omitempty"`
	State      string `json:"state,omitempty"`
	Country    string `json:"country,omitempty"`
	Locale     string `json:"locale,omitempty"`
}

type properties struct {
	Value       *json.Number `json:"value,omitempty"` // nil: none; 0 is a value
	Currency    string       `json:"currency,omitempty"`
	ContentType string       `json:"content_type"`
	OrderID     string       `json:"order_id"`

	Contents   []content `json:"contents,omitempty"`
	ContentIDs []string  `json:"content_ids,omitempty"`
	NumItems   int       `json:"num_items,omitempty"`
}

type content struct {
	ID       string      `json:"content_id,omitempty"`
	Name     string      `json:"content_name,omitempty"`
	Category string      `json:"content_category,omitempty"`
	Brand    string      `json:"brand,omitempty"`
	Price    json.Number `json:"price,omitempty"`
	Quantity int         `json:"quantity,omitempty"`
}

type page struct {
	URL      string `json:"url,omitempty"`
	Referrer string `json:"referrer,omitempty"`
}

// pixelBody is the older body, with one event per request.
type pixelBody struct {
	PixelCode     string       `json:"pixel_code"`
	Event         string       `json:"event"`
	EventID       string       `json:"event_id"`
	Timestamp     int64        `json:"timestamp"`
	TestEventCode string       `json:"test_event_code,omitempty"`
	Properties    properties   `json:"properties"`
	Context       pixelContext `json:"context"`
	Limited       bool         `json:"limited_data_use,omitempty"`
}

type pixelContext struct {
	User user  `json:"user"`
	Page *page `json:"page,omitempty"`
}

// The payloads.
const (
	PayloadEvents = "events"
	PayloadPixel  = "pixel"
)

// maxEvents is TikTok's limit of events per request; it rejects a larger request as a whole.
const maxEvents = 1000

// Body returns the body of one request: 1 to 1,000 events, exactly one in the pixel payload. Equal arguments
// give equal bytes, so that a retry sends the same body.
func Body(c Config, pixelID, testEventCode string, envelopes []message.Envelope) ([]byte, error) {
	body, _, err := encode(c, pixelID, testEventCode, envelopes)
	return body, err
}

// encode returns a body and the fields of each of its events.
func encode(
	c Config, pixelID, testEventCode string, envelopes []message.Envelope,
) (body []byte, sent []purchase.Sent, err error) {
	pixel := c.Payload == PayloadPixel
	switch n := len(envelopes); {
	case pixel && n != 1:
		return nil, nil, fmt.Errorf("pixel payload: %d events, want 1", n)
	case n < 1 || n > maxEvents:
		return nil, nil, fmt.Errorf("events payload: %d events, want 1 to %d", n, maxEvents)
	}
	events := make([]event, len(envelopes))
	sent = make([]purchase.Sent, len(envelopes))
	for i, e := range envelopes {
		events[i] = newEvent(c, e)
		sent[i] = sentOf(&events[i], e)
	}
	if pixel {
		e := &events[0]
		body, err = json.Marshal(pixelBody{
			PixelCode: pixelID, Event: e.Event, EventID: e.EventID, Timestamp: e.EventTime,
			TestEventCode: testEventCode, Properties: e.Properties,
			Context: pixelContext{User: e.User, Page: e.Page}, Limited: e.Limited,
		})
		return body, sent, err
	}
	body, err = json.Marshal(eventsBody{
		EventSource: "web", EventSourceID: pixelID, TestEventCode: testEventCode, Data: events,
	})
	return body, sent, err
}

func newEvent(c Config, e message.Envelope) event {
	k := e.Keys
	ev := event{
		Event: cmp.Or(e.Event, c.EventName), EventTime: e.PurchasedAt, EventID: e.EventID,
		Limited: e.LimitedDataUse,
		User: user{
			Email: k.Email, Phone: k.Phone, ExternalID: k.ExternalID, TTCLID: k.TTCLID, TTP: k.TTP,
			IP: k.IP, UserAgent: k.UserAgent, FirstName: k.FirstName, LastName: k.LastName, Zip: k.Zip,
			City: k.City, State: k.State, Country: k.Country, Locale: k.Locale,
		},
		Properties: properties{ContentType: "product", OrderID: e.EventID},
	}
	if e.Content != nil {
		ev.Properties.setContent(e.Content)
	}
	// TikTok rejects other currencies: a conversion without its value is better than none.
	if e.AmountMinor != nil && SupportsCurrency(e.Currency) {
		value := json.Number(purchase.Major(*e.AmountMinor, e.Currency))
		ev.Properties.Value, ev.Properties.Currency = &value, strings.ToUpper(e.Currency)
	}
	if url := cmp.Or(k.PageURL, c.PageURL); url != "" || k.Referrer != "" {
		ev.Page = &page{URL: url, Referrer: k.Referrer}
	}
	return ev
}

// sentOf returns the fields of an envelope's event. It reads the event, so that no rule of newEvent is
// repeated.
func sentOf(ev *event, e message.Envelope) (s purchase.Sent) {
	u := &ev.User
	keys := purchase.MatchKeys{
		Email: u.Email, Phone: u.Phone, TTCLID: u.TTCLID, TTP: u.TTP, IP: u.IP, UserAgent: u.UserAgent,
		FirstName: u.FirstName, Zip: u.Zip, City: u.City,
	}
	if ev.Page != nil {
		keys.PageURL = ev.Page.URL
	}
	s.Keys = keys.Mask()
	if ev.Properties.Value != nil {
		s.Minor = e.AmountMinor
	}
	if keys.PageURL != e.Keys.PageURL {
		s.Page = keys.PageURL
	}
	return s
}

// setContent sets the purchased content. A price or a quantity belongs to a named content; the quantity is
// also the number of items.
func (p *properties) setContent(c *purchase.Content) {
	if c.Named() {
		p.Contents = []content{{
			ID: c.ID, Name: c.Name, Category: c.Category, Brand: c.Brand, Price: c.Price, Quantity: c.Quantity,
		}}
	}
	p.ContentIDs, p.NumItems = c.IDs, c.Quantity
}
