package purchase

import (
	"strings"
	"unicode"
)

// placeholder reports whether a value only looks like one: what a program writes in the place of a missing
// value ("undefined", "[object Object]"), or a template's variable that was not replaced ("__CLICKID__",
// "{{ttclid}}"). Escaped ones are found as well.
func placeholder(value string) bool {
	if missing(value) || macro(value) {
		return true
	}
	plain := unescape(value)
	return plain != value && (missing(plain) || macro(plain))
}

// The words of missing values, in any case. As a name or a place some of them are real: see placeholderName
// and placeholderPlace.
var missingWords = []string{"undefined", "null", "nan", "none", "nil", "unknown"}

// missing reports whether a value consists of such words alone.
func missing(value string) bool {
	const longest = 64
	if len(value) > longest {
		return false
	}
	switch s := unquote(value); {
	case s == "", oneOf(s, "-", "--", "{}", "[]", "n/a", "not set", "(not set)"):
		return true
	default:
		return allWords(s, missingWord)
	}
}

func missingWord(word string) bool { return oneOf(word, missingWords...) }

func oneOf(word string, words ...string) bool {
	for _, w := range words {
		if strings.EqualFold(word, w) {
			return true
		}
	}
	return false
}

// allWords reports whether a text has words (of letters and digits), all of them of a kind. It stops at the
// first that is not.
func allWords(s string, kind func(word string) bool) bool {
	words := false
	between := func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }
	for word := range strings.FieldsFuncSeq(s, between) {
		if !kind(word) {
			return false
		}
		words = true
	}
	return words
}

// macro reports whether a value is a variable of a template, or an object that was written as text.
func macro(value string) bool {
	s := unquote(value)
	if len(s) < 3 {
		return false
	}
	first, last := s[0], s[len(s)-1]
	inner := func(n int) bool { return len(s) > 2*n && consists(s[n:len(s)-n], 100, "_.- ") }
	switch {
	case first == '_':
		return strings.HasPrefix(s, "__") && strings.HasSuffix(s, "__") && inner(2)
	case first == '%' && last == '%':
		return inner(1) || strings.HasPrefix(s, "%%") && strings.HasSuffix(s, "%%") && inner(2)
	case first == '{' && last == '}', strings.HasPrefix(s, "#{"), strings.HasPrefix(s, "<%"):
		return true
	case strings.Contains(s, "{{"), strings.Contains(s, "${"):
		return true
	case first == '[' && last == ']': // an address in brackets has colons
		return inner(1)
	}
	return false
}

// placeholderName is placeholder for a buyer's name. Null, None and Nan are real names, as a part of one; a
// name that consists of such words alone says nothing, and a word that only programs write ("undefined",
// "null", "NaN") spoils the rest.
func placeholderName(name string) bool {
	programs := func(word string) bool { return oneOf(word, "undefined", "null", "none") }
	if macro(name) || allWords(name, programs) {
		return true
	}
	for word := range strings.FieldsSeq(name) {
		if strings.EqualFold(word, "undefined") || word == "null" || word == "NaN" {
			return true
		}
	}
	return false
}

// placeholderPlace is placeholder for a city or a state. None is a town in Italy, Nan one in Thailand.
func placeholderPlace(place, country string) bool {
	return macro(place) || allWords(place, func(word string) bool {
		return oneOf(word, "undefined", "null", "unknown") || word == "NaN" ||
			strings.EqualFold(word, "none") && !strings.EqualFold(country, "it")
	})
}

// unquote returns a value without the blanks and quotes around it.
func unquote(value string) string { return strings.Trim(value, " \t\r\n\"'`\\") }
