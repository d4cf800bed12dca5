// Package wait waits for the thing itself: what tests and rehearsals expect comes when it comes.
package wait

import (
	"context"
	"time"
)

// Until asks again and again, every so often, whether it is done; false: not within most, or ctx ended before. most is no expectation of
// speed: machines are shared.
func Until(ctx context.Context, most, every time.Duration, done func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}
