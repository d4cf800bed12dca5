package purchase

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"strings"
	"unicode"
)

// buyer is what must not be said of a buyer in plain text, to find it in what a shop wrote into a checkout's metadata.
type buyer struct {
	email string // normalised
	phone string // the last digits of the number, without what differs between its spellings
	name  string // letters alone, lower case
}

func newBuyer(email string, c *Checkout) buyer {
	b := buyer{email: email}
	if phone := NormalisePhone(c.Phone); phone != "" {
		b.phone = phone[max(1, len(phone)-9):]
	}
	// One word, or a few letters, would be found in half of all texts.
	if name := only(unicode.IsLetter, c.Name); len(strings.Fields(c.Name)) > 1 && len(name) >= 6 {
		b.name = name
	}
	return b
}

// in says whether a text names the buyer, or anybody's e-mail address, in any of its readings.
func (b buyer) in(text string) bool {
	for _, reading := range readings(text) {
		switch {
		case namesEmail(reading),
			b.email != "" && strings.Contains(strings.ToLower(reading), b.email),
			b.phone != "" && strings.Contains(only(unicode.IsDigit, reading), b.phone),
			b.name != "" && strings.Contains(only(unicode.IsLetter, reading), b.name):
			return true
		}
	}
	return false
}

// outOf returns a text, or "" where it names the buyer.
func (b buyer) outOf(text string) string {
	if text == "" || b.in(text) {
		return ""
	}
	return text
}

// outOfURL returns a clean URL, or its origin alone where the rest names the buyer.
func (b buyer) outOfURL(clean string) string {
	if clean == "" || !b.in(clean) {
		return clean
	}
	u, err := url.Parse(clean)
	if err != nil || b.in(u.Host) {
		return ""
	}
	return u.Scheme + "://" + u.Host + "/"
}

// readings are a text as it stands, with its escapes undone as often as there are any (three times at most), and each with
// what its longer words say in base64 or hexadecimal.
func readings(text string) []string {
	list := []string{text}
	for range 3 {
		plain, err := url.PathUnescape(list[len(list)-1])
		if err != nil || plain == list[len(list)-1] {
			break
		}
		list = append(list, plain)
	}
	for _, reading := range list {
		for _, notWord := range []func(r rune) bool{notBase64, notBase64OfURL} {
			for word := range strings.FieldsFuncSeq(reading, notWord) {
				list = append(list, decoded(word)...)
			}
		}
	}
	return list
}

// decoded is what a word says in base64 (either alphabet) and in hexadecimal, where that is text.
func decoded(word string) (list []string) {
	const shortest = 11 // of a@b.example, in base64
	if len(word) < shortest {
		return nil
	}
	if strings.ContainsAny(word, "+/") {
		word = strings.NewReplacer("+", "-", "/", "_").Replace(word)
	}
	plain, err := base64.RawURLEncoding.DecodeString(word)
	if err == nil && printable(string(plain)) {
		list = append(list, string(plain))
	}
	if plain, err = hex.DecodeString(word); err == nil && printable(string(plain)) {
		list = append(list, string(plain))
	}
	return list
}

func notBase64OfURL(r rune) bool {
	switch {
	case r >= '0' && r <= '9', r >= 'A' && r <= 'Z', r >= 'a' && r <= 'z', r == '-', r == '_':
		return false
	}
	return true
}

func notBase64(r rune) bool { return notBase64OfURL(r) && r != '+' && r != '/' || r == '-' || r == '_' }

// only keeps one kind of characters, in lower case.
func only(kind func(r rune) bool, text string) string {
	return strings.Map(func(r rune) rune {
		if kind(r) {
			return unicode.ToLower(r)
		}
		return -1
	}, text)
}
