package purchase

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// kelvin is the only letter outside ASCII that Unicode's normal form C replaces by one inside it ('K').
const kelvin = "\u212a"

// nfc returns s in normal form C, except that U+212A stays.
func nfc(s string) string {
	if norm.NFC.IsNormalString(s) {
		return s
	}
	parts := strings.Split(s, kelvin)
	for i, part := range parts {
		parts[i] = norm.NFC.String(part)
	}
	return strings.Join(parts, kelvin)
}

// invisible reports whether a character leaves no mark on paper: category Cf, other default ignorable code
// points, variation selectors, and U+FFFD, which decoders put in the place of what they could not read.
func invisible(r rune) bool {
	return r == utf8.RuneError ||
		unicode.In(r, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// halfWidth returns the ASCII digit or sign of a full-width one, and '.' for the ideographic full stops.
// Letters stay: none outside ASCII may become one inside it.
func halfWidth(r rune) rune {
	switch {
	case r >= '\uff01' && r <= '\uff5e':
		if a := r - '\uff01' + '!'; !unicode.IsLetter(a) {
			return a
		}
	case r == '\u3002' || r == '\uff61':
		return '.'
	}
	return r
}

// tidy returns a text in normal form C, without invisible characters and without blanks at its ends.
func tidy(raw string) string {
	if isASCII(raw) {
		return strings.TrimSpace(raw)
	}
	visible := strings.Map(func(r rune) rune {
		if invisible(r) {
			return -1
		}
		return r
	}, raw)
	return strings.TrimSpace(nfc(visible))
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// printable reports whether a text is valid UTF-8 without control characters (NUL and line ends included).
func printable(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, unicode.IsControl) < 0
}

// unescape decodes percent escapes once and leaves a '%' that begins none. It returns text itself where there
// is nothing to decode.
func unescape(text string) string {
	if !strings.Contains(text, "%") {
		return text
	}
	plain := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		if escapeAt(text, i) {
			plain = append(plain, unhex(text[i+1])<<4|unhex(text[i+2]))
			i += 2
			continue
		}
		plain = append(plain, text[i])
	}
	if len(plain) == len(text) {
		return text
	}
	return string(plain)
}

// escapeAt reports whether a percent escape begins at i.
func escapeAt(s string, i int) bool {
	return s[i] == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2])
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
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
