package backfill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// How long a neighbour that is away, or asks to wait, is waited for.
const (
	patience  = 3 * time.Minute // without any progress
	firstWait = 500 * time.Millisecond
	maxWait   = 30 * time.Second
)

// errBroken ends what was given up on.
var errBroken = errors.New("the rest is left")

// persistence walks a list to its end, however often a neighbour fails on the way, as long as it gets on.
type persistence struct {
	now     func() time.Time
	tell    func(wait time.Duration, why error)
	cursor  func() string // the event that was reached
	restart func()        // from the newest event: the list does not know the cursor any more
}

// walk calls on, which goes on from the cursor, until it reaches the end.
func (p *persistence) walk(ctx context.Context, on func(ctx context.Context) error) error {
	delays := backoff.NewExponentialBackOff(backoff.WithInitialInterval(firstWait), backoff.WithMaxInterval(maxWait), backoff.WithMaxElapsedTime(0))
	progress := p.now()
	for {
		cursor := p.cursor()
		err := on(ctx)
		if err == nil {
			return nil
		}
		if p.cursor() != cursor {
			delays.Reset()
			progress = p.now()
		}
		var refused Refusal
		if errors.As(err, &refused) && refused.Gone() && p.cursor() != "" {
			p.restart() // it is of another account, or older than Stripe remembers
			continue
		}
		wait, passing := delays.NextBackOff(), true
		if refused != nil {
			var asked time.Duration
			asked, passing = refused.Passing()
			wait = max(wait, asked)
		}
		if ctx.Err() == nil && (!passing || p.now().Add(wait).Sub(progress) > patience) {
			return fmt.Errorf("%w; %w", err, errBroken)
		}
		p.tell(wait, err)
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; %w", ctx.Err(), errBroken)
		case <-time.After(wait):
		}
	}
}
