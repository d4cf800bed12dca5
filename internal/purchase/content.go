package purchase

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Content describes what was bought, from the checkout's metadata. An empty field is unknown.
type Content struct {
	ID       string      `json:"content_id,omitempty"`
	Name     string      `json:"content_name,omitempty"`
	Category string      `json:"content_category,omitempty"`
	Brand    string      `json:"brand,omitempty"`
	Price    json.Number `json:"price,omitempty"` // of one item, in major units
	Quantity int         `json:"quantity,omitempty"`
	IDs      []string    `json:"content_ids,omitempty"` // of all items
}

const (
	maxQuantity   = 1_000_000
	maxContentIDs = 100
	maxPrice      = 20 // characters
)

// NewContent reads the contents of a checkout; nil: none. An unusable value is dropped without the others.
// email is the normalised address.
func NewContent(email string, c *Checkout) (content *Content, dropped []Dropped) {
	if !slices.ContainsFunc(contentKeys, c.has) {
		return nil, nil
	}
	k := &collector{buyer: newBuyer(email, c), checkout: c}
	text := func(key, metaKey string) string {
		return k.readPlain(key, k.metadata(key, metaKey), maxValue, cleanText)
	}
	found := Content{
		ID: text("content_id", metaContentID), Name: text("content_name", metaContentName),
		Category: text("content_category", metaCategory), Brand: text("brand", metaBrand),
		Price: json.Number(k.read("price", k.metadata("price", metaPrice), maxName, isPlaceholder, cleanPrice)),
		IDs:   k.readContentIDs(),
	}
	quantity := k.read("quantity", k.metadata("quantity", metaQuantity), maxName, isPlaceholder, cleanQuantity)
	found.Quantity, _ = strconv.Atoi(quantity) // 0 where there is none
	if !found.Named() && len(found.IDs) == 0 {
		return nil, k.dropped // a price or quantity of nothing
	}
	return &found, k.dropped
}

var contentKeys = []string{
	metaContentID, metaContentIDs, metaContentName, metaCategory, metaBrand, metaPrice, metaQuantity,
}

// Named reports whether an item is described, not only listed in IDs.
func (c *Content) Named() bool {
	return c.ID != "" || c.Name != "" || c.Category != "" || c.Brand != ""
}

// has reports whether the metadata has a value under a key.
func (c *Checkout) has(key string) bool { return c.Metadata[key] != "" || c.NonStrings[key] }

// readContentIDs reads a list of ids, separated by commas or as JSON.
func (k *collector) readContentIDs() (ids []string) {
	raw := strings.TrimSpace(k.metadata("content_ids", metaContentIDs))
	if raw == "" {
		return nil
	}
	for _, part := range splitIDs(raw) {
		id := k.readPlain("content_ids", part, maxValue, cleanText)
		switch {
		case id == "" || slices.Contains(ids, id):
		case len(ids) == maxContentIDs:
			k.drop("content_ids", DropTooLong)
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
		for i, part := range parts { // quoted in Python's lists: ['a', 'b']
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

// cleanPrice returns a price above 0 with a decimal point as a JSON number. "29,99" is ambiguous.
func cleanPrice(raw string) string {
	whole, decimals, hasPoint := strings.Cut(raw, ".")
	switch {
	case len(raw) > maxPrice, whole == "", hasPoint && decimals == "",
		strings.Trim(whole+decimals, asciiDigits) != "", strings.Trim(raw, "0.") == "":
		return ""
	}
	whole = strings.TrimLeft(whole, "0")
	if whole == "" {
		whole = "0"
	}
	if hasPoint {
		whole += "." + decimals
	}
	return whole
}

// clickedAt returns the time of the ad click from the metadata (Unix seconds or milliseconds), else its upper
// bound, the start of the checkout. Zero: unknown.
func clickedAt(c *Checkout) time.Time {
	n, err := strconv.ParseInt(strings.TrimSpace(c.Metadata[metaClicked]), 10, 64)
	if err == nil && n > 1e11 {
		n /= 1000
	}
	const year2017 = 1483228800 // no earlier click can exist
	at := time.Unix(n, 0).UTC()
	if err == nil && n > year2017 && (c.Created.IsZero() || !at.After(c.Created)) {
		return at
	}
	return c.Created
}

// ClickExpiry returns when a checkout's click leaves TikTok's attribution window. Zero: unknown.
func ClickExpiry(c *Checkout, window time.Duration) time.Time {
	if at := clickedAt(c); !at.IsZero() {
		return at.Add(window)
	}
	return time.Time{}
}
