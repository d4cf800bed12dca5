package purchase

import (
	"strings"
	"unicode"
)

// HashPhone returns the SHA-256 hex of a phone number in E.164, or "" if it is invalid. A hash is returned in
// lower case.
func HashPhone(raw string) string {
	if s := strings.TrimSpace(raw); isHexHash(s) {
		return strings.ToLower(s)
	}
	return hash(NormalisePhone(raw))
}

// NormalisePhone returns a phone number in E.164, or "" if it may not be international: the hash of a wrong
// number is worse than none.
//
// An international number begins with +, 00 or 011 and has 8 to 15 digits, or it has 11 to 15 bare digits.
// A trunk zero in brackets after the country code and an extension are removed. A trunk zero without
// brackets, or any other character than digits and separators, is invalid.
func NormalisePhone(raw string) string {
	digits, trunk, plus, ok := parsePhone(raw)
	if !ok {
		return ""
	}
	minDigits := 8
	if !plus {
		switch {
		case strings.HasPrefix(digits, "00"):
			digits, trunk = digits[2:], trunk-2
		case strings.HasPrefix(digits, "011"):
			digits, trunk = digits[3:], trunk-3
		default:
			minDigits = 11
		}
	}
	if digits == "" || digits[0] == '0' {
		return ""
	}
	code := countryCode(digits)
	switch {
	case allowsLeadingZero(digits[:code]): // the zero in brackets belongs to the number
	case trunk == code:
		digits = digits[:trunk] + digits[trunk+1:]
		trunk = -1
	}
	if len(digits) < minDigits || len(digits) > 15 || trunk > 0 && trunk != code ||
		digits[code] == '0' && !allowsLeadingZero(digits[:code]) {
		return ""
	}
	return "+" + digits
}

// parsePhone returns a number's digits, the index of a zero in brackets among them (-1: none), and whether
// they follow a plus.
func parsePhone(raw string) (digits string, trunk int, plus, ok bool) {
	s := cutExtension(strings.TrimPrefix(strings.Map(halfWidth, strings.ToLower(normalise(raw))), "tel:"))
	d := make([]byte, 0, 24)
	trunk = -1
	for i, r := range s {
		switch r = westernDigit(r); {
		case len(d) > 20:
			return "", 0, false, false
		case r >= '0' && r <= '9':
			if r == '0' && i > 0 && strings.HasPrefix(s[i-1:], "(0)") && len(d) > 0 && trunk < 0 {
				trunk = len(d)
			}
			d = append(d, byte(r))
		case r == '+' && len(d) == 0 && !plus:
			plus = true
		case strings.ContainsRune("./()\u2212", r), unicode.Is(unicode.Pd, r), unicode.IsSpace(r):
		default:
			return "", 0, false, false
		}
	}
	return string(d), trunk, plus, true
}

// westernDigit returns the ASCII digit for an Arabic or Persian one.
func westernDigit(r rune) rune {
	switch {
	case r >= '\u0660' && r <= '\u0669':
		return r - '\u0660' + '0'
	case r >= '\u06f0' && r <= '\u06f9':
		return r - '\u06f0' + '0'
	}
	return r
}

// cutExtension removes a number's extension: "ext. 5", "x5", "#5", ";ext=5".
func cutExtension(s string) string {
	at := strings.IndexAny(s, "ex#;")
	if at <= 0 {
		return s
	}
	tail := strings.TrimLeft(s[at:], "extnsio.#;=: ")
	if len(tail) > 0 && len(tail) <= 7 && strings.Trim(tail, asciiDigits) == "" {
		return s[:at]
	}
	return s
}

// countryCode returns the length of an international number's country code. Source: ITU-T E.164, list of
// assigned codes.
func countryCode(digits string) int {
	const two = " 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64" +
		" 65 66 81 82 84 86 90 91 92 93 94 95 98 "
	switch {
	case digits[0] == '1', digits[0] == '7':
		return 1
	case len(digits) > 3 && strings.Contains(two, " "+digits[:2]+" "):
		return 2
	}
	return min(3, len(digits)-1)
}

// allowsLeadingZero reports whether national numbers may begin with a zero: in Italy, San Marino, Côte
// d'Ivoire, Benin, Gabon and Congo.
func allowsLeadingZero(code string) bool {
	switch code {
	case "39", "378", "225", "229", "241", "242":
		return true
	}
	return false
}
