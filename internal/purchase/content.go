package purchase

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Content is what was bought, as the shop names it in the checkout's metadata. An empty field is unknown.
type Content struct {
	ID       string      `json:"content_id,omitempty"`
	Name     string      `json:"content_name,omitempty"`
	Category string      `json:"content_category,omitempty"`
	Brand    string      `json:"brand,omitempty"`
	Price    json.Number `json:"price,omitempty"` // of one, in major units
	Quantity int         `json:"quantity,omitempty"`
	IDs      []string    `json:"content_ids,omitempty"` // of all that was bought, where the shop lists them
}

const (
	maxQuantity   = 1_000_000 // more than anybody buys
	maxContentIDs = 100
	maxPrice      = 20 // characters
)

// NewContent reads a checkout's contents; nil where it names none. Each unusable value is dropped alone.
// email is the normalised address.
func NewContent(email string, c *Checkout) (content *Content, dropped []Dropped) {
	if !slices.ContainsFunc(contentKeys, c.has) {
		return nil, nil
	}
	g := &gatherer{buyer: newBuyer(email, c), c: c}
	found := Content{
		ID:       g.plain("content_id", g.meta("content_id", metaContentID), maxValue, cleanText),
		Name:     g.plain("content_name", g.meta("content_name", metaContentName), maxValue, cleanText),
		Category: g.plain("content_category", g.meta("content_category", metaCategory), maxValue, cleanText),
		Brand:    g.plain("brand", g.meta("brand", metaBrand), maxValue, cleanText),
		Price:    json.Number(g.take("price", g.meta("price", metaPrice), maxName, placeholder, cleanPrice)),
		IDs:      g.contentIDs(),
	}
	quantity := g.take("quantity", g.meta("quantity", metaQuantity), maxName, placeholder, cleanQuantity)
	found.Quantity, _ = strconv.Atoi(quantity) // 0 where there is none
	if !found.Named() && len(found.IDs) == 0 {
		return nil, g.dropped // a number or a price of nothing
	}
	return &found, g.dropped
}

var contentKeys = []string{
	metaContentID, metaContentIDs, metaContentName, metaCategory, metaBrand, metaPrice, metaQuantity,
}

// Named reports whether the content itself is known, not only the list of ids.
func (c *Content) Named() bool {
	return c.ID != "" || c.Name != "" || c.Category != "" || c.Brand != ""
}

// has reports whether the metadata has anything under a name.
func (c *Checkout) has(name string) bool { return c.Metadata[name] != "" || c.NotText[name] }

// contentIDs reads a list of ids, separated by commas or as JSON. Each unusable one is dropped alone.
func (g *gatherer) contentIDs() (ids []string) {
	raw := strings.TrimSpace(g.meta("content_ids", metaContentIDs))
	if raw == "" {
		return nil
	}
	for _, part := range splitIDs(raw) {
		id := g.plain("content_ids", part, maxValue, cleanText)
		switch {
		case id == "" || slices.Contains(ids, id):
		case len(ids) == maxContentIDs:
			g.drop("content_ids", DropTooLong)
			return ids
		default:
			ids = append(ids, id)
		}
	}
	return ids
}

func splitIDs(raw string) []string {
	var list []any
	decoder := json.NewDecoder(strings.NewReader(raw))
	decoder.UseNumber()
	if raw[0] != '[' || decoder.Decode(&list) != nil {
		parts := strings.Split(strings.Trim(raw, "[]"), ",")
		for i, part := range parts { // of another language's list: ['a', 'b']
			parts[i] = unquote(part)
		}
		return parts
	}
	parts := make([]string, len(list))
	for i, value := range list {
		switch value := value.(type) {
		case string:
			parts[i] = value
		case json.Number:
			parts[i] = value.String()
		default:
			parts[i] = "null" // dropped as a placeholder
		}
	}
	return parts
}

func cleanQuantity(raw string) string {
	if n, err := strconv.Atoi(raw); err != nil || n < 1 || n > maxQuantity {
		return ""
	}
	return raw
}

// cleanPrice is a price above 0 with a point before its decimals, as a JSON number; "29,99" might be either.
func cleanPrice(raw string) string {
	whole, decimals, pointed := strings.Cut(raw, ".")
	const digits = "0123456789"
	switch {
	case len(raw) > maxPrice, whole == "", pointed && decimals == "", strings.Trim(whole+decimals, digits) != "":
		return ""
	case strings.Trim(raw, "0.") == "":
		return ""
	}
	whole = strings.TrimLeft(whole, "0")
	if whole == "" {
		whole = "0"
	}
	if pointed {
		whole += "." + decimals
	}
	return whole
}

// Clicked is when the ad that led to a checkout was clicked, as the shop says (Unix seconds or milliseconds),
// else the latest that it can have been: when the checkout began. Zero: unknown.
func Clicked(c *Checkout) time.Time {
	n, err := strconv.ParseInt(strings.TrimSpace(c.Metadata[metaClicked]), 10, 64)
	if err == nil && n > 1e11 {
		n /= 1000
	}
	// Before 2017 there was no such click; after the checkout began there cannot have been one.
	at := time.Unix(n, 0).UTC()
	if err == nil && n > 1483228800 && (c.Created.IsZero() || !at.After(c.Created)) {
		return at
	}
	return c.Created
}

// ClickExpiry is when a checkout's click id becomes older than the window in which TikTok attributes
// purchases. Zero: unknown.
func ClickExpiry(c *Checkout, window time.Duration) time.Time {
	if at := Clicked(c); !at.IsZero() {
		return at.Add(window)
	}
	return time.Time{}
}
