package purchase

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

// buyer has the buyer's personal data in the forms that are searched for in a checkout's metadata. A shop may
// write personal data into any field, and it must not leave in plain text.
type buyer struct {
	email     string   // normalised
	phone     string   // last digits of the number, which all its spellings share
	fullNames [][]byte // the name in the usual orders, lower-case letters only
	shortName []byte   // words of a short name between blanks: without them its letters match many texts
	nameWords []string // lower-case letters only
}

func newBuyer(email string, c *Checkout) buyer {
	b := buyer{email: email}
	const minDigits, comparedDigits = 8, 9
	if digits, _, _, _ := parsePhone(c.Phone); len(digits) >= minDigits {
		b.phone = digits[max(1, len(digits)-comparedDigits):]
	}
	for word := range strings.FieldsSeq(normalise(c.Name)) {
		if word = onlyLetters(word); word != "" {
			b.nameWords = append(b.nameWords, word)
		}
	}
	if len(b.nameWords) < 2 || len(c.Name) > maxName { // a single word matches too many texts
		b.nameWords = nil
		return b
	}
	first, last := b.nameWords[0], b.nameWords[len(b.nameWords)-1]
	full := strings.Join(b.nameWords, "")
	const minLength = 6
	if len(full) < minLength {
		b.shortName = []byte(" " + strings.Join(b.nameWords, " ") + " ")
		return b
	}
	b.fullNames = [][]byte{[]byte(full)}
	if len(first)+len(last) >= minLength {
		b.fullNames = append(b.fullNames, []byte(last+first))
		if len(b.nameWords) > 2 {
			b.fullNames = append(b.fullNames, []byte(first+last))
		}
	}
	return b
}

// foundIn reports whether a text has the buyer's personal data or any e-mail address, with its percent
// escapes decoded up to three times. Other encodings (base64, hexadecimal) are not decoded.
func (b *buyer) foundIn(text string) bool {
	for range maxUnescapes {
		if b.foundInDecoded(text) {
			return true
		}
		plain := unescape(text)
		if plain == text {
			return false
		}
		text = plain
	}
	return b.foundInDecoded(text)
}

// maxUnescapes is how often escapes within escapes are decoded.
const maxUnescapes = 3

// containsEmail reports whether a text has an e-mail address: characters around an '@', then a dot and two
// letters.
func containsEmail(text string) bool {
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
			if host[dot] == '.' && startsWithTwoLetters(host[dot+1:]) {
				return true
			}
		}
	}
}

func startsWithTwoLetters(s string) bool {
	first, size := utf8.DecodeRuneInString(s)
	second, _ := utf8.DecodeRuneInString(s[size:])
	return unicode.IsLetter(first) && unicode.IsLetter(second)
}

// foundInDecoded is foundIn for a text without escapes.
func (b *buyer) foundInDecoded(text string) bool {
	spaced := text
	if !isASCII(text) {
		spaced = strings.Map(halfWidth, normalise(text))
		text = foldEmail(text)
	}
	if strings.IndexByte(text, '@') >= 0 {
		if containsEmail(spaced) || b.email != "" && strings.Contains(strings.ToLower(text), b.email) {
			return true
		}
	}
	if b.phone == "" && b.nameWords == nil {
		return false
	}
	var letterBuffer, digitBuffer [640]byte // on the stack for all but the longest texts
	letters, digits := letterBuffer[:0], digitBuffer[:0]
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
	for _, name := range b.fullNames {
		if bytes.Contains(letters, name) {
			return true
		}
	}
	return b.shortName != nil && b.shortNameIn(spaced)
}

// shortNameIn reports whether a text has the short name as separate words.
func (b *buyer) shortNameIn(text string) bool {
	words := make([]byte, 1, len(text)+2)
	words[0] = ' '
	for _, r := range text {
		if unicode.IsLetter(r) {
			words = utf8.AppendRune(words, unicode.ToLower(r))
		} else if words[len(words)-1] != ' ' {
			words = append(words, ' ')
		}
	}
	return bytes.Contains(append(words, ' '), b.shortName)
}

// nameInValues reports whether several values of a query are parts of the name: "?a=Grace&b=Hopper".
func (b *buyer) nameInValues(query string) bool {
	if b.nameWords == nil || strings.IndexByte(query, '&') < 0 {
		return false
	}
	found := 0
	for pair := range strings.SplitSeq(query, "&") {
		if _, value, _ := strings.Cut(pair, "="); b.isNameWord(unescape(value)) {
			found++
		}
	}
	return found >= 2
}

// isNameWord reports whether a value is part of the name.
func (b *buyer) isNameWord(value string) bool {
	if b.nameWords == nil || len(value) > maxName {
		return false
	}
	for _, word := range b.nameWords {
		if strings.EqualFold(word, value) {
			return true
		}
	}
	return false
}
