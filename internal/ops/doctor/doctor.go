// Package doctor checks what the worker needs: configuration, NATS and TikTok. Package ingestdoctor adds
// Postgres and Stripe, which are not linked into the worker. The clients read the facts, doctor judges them:
// a check passes, or warns or fails with a remedy. Nothing is changed, except that with a test event code a
// test event is sent to TikTok.
package doctor

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"purchase-relay/internal/message"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/service"
	"purchase-relay/internal/tiktok"
)

// Worker is what `tiktok-worker doctor` checks. Invalid parts are only reported as configuration.
type Worker struct {
	Problems     []string // of the configuration
	Queue        queue.Config
	TikTok       tiktok.Config
	Reachable    bool // TikTok's URL and timeout are valid
	Live, Test   Destination
	OwnTestPixel bool // Test's pixel is not Live's
	OwnTestToken bool
	SendTests    bool                    // test purchases are sent
	Code         string                  // test event code of the events that doctor sends
	NewEvent     func() message.Envelope // a test event
	Stats        *tiktok.Stats           // TikTok's counts; nil: not asked for, or badly configured
}

// Checks runs every check.
func (w Worker) Checks(ctx context.Context) []Check {
	checks := append(Configuration(w.Problems), w.forms()...)
	if len(w.Queue.Problems()) == 0 {
		checks = append(checks, NATS(ctx, w.Queue, queue.RoleWorker, queue.StreamConfig{})...)
	}
	if !w.Reachable {
		return checks
	}
	checks = append(checks, reach(ctx, w.TikTok)...)
	if w.Stats != nil {
		counts, answer := w.Stats.Day(ctx, time.Now().AddDate(0, 0, -1))
		checks = append(checks, judgeStats(counts, answer))
	}
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

// SyncClocks is the remedy for clocks that differ.
const SyncClocks = "synchronize both clocks (timedatectl, chrony)"

// Configuration returns a failed check for each problem, or one that passed.
func Configuration(problems []string) (checks []Check) {
	for _, p := range problems {
		checks = append(checks, Failed("configuration", p, "see --help"))
	}
	if len(checks) == 0 {
		checks = append(checks, Passed("configuration", "valid"))
	}
	return checks
}

// Report prints the checks and a count of each verdict. If one failed, its error wraps
// service.ErrActionRequired.
func Report(out io.Writer, checks []Check) error {
	width, counts := 0, map[Verdict]int{}
	for _, c := range checks {
		width = max(width, len(c.What))
		counts[c.Verdict]++
	}
	for _, c := range checks {
		_, _ = fmt.Fprintf(out, "%s  %-*s  %s\n", c.Verdict, width, c.What, oneLine(c.Found))
		if c.Remedy != "" {
			_, _ = fmt.Fprintf(out, "%*s  → %s\n", 4+2+width, "", oneLine(c.Remedy))
		}
	}
	_, _ = fmt.Fprintf(out, "%d passed, %d warnings, %d failed.\n", counts[Pass], counts[Warn], counts[Fail])
	if n := counts[Fail]; n > 0 {
		return fmt.Errorf("%d failed checks: %w", n, service.ErrActionRequired)
	}
	return nil
}

// Verdict is the result of a check.
type Verdict string

// A warning works but could be better, or could not be checked. A failure must be fixed.
const (
	Pass Verdict = "pass"
	Warn Verdict = "warn"
	Fail Verdict = "fail"
)

// Check is a finding and its remedy.
type Check struct {
	What    string
	Verdict Verdict
	Found   string
	Remedy  string // "" where it passed
}

// Passed returns a check that passed.
func Passed(what, found string, args ...any) Check {
	return Check{What: what, Verdict: Pass, Found: fmt.Sprintf(found, args...)}
}

// Warned returns a check with a warning.
func Warned(what, found, remedy string) Check {
	return Check{What: what, Verdict: Warn, Found: found, Remedy: remedy}
}

// Failed returns a check that failed.
func Failed(what, found, remedy string) Check {
	return Check{What: what, Verdict: Fail, Found: found, Remedy: remedy}
}

// oneLine keeps foreign text on one line and its control characters from the terminal.
func oneLine(s string) string {
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
