package backfill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
)

const (
	patience     = 3 * time.Minute // without progress, before a walk is given up
	retryInitial = 500 * time.Millisecond
	retryMax     = 30 * time.Second
)

// errIncomplete says that a walk did not reach the end of the list.
var errIncomplete = errors.New("the rest is left")

// retrier walks a list to its end and retries after failures, as long as there is progress.
type retrier struct {
	now     func() time.Time
	waits   func(wait time.Duration, cause error) // called before each wait
	cursor  func() string                         // the last event that is done
	restart func()                                // from the newest event
}

// run calls walk, which resumes at the cursor, until it returns nil.
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
		var refused Refusal
		if errors.As(err, &refused) && refused.CursorGone() && r.cursor() != "" {
			r.restart() // the cursor is of another account, or older than Stripe's list
			continue
		}
		wait, temporary := delays.NextBackOff(), true
		if refused != nil {
			var least time.Duration
			least, temporary = refused.Retryable()
			wait = max(wait, least)
		}
		if ctx.Err() == nil && (!temporary || r.now().Add(wait).Sub(progress) > patience) {
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
