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

// replayFlags select purchases. They have no variables: STATUS is too general a name.
type replayFlags struct {
	Session string `noenv:"" help:"One purchase, by its checkout session id."`
	Status  string `noenv:"" enum:",dead,skipped" default:"" help:"All with this status: dead, skipped."`
	Reason  string `noenv:"" help:"Only those with this reason: refused, expired, not_configured."`
	Code    *int   `noenv:"" help:"Only those whose last TikTok code is this."`
	Since   string `noenv:"" help:"Only those that ended since: 30m, 72h, 7d or an RFC 3339 time."`
	Yes     bool   `noenv:"" short:"y" help:"Do not ask."`
}

// Help implements kong.HelpProvider.
func (*replayFlags) Help() string {
	return `Makes purchases pending again; a running ingest sends them under the same event_id. Those first sent
more than 48 hours ago without an answer may count twice: their number is printed first.

  ingest replay --status dead --reason refused --since 72h
  ingest replay --session cs_live_…

Exit status 1: the one purchase cannot be replayed; 3: it was interrupted or not confirmed.`
}

func (f *replayFlags) selection() (maintenance.Selection, error) {
	s := maintenance.Selection{
		ID: f.Session, Status: purchase.Status(f.Status), Reason: purchase.Reason(f.Reason), Code: f.Code,
	}
	if err := s.SetSince(f.Since); err != nil {
		return s, fmt.Errorf("--since: %w", err)
	}
	if f.Session == "" && f.Status == "" {
		return s, errors.New("--session or --status is required")
	}
	return s, s.Check()
}

// replay makes purchases pending again. The relay of a running ingest sends them.
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
		_, _ = fmt.Fprintf(out, "%d of them may have reached TikTok more than 48 hours ago, without an answer: "+
			"TikTok may count these twice.\n", late)
	}
	if old := maintenance.Old(counted); old > 0 {
		_, _ = fmt.Fprintf(out, "%d of them were paid more than 28 days ago: "+
			"TikTok may not match or show them.\n", old)
	}
	if n > 0 && !c.Replay.Yes {
		if err := confirm(ctx, stdin, out); err != nil {
			return err
		}
	}
	bar := newBar(out, "Replaying", n)
	done, err := jobs.Replay(ctx, selection, func(done int) { _ = bar.Set(min(done, n)) })
	if errors.Is(err, context.Canceled) {
		_ = bar.Clear()
		return fmt.Errorf("interrupted with %d of %d made pending: %w", done, n, service.ErrActionRequired)
	}
	if err != nil {
		return err
	}
	if done > 0 {
		printReplayed(out, counted)
	}
	_, _ = fmt.Fprintf(out, "%d made pending again.\n", done)
	return nil
}

func printReplayed(out io.Writer, counted []maintenance.Replayable) {
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "purchases\tended as\tTikTok's code\t")
	for _, c := range counted {
		code := "none"
		if c.Code != nil {
			code = strconv.Itoa(*c.Code)
		}
		_, _ = fmt.Fprintf(table, "%d\t%s\t%s\t\n", c.Count, c.Reason, code)
	}
	_ = table.Flush() // display only
}

// newBar returns a progress bar, which is visible on a terminal if the work takes more than a moment.
func newBar(out io.Writer, description string, total int) *progressbar.ProgressBar {
	return progressbar.NewOptions(total, progressbar.OptionSetWriter(out),
		progressbar.OptionSetVisibility(total > 500 && service.IsTerminal(out)), progressbar.OptionShowCount(),
		progressbar.OptionSetDescription(description), progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish())
}

// confirm asks whether to continue. If not, the error is service.ErrActionRequired.
func confirm(ctx context.Context, stdin io.Reader, out io.Writer) error {
	_, _ = fmt.Fprint(out, "Continue? [y/N] ")
	answer, err := readLine(ctx, bufio.NewReader(stdin)) // no answer is no
	if errors.Is(err, context.Canceled) {
		_, _ = fmt.Fprintln(out) // ends the prompt's line
	}
	if answer = strings.TrimSpace(answer); strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes") {
		return nil
	}
	return notConfirmed(out)
}

func notConfirmed(out io.Writer) error {
	_, _ = fmt.Fprintln(out, "Nothing was done.")
	return service.ErrActionRequired
}

// readLine reads a line unless ctx ends first. A read cannot be canceled: the goroutine of an abandoned one
// ends with the process.
func readLine(ctx context.Context, in *bufio.Reader) (string, error) {
	type result struct {
		line string
		err  error
	}
	read := make(chan result, 1)
	go func() {
		line, err := in.ReadString('\n')
		read <- result{line, err}
	}()
	select {
	case r := <-read:
		return r.line, r.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}
