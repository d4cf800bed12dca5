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
	OlderThan         string   `noenv:"" default:"90d" help:"Minimum age or an RFC 3339 time; at least 35d."`
	AttemptsOlderThan string   `noenv:"" help:"Minimum age of attempts; at least 7d. Default: their purchase's."`
	Also              []string `noenv:"" help:"More statuses to delete: dead, rejected, awaiting_payment."`
	DryRun            bool     `noenv:"" help:"Only show what would be deleted."`
	Yes               bool     `noenv:"" short:"y" help:"Do not ask."`

	Every time.Duration `noenv:"" help:"Keep running and prune at this interval, such as 24h. Needs --yes."`
}

// Help implements kong.HelpProvider.
func (*pruneFlags) Help() string {
	return `Deletes delivered, skipped and unpaid purchases that ended before --older-than, with their attempts
and events. It keeps purchases that are not finished or had an event since then, and, unless --also names
them, those that wait for you (dead, rejected) or for Stripe (awaiting_payment). It works in small steps
beside webhooks; an interrupted run can be repeated.

  ingest prune --dry-run
  ingest prune --yes --older-than 90d            every night
  ingest prune --yes --every 24h                 the same, in a container
  ingest prune --also dead,rejected

Exit status 3: purchases that wait for you were kept, or it was interrupted or not confirmed.`
}

// pruning returns what to delete.
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

// prune deletes old, finished purchases. Its error is ErrActionRequired where it kept some that wait for the
// operator, or was interrupted.
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
	prunable, err := jobs.CountPrunable(ctx, p)
	if err != nil {
		return err
	}
	kept, err := jobs.CountEnded(ctx, p.Unnamed(), p.Before)
	if err != nil {
		return err
	}
	n := prunable.Purchases()
	_, _ = fmt.Fprintf(out, "%d purchases ended before %s.\n", n, p.Before.UTC().Format(time.DateTime+"Z"))
	if c.Prune.DryRun {
		return printPruned(out, "to delete", prunable, kept)
	}
	if !c.Prune.Yes {
		if err := confirm(ctx, stdin, out); err != nil {
			return err
		}
	}
	bar := newBar(out, "Pruning", n)
	deleted, err := jobs.Prune(ctx, p, func(done maintenance.Pruned) { _ = bar.Set(min(done.Purchases(), n)) })
	_ = bar.Clear()
	if err != nil {
		_ = printPruned(out, "deleted", deleted, kept)
		if errors.Is(err, context.Canceled) {
			return fmt.Errorf("interrupted: %w", service.ErrActionRequired)
		}
		return err
	}
	return printPruned(out, "deleted", deleted, kept)
}

// printPruned prints what was deleted, or would be, and what was kept for the operator to decide.
func printPruned(out io.Writer, heading string, deleted, kept maintenance.Pruned) error {
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(table, "%s\tkept\t\t\n", heading)
	for _, g := range deleted.Groups {
		_, _ = fmt.Fprintf(table, "%d\t\t%s\t\n", g.Count, groupName(g))
	}
	if deleted.Attempts+deleted.Events > 0 {
		_, _ = fmt.Fprintf(table, "%d\t\tattempts\t\n%d\t\tevents\t\n", deleted.Attempts, deleted.Events)
	}
	if deleted.Trials > 0 {
		_, _ = fmt.Fprintf(table, "%d\t\tsubscriptions\t\n", deleted.Trials)
	}
	var statuses []string
	for _, g := range kept.Groups {
		_, _ = fmt.Fprintf(table, "\t%d\t%s\t\n", g.Count, groupName(g))
		statuses = append(statuses, string(g.Status))
	}
	_ = table.Flush() // display only
	if kept.Purchases() == 0 {
		return nil
	}
	_, _ = fmt.Fprintf(out, "Kept for review: see the dashboard's pages Dead letters and Needs attention. "+
		"To delete them, add --also %s\n", strings.Join(slices.Compact(statuses), ","))
	return service.ErrActionRequired
}

func groupName(g report.Group) string {
	if g.Reason == "" {
		return string(g.Status)
	}
	return fmt.Sprintf("%s (%s)", g.Status, g.Reason)
}
