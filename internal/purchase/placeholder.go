package purchase

import (
	"strings"
	"unicode"
)

// isPlaceholder reports whether a value is a program's text for a missing value ("undefined", "[object
// Object]") or an unexpanded template variable ("__CLICKID__", "{{ttclid}}"), also if it is escaped.
func isPlaceholder(value string) bool {
	if isMissing(value) || isMacro(value) {
		return true
	}
	plain := unescape(value)
	return plain != value && (isMissing(plain) || isMacro(plain))
}

// isMissing reports whether a value consists of words for a missing value. Some of them are real names and
// places: see isPlaceholderName and isPlaceholderPlace.
func isMissing(value string) bool {
	const maxLength = 64
	if len(value) > maxLength {
		return false
	}
	switch s := unquote(value); {
	case s == "", equalFoldAny(s, "-", "--", "{}", "[]", "n/a", "not set", "(not set)"):
		return true
	default:
		return everyWord(s, isMissingWord)
	}
}

func isMissingWord(word string) bool {
	return equalFoldAny(word, "undefined", "null", "nan", "none", "nil", "unknown")
}

func equalFoldAny(word string, words ...string) bool {
	for _, w := range words {
		if strings.EqualFold(word, w) {
			return true
		}
	}
	return false
}

// everyWord reports whether s has words (of letters and digits) and accept returns true for each.
func everyWord(s string, accept func(word string) bool) bool {
	found := false
	separator := func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }
	for word := range strings.FieldsFuncSeq(s, separator) {
		if !accept(word) {
			return false
		}
		found = true
	}
	return found
}

// isMacro reports whether a value is a template variable or a printed object.
func isMacro(value string) bool {
	s := unquote(value)
	if len(s) < 3 {
		return false
	}
	first, last := s[0], s[len(s)-1]
	inner := func(n int) bool { return len(s) > 2*n && alphanumeric(s[n:len(s)-n], 100, "_.- ") }
	switch {
	case first == '_':
		return strings.HasPrefix(s, "__") && strings.HasSuffix(s, "__") && inner(2)
	case first == '%' && last == '%':
		return inner(1) || strings.HasPrefix(s, "%%") && strings.HasSuffix(s, "%%") && inner(2)
	case first == '{' && last == '}', strings.HasPrefix(s, "#{"), strings.HasPrefix(s, "<%"):
		return true
	case strings.Contains(s, "{{"), strings.Contains(s, "${"):
		return true
	case first == '[' && last == ']': // not an IPv6 address, which has colons
		return inner(1)
	}
	return false
}

// isPlaceholderName is isPlaceholder for a name. Null, None and Nan are real parts of names. A name of such
// words only is a placeholder, and so is one with "undefined", "null" or "NaN" exactly as programs print
// them.
func isPlaceholderName(name string) bool {
	ambiguous := func(word string) bool { return equalFoldAny(word, "undefined", "null", "none") }
	if isMacro(name) || everyWord(name, ambiguous) {
		return true
	}
	for word := range strings.FieldsSeq(name) {
		if strings.EqualFold(word, "undefined") || word == "null" || word == "NaN" {
			return true
		}
	}
	return false
}

// isPlaceholderPlace is isPlaceholder for a city or a state. None is a town in Italy, Nan one in Thailand.
func isPlaceholderPlace(place, country string) bool {
	return isMacro(place) || everyWord(place, func(word string) bool {
		return equalFoldAny(word, "undefined", "null", "unknown") || word == "NaN" ||
			strings.EqualFold(word, "none") && !strings.EqualFold(country, "it")
	})
}

// unquote returns value without surrounding blanks and quotes.
func unquote(value string) string { return strings.Trim(value, " \t\r\n\"'`\\") }
