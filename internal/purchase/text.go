package purchase

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

const asciiDigits = "0123456789"

// kelvin is the only non-ASCII letter that normal form C replaces by an ASCII one ('K').
const kelvin = "\u212a"

// nfc returns s in normal form C with every U+212A kept.
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

// invisible reports whether r has no glyph: category Cf, other default ignorable code points, variation
// selectors. U+FFFD counts as well: decoders write it for invalid bytes.
func invisible(r rune) bool {
	return r == utf8.RuneError ||
		unicode.In(r, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// halfWidth returns the ASCII form of a full-width digit or sign, and '.' for the ideographic full stops.
// Letters remain: no non-ASCII letter may become an ASCII one.
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

// normalise returns s in normal form C without invisible characters and outer blanks.
func normalise(s string) string {
	if isASCII(s) {
		return strings.TrimSpace(s)
	}
	visible := strings.Map(func(r rune) rune {
		if invisible(r) {
			return -1
		}
		return r
	}, s)
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

// printable reports whether s is valid UTF-8 without control characters.
func printable(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, unicode.IsControl) < 0
}

// unescape decodes percent escapes once and keeps any other '%'.
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

// onlyLetters returns the letters of s in lower case.
func onlyLetters(s string) string {
	kept := make([]byte, 0, len(s))
	for _, r := range s {
		if unicode.IsLetter(r) {
			kept = utf8.AppendRune(kept, unicode.ToLower(r))
		}
	}
	return string(kept)
}
