package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/service"
)

// showFlags are the arguments of `ingest show`.
type showFlags struct {
	Term     string `arg:"" optional:"" name:"session|event|e-mail" help:"Id, part of one, or address."`
	Problems bool   `noenv:"" help:"List what is wrong now: since when, how many purchases, what to do."`
}

// Help implements kong.HelpProvider.
func (showFlags) Help() string {
	return `Shows Stripe's events, publishing, each attempt with TikTok's answer, the outcome and the remedy. The
buyer's address is not printed.

  ingest show cs_live_…
  ingest show --problems

With --problems the list is that of the dashboard, without rejected thin events, which only the running ingest
counts. NATS_URL and NOTIFY_SILENCE are used only then.

Exit status 1: not found. If Stripe shows the checkout as paid, check the endpoint's deliveries in Stripe and
CHECKOUT_MODES. 3: there are problems, or NATS does not respond.`
}

// maxShown bounds how many purchases are printed.
const maxShown = 20

// errNotFound does not repeat the term, which may be an e-mail address.
var errNotFound = errors.New("no purchase with this id, request_id or e-mail address")

// show prints the purchases that match a term, newest first, without the buyers' addresses.
func show(ctx context.Context, c *config, out io.Writer) error {
	term := strings.TrimSpace(c.Show.Term)
	switch {
	case c.Show.Problems && term != "":
		return &service.UsageError{Problems: []string{"--problems takes no session, event or e-mail address"}}
	case c.Show.Problems:
		return showProblems(ctx, c, workerWait, out)
	case term == "":
		const missing = "a session, an event, an e-mail address or --problems is required"
		return &service.UsageError{Problems: []string{missing}}
	}
	db, err := ledger.Open(ctx, c.DatabaseURL)
	if err != nil {
		return err
	}
	defer db.Close()
	var skipped []ledger.Skipped
	db.OnSkip(func(s ledger.Skipped) { skipped = append(skipped, s) })
	found, err := report.New(db).Search(ctx, term, maxShown+1)
	switch {
	case err != nil:
		return err
	case len(found) == 0 && len(skipped) > 0:
		return fmt.Errorf("read purchase %s: %w", purchase.LogSafe(skipped[0].ID), skipped[0].Err)
	case len(found) == 0:
		return errNotFound
	}
	var text strings.Builder
	for i := range found[:min(len(found), maxShown)] {
		if i > 0 {
			text.WriteByte('\n')
		}
		describe(&text, &found[i])
	}
	if len(found) > maxShown {
		_, _ = fmt.Fprintf(&text, "\nOnly the newest %d are shown.\n", maxShown)
	}
	for _, s := range skipped {
		_, _ = fmt.Fprintf(&text, "\nSkipped an unreadable row of %s: %v\n", purchase.LogSafe(s.ID), s.Err)
	}
	_, err = io.WriteString(out, strings.Map(maskControl, text.String()))
	return err
}

// describe writes a purchase's state, timeline and remedy.
func describe(text *strings.Builder, r *report.Row) {
	mode := "live"
	if !r.Livemode {
		mode = "test"
	}
	value := "value unknown"
	if r.AmountMinor != nil && r.Currency != nil {
		value = purchase.Major(*r.AmountMinor, *r.Currency) + " " + strings.ToUpper(*r.Currency)
	}
	_, _ = fmt.Fprintf(text, "%s\n  %s\n  %s, %s, %s", r.ID, r.State(), value, mode, r.Mode)
	for _, part := range []struct {
		name  string
		value *string
	}{{"customer", r.Customer}, {"subscription", r.Subscription}, {"profile", r.ProfileID}} {
		if part.value != nil {
			_, _ = fmt.Fprintf(text, ", %s %s", part.name, *part.value)
		}
	}
	text.WriteString("\n\n")
	for _, step := range r.Timeline() {
		_, _ = fmt.Fprintf(text, "  %s  %s\n", step.At.Format("2006-01-02 15:04:05.000Z"), step.What)
	}
	advice := guide.Purchase(r.Status, r.Reason)
	if advice.Remedy != "" {
		_, _ = fmt.Fprintf(text, "\n  %s. %s\n", advice.Meaning, advice.Remedy)
	}
	if advice.Replay != "" {
		_, _ = fmt.Fprintf(text, "  ingest replay --session %s\n", r.ID)
	}
}

// maskControl keeps control characters in foreign text from the terminal.
func maskControl(r rune) rune {
	if r != '\n' && unicode.IsControl(r) {
		return '\uFFFD'
	}
	return r
}
