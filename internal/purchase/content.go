package purchase

import (
	"strconv"
	"strings"
	"time"
)

// Content is what was bought, as the shop names it in the checkout's metadata. An empty field is unknown.
type Content struct {
	ID       string `json:"content_id,omitempty"`
	Name     string `json:"content_name,omitempty"`
	Quantity int    `json:"quantity,omitempty"`
}

// maxQuantity is more than anybody buys.
const maxQuantity = 1_000_000

// NewContent reads a checkout's contents; nil where it names none. What is unusable is dropped alone. email is the normalised address.
func NewContent(email string, c *Checkout) (content *Content, dropped []Dropped) {
	if !c.has(metaContentID) && !c.has(metaContentName) && !c.has(metaQuantity) {
		return nil, nil
	}
	g := &gatherer{buyer: newBuyer(email, c), c: c}
	found := Content{
		ID:   g.text("content_id", g.meta("content_id", metaContentID), maxValue, cleanLabel),
		Name: g.text("content_name", g.meta("content_name", metaContentName), maxValue, cleanLabel),
	}
	quantity := g.take("quantity", g.meta("quantity", metaQuantity), maxName, func(raw string) string {
		if n, err := strconv.Atoi(raw); err != nil || n < 1 || n > maxQuantity {
			return ""
		}
		return raw
	})
	found.Quantity, _ = strconv.Atoi(quantity) // 0 where there is none
	if found.ID == "" && found.Name == "" {
		return nil, g.dropped // a number of nothing
	}
	return &found, g.dropped
}

// has says whether the metadata has anything under a name.
func (c *Checkout) has(name string) bool { return c.Metadata[name] != "" || c.NotText[name] }

func cleanLabel(raw string) string {
	if !printable(raw) || namesEmail(raw) {
		return ""
	}
	return raw
}

// freshClick is how long a click id is worth something, as far as is known.
const freshClick = 7 * 24 * time.Hour

// Clicked is when the ad that led to a checkout was clicked, as the shop says (Unix seconds or milliseconds), else the latest that
// it can have been: when the checkout began. Zero: unknown.
func Clicked(c *Checkout) time.Time {
	n, err := strconv.ParseInt(strings.TrimSpace(c.Metadata[metaClicked]), 10, 64)
	if err == nil && n > 1e11 {
		n /= 1000
	}
	// Before 2017 there was no such click; after the checkout began there cannot have been one.
	if at := time.Unix(n, 0).UTC(); err == nil && n > 1483228800 && (c.Created.IsZero() || !at.After(c.Created)) {
		return at
	}
	return c.Created
}
