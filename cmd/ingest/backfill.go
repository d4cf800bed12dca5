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

// backfillFlags are flags alone: a variable named SINCE may mean anything.
type backfillFlags struct {
	Since  string `noenv:"" default:"72h" help:"How far back: 30m, 72h, 30d, or a time in RFC 3339. Stripe lists the last 30 days."`
	DryRun bool   `noenv:"" help:"Say what would be done, and do nothing."`
}

// Help is the command's own page.
func (*backfillFlags) Help() string {
	return `Stripe is asked for its events of the time. A run that was interrupted resumes where it stopped.

Exit status 3: something is left.`
}

var (
	// errMissed is the result of a dry run that found something.
	errMissed = errors.New("webhooks missed events: run it without --dry-run")
	// errRunning refuses a second backfill on one ledger.
	errRunning = errors.New("another backfill is running on this ledger")
)

// runBackfill takes in the events whose webhooks were missed. The relay of a running ingest publishes them.
func runBackfill(ctx context.Context, c *config, out io.Writer) error {
	now := time.Now()
	since, err := sinceOf(c.Backfill.Since, now)
	if err != nil {
		return err
	}
	db, rules, err := openFor(ctx, c, out)
	if err != nil {
		return err
	}
	defer db.Close()
	if now.Sub(since) > maintenance.MaxMatchAge {
		_, _ = fmt.Fprintln(out, "TikTok may neither match nor show purchases older than 28 days; "+
			"they are recorded and sent all the same.")
	}
	dryRun := c.Backfill.DryRun
	events := intake.NewService(intake.Config{
		Ledger: db, Rules: rules, DryRun: dryRun, Now: time.Now,
	}, zap.NewNop(), nil)
	bar := newWalkBar(out, since, now)
	var left leftEvents
	run := backfill.Run{
		List: stripe.NewAPI(c.api()), Intake: events, Progress: bar.show, Left: left.add, Now: time.Now,
	}
	if !dryRun {
		lead := db.BackfillLeadership()
		switch leads, err := lead.Hold(ctx); {
		case err != nil:
			return err
		case !leads:
			return errRunning
		}
		defer lead.Release() //nolint:contextcheck // it is released also when ctx has ended
		run.Journal = backfill.NewJournal(db)
	}
	counts, err := run.Do(ctx, backfill.OriginCommand, since, now)
	bar.end()
	printCounts(out, counts, dryRun)
	left.print(out)
	switch {
	case err != nil && counts.Sum() > 0:
		return fmt.Errorf("%w: run it again to resume: %w", err, service.ErrLeft)
	case err != nil:
		return err
	case dryRun && counts.New+counts.Rejected > 0:
		return fmt.Errorf("%w: %w", errMissed, service.ErrLeft)
	case counts.Rejected+counts.Malformed > 0:
		return service.ErrLeft
	}
	return nil
}

// sinceOf reads --since.
func sinceOf(text string, now time.Time) (time.Time, error) {
	since, err := maintenance.ParseSince(text, now)
	if err == nil && !since.Before(now) {
		err = errors.New("must be in the past")
	}
	if err != nil {
		return since, &service.UsageError{Problems: []string{"--since: " + err.Error()}}
	}
	return since, nil
}

// openFor opens the ledger for a command that reads Stripe's list.
func openFor(ctx context.Context, c *config, out io.Writer) (*ledger.DB, purchase.Rules, error) {
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
		_, _ = fmt.Fprintln(out, "STRIPE_API_KEY is a secret key and may do far more than reading: a restricted one "+
			"(rk_…) that may read events and checkout sessions is enough.")
	}
	return db, rules, nil
}

// printCounts prints the closing table.
func printCounts(out io.Writer, c backfill.Counts, dryRun bool) {
	fresh := "new"
	if dryRun {
		fresh = "to catch up with"
	}
	for _, row := range []struct {
		n    int
		name string
	}{
		{c.Sum(), "events:"},
		{c.Known, "known"},
		{c.New, fresh},
		{c.Ignored, "ignored"},
		{c.Rejected, "rejected"},
		{c.Malformed, "malformed"},
	} {
		_, _ = fmt.Fprintf(out, "%9d  %s\n", row.n, row.name)
	}
}

// mostNamed bounds how many ids are printed.
const mostNamed = 20

// leftEvents are the rejected and malformed events, which an operator must look after.
type leftEvents struct {
	lines []string
	more  int
}

func (l *leftEvents) add(e purchase.Event, d purchase.Disposition) {
	if len(l.lines) == mostNamed {
		l.more++
		return
	}
	id := e.ID
	if e.Checkout != nil && purchase.ValidID(e.Checkout.ID) {
		id = e.Checkout.ID
	}
	cause := "no usable checkout in it; look at it in Stripe"
	if d == purchase.Rejected {
		cause = "paid, without a usable e-mail address: give access by hand"
	}
	l.lines = append(l.lines, purchase.LogSafe(id)+": "+cause)
}

func (l *leftEvents) print(out io.Writer) {
	for _, line := range l.lines {
		_, _ = fmt.Fprintln(out, line)
	}
	if l.more > 0 {
		_, _ = fmt.Fprintf(out, "and %d more; see the dashboard's page Needs attention\n", l.more)
	}
}

// progressInterval is how often progress is printed where the output is no terminal.
const progressInterval = 10 * time.Second

// walkBar shows the progress of a walk through Stripe's list. The list has no total: the bar measures the
// time that was walked back.
type walkBar struct {
	out            io.Writer
	since, until   time.Time
	began, printed time.Time
	bar            *progressbar.ProgressBar // nil: the output is no terminal
}

func newWalkBar(out io.Writer, since, until time.Time) *walkBar {
	b := &walkBar{out: out, since: since, until: until, began: time.Now(), printed: time.Now()}
	if service.Terminal(out) {
		b.bar = progressbar.NewOptions64(int64(until.Sub(since).Seconds()),
			progressbar.OptionSetWriter(out), progressbar.OptionSetElapsedTime(false),
			progressbar.OptionSetPredictTime(false), progressbar.OptionSetDescription("Asking Stripe"),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	}
	return b
}

func (b *walkBar) show(p backfill.Progress) {
	switch {
	case p.Wait > 0:
		b.print(fmt.Sprintf("%v; trying again in %s", p.Cause, p.Wait.Round(time.Second/10)))
	case b.bar != nil:
		b.bar.Describe(b.line(p))
		_ = b.bar.Set64(int64(b.walked(p).Seconds())) // a bar that cannot be drawn stops nothing
	case time.Since(b.printed) >= progressInterval:
		b.printed = time.Now()
		b.print(b.line(p))
	}
}

// walked returns how much of the time is done.
func (b *walkBar) walked(p backfill.Progress) time.Duration {
	if p.Reached.IsZero() {
		return 0
	}
	return max(0, min(b.until.Sub(p.Reached), b.until.Sub(b.since)))
}

func (b *walkBar) line(p backfill.Progress) string {
	line := fmt.Sprintf("%d events", p.Now.Sum())
	if n := p.Now.New + p.Now.Rejected; n > 0 {
		line += fmt.Sprintf(", %d new", n)
	}
	if !p.Reached.IsZero() {
		line += ", back to " + p.Reached.UTC().Format("2006-01-02 15:04")
	}
	if left, known := timeLeft(b.walked(p), b.until.Sub(b.since), time.Since(b.began)); known {
		line += fmt.Sprintf(", about %s left", left.Round(time.Second))
	}
	return line
}

// timeLeft estimates the rest of a walk from the share of the time that is walked. It is unknown at the
// beginning: the list has no total, and events come in bunches.
func timeLeft(walked, all, took time.Duration) (left time.Duration, known bool) {
	const enough = 0.02
	share := float64(walked) / float64(all)
	if share < enough {
		return 0, false
	}
	return time.Duration(float64(took) * (1 - share) / share), true
}

func (b *walkBar) print(line string) {
	if b.bar != nil {
		_ = b.bar.Clear()
	}
	_, _ = fmt.Fprintln(b.out, line)
}

func (b *walkBar) end() {
	if b.bar != nil {
		_ = b.bar.Finish()
	}
}
