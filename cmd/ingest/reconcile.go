package main

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
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
	Since string `noenv:"" default:"30d" help:"How far back: 24h, 7d, 30d or an RFC 3339 time; at most 30 days."`
	CSV   string `noenv:"" name:"csv" placeholder:"FILE" help:"Also write days and ids as CSV; -: print it."`
}

// Help implements kong.HelpProvider.
func (*reconcileFlags) Help() string {
	return `Compares Stripe's paid checkouts with the ledger, and the ledger with TikTok's acceptances. Then
prints what TikTok counts and attributes by UTC day, if a worker asks for that (TIKTOK_ADVERTISER_ID).

Exit status 3: Stripe, the ledger and the acceptances differ.`
}

var errDiffer = errors.New("payments differ between Stripe, the ledger and TikTok")

func reconcile(ctx context.Context, c *config, out io.Writer) error {
	now := time.Now()
	since, err := parseSince(c.Reconcile.Since, now)
	if err != nil {
		return err
	}
	text := out
	if c.Reconcile.CSV == "-" {
		text = io.Discard
	}
	db, rules, err := openLedger(ctx, c, text)
	if err != nil {
		return err
	}
	defer db.Close()
	progress := newListProgress(text, since, now)
	r := backfill.Reconciler{
		List:     stripe.NewAPI(c.api()),
		Ledger:   reconcileLedger{db, report.New(db)},
		Rules:    rules,
		Livemode: c.api().Livemode(),
		Progress: progress.show,
		Now:      time.Now,
	}
	found, err := r.Do(ctx, since)
	progress.finish()
	if err != nil {
		return err
	}
	printReconciliation(text, &found)
	counts, err := report.New(db).Counts(ctx, c.countNames(), now)
	if err != nil {
		return err
	}
	printTikTokCounts(text, &counts)
	if err := writeCSV(out, c.Reconcile.CSV, &found); err != nil {
		return err
	}
	if found.ToReview() > 0 {
		return fmt.Errorf("%w: %w", errDiffer, service.ErrActionRequired)
	}
	return nil
}

func printReconciliation(out io.Writer, r *report.Reconciliation) {
	mode := "test"
	if r.Livemode {
		mode = "live"
	}
	const minute = "2006-01-02 15:04"
	_, _ = fmt.Fprintf(out, "Paid from %s to %s UTC, %s mode\n\n",
		r.Since.UTC().Format(minute), r.Until.UTC().Format(minute), mode)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "day (UTC)\tcurrency\tStripe\t\tledger\t\tTikTok\t\tdiffer\t")
	for i := range r.Days {
		d := &r.Days[i]
		differences := 0
		for _, ids := range d.Differ {
			differences += len(ids)
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t", d.Day.Format(time.DateOnly), cmp.Or(d.Currency, "none"))
		for _, t := range []report.Totals{d.Paid, d.Ledger, d.Accepted} {
			_, _ = fmt.Fprintf(table, "%d\t%s\t", t.Count, amount(t, d.Currency))
		}
		_, _ = fmt.Fprintf(table, "%d\t\n", differences)
	}
	_ = table.Flush() // display only
	if len(r.Days) == 0 {
		_, _ = fmt.Fprintln(out, "No payments.")
	}
	printDifferences(out, r)
}

// printTikTokCounts prints TikTok's counts by UTC day and the findings, or nothing if TikTok was never asked.
func printTikTokCounts(out io.Writer, c *report.Counts) {
	if len(c.Days) == 0 {
		return
	}
	mode := "test"
	if c.Livemode {
		mode = "live"
	}
	_, _ = fmt.Fprintf(out, "\nTikTok's counts by UTC day, %s mode, asked %s UTC\n\n",
		mode, c.AskedAt.UTC().Format("2006-01-02 15:04"))
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "day\tStripe\tledger\taccepted\tcounted\tbrowser\tattributed\t")
	for i := range c.Days {
		d := &c.Days[i]
		stripe := "-"
		if d.Stripe != nil {
			stripe = strconv.Itoa(*d.Stripe)
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t\n", d.Day.Format(time.DateOnly), stripe,
			d.Ledger, d.Accepted, d.Server, d.Browser, d.Attributed)
	}
	_ = table.Flush() // display only
	for _, f := range c.Findings {
		var days []string
		for _, day := range f.Days {
			days = append(days, day.Format(time.DateOnly))
		}
		_, _ = fmt.Fprintf(out, "\n%s.\n", f.Text)
		if f.Difference() && len(days) > 0 {
			_, _ = fmt.Fprintf(out, "  %s\n", strings.Join(days[:min(len(days), maxListed)], ", "))
		}
		if f.Remedy != "" {
			_, _ = fmt.Fprintf(out, "  %s\n", f.Remedy)
		}
	}
}

// printDifferences lists the first differences of each kind.
func printDifferences(out io.Writer, r *report.Reconciliation) {
	counts := r.Counts()
	if len(counts) == 0 {
		_, _ = fmt.Fprintln(out, "\nNo differences.")
		return
	}
	for _, kind := range report.Differences() {
		if counts[kind] == 0 {
			continue
		}
		name := strings.ReplaceAll(string(kind), "_", " ")
		_, _ = fmt.Fprintf(out, "\n%d %s: %s\n", counts[kind], name, kind.Meaning())
		listed := 0
		for i := range r.Days {
			for _, id := range r.Days[i].Differ[kind] {
				if listed++; listed <= maxListed {
					_, _ = fmt.Fprintf(out, "  %s  %s\n", r.Days[i].Day.Format(time.DateOnly), id)
				}
			}
		}
		if listed > maxListed {
			_, _ = fmt.Fprintf(out, "  and %d more: --csv FILE lists them all\n", listed-maxListed)
		}
	}
}

func amount(t report.Totals, currency string) string {
	if currency == "" {
		return "-"
	}
	return purchase.Major(t.Minor, currency)
}

// writeCSV writes one row per day and currency, with a column of ids for each kind of difference.
func writeCSV(out io.Writer, file string, r *report.Reconciliation) (err error) {
	switch file {
	case "":
		return nil
	case "-":
	default:
		const flags = os.O_CREATE | os.O_TRUNC | os.O_WRONLY
		f, openErr := os.OpenFile(file, flags, 0o600) //nolint:gosec // the operator names the file
		if openErr != nil {
			return fmt.Errorf("--csv: %w", openErr)
		}
		defer func() { err = errors.Join(err, f.Close()) }() // an error of a write may come late
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

// checkConfig configures the automatic backfill of a running ingest.
func checkConfig(
	c *config, db *ledger.DB, events *intake.Service, rules purchase.Rules,
) backfill.CheckConfig {
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
