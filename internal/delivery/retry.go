package delivery

import (
	"time"

	"github.com/cenkalti/backoff/v4"

	"purchase-relay/internal/purchase"
)

// maxSteps bounds the loop: the backoff has reached any cap by then.
const maxSteps = 40

// jitter is the maximal deviation of a delay, as a share of it.
const jitter = 0.25

// backoffDelay returns the delay after an attempt (counted from 1): it doubles from initial up to limit,
// with jitter taken from random (0 ≤ random < 1). Both durations are above 0.
//
// No backoff instance is kept: it would return Stop (-1 ns) after its MaxElapsedTime and 0 s without a Reset,
// both hot loops. The jitter is computed here because the library applies it after the cap and from a global
// source.
func backoffDelay(attempt int, initial, limit time.Duration, random float64) time.Duration {
	b := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(initial), backoff.WithMultiplier(2), backoff.WithMaxInterval(limit),
		backoff.WithRandomizationFactor(0), backoff.WithMaxElapsedTime(0),
	)
	d := initial
	for range min(max(attempt, 1), maxSteps) {
		d = b.NextBackOff()
	}
	return min(time.Duration(float64(d)*(1-jitter+2*jitter*random)), limit)
}

// lastTryMargin is how long before its age limit a purchase is sent for the last time.
const lastTryMargin = time.Minute

// withinAge shortens a delay that exceeds a purchase's remaining age: to shortly before the age limit, so
// that the purchase is sent once more, or to the limit if less is left.
func withinAge(wait, remaining time.Duration) time.Duration {
	switch {
	case wait < remaining:
		return max(0, wait)
	case remaining > 2*lastTryMargin:
		return remaining - lastTryMargin
	default:
		return max(0, remaining)
	}
}

// spread adds up to a tenth to a delay, so that many purchases are not redelivered at the same time.
func spread(wait time.Duration, random float64) time.Duration {
	return wait + time.Duration(random*float64(max(wait/10, 100*time.Millisecond)))
}

// remaining returns how long a purchase may still be retried; 0: it is too old. TikTok de-duplicates for
// 48 h: a later repeat could count twice. A zero firstPublished counts as now.
func remaining(firstPublished, now time.Time, maxAge time.Duration) time.Duration {
	if firstPublished.IsZero() {
		return maxAge
	}
	return max(0, maxAge-now.Sub(firstPublished))
}

// retryInputs are the inputs of retryDelay besides the answer.
type retryInputs struct {
	backoff   time.Duration // this purchase's own next delay
	slowed    time.Duration // how long the limiter stops all requests
	paused    time.Duration // how long the breaker is open for access
	remaining time.Duration // until the age limit
}

// retryDelay returns the delay before a purchase is retried after an inconclusive answer.
func retryDelay(a purchase.Answer, in retryInputs) time.Duration {
	wait := max(in.backoff, a.RetryAfter)
	switch {
	case a.Class == purchase.ClassRate:
		wait = max(wait, in.slowed)
	case a.Class == purchase.ClassRetry:
	case in.paused > 0:
		// Not the event's fault: its own backoff does not count.
		wait = max(afterProbe(in.paused), a.RetryAfter)
	}
	return withinAge(wait, in.remaining)
}
