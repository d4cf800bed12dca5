package purchase

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

// buyer is the personal data that must not leave in plain text, in the forms in which it is searched for in
// what a shop wrote into a checkout's metadata.
type buyer struct {
	email string   // normalised
	phone string   // the last digits of the number, without what differs between its spellings
	names [][]byte // the full name in the usual orders, letters alone, lower case
	short []byte   // instead a short name's words, a blank around each: its letters alone are part of many words
	words []string // of the name, letters alone, lower case
}

func newBuyer(email string, c *Checkout) buyer {
	b := buyer{email: email}
	const fewest, compared = 8, 9
	if digits, _, _, _ := readPhone(c.Phone); len(digits) >= fewest {
		b.phone = digits[max(1, len(digits)-compared):]
	}
	for word := range strings.FieldsSeq(tidy(c.Name)) {
		if word = only(unicode.IsLetter, word); word != "" {
			b.words = append(b.words, word)
		}
	}
	if len(b.words) < 2 || len(c.Name) > maxName { // one word is found in half of all texts
		b.words = nil
		return b
	}
	first, last := b.words[0], b.words[len(b.words)-1]
	full := strings.Join(b.words, "")
	const long = 6
	if len(full) < long {
		b.short = []byte(" " + strings.Join(b.words, " ") + " ")
		return b
	}
	b.names = [][]byte{[]byte(full)}
	if len(first)+len(last) >= long {
		b.names = append(b.names, []byte(last+first))
		if len(b.words) > 2 {
			b.names = append(b.names, []byte(first+last))
		}
	}
	return b
}

// in reports whether a text names the buyer, or anybody's e-mail address, as it is written or with its
// percent escapes decoded up to three times. What is encoded otherwise (base64, hexadecimal) is not searched.
func (b *buyer) in(text string) bool {
	const rounds = 3
	for range rounds {
		if b.plainIn(text) {
			return true
		}
		plain := unescape(text)
		if plain == text {
			return false
		}
		text = plain
	}
	return b.plainIn(text)
}

// namesEmail reports whether a text has something like an e-mail address in it: characters around an '@', and
// behind it a dot and two letters.
func namesEmail(text string) bool {
	const ends = " \t\n\v\f\r@/?&=:;,"
	for {
		before, after, found := strings.Cut(text, "@")
		if !found {
			return false
		}
		text = after
		if before == "" || strings.IndexByte(ends, before[len(before)-1]) >= 0 {
			continue
		}
		host := after
		if end := strings.IndexAny(after, ends); end >= 0 {
			host = after[:end]
		}
		for dot := 1; dot < len(host); dot++ {
			if host[dot] == '.' && twoLetters(host[dot+1:]) {
				return true
			}
		}
	}
}

func twoLetters(s string) bool {
	n := 0
	for _, r := range s {
		if !unicode.IsLetter(r) {
			return false
		}
		if n++; n == 2 {
			return true
		}
	}
	return false
}

func (b *buyer) plainIn(text string) bool {
	spaced := text
	if !isASCII(text) {
		spaced = strings.Map(halfWidth, tidy(text))
		text = foldEmail(text)
	}
	if strings.IndexByte(text, '@') >= 0 {
		if namesEmail(spaced) || b.email != "" && strings.Contains(strings.ToLower(text), b.email) {
			return true
		}
	}
	if b.phone == "" && b.words == nil {
		return false
	}
	// On the stack for all but the longest texts.
	var roomLetters, roomDigits [640]byte
	letters, digits := roomLetters[:0], roomDigits[:0]
	for i := 0; i < len(spaced); i++ {
		switch c := spaced[i]; {
		case c >= '0' && c <= '9':
			digits = append(digits, c)
		case c >= 'a' && c <= 'z':
			letters = append(letters, c)
		case c >= 'A' && c <= 'Z':
			letters = append(letters, c|0x20)
		case c >= utf8.RuneSelf:
			r, size := utf8.DecodeRuneInString(spaced[i:])
			if unicode.IsLetter(r) {
				letters = utf8.AppendRune(letters, unicode.ToLower(r))
			}
			i += size - 1
		}
	}
	if b.phone != "" && len(digits) >= len(b.phone) && bytes.Contains(digits, []byte(b.phone)) {
		return true
	}
	for _, name := range b.names {
		if bytes.Contains(letters, name) {
			return true
		}
	}
	return b.short != nil && b.shortIn(spaced)
}

// shortIn looks for a short name as words of their own.
func (b *buyer) shortIn(text string) bool {
	words := make([]byte, 1, len(text)+2)
	words[0] = ' '
	for _, r := range text {
		if unicode.IsLetter(r) {
			words = utf8.AppendRune(words, unicode.ToLower(r))
		} else if words[len(words)-1] != ' ' {
			words = append(words, ' ')
		}
	}
	return bytes.Contains(append(words, ' '), b.short)
}

// inValues reports whether the values of a query together are the buyer's name: "?a=Grace&b=Hopper".
func (b *buyer) inValues(query string) bool {
	if b.words == nil || strings.IndexByte(query, '&') < 0 {
		return false
	}
	found := 0
	for pair := range strings.SplitSeq(query, "&") {
		if _, value, _ := strings.Cut(pair, "="); b.partOfName(unescape(value)) {
			found++
		}
	}
	return found >= 2
}

// partOfName reports whether a value is one of the name's words.
func (b *buyer) partOfName(value string) bool {
	if b.words == nil || len(value) > maxName {
		return false
	}
	for _, word := range b.words {
		if strings.EqualFold(word, value) {
			return true
		}
	}
	return false
}
