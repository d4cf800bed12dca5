// Package backfill takes in events whose webhooks were missed, from Stripe's list of events, and reconciles
// Stripe, the ledger and TikTok.
//
// A run walks the list from the newest event to the oldest and stores its progress on the ledger: after a
// crash the next run resumes there. Known events change nothing, however often they are walked over.
//
//	now ◀── new events ──▶ Until ◀── done ──▶ Cursor ◀── left ──▶ Since
//	       (walked last)                     (walked first, by the next run)
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
	concurrency = 16  // events of a page that are taken concurrently: the ledger commits them together
	// MaxAge is how far back Stripe lists its events.
	MaxAge = 30 * 24 * time.Hour
)

// List lists Stripe's events of the counted types that were created in a time, the newest first, from the
// one behind the event after ("": from the newest). It may be walked concurrently. An error ends the list;
// it is a Refusal where Stripe is the cause.
type List interface {
	Events(ctx context.Context, since, until time.Time, after string) iter.Seq2[purchase.Event, error]
}

// Refusal is an error of a List.
type Refusal interface {
	error
	// Retryable reports whether the same request may succeed later, and the least time to wait.
	Retryable() (wait time.Duration, retryable bool)
	// CursorGone reports that Stripe does not list the event after which to begin.
	CursorGone() bool
}

// Intake takes events as from a webhook. Implementations owe: an event is recorded once and committed on
// return; safe for concurrent use. An error beside purchase.Malformed is final; after any other error the
// same event may be taken again.
type Intake interface {
	Take(ctx context.Context, event purchase.Event, source purchase.Source) (purchase.Disposition, error)
}

// Journal stores the progress of each origin. Until is zero where there is none yet.
type Journal interface {
	Backfill(ctx context.Context, origin string) (State, error)
	PutBackfill(ctx context.Context, b State) error
}

// Progress is reported after every page, and before every wait.
type Progress struct {
	State
	Now    Counts        // of this run
	Waits  time.Duration // before a retry; 0: none
	Reason error         // of the wait
}

// Run is one backfill.
type Run struct {
	List     List
	Intake   Intake
	Journal  Journal // nil: a dry run begins at the newest event and stores no progress
	Progress func(Progress)
	Left     func(event purchase.Event, d purchase.Disposition) // called for each rejected or malformed event
	Now      func() time.Time
}

// Do walks over the events that were created in a time, both ends included. Where an earlier run of the
// origin did not reach its end, it resumes that one first and then walks over what came since. The counts
// are of this run. After an error events are left.
func (r *Run) Do(
	ctx context.Context, origin string, since, until time.Time,
) (Counts, error) {
	var saved State
	if r.Journal != nil {
		var err error
		if saved, err = r.Journal.Backfill(ctx, origin); err != nil {
			return Counts{}, err
		}
	}
	resumable := !saved.Until.IsZero() && saved.Finished.IsZero() && saved.Cursor != "" &&
		!saved.Reached.Before(since) && until.Sub(saved.Until) <= MaxAge
	w := &walk{run: r, at: State{Origin: origin, Since: since, Until: until}}
	if !resumable {
		return w.counts, w.toEnd(ctx)
	}
	w.at = saved
	w.at.Since = since // it may differ from the earlier run's
	if err := w.toEnd(ctx); err != nil {
		return w.counts, err
	}
	w.at = State{Origin: origin, Since: saved.Until, Until: until, Counts: w.at.Counts}
	return w.counts, w.toEnd(ctx)
}

// walk is the state of a Run.
type walk struct {
	run    *Run
	at     State
	counts Counts
}

// toEnd walks from the cursor to the end of the list.
func (w *walk) toEnd(ctx context.Context) error {
	r := retrier{
		now: w.run.Now, waits: w.report,
		cursor:  func() string { return w.at.Cursor },
		restart: func() { w.at.Cursor, w.at.Reached = "", time.Time{} },
	}
	if err := r.run(ctx, w.takePages); err != nil {
		return err
	}
	w.at.Finished = w.run.Now()
	return w.store(ctx)
}

// takePages takes what is left of the list, page by page, until an error.
func (w *walk) takePages(ctx context.Context) error {
	page := make([]purchase.Event, 0, pageSize)
	for event, err := range w.run.List.Events(ctx, w.at.Since, w.at.Until, w.at.Cursor) {
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

// takePage takes some events and stores the progress. Of a page that failed all are taken again: those that
// were recorded are duplicates then.
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
				return nil // it is counted; a retry could not help
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, d := range dispositions {
		w.counts.Add(d)
		w.at.Counts.Add(d)
		if d == purchase.Rejected || d == purchase.Malformed {
			w.run.Left(events[i], d)
		}
	}
	last := &events[len(events)-1]
	w.at.Cursor = last.ID
	if !last.Created.IsZero() {
		w.at.Reached = last.Created
	}
	return w.store(ctx)
}

// store stores and reports the progress.
func (w *walk) store(ctx context.Context) error {
	if w.run.Journal != nil {
		if err := w.run.Journal.PutBackfill(ctx, w.at); err != nil {
			return err
		}
	}
	w.report(0, nil)
	return nil
}

func (w *walk) report(wait time.Duration, cause error) {
	w.run.Progress(Progress{State: w.at, Now: w.counts, Waits: wait, Reason: cause})
}
