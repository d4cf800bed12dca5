// Package doctor checks what the worker needs: configuration, NATS and TikTok. Package ingestdoctor adds Postgres
// and Stripe, which are not linked into the worker. The clients read the facts, doctor judges them: a check
// passes, warns or fails, and a remedy follows what does not pass. Nothing is changed, but for a test event at
// TikTok where there is a code for it.
package doctor

import (
	"context"
	"fmt"
	"io"
	"strings"
	"unicode"

	"purchase-relay/internal/message"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/service"
	"purchase-relay/internal/tiktok"
)

// Worker is what `tiktok-worker doctor` checks; empty or unusable parts only as configuration.
type Worker struct {
	Problems     []string // of the configuration
	Queue        queue.Config
	TikTok       tiktok.Config
	Reachable    bool // TikTok's address and time limit can be used
	Live, Test   Destination
	OwnTestPixel bool // Test's pixel is not Live's
	OwnTestToken bool
	SendTests    bool                    // test purchases are sent
	Code         string                  // the test event code of the test events that doctor sends
	NewEvent     func() message.Envelope // a test event that counts as no sale with a code
}

// Checks runs every check.
func (w Worker) Checks(ctx context.Context) []Check {
	checks := append(Configuration(w.Problems), w.shapes()...)
	if len(w.Queue.Problems()) == 0 {
		checks = append(checks, NATS(ctx, w.Queue, queue.RoleWorker, queue.StreamConfig{})...)
	}
	if !w.Reachable {
		return checks
	}
	checks = append(checks, reach(ctx, w.TikTok)...)
	if w.Live.Token == "" || w.Live.Pixel == "" {
		return checks
	}
	live, test := w.Live, w.Test
	live.TestCode, test.TestCode = w.Code, w.Code
	checks = append(checks, access(ctx, "TikTok: live access", w.TikTok, live, w.NewEvent()))
	if w.SendTests && test != live {
		checks = append(checks, access(ctx, "TikTok: test access", w.TikTok, test, w.NewEvent()))
	}
	return checks
}

// FollowTime is the remedy for clocks that differ.
const FollowTime = "let both machines follow a time server (timedatectl, chrony)"

// Configuration has one check for each problem.
func Configuration(problems []string) (checks []Check) {
	for _, p := range problems {
		checks = append(checks, Failed("configuration", p, "fix it; --help says what each setting means"))
	}
	if len(checks) == 0 {
		checks = append(checks, Passed("configuration", "every setting can be used"))
	}
	return checks
}

// Report prints the checks. The error wraps service.ErrLeft (exit status 3) where one failed.
func Report(out io.Writer, checks []Check) error {
	Print(out, checks)
	if n := Count(checks, Fail); n > 0 {
		return fmt.Errorf("%w: %d to mend", service.ErrLeft, n)
	}
	return nil
}

// Verdict is how a check ended.
type Verdict string

// The verdicts. A warning works and could be better, or could not be checked; a failure must be fixed.
const (
	Pass Verdict = "pass"
	Warn Verdict = "warn"
	Fail Verdict = "fail"
)

// Check is one result: of what, what was found, and what to do.
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

// Warned is a check that works and could be better.
func Warned(what, found, remedy string) Check {
	return Check{What: what, Verdict: Warn, Found: found, Remedy: remedy}
}

// Failed is a check that must be fixed.
func Failed(what, found, remedy string) Check {
	return Check{What: what, Verdict: Fail, Found: found, Remedy: remedy}
}

// Count returns how many checks have a verdict.
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
	_, _ = fmt.Fprintf(out, "%d passed, %d to look at, %d to mend.\n",
		Count(checks, Pass), Count(checks, Warn), Count(checks, Fail))
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
