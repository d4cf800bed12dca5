// Package wait polls for a condition, in tests and tools.
package wait

import (
	"context"
	"time"
)

// Until calls done until it returns true: at every interval, and less often in a long wait, of which a tenth
// passes between two calls, at most half a second. It returns false after limit, or at the end of ctx. limit is
// no expectation of speed: machines are shared.
func Until(ctx context.Context, limit, interval time.Duration, done func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start := time.Now()
	for !done() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(max(interval, min(time.Since(start)/10, time.Second/2))):
		}
	}
	return true
}
