// Package logsafe prepares untrusted text for logs, terminals and pages: one line, bounded, visible
// characters only.
package logsafe

import (
	"strings"
	"unicode"
)

// Text returns at most max characters of s, with an ellipsis for the rest. White space becomes a blank.
// Invisible characters are removed: controls, direction overrides, zero-width and private ones, fillers,
// tags, and invalid UTF-8.
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
