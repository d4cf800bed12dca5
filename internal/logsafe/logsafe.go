// Package logsafe is the word for foreign text in logs, terminals and pages: it shows what it is, in one
// line, and no more than a little of it.
package logsafe

import (
	"strings"
	"unicode"
)

// Text returns at most max characters of a text; what is left out is marked by an ellipsis. White space
// becomes a blank. Characters that cannot be seen are removed: controls, direction overrides, zero-width and
// private ones, fillers, tags, and bytes that are no UTF-8.
func Text(s string, max int) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if unicode.IsSpace(r) {
			r = ' '
		}
		if !visible(r) {
			continue
		}
		if n == max {
			b.WriteRune('…')
			break
		}
		b.WriteRune(r)
		n++
	}
	return b.String()
}

func visible(r rune) bool {
	const brailleBlank = 0x2800
	return unicode.IsPrint(r) && r != unicode.ReplacementChar && r != brailleBlank &&
		!unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}
