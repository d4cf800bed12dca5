package delivery

import (
	"time"

	"github.com/cenkalti/backoff/v4"
)

// maxSteps is where the exponential has reached every sensible cap.
const maxSteps = 40

// Delay returns the wait before the attempt after this one (attempt counts from 1): exponential from initial, with
// jitter, at most most. It is derived from the attempt's number and keeps nothing: a kept backoff instance would answer
// Stop after its MaxElapsedTime, and a delay of -1 ns would be a hot loop.
func Delay(attempt int, initial, most time.Duration) time.Duration {
	b := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(initial), backoff.WithMultiplier(2), backoff.WithMaxInterval(most),
		backoff.WithRandomizationFactor(0.25), backoff.WithMaxElapsedTime(0),
	)
	d := initial
	for range min(max(attempt, 1), maxSteps) {
		d = b.NextBackOff()
	}
	return min(max(d, initial/2), most) // the library's jitter comes after its cap
}

// nextDelay is the wait before a purchase's next attempt: the server's wish where it is longer, but never past the age
// limit, so that the end comes in time.
func nextDelay(attempt int, retryAfter, initial, most, remainingAge time.Duration) time.Duration {
	return max(min(max(Delay(attempt, initial, most), retryAfter), remainingAge), 0)
}

// expired says whether a purchase first published at a time is too old to be sent: TikTok de-duplicates for 48 h, past
// that a repeat could count twice.
func expired(firstPublished, now time.Time, maxAge time.Duration) bool {
	return !firstPublished.IsZero() && now.Sub(firstPublished) >= maxAge
}
