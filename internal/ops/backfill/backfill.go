// Package backfill takes in missed webhooks from Stripe's list of events, and reconciles Stripe, the ledger
// and TikTok.
//
// A run reads the list from the newest event to the oldest and stores its progress on the ledger, so that
// the next run can resume after a crash. Known events are duplicates and change nothing.
//
//	now ◀── new events ──▶ Until ◀── done ──▶ Cursor ◀── left ──▶ Since
//	        (read last)                       (read first, by the next run)
package backfill

import (
	"context"
	"errors"
	"iter"
	"time"

	"golang.org/x/sync/errgroup"

	"purchase-relay/internal/purchase"
)

const (
	pageSize    = 100 // events per stored progress
	concurrency = 16  // events taken in concurrently: the ledger commits them together
	// MaxAge is how far back Stripe lists events.
	MaxAge = 30 * 24 * time.Hour
)

// List lists Stripe's events of the supported types that were created from since to until, newest first,
// starting behind the event after ("": at the newest). It is safe for concurrent use. An error ends the
// list; it is a Refusal if Stripe caused it.
type List interface {
	Events(ctx context.Context, since, until time.Time, after string) iter.Seq2[purchase.Event, error]
}

// Refusal is an error of a List.
type Refusal interface {
	error
	// Retryable reports whether the same request may succeed later, and the minimum time to wait.
	Retryable() (wait time.Duration, retryable bool)
	// CursorGone reports whether Stripe no longer lists the event given as after.
	CursorGone() bool
}

// Intake records an event as a webhook does: once, and committed on return. It is safe for concurrent use.
// An error with purchase.Malformed is final; after other errors the same event can be retried.
type Intake interface {
	Take(ctx context.Context, event purchase.Event, source purchase.Source) (purchase.Disposition, error)
}

// Journal stores the progress of each origin. Until is zero where there is none yet.
type Journal interface {
	Backfill(ctx context.Context, origin string) (State, error)
	PutBackfill(ctx context.Context, b State) error
}

// Progress is reported after each page and before each retry.
type Progress struct {
	State
	Now   Counts        // of this run
	Wait  time.Duration // before a retry; 0: none
	Cause error         // of the wait
}

// Run is one backfill.
type Run struct {
	List     List
	Intake   Intake
	Journal  Journal // nil: a dry run begins at the newest event and stores no progress
	Progress func(Progress)
	Left     func(event purchase.Event, d purchase.Disposition) // called for rejected and malformed events
	Now      func() time.Time
}

// Do takes in the events created from since to until, both included. If the origin's last run did not
// finish, Do resumes that run first and then reads the newer events. It returns the counts of this run,
// even with an error.
func (r *Run) Do(ctx context.Context, origin string, since, until time.Time) (Counts, error) {
	var saved State
	if r.Journal != nil {
		var err error
		if saved, err = r.Journal.Backfill(ctx, origin); err != nil {
			return Counts{}, err
		}
	}
	resumable := !saved.Until.IsZero() && saved.Finished.IsZero() && saved.Cursor != "" &&
		!saved.Reached.Before(since) && until.Sub(saved.Until) <= MaxAge
	w := &walk{run: r, state: State{Origin: origin, Since: since, Until: until}}
	if resumable {
		w.state = saved
		w.state.Since = since // it may differ from the earlier run's
		if err := w.finish(ctx); err != nil {
			return w.counts, err
		}
		w.state = State{Origin: origin, Since: saved.Until, Until: until, Counts: w.state.Counts}
	}
	err := w.finish(ctx)
	return w.counts, err
}

// walk is the state of a Run.
type walk struct {
	run    *Run
	state  State
	counts Counts // of this run
}

// finish reads from the cursor to the end of the list.
func (w *walk) finish(ctx context.Context) error {
	r := retrier{
		now: w.run.Now, waits: w.report,
		cursor:  func() string { return w.state.Cursor },
		restart: func() { w.state.Cursor, w.state.Reached = "", time.Time{} },
	}
	if err := r.run(ctx, w.takePages); err != nil {
		return err
	}
	w.state.Finished = w.run.Now()
	return w.store(ctx)
}

// takePages takes in the rest of the list, page by page, until an error.
func (w *walk) takePages(ctx context.Context) error {
	page := make([]purchase.Event, 0, pageSize)
	for event, err := range w.run.List.Events(ctx, w.state.Since, w.state.Until, w.state.Cursor) {
		if err != nil {
			return errors.Join(w.takePage(ctx, page), err)
		}
		if page = append(page, event); len(page) == pageSize {
			if err := w.takePage(ctx, page); err != nil {
				return err
			}
			page = page[:0]
		}
	}
	return w.takePage(ctx, page)
}

// takePage takes in some events and stores the progress. A failed page is retried as a whole: events that
// were already recorded are duplicates.
func (w *walk) takePage(ctx context.Context, events []purchase.Event) error {
	if len(events) == 0 {
		return nil
	}
	dispositions := make([]purchase.Disposition, len(events))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(concurrency)
	for i := range events {
		group.Go(func() (err error) {
			dispositions[i], err = w.run.Intake.Take(groupCtx, events[i], purchase.SourceBackfill)
			if dispositions[i] == purchase.Malformed {
				return nil // counted; a retry cannot help
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, d := range dispositions {
		w.counts.Add(d)
		w.state.Counts.Add(d)
		if d == purchase.Rejected || d == purchase.Malformed {
			w.run.Left(events[i], d)
		}
	}
	last := &events[len(events)-1]
	w.state.Cursor = last.ID
	if !last.Created.IsZero() {
		w.state.Reached = last.Created
	}
	return w.store(ctx)
}

// store stores and reports the progress.
func (w *walk) store(ctx context.Context) error {
	if w.run.Journal != nil {
		if err := w.run.Journal.PutBackfill(ctx, w.state); err != nil {
			return err
		}
	}
	w.report(0, nil)
	return nil
}

func (w *walk) report(wait time.Duration, cause error) {
	w.run.Progress(Progress{State: w.state, Now: w.counts, Wait: wait, Cause: cause})
}
