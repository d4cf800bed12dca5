package backfill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
)

const (
	stallTimeout = 3 * time.Minute // without progress
	retryInitial = 500 * time.Millisecond
	retryMax     = 30 * time.Second
)

// errIncomplete reports that the end of the list was not reached.
var errIncomplete = errors.New("incomplete: older events were not read")

// retrier reads a list to its end and retries after failures as long as there is progress.
type retrier struct {
	now     func() time.Time
	waits   func(wait time.Duration, cause error) // called before each wait
	cursor  func() string                         // the last event taken in
	restart func()                                // starts over at the newest event
}

// run calls walk, which resumes at the cursor, until it succeeds.
func (r *retrier) run(ctx context.Context, walk func(ctx context.Context) error) error {
	delays := backoff.NewExponentialBackOff(backoff.WithInitialInterval(retryInitial),
		backoff.WithMaxInterval(retryMax), backoff.WithMaxElapsedTime(0))
	progress := r.now()
	for {
		cursor := r.cursor()
		err := walk(ctx)
		if err == nil {
			return nil
		}
		if r.cursor() != cursor {
			delays.Reset()
			progress = r.now()
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w; %w", ctx.Err(), errIncomplete)
		}
		var refused Refusal
		if errors.As(err, &refused) && refused.CursorGone() && r.cursor() != "" {
			r.restart() // the cursor is of another account or no longer listed
			continue
		}
		wait, temporary := delays.NextBackOff(), true
		if refused != nil {
			var minimum time.Duration
			minimum, temporary = refused.Retryable()
			wait = max(wait, minimum)
		}
		if !temporary || r.now().Add(wait).Sub(progress) > stallTimeout {
			return fmt.Errorf("%w; %w", err, errIncomplete)
		}
		r.waits(wait, err)
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; %w", ctx.Err(), errIncomplete)
		case <-time.After(wait):
		}
	}
}
