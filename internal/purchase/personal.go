package purchase

import (
	"encoding/base64"
	"encoding/hex"
	"iter"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
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
	for reading := range readings(text) {
		if b.plainIn(reading) {
			return true
		}
	}
	return false
}

func (b buyer) plainIn(reading string) bool {
	return namesEmail(reading) ||
		b.email != "" && strings.Contains(strings.ToLower(reading), b.email) ||
		b.phone != "" && strings.Contains(only(unicode.IsDigit, reading), b.phone) ||
		b.name != "" && strings.Contains(only(unicode.IsLetter, reading), b.name)
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
func readings(text string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for range 4 {
			if !yield(text) || !decodedWords(text, &base64Word, yield) || !decodedWords(text, &base64URLWord, yield) {
				return
			}
			plain, err := url.PathUnescape(text)
			if err != nil || plain == text {
				return
			}
			text = plain
		}
	}
}

// The letters of words in base64, in its two alphabets.
var base64Word, base64URLWord = letters("+/"), letters("-_")

func letters(more string) (set [256]bool) {
	for c := range set {
		set[c] = c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || strings.IndexByte(more, byte(c)) >= 0
	}
	return set
}

// decodedWords yields what the words of an alphabet say; false: that was enough.
func decodedWords(text string, letter *[256]bool, yield func(string) bool) bool {
	for at := 0; at < len(text); at++ {
		from := at
		for at < len(text) && letter[text[at]] {
			at++
		}
		if !decoded(text[from:at], yield) {
			return false
		}
	}
	return true
}

// decoded yields what a word says in base64 (either alphabet) and in hexadecimal, where that is text. Nearly no word says anything: it
// is decoded beside the heap.
func decoded(word string, yield func(string) bool) bool {
	const shortest = 11 // of a@b.example, in base64
	if len(word) < shortest {
		return true
	}
	var room, plain [600]byte // a metadata value has 500 characters; a page's address may have more
	letters := append(room[:0], word...)
	for i, c := range letters {
		switch c {
		case '+':
			letters[i] = '-'
		case '/':
			letters[i] = '_'
		}
	}
	said, err := base64.RawURLEncoding.AppendDecode(plain[:0], letters)
	if err == nil && printableBytes(said) && !yield(string(said)) {
		return false
	}
	said, err = hex.AppendDecode(plain[:0], letters)
	return err != nil || !printableBytes(said) || yield(string(said))
}

// only keeps one kind of characters, in lower case.
func only(kind func(r rune) bool, text string) string {
	kept := make([]byte, 0, len(text))
	for _, r := range text {
		if kind(r) {
			kept = utf8.AppendRune(kept, unicode.ToLower(r))
		}
	}
	return string(kept)
}
