// Package wait polls for a condition, in tests and tools.
package wait

import (
	"context"
	"time"
)

// Until calls done at every interval until it returns true. It returns false after limit, or at the end of
// ctx. limit is no expectation of speed: machines are shared.
func Until(ctx context.Context, limit, interval time.Duration, done func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(interval)
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
