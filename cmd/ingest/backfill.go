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
	"purchase-relay/internal/message"
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

// errMissed is what a rehearsal finds.
var errMissed = errors.New("webhooks missed events: run it without --dry-run")

// errOther keeps two from doing the same.
var errOther = errors.New("another backfill is under way on this ledger: wait for it, or end it")

// catchUp takes in what webhooks missed. The relay of a running ingest sends it.
func catchUp(ctx context.Context, c *config, out io.Writer) error {
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
	if now.Sub(since) > maintenance.TikTokShows {
		_, _ = fmt.Fprintln(out, "TikTok may neither match nor show purchases older than 28 days; they are recorded and sent all the same.")
	}
	bar := newWalkBar(out, since, now)
	left := newNamed(out)
	run := backfill.Run{List: stripe.NewAPI(c.api()), Journal: db, Progress: bar.show, Left: left.add, Now: time.Now}
	if c.Backfill.DryRun {
		run.Intake, run.Journal = &intake.Rehearsal{Ledger: db, Rules: rules, Now: time.Now}, nowhere{}
	} else {
		lead := db.LeadBackfill()
		switch first, err := lead.Hold(ctx); {
		case err != nil:
			return err
		case !first:
			return errOther
		}
		defer lead.Release()                              //nolint:contextcheck // it is given back also when ctx has ended
		registry, _ := service.Metrics(service.Version()) // nobody asks this process
		run.Intake = intake.NewHandler(stripe.NewWebhook(nil, time.Now), db, rules, later{}, time.Now, zap.NewNop(), registry)
	}
	counts, err := run.Do(ctx, backfill.OriginCommand, since, now)
	bar.end()
	printCounts(out, counts, c.Backfill.DryRun)
	left.print()
	switch {
	case err != nil && counts.Sum() > 0:
		return fmt.Errorf("%w: run it again, it goes on there: %w", err, service.ErrLeft)
	case err != nil:
		return err
	case c.Backfill.DryRun && counts.New+counts.Rejected > 0:
		return fmt.Errorf("%w: %w", errMissed, service.ErrLeft)
	case counts.Rejected+counts.Malformed > 0:
		return service.ErrLeft
	}
	return nil
}

func sinceOf(text string, now time.Time) (time.Time, error) {
	since, err := maintenance.ParseSince(text, now)
	if err == nil && !since.Before(now) {
		err = errors.New("nothing is so young")
	}
	if err != nil {
		return since, &service.UsageError{Problems: []string{"--since: " + err.Error()}}
	}
	return since, nil
}

// openFor opens the ledger, and says what the key is good for.
func openFor(ctx context.Context, c *config, out io.Writer) (*ledger.DB, intake.Rules, error) {
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
		_, _ = fmt.Fprintln(out, "STRIPE_API_KEY is a secret key and may do far more than reading: a restricted one (rk_…) that may read events and checkout sessions is enough.")
	}
	return db, rules, nil
}

// later leaves what is recorded to the relay of a running ingest.
type later struct{}

func (later) Ready() bool         { return false }
func (later) Offer(message.Claim) {}
func (later) Wake()               {}

// nowhere is a rehearsal's journal: every one begins at the newest event.
type nowhere struct{}

func (nowhere) Backfill(_ context.Context, origin string) (purchase.Backfill, error) {
	return purchase.Backfill{Origin: origin}, nil
}

func (nowhere) PutBackfill(context.Context, purchase.Backfill) error { return nil }

// printCounts is the closing table.
func printCounts(out io.Writer, c purchase.BackfillCounts, dry bool) {
	fresh := "new"
	if dry {
		fresh = "to catch up with"
	}
	for _, row := range []struct {
		n    int
		name string
	}{{c.Sum(), "events:"}, {c.Known, "known"}, {c.New, fresh}, {c.Ignored, "ignored"}, {c.Rejected, "rejected"}, {c.Malformed, "malformed"}} {
		_, _ = fmt.Fprintf(out, "%9d  %s\n", row.n, row.name)
	}
}

// mostNamed bounds how many ids are printed.
const mostNamed = 20

// named collects who needs a hand.
type named struct {
	out   io.Writer
	lines []string
	more  int
}

func newNamed(out io.Writer) *named { return &named{out: out} }

func (l *named) add(e purchase.Event, d purchase.Disposition) {
	if len(l.lines) == mostNamed {
		l.more++
		return
	}
	id := e.ID
	if e.Checkout != nil && purchase.ValidID(e.Checkout.ID) {
		id = e.Checkout.ID
	}
	why := "no usable checkout in it; look at it in Stripe"
	if d == purchase.Rejected {
		why = "paid, without a usable e-mail address: give access by hand"
	}
	l.lines = append(l.lines, purchase.Tellable(id)+": "+why)
}

func (l *named) print() {
	for _, line := range l.lines {
		_, _ = fmt.Fprintln(l.out, line)
	}
	if l.more > 0 {
		_, _ = fmt.Fprintf(l.out, "and %d more; see the dashboard's page Needs attention\n", l.more)
	}
}

// tellEvery is how often progress is written where nobody watches a bar.
const tellEvery = 10 * time.Second

// walkBar shows how far a walk through Stripe's list came. The list has no total: the bar measures the time that was walked back.
type walkBar struct {
	out          io.Writer
	since, until time.Time
	began, told  time.Time
	bar          *progressbar.ProgressBar // nil: nobody watches
}

func newWalkBar(out io.Writer, since, until time.Time) *walkBar {
	b := &walkBar{out: out, since: since, until: until, began: time.Now(), told: time.Now()}
	if service.Terminal(out) {
		b.bar = progressbar.NewOptions64(int64(until.Sub(since).Seconds()), progressbar.OptionSetWriter(out), progressbar.OptionSetElapsedTime(false),
			progressbar.OptionSetPredictTime(false), progressbar.OptionSetDescription("Asking Stripe"), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	}
	return b
}

func (b *walkBar) show(p backfill.Progress) {
	switch {
	case p.Waits > 0:
		b.note(fmt.Sprintf("%v; trying again in %s", p.Reason, p.Waits.Round(time.Second/10)))
	case b.bar != nil:
		b.bar.Describe(b.line(p))
		_ = b.bar.Set64(int64(b.walked(p).Seconds())) // a bar that cannot be drawn stops nothing
	case time.Since(b.told) >= tellEvery:
		b.told = time.Now()
		b.note(b.line(p))
	}
}

// walked is how much of the time is done.
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

// timeLeft estimates how long a walk goes on, from the share of the time that is walked. Nothing can be said at the beginning: the
// list has no total, and events come in bunches.
func timeLeft(walked, all, took time.Duration) (left time.Duration, known bool) {
	const enough = 0.02
	share := float64(walked) / float64(all)
	if share < enough {
		return 0, false
	}
	return time.Duration(float64(took) * (1 - share) / share), true
}

func (b *walkBar) note(line string) {
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
