package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/service"
)

// replayFlags choose what to replay. They are flags alone: a variable named STATUS may mean anything.
type replayFlags struct {
	Session string `noenv:"" help:"One purchase, by its checkout session id."`
	Status  string `noenv:"" enum:",dead,skipped" default:"" help:"Many: dead or skipped."`
	Reason  string `noenv:"" help:"Of those, only with this reason: refused, expired, not_configured."`
	Code    *int   `noenv:"" help:"Of those, only with this last code of TikTok."`
	Since   string `noenv:"" help:"Of those, only what ended since: 30m, 72h, 7d or a time in RFC 3339."`
	Yes     bool   `noenv:"" short:"y" help:"Do not ask."`
}

// Help is the command's own page.
func (*replayFlags) Help() string {
	return `They are made pending, and the relay of a running ingest sends them again, under the same event_id. What was first sent more than 48 hours ago may count twice: it is told before.

  ingest replay --status dead --reason refused --since 72h
  ingest replay --session cs_live_…

Exit status 1: the one purchase cannot be replayed; 3: it was not confirmed.`
}

func (f *replayFlags) selection() (maintenance.Selection, error) {
	s := maintenance.Selection{
		ID: f.Session, Status: purchase.Status(f.Status), Reason: purchase.Reason(f.Reason), Code: f.Code,
	}
	if err := s.SetSince(f.Since); err != nil {
		return s, fmt.Errorf("--since: %w", err)
	}
	if f.Session == "" && f.Status == "" {
		return s, errors.New("say what to replay: --session ID, or --status dead or skipped")
	}
	return s, s.Check()
}

// replay makes purchases pending again: the relay of a running ingest sends them.
func replay(ctx context.Context, c *config, stdin io.Reader, out io.Writer) error {
	selection, err := c.Replay.selection()
	if err != nil {
		return &service.UsageError{Problems: []string{err.Error()}}
	}
	db, err := ledger.Open(ctx, c.DatabaseURL)
	if err != nil {
		return err
	}
	defer db.Close()
	jobs := maintenance.New(db)
	counted, err := jobs.CountReplayable(ctx, selection)
	if err != nil {
		return err
	}
	n, late := maintenance.Sum(counted)
	if n > 0 {
		_, _ = fmt.Fprintf(out, "%d to replay.\n", n)
	}
	if late > 0 {
		_, _ = fmt.Fprintf(out, "%d of them were first sent more than 48 hours ago: if TikTok took one then, it counts twice.\n", late)
	}
	if old := maintenance.Old(counted); old > 0 {
		_, _ = fmt.Fprintf(out, "%d of them were paid more than 28 days ago: TikTok may neither match nor show them.\n", old)
	}
	if n > 0 && !c.Replay.Yes {
		if err := confirm(stdin, out); err != nil {
			return err
		}
	}
	bar := newBar(out, "Replaying", n)
	done, err := jobs.Replay(ctx, selection, func(done int) { _ = bar.Set(min(done, n)) }) // a bar that cannot be drawn stops nothing
	if err != nil {
		return err
	}
	if done > 0 {
		printReplayed(out, counted)
	}
	_, _ = fmt.Fprintf(out, "%d made pending again.\n", done)
	return nil
}

// printReplayed says what it was that is sent again.
func printReplayed(out io.Writer, counted []maintenance.Replayable) {
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "purchases\tgiven up on as\tTikTok's code\t")
	for _, c := range counted {
		code := "none"
		if c.Code != nil {
			code = strconv.Itoa(*c.Code)
		}
		_, _ = fmt.Fprintf(table, "%d\t%s\t%s\t\n", c.Count, c.Reason, code)
	}
	_ = table.Flush() // a table that cannot be printed undoes nothing
}

// newBar is a progress bar for n of something: where somebody watches, and it takes long enough.
func newBar(out io.Writer, what string, n int) *progressbar.ProgressBar {
	return progressbar.NewOptions(n, progressbar.OptionSetWriter(out), progressbar.OptionSetVisibility(n > 500 && service.Terminal(out)), progressbar.OptionShowCount(),
		progressbar.OptionSetDescription(what), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
}

// confirm asks whether to go on. The error is process.ErrLeft: nothing was done.
func confirm(stdin io.Reader, out io.Writer) error {
	_, _ = fmt.Fprint(out, "Go on? [y/N] ")
	answer, _ := bufio.NewReader(stdin).ReadString('\n') // no answer is no
	if answer = strings.TrimSpace(answer); strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes") {
		return nil
	}
	_, _ = fmt.Fprintln(out, "Nothing was done.")
	return service.ErrLeft
}
