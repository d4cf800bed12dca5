// Package doctor holds the result of a self-check: each look passes, warns or fails, and whatever does not pass says what to do.
// It imports the standard library alone.
package doctor

import (
	"fmt"
	"io"
	"strings"
	"unicode"
)

// Verdict is how a look ended.
type Verdict string

// The verdicts. A warning works, but not as well as it could, or could not be looked at; a failure must be mended.
const (
	Pass Verdict = "pass"
	Warn Verdict = "warn"
	Fail Verdict = "fail"
)

// Check is one look: at what, what was found, and what to do.
type Check struct {
	What    string
	Verdict Verdict
	Found   string
	Remedy  string // "" where it passed
}

// Passed is a check that needs nothing.
func Passed(what, found string, args ...any) Check {
	return Check{What: what, Verdict: Pass, Found: fmt.Sprintf(found, args...)}
}

// Warned is a check that works, and has something to be looked at.
func Warned(what, found, remedy string) Check {
	return Check{What: what, Verdict: Warn, Found: found, Remedy: remedy}
}

// Failed is a check that has to be mended.
func Failed(what, found, remedy string) Check {
	return Check{What: what, Verdict: Fail, Found: found, Remedy: remedy}
}

// Count says how many checks have a verdict.
func Count(checks []Check, v Verdict) (n int) {
	for _, c := range checks {
		if c.Verdict == v {
			n++
		}
	}
	return n
}

// Print writes a line for each check, with its remedy below it, and how many there are of each verdict.
func Print(out io.Writer, checks []Check) {
	width := 0
	for _, c := range checks {
		width = max(width, len(c.What))
	}
	for _, c := range checks {
		_, _ = fmt.Fprintf(out, "%s  %-*s  %s\n", c.Verdict, width, c.What, visible(c.Found))
		if c.Remedy != "" {
			_, _ = fmt.Fprintf(out, "%*s  → %s\n", 4+2+width, "", visible(c.Remedy))
		}
	}
	_, _ = fmt.Fprintf(out, "%d passed, %d to look at, %d to mend.\n", Count(checks, Pass), Count(checks, Warn), Count(checks, Fail))
}

// visible keeps foreign texts on one line, and from driving the terminal.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case unicode.IsControl(r):
			return '\uFFFD'
		}
		return r
	}, s)
}
