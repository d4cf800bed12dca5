package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"purchase-relay/internal/intake"
	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/backfill"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/service"
	"purchase-relay/internal/stripe"
)

// reconcileFlags are the flags of `ingest reconcile`.
type reconcileFlags struct {
	Since string `noenv:"" default:"30d" help:"How far back: 24h, 7d, 30d, or a time in RFC 3339. Stripe lists the last 30 days."`
	CSV   string `noenv:"" name:"csv" placeholder:"FILE" help:"Also write the table, with the ids of each difference, to a file; - is the standard output, instead of the table."`
}

// Help is the command's own page.
func (*reconcileFlags) Help() string {
	return `Stripe's paid checkouts are compared with the ledger, and the ledger with TikTok's acceptances.

Exit status 3: they differ.`
}

// errDiffer is what a reconciliation finds.
var errDiffer = errors.New("the books differ; what is missing comes with: ingest backfill")

// reconcile holds Stripe's book against the ledger's against TikTok's.
func reconcile(ctx context.Context, c *config, out io.Writer) error {
	now := time.Now()
	since, err := sinceOf(c.Reconcile.Since, now)
	if err != nil {
		return err
	}
	told := out
	if c.Reconcile.CSV == "-" {
		told = io.Discard
	}
	db, rules, err := openFor(ctx, c, told)
	if err != nil {
		return err
	}
	defer db.Close()
	bar := newWalkBar(told, since, now)
	r := backfill.Reconciler{
		List:     stripe.NewAPI(c.api()),
		Ledger:   reconcileLedger{db, report.New(db)},
		Rules:    rules,
		Livemode: c.api().Livemode(),
		Progress: bar.show,
		Now:      time.Now,
	}
	found, err := r.Do(ctx, since)
	bar.end()
	if err != nil {
		return err
	}
	printReconciliation(told, &found)
	if err := writeCSV(out, c.Reconcile.CSV, &found); err != nil {
		return err
	}
	if found.ToReview() > 0 {
		return fmt.Errorf("%w: %w", errDiffer, service.ErrLeft)
	}
	return nil
}

func printReconciliation(out io.Writer, r *report.Reconciliation) {
	mode := "test"
	if r.Livemode {
		mode = "live"
	}
	_, _ = fmt.Fprintf(out, "Paid from %s to %s UTC, %s mode\n\n", r.Since.UTC().Format("2006-01-02 15:04"), r.Until.UTC().Format("2006-01-02 15:04"), mode)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "day\tcurrency\tStripe\t\tledger\t\tTikTok\t\tdiffer\t")
	for i := range r.Days {
		d := &r.Days[i]
		differ := 0
		for _, ids := range d.Differ {
			differ += len(ids)
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%d\t%s\t%d\t%s\t%d\t\n", d.Day.Format(time.DateOnly), currencyOf(d), d.Paid.Count, money(d.Paid, d),
			d.Ledger.Count, money(d.Ledger, d), d.Accepted.Count, money(d.Accepted, d), differ)
	}
	_ = table.Flush() // a table that cannot be printed undoes nothing
	if len(r.Days) == 0 {
		_, _ = fmt.Fprintln(out, "Nothing was paid.")
	}
	printDifferences(out, r)
}

// printDifferences names what differs, the first ones of each kind.
func printDifferences(out io.Writer, r *report.Reconciliation) {
	counts := r.Counts()
	if len(counts) == 0 {
		_, _ = fmt.Fprintln(out, "\nNo difference: Stripe, the ledger and TikTok agree.")
		return
	}
	for _, kind := range report.Differences() {
		if counts[kind] == 0 {
			continue
		}
		_, _ = fmt.Fprintf(out, "\n%d %s: %s\n", counts[kind], strings.ReplaceAll(string(kind), "_", " "), kind.Meaning())
		named := 0
		for i := range r.Days {
			for _, id := range r.Days[i].Differ[kind] {
				if named++; named <= mostNamed {
					_, _ = fmt.Fprintf(out, "  %s  %s\n", r.Days[i].Day.Format(time.DateOnly), id)
				}
			}
		}
		if named > mostNamed {
			_, _ = fmt.Fprintf(out, "  and %d more: --csv FILE names them all\n", named-mostNamed)
		}
	}
}

func currencyOf(d *report.ReconciledDay) string {
	if d.Currency == "" {
		return "none"
	}
	return d.Currency
}

func money(t report.Totals, d *report.ReconciledDay) string {
	if d.Currency == "" {
		return "-"
	}
	return purchase.Major(t.Minor, d.Currency)
}

// writeCSV writes one row a day and currency, the ids of each difference in a column of its own, apart by blanks.
func writeCSV(out io.Writer, file string, r *report.Reconciliation) (err error) {
	switch file {
	case "":
		return nil
	case "-":
	default:
		f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) //nolint:gosec // the caller's own choice
		if err != nil {
			return fmt.Errorf("--csv: %w", err)
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		out = f
	}
	if err := csv.NewWriter(out).WriteAll(r.Rows()); err != nil {
		return fmt.Errorf("--csv: %w", err)
	}
	return nil
}

// reconcileLedger is the ledger's side of a reconciliation.
type reconcileLedger struct {
	*ledger.DB
	*report.Reader
}

// checkConfig wires ingest's own check.
func checkConfig(c *config, db *ledger.DB, events *intake.Service, rules purchase.Rules) backfill.CheckConfig {
	return backfill.CheckConfig{
		Interval: c.BackfillInterval,
		List:     stripe.NewAPI(c.api()),
		Intake:   events,
		Journal:  backfill.NewJournal(db),
		Lead:     db.CheckLeadership(),
		Ledger:   reconcileLedger{db, report.New(db)},
		Rules:    rules,
		Livemode: c.api().Livemode(),
		Now:      time.Now,
	}
}
