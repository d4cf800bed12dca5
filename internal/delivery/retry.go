package delivery

import (
	"time"

	"github.com/cenkalti/backoff/v4"

	"purchase-relay/internal/purchase"
)

// maxSteps bounds the loop: the exponential has reached any cap by then.
const maxSteps = 40

// jitter is the maximal deviation of a delay, as a share of it.
const jitter = 0.25

// Delay returns the wait after an attempt (counted from 1): it doubles from initial up to limit, with jitter
// taken from random (0 ≤ random < 1). Both durations are above 0.
//
// It is a function of the attempt's number, without a kept backoff instance: such an instance returns Stop
// (-1 ns) after its MaxElapsedTime, and 0 s without a Reset, which are both hot loops. The jitter is computed
// here because the library applies it after the cap and from a global source.
func Delay(attempt int, initial, limit time.Duration, random float64) time.Duration {
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

// lastChance is how long before its age limit a purchase is tried for the last time.
const lastChance = time.Minute

// within shortens a wait that exceeds a purchase's remaining age: to shortly before the age limit, so that
// the purchase is tried once more, or to the limit where less is left.
func within(wait, remaining time.Duration) time.Duration {
	switch {
	case wait < remaining:
		return max(0, wait)
	case remaining > 2*lastChance:
		return remaining - lastChance
	default:
		return max(0, remaining)
	}
}

// spread adds up to a tenth to a wait, so that many purchases with the same wait are not redelivered
// together.
func spread(wait time.Duration, random float64) time.Duration {
	return wait + time.Duration(random*float64(max(wait/10, 100*time.Millisecond)))
}

// remaining returns how long a purchase may still be tried; 0: it is too old. TikTok de-duplicates for 48 h:
// a later repeat could count twice. A zero firstPublished counts as now.
func remaining(firstPublished, now time.Time, maxAge time.Duration) time.Duration {
	if firstPublished.IsZero() {
		return maxAge
	}
	return max(0, maxAge-now.Sub(firstPublished))
}

// circumstances are the inputs of retryIn besides the answer.
type circumstances struct {
	backoff   time.Duration // this purchase's own next delay
	slowed    time.Duration // how long the limiter stops all requests
	paused    time.Duration // how long the breaker is open for access
	remaining time.Duration // until the age limit
}

// retryIn returns when a purchase is retried that an answer neither accepts nor condemns.
func retryIn(a purchase.Answer, c circumstances) time.Duration {
	wait := max(c.backoff, a.RetryAfter)
	switch {
	case a.Class == purchase.ClassRate:
		wait = max(wait, c.slowed)
	case a.Class == purchase.ClassRetry:
	case c.paused > 0:
		// Not the event's fault: it is retried after the next probe, however often it was delivered before.
		wait = max(afterProbe(c.paused), a.RetryAfter)
	}
	return within(wait, c.remaining)
}
