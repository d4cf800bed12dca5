package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/service"
)

// pruneFlags are the flags of `ingest prune`.
type pruneFlags struct {
	OlderThan         string   `noenv:"" default:"90d" help:"What ended before goes: an age such as 90d, or a time in RFC 3339; at least 35d, so that Stripe's repeats are known."`
	AttemptsOlderThan string   `noenv:"" help:"Attempts of finished purchases that stay go before: at least 7d. Default: with their purchase."`
	Also              []string `noenv:"" help:"What goes by name alone, comma-separated: dead, rejected, awaiting_payment."`
	DryRun            bool     `noenv:"" help:"Only say what would go."`
	Yes               bool     `noenv:"" short:"y" help:"Do not ask."`

	Every time.Duration `noenv:"" help:"Stay, and prune again this often, for instance 24h: a schedule where there is no cron. Needs --yes."`
}

// Help is the command's own page.
func (*pruneFlags) Help() string {
	return `Delivered, skipped and unpaid purchases that ended before the age go, with their attempts and Stripe's events. What is on its way stays, and what Stripe spoke of since then; what waits
for a person (dead, rejected) goes by name alone. It works in small steps beside webhooks, and can be broken off and begun again.

  ingest prune --dry-run
  ingest prune --yes --older-than 90d            every night
  ingest prune --yes --every 24h                 the same, for a container
  ingest prune --also dead,rejected

Exit status 3: something that waits for a person stays, or it was broken off or not confirmed.`
}

func (f *pruneFlags) pruning(now time.Time) (p maintenance.Pruning, err error) {
	if p.Before, err = maintenance.ParseSince(f.OlderThan, now); err != nil {
		return p, fmt.Errorf("--older-than: %w", err)
	}
	if p.Attempts, err = maintenance.ParseSince(f.AttemptsOlderThan, now); err != nil {
		return p, fmt.Errorf("--attempts-older-than: %w", err)
	}
	for _, status := range f.Also {
		p.Also = append(p.Also, purchase.Status(status))
	}
	slices.Sort(p.Also)
	p.Also = slices.Compact(p.Also)
	return p, p.Check(now)
}

// prune removes what has ended long ago. It is left (exit status 3) where something waits for a person since then, or it was broken off.
func prune(ctx context.Context, c *config, stdin io.Reader, out io.Writer) error {
	p, err := c.Prune.pruning(time.Now().UTC())
	if err != nil {
		return &service.UsageError{Problems: []string{err.Error()}}
	}
	db, err := ledger.Open(ctx, c.DatabaseURL)
	if err != nil {
		return err
	}
	defer db.Close()
	jobs := maintenance.New(db)
	goes, err := jobs.CountPrunable(ctx, p)
	if err != nil {
		return err
	}
	stays, err := jobs.CountEnded(ctx, p.Unnamed(), p.Before)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "%d purchases ended before %s, and Stripe has not spoken of them since.\n", goes.Purchases(), p.Before.UTC().Format(time.DateTime+"Z"))
	if c.Prune.DryRun {
		return closing(out, "would go", goes, stays)
	}
	if !c.Prune.Yes {
		if err := confirm(stdin, out); err != nil {
			return err
		}
	}
	n := goes.Purchases()
	bar := newBar(out, "Pruning", n)
	gone, err := jobs.Prune(ctx, p, func(done maintenance.Pruned) { _ = bar.Set(min(done.Purchases(), n)) }) // a bar that cannot be drawn stops nothing
	_ = bar.Clear()
	if err != nil {
		_ = closing(out, "gone so far", gone, stays)
		if errors.Is(err, context.Canceled) {
			return fmt.Errorf("%w: it was broken off; run it again for the rest", service.ErrLeft)
		}
		return err
	}
	return closing(out, "gone", gone, stays)
}

// closing prints what went and what stays for a person to decide.
func closing(out io.Writer, went string, gone, stays maintenance.Pruned) error {
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(table, "%s\tstay\t\t\n", went)
	for _, g := range gone.Groups {
		_, _ = fmt.Fprintf(table, "%d\t\t%s\t\n", g.Count, standing(g))
	}
	if gone.Attempts+gone.Events > 0 {
		_, _ = fmt.Fprintf(table, "%d\t\tattempts\t\n%d\t\tevents\t\n", gone.Attempts, gone.Events)
	}
	if gone.Trials > 0 {
		_, _ = fmt.Fprintf(table, "%d\t\tsubscriptions\t\n", gone.Trials)
	}
	for _, g := range stays.Groups {
		_, _ = fmt.Fprintf(table, "\t%d\t%s\t\n", g.Count, standing(g))
	}
	_ = table.Flush() // a table that cannot be printed undoes nothing
	if stays.Purchases() == 0 {
		return nil
	}
	var names []string
	for _, g := range stays.Groups {
		names = append(names, string(g.Status))
	}
	_, _ = fmt.Fprintf(out, "What stays waits for a person (the dashboard's dead letters and needs attention; ingest replay). To let it go: --also %s\n", strings.Join(slices.Compact(names), ","))
	return service.ErrLeft
}

func standing(g report.Group) string {
	if g.Reason == "" {
		return string(g.Status)
	}
	return fmt.Sprintf("%s (%s)", g.Status, g.Reason)
}
