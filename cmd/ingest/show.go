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
	What string `arg:"" name:"session|event|e-mail" help:"cs_…, evt_… or the customer's address."`
}

// Help is the command's own page.
func (showFlags) Help() string {
	return `Stripe's events, the hand-over to the queue, each attempt with TikTok's answer, how it ended, and what to do. The buyer's address is not printed.

  ingest show cs_live_…

Exit status 1: the ledger knows nothing under this name.`
}

// mostShown bounds what one address prints.
const mostShown = 20

// errNotFound does not repeat what was asked for: it may be somebody's address.
var errNotFound = errors.New("the ledger knows no purchase under this session, event or e-mail address; " +
	"if Stripe shows it as paid, look at the endpoint's deliveries there and at CHECKOUT_MODES here")

// show prints every purchase that was found, newest first. The buyer's address is not printed.
func show(ctx context.Context, c *config, out io.Writer) error {
	term := strings.TrimSpace(c.Show.What)
	if term == "" {
		return &service.UsageError{Problems: []string{"say what to show: a session, an event or an e-mail address"}}
	}
	db, err := ledger.Open(ctx, c.DatabaseURL)
	if err != nil {
		return err
	}
	defer db.Close()
	var skipped []ledger.Skipped
	db.OnSkip(func(s ledger.Skipped) { skipped = append(skipped, s) })
	found, err := report.New(db).Search(ctx, term, mostShown+1)
	switch {
	case err != nil:
		return err
	case len(found) == 0 && len(skipped) > 0:
		return fmt.Errorf("read purchase %s: %w", purchase.LogSafe(skipped[0].ID), skipped[0].Err)
	case len(found) == 0:
		return errNotFound
	}
	var text strings.Builder
	for i := range found[:min(len(found), mostShown)] {
		if i > 0 {
			text.WriteByte('\n')
		}
		describe(&text, &found[i])
	}
	if len(found) > mostShown {
		_, _ = fmt.Fprintf(&text, "\nThese are the newest %d; there are more.\n", mostShown)
	}
	for _, s := range skipped {
		id := purchase.LogSafe(s.ID)
		_, _ = fmt.Fprintf(&text, "\nA row of %s is unreadable and was left out: %v\n", id, s.Err)
	}
	_, err = io.WriteString(out, strings.Map(visible, text.String()))
	return err
}

// describe writes one purchase: what it is, its timeline, what to do.
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
	text.WriteByte('\n')
	text.WriteByte('\n')
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

// visible keeps a foreign text from driving the terminal.
func visible(r rune) rune {
	if r != '\n' && unicode.IsControl(r) {
		return '\uFFFD'
	}
	return r
}
