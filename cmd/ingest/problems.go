package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/intake"
	"purchase-relay/internal/ledger"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/service"
)

const (
	observeInterval = 5 * time.Second
	observeTimeout  = 3 * time.Second
	// startGrace is how long a missing schema or stream is no problem: a starting ingest is creating it.
	startGrace = 10 * time.Second
)

// watcher collects what the list of problems is made of. It watches Postgres, the schema and the streams in
// the background, so that it has the time when one of them failed.
type watcher struct {
	health      *health
	reports     *report.Reader
	lastWebhook func(ctx context.Context) (time.Time, error)
	thin        func() intake.RejectedThin
	silence     time.Duration
	now         func() time.Time

	mu                      sync.Mutex
	postgres, schema, queue failure
}

// failure is when something failed; zero: it works.
type failure struct {
	checked bool
	since   time.Time
}

func (f *failure) record(failed bool, now time.Time) {
	f.checked = true
	switch {
	case !failed:
		f.since = time.Time{}
	case f.since.IsZero():
		f.since = now
	}
}

// condition returns a failure that has lasted for a time. Until then it is unknown.
func (f *failure) condition(grace time.Duration, now time.Time) report.Condition {
	if f.since.IsZero() {
		return report.Condition{Checked: f.checked}
	}
	failed := now.Sub(f.since) >= grace
	return report.Condition{Checked: failed, Failed: failed, Since: f.since}
}

// run observes until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	tick := time.NewTicker(observeInterval)
	defer tick.Stop()
	for {
		w.observeLedger(ctx)
		w.observeQueue(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (w *watcher) observeLedger(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	err := w.health.db.Ping(ctx)
	if context.Cause(ctx) == context.Canceled { //nolint:errorlint // not by the timeout
		return
	}
	w.recordLedger(err == nil)
}

func (w *watcher) recordLedger(up bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.postgres.record(!up, w.now())
	if up {
		w.schema.record(!w.health.schemaReady(), w.now())
	}
}

func (w *watcher) observeQueue(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	_, _, err := w.health.backlog.Pending(ctx)
	if context.Cause(ctx) == context.Canceled { //nolint:errorlint // not by the timeout
		return
	}
	w.recordQueue(w.health.queue.Connected(), err != nil)
}

// recordQueue records missing streams. Without a connection to NATS they are unknown.
func (w *watcher) recordQueue(connected, missing bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !connected {
		w.queue = failure{}
		return
	}
	w.queue.record(missing, w.now())
}

// problems returns the current problems.
func (w *watcher) problems(ctx context.Context) report.Problems {
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	known, err := w.reports.Problems(ctx)
	if err == nil {
		w.recordLedger(true)
	} else {
		known = nil
		w.observeLedger(context.WithoutCancel(ctx))
	}
	last, _ := w.lastWebhook(ctx) // unknown with the ledger
	now := w.now()
	connected, since := w.health.queue.State()
	thin := w.thin()
	observed := report.Observed{
		Ledger: known, Silence: w.silence, LastWebhook: last,
		Thin: report.ThinEvents{Count: thin.Count, First: thin.First},
		NATS: report.Condition{Checked: true, Failed: !connected, Since: since},
	}
	observeWorkers(&observed, w.health.workers, since, now)
	w.mu.Lock()
	defer w.mu.Unlock()
	observed.Postgres = w.postgres.condition(0, now)
	observed.Schema = w.schema.condition(startGrace, now)
	observed.Queue = w.queue.condition(startGrace, now)
	return report.NewProblems(observed, now)
}

// observeWorkers adds the workers. A missing one is known once every worker could have reported since the
// connection to NATS.
func observeWorkers(o *report.Observed, workers *queue.Workers, since, now time.Time) {
	o.Workers = workers.List()
	o.WorkersKnown = !o.NATS.Failed && now.Sub(since) > queue.WorkerTTL
	if o.LastWorker = workers.LastSeen(); o.LastWorker.Before(since) {
		o.LastWorker = since
	}
}

// workerWait is how long `ingest show --problems` listens to the workers, which report every 5 seconds; it
// listens longer if there is none.
const workerWait = 6 * time.Second

// showProblems prints the problems that the ledger and NATS show. A running ingest is not needed.
func showProblems(ctx context.Context, c *config, wait time.Duration, out io.Writer) error {
	observed := report.Observed{Silence: c.NotifySilence}
	if err := inspectLedger(ctx, c, &observed); err != nil {
		return err
	}
	if err := inspectNATS(ctx, c, &observed, wait, out); err != nil {
		return err
	}
	list := report.NewProblems(observed, time.Now()).List
	switch {
	case len(list) == 0 && observed.NATS.Checked:
		_, err := fmt.Fprintln(out, "No problems.")
		return err
	case len(list) == 0:
		_, _ = fmt.Fprintln(out, "No problems in the ledger.")
		return service.ErrActionRequired
	}
	if err := printProblems(out, list); err != nil {
		return err
	}
	return service.ErrActionRequired
}

// inspectLedger fails if Postgres does not respond: without it most of the list would be missing.
func inspectLedger(ctx context.Context, c *config, o *report.Observed) error {
	probe, err := ledger.OpenProbe(ctx, c.DatabaseURL)
	if err != nil {
		return err
	}
	schema, err := probe.Schema(ctx)
	probe.Close(ctx)
	if err != nil {
		return err
	}
	o.Postgres = report.Condition{Checked: true}
	if o.Schema = (report.Condition{Checked: true, Failed: schema.Level < schema.Known}); o.Schema.Failed {
		return nil
	}
	db, err := ledger.Open(ctx, c.DatabaseURL)
	if err != nil {
		return err
	}
	defer db.Close()
	if o.Ledger, err = report.New(db).Problems(ctx); err != nil {
		return err
	}
	o.LastWebhook = o.Ledger.LastWebhook
	return nil
}

// inspectNATS leaves NATS and the workers unknown if NATS_URL has its default and no NATS responds there:
// none may be configured.
func inspectNATS(
	ctx context.Context, c *config, o *report.Observed, wait time.Duration, out io.Writer,
) (err error) {
	registry, _ := service.Metrics(service.Version()) // not exposed
	js, err := queue.Connect(c.Config, queue.RoleIngest, zap.NewNop(), registry)
	if err != nil {
		return err
	}
	defer func() { _ = js.Close(context.WithoutCancel(ctx)) }() // nothing is buffered
	err = awaitConnection(ctx, js, observeTimeout)
	configured := c.NATSURL != queue.DefaultURL
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && configured:
		o.NATS = report.Condition{Checked: true, Failed: true}
		return nil
	case err != nil:
		_, _ = fmt.Fprintf(out, "NATS at %s does not respond: NATS and the workers were not checked.\n",
			queue.DefaultURL.Reveal())
		return nil
	}
	o.NATS = report.Condition{Checked: true}
	workers, err := js.WatchWorkers()
	if err != nil {
		return err
	}
	_, _, missing := js.Consumer(message.StreamPurchases, message.ConsumerWorker).Pending(ctx)
	o.Queue = report.Condition{Checked: true, Failed: missing != nil}
	if service.IsTerminal(out) {
		_, _ = fmt.Fprintf(out, "Listening to the workers for %s.\n", wait)
	}
	// If none has reported yet, one may be slow.
	end := time.Now().Add(queue.WorkerTTL)
	for ; len(o.Workers) == 0 && time.Now().Before(end); wait = time.Second {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		o.Workers = workers.List()
	}
	o.WorkersKnown = true
	return nil
}

// printProblems prints a table with the remedy below each problem.
func printProblems(out io.Writer, list []report.Problem) error {
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(table, "SINCE\tPURCHASES\tPROBLEM")
	for _, p := range list {
		since, purchases := "unknown", "unknown"
		if p.Since != nil {
			since = p.Since.Format("2006-01-02 15:04:05Z")
		}
		if p.Purchases != nil {
			purchases = strconv.Itoa(*p.Purchases)
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s.\n\t\t%s\n", since, purchases, p.What, p.Remedy)
	}
	_ = table.Flush() // into memory
	_, err := io.WriteString(out, strings.Map(maskControl, text.String()))
	return err
}
