// Package backfill is step 0: what webhooks missed is asked of Stripe and taken in like a webhook, and the three books, Stripe's, the
// ledger's and TikTok's, are held against each other.
//
// A catch-up walks Stripe's list from the newest event to the oldest and remembers on the ledger how far it came; whoever dies in the
// middle goes on there. Events that are known change nothing, so that nothing is doubled, however often any of them is walked over.
//
//	now ◀── what came since ──▶ Until ◀── done ──▶ Cursor ◀── left ──▶ Since
//	            (walked last)                       (walked first, by the next run)
package backfill

import (
	"context"
	"errors"
	"iter"
	"time"

	"golang.org/x/sync/errgroup"

	"purchase-relay/internal/purchase"
)

// Bounds of a catch-up.
const (
	most    = 100 // events that are taken together, then the ledger remembers how far it came
	abreast = 16  // of them at a time: the ledger writes together what comes together
	// MaxAge is how far back Stripe lists its events.
	MaxAge = 30 * 24 * time.Hour
)

// List is Stripe's list of events of our types that were created in a time, the newest first, from the event after one on ("": from the
// newest). It may be walked by several at a time. An error ends it; it is a Refusal where Stripe is to blame.
type List interface {
	Events(ctx context.Context, since, until time.Time, after string) iter.Seq2[purchase.Event, error]
}

// Refusal is an error of a List: whether the same question may be answered after a while, how long to wait at least, and whether the
// event after which to begin is not known any more.
type Refusal interface {
	error
	Passing() (wait time.Duration, passing bool)
	Gone() bool
}

// Intake takes events as from a webhook. Implementations owe: an event is recorded once and committed on return;
// safe for concurrent use. An error beside purchase.Malformed is final; after any other error the same event may
// be taken again.
type Intake interface {
	Take(ctx context.Context, event purchase.Event, source purchase.Source) (purchase.Disposition, error)
}

// Journal remembers how far each origin came; Until of one that never began is zero.
type Journal interface {
	Backfill(ctx context.Context, origin string) (purchase.Backfill, error)
	PutBackfill(ctx context.Context, b purchase.Backfill) error
}

// Progress is told after every page, and before every wait.
type Progress struct {
	purchase.Backfill
	Now    purchase.BackfillCounts // of this run alone
	Waits  time.Duration           // how long it waits for a neighbour; 0: it does not
	Reason error                   // why
}

// Run is one catch-up.
type Run struct {
	List     List
	Intake   Intake
	Journal  Journal // nil: a dry run begins at the newest event and stores no progress
	Progress func(Progress)
	Left     func(event purchase.Event, d purchase.Disposition) // told of each rejected or malformed one
	Now      func() time.Time
}

// Do walks over what was created in a time, both ends included. Where an earlier run of the same origin was broken off, it first goes on
// with that one, and then walks over what came since. The counts are of this run. An error says that something is left.
func (r *Run) Do(ctx context.Context, origin string, since, until time.Time) (purchase.BackfillCounts, error) {
	var saved purchase.Backfill
	if r.Journal != nil {
		var err error
		if saved, err = r.Journal.Backfill(ctx, origin); err != nil {
			return purchase.BackfillCounts{}, err
		}
	}
	w := &walk{Run: r, at: saved}
	if saved.Until.IsZero() || !saved.Finished.IsZero() || saved.Cursor == "" || saved.Reached.Before(since) || until.Sub(saved.Until) > MaxAge {
		w.at = purchase.Backfill{Origin: origin, Since: since, Until: until}
		return w.counts, w.leg(ctx)
	}
	w.at.Since = since // it may have been asked for more, or for less, this time
	if err := w.leg(ctx); err != nil {
		return w.counts, err
	}
	w.at = purchase.Backfill{Origin: origin, Since: saved.Until, Until: until, Counts: w.at.Counts}
	return w.counts, w.leg(ctx)
}

// walk is a Run under way.
type walk struct {
	*Run
	at     purchase.Backfill
	counts purchase.BackfillCounts
}

// leg walks from the cursor to the end.
func (w *walk) leg(ctx context.Context) error {
	p := persistence{
		now: w.Now, tell: w.tell,
		cursor:  func() string { return w.at.Cursor },
		restart: func() { w.at.Cursor, w.at.Reached = "", time.Time{} },
	}
	if err := p.walk(ctx, w.pages); err != nil {
		return err
	}
	w.at.Finished = w.Now()
	return w.remember(ctx)
}

// pages takes what is left, some events at a time, until the list ends or a neighbour fails.
func (w *walk) pages(ctx context.Context) error {
	page := make([]purchase.Event, 0, most)
	for event, err := range w.List.Events(ctx, w.at.Since, w.at.Until, w.at.Cursor) {
		if err != nil {
			return errors.Join(w.page(ctx, page), err)
		}
		if page = append(page, event); len(page) == most {
			if err := w.page(ctx, page); err != nil {
				return err
			}
			page = page[:0]
		}
	}
	return w.page(ctx, page)
}

// page takes some events in and remembers it. Of a page that failed, all are taken again: those that were recorded are known then.
func (w *walk) page(ctx context.Context, events []purchase.Event) error {
	if len(events) == 0 {
		return nil
	}
	became := make([]purchase.Disposition, len(events))
	group, taking := errgroup.WithContext(ctx)
	group.SetLimit(abreast)
	for i := range events {
		group.Go(func() (err error) {
			became[i], err = w.Intake.Take(taking, events[i], purchase.SourceBackfill)
			if became[i] == purchase.Malformed {
				return nil // it is counted, and would be no better the next time
			}
			return err
		})
	}
	err := group.Wait()
	if err != nil {
		return err
	}
	for i, d := range became {
		w.counts.Add(d)
		w.at.Counts.Add(d)
		if d == purchase.Rejected || d == purchase.Malformed {
			w.Left(events[i], d)
		}
	}
	last := &events[len(events)-1]
	w.at.Cursor = last.ID
	if !last.Created.IsZero() {
		w.at.Reached = last.Created
	}
	return w.remember(ctx)
}

func (w *walk) remember(ctx context.Context) error {
	if w.Journal != nil {
		if err := w.Journal.PutBackfill(ctx, w.at); err != nil {
			return err
		}
	}
	w.tell(0, nil)
	return nil
}

func (w *walk) tell(wait time.Duration, why error) {
	w.Progress(Progress{Backfill: w.at, Now: w.counts, Waits: wait, Reason: why})
}
