package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
	"go.uber.org/zap"

	"purchase-relay/internal/intake"
	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/backfill"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/service"
	"purchase-relay/internal/stripe"
)

// backfillFlags have no variables: SINCE is too general a name.
type backfillFlags struct {
	Since  string `noenv:"" default:"72h" help:"How far back: 30m, 72h or an RFC 3339 time; at most 30d."`
	DryRun bool   `noenv:"" help:"Only show what would be done."`
}

// Help implements kong.HelpProvider.
func (*backfillFlags) Help() string {
	return `Lists Stripe's events and records the missing ones. An interrupted run resumes where it stopped.

Exit status 3: incomplete, or an event needs you.`
}

var (
	errMissed  = errors.New("events are missing") // of a dry run
	errRunning = errors.New("another backfill is running on this ledger")
)

// runBackfill records the events whose webhooks were missed. The relay of a running ingest publishes them.
func runBackfill(ctx context.Context, c *config, out io.Writer) error {
	now := time.Now()
	since, err := parseSince(c.Backfill.Since, now)
	if err != nil {
		return err
	}
	db, rules, err := openLedger(ctx, c, out)
	if err != nil {
		return err
	}
	defer db.Close()
	if now.Sub(since) > maintenance.MaxMatchAge {
		_, _ = fmt.Fprintln(out, "TikTok may not match or show purchases older than 28 days.")
	}
	dryRun := c.Backfill.DryRun
	events := intake.NewService(intake.Config{
		Ledger: db, Rules: rules, DryRun: dryRun, Now: time.Now,
	}, zap.NewNop(), nil)
	progress := newListProgress(out, since, now)
	var unresolved unresolvedEvents
	run := backfill.Run{
		List: stripe.NewAPI(c.api()), Intake: events, Progress: progress.show, Left: unresolved.add, Now: time.Now,
	}
	if !dryRun {
		lead := db.BackfillLeadership()
		switch leads, err := lead.Hold(ctx); {
		case err != nil:
			return err
		case !leads:
			return errRunning
		}
		defer lead.Release() //nolint:contextcheck // also after ctx has ended
		run.Journal = backfill.NewJournal(db)
	}
	counts, err := run.Do(ctx, backfill.OriginCommand, since, now)
	progress.finish()
	printCounts(out, counts, dryRun)
	unresolved.print(out)
	switch {
	case err != nil && counts.Sum() > 0:
		return fmt.Errorf("backfill stopped: %w: %w", err, service.ErrActionRequired)
	case err != nil:
		return err
	case dryRun && counts.New+counts.Rejected > 0:
		return fmt.Errorf("%w: %w", errMissed, service.ErrActionRequired)
	case counts.Rejected+counts.Malformed > 0:
		return service.ErrActionRequired
	}
	return nil
}

// parseSince reads --since, at most backfill.MaxAge ago: Stripe lists no older events. A minute more is
// accepted, because a script may have computed the time before.
func parseSince(text string, now time.Time) (time.Time, error) {
	since, err := maintenance.ParseSince(text, now)
	switch {
	case err != nil:
	case !since.Before(now):
		err = errors.New("must be in the past")
	case now.Sub(since) > backfill.MaxAge+time.Minute:
		err = errors.New("must be at most 30d: Stripe lists no older events")
	}
	if err != nil {
		return since, &service.UsageError{Problems: []string{"--since: " + err.Error()}}
	}
	return since, nil
}

// openLedger opens the ledger for a command that lists Stripe's events. It warns of an unrestricted key.
func openLedger(ctx context.Context, c *config, out io.Writer) (*ledger.DB, purchase.Rules, error) {
	rules, err := c.rules()
	if err != nil {
		return nil, rules, err
	}
	db, err := ledger.Open(ctx, c.DatabaseURL)
	if err != nil {
		return nil, rules, err
	}
	if err := db.CheckSchema(ctx); err != nil {
		db.Close()
		return nil, rules, err
	}
	if c.api().Unrestricted() {
		_, _ = fmt.Fprintln(out, "STRIPE_API_KEY is an unrestricted key: a restricted one (rk_…) that may read "+
			"events and checkout sessions is enough.")
	}
	return db, rules, nil
}

func printCounts(out io.Writer, c backfill.Counts, dryRun bool) {
	recorded := "new"
	if dryRun {
		recorded = "missing"
	}
	for _, row := range []struct {
		n    int
		name string
	}{
		{c.Sum(), "events:"},
		{c.Known, "known"},
		{c.New, recorded},
		{c.Ignored, "ignored"},
		{c.Rejected, "rejected"},
		{c.Malformed, "malformed"},
	} {
		_, _ = fmt.Fprintf(out, "%9d  %s\n", row.n, row.name)
	}
}

// maxListed bounds how many ids are printed.
const maxListed = 20

// unresolvedEvents lists the rejected and malformed events, which need the operator.
type unresolvedEvents struct {
	lines   []string
	omitted int
}

func (u *unresolvedEvents) add(e purchase.Event, d purchase.Disposition) {
	if len(u.lines) == maxListed {
		u.omitted++
		return
	}
	id := e.ID
	if e.Checkout != nil && purchase.ValidID(e.Checkout.ID) {
		id = e.Checkout.ID
	}
	cause := "no usable checkout: see the event in Stripe"
	if d == purchase.Rejected {
		cause = "paid without a usable e-mail address: give access by hand"
	}
	u.lines = append(u.lines, purchase.LogSafe(id)+": "+cause)
}

func (u *unresolvedEvents) print(out io.Writer) {
	for _, line := range u.lines {
		_, _ = fmt.Fprintln(out, line)
	}
	if u.omitted > 0 {
		_, _ = fmt.Fprintf(out, "and %d more; see the dashboard's page Needs attention\n", u.omitted)
	}
}

// progressInterval is the interval of progress lines where the output is not a terminal.
const progressInterval = 10 * time.Second

// listProgress shows the progress through Stripe's list of events, newest first. The list has no total: the
// bar measures the time range that was read.
type listProgress struct {
	out              io.Writer
	since, until     time.Time
	started, printed time.Time
	bar              *progressbar.ProgressBar // nil: the output is not a terminal
}

func newListProgress(out io.Writer, since, until time.Time) *listProgress {
	l := &listProgress{out: out, since: since, until: until, started: time.Now(), printed: time.Now()}
	if service.IsTerminal(out) {
		l.bar = progressbar.NewOptions64(int64(until.Sub(since).Seconds()),
			progressbar.OptionSetWriter(out), progressbar.OptionSetElapsedTime(false),
			progressbar.OptionSetPredictTime(false), progressbar.OptionSetDescription("Listing events"),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	}
	return l
}

func (l *listProgress) show(p backfill.Progress) {
	switch {
	case p.Wait > 0:
		l.print(fmt.Sprintf("%v; retrying in %s", p.Cause, p.Wait.Round(time.Second/10)))
	case l.bar != nil:
		l.bar.Describe(l.line(p))
		_ = l.bar.Set64(int64(l.done(p).Seconds())) // display only
	case time.Since(l.printed) >= progressInterval:
		l.printed = time.Now()
		l.print(l.line(p))
	}
}

// done returns how much of the time range was read.
func (l *listProgress) done(p backfill.Progress) time.Duration {
	if p.Reached.IsZero() {
		return 0
	}
	return max(0, min(l.until.Sub(p.Reached), l.until.Sub(l.since)))
}

func (l *listProgress) line(p backfill.Progress) string {
	line := fmt.Sprintf("%d events", p.Now.Sum())
	if n := p.Now.New + p.Now.Rejected; n > 0 {
		line += fmt.Sprintf(", %d new", n)
	}
	if !p.Reached.IsZero() {
		line += ", back to " + p.Reached.UTC().Format("2006-01-02 15:04")
	}
	if left, ok := timeLeft(l.done(p), l.until.Sub(l.since), time.Since(l.started)); ok {
		line += fmt.Sprintf(", about %s left", left.Round(time.Second))
	}
	return line
}

// timeLeft extrapolates from the share that is done. ok is false for the first 2 %, where bursts of events
// would distort the estimate.
func timeLeft(done, total, elapsed time.Duration) (left time.Duration, ok bool) {
	share := float64(done) / float64(total)
	if share < 0.02 {
		return 0, false
	}
	return time.Duration(float64(elapsed) * (1 - share) / share), true
}

func (l *listProgress) print(line string) {
	if l.bar != nil {
		_ = l.bar.Clear()
	}
	_, _ = fmt.Fprintln(l.out, line)
}

func (l *listProgress) finish() {
	if l.bar != nil {
		_ = l.bar.Finish()
	}
}
