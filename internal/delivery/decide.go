package delivery

import (
	"time"

	"github.com/cenkalti/backoff/v4"

	"purchase-relay/internal/purchase"
)

// maxSteps is where the exponential has reached every sensible cap.
const maxSteps = 40

// jitter is how far a delay may lie from its ideal, as a share of it.
const jitter = 0.25

// Delay returns the wait before the attempt after this one (attempt counts from 1): it doubles from initial,
// with jitter taken from random (0 ≤ random < 1), and is at most most. Both durations are above 0.
//
// It is derived from the attempt's number and keeps nothing: a kept backoff instance would answer Stop (-1
// ns) after its MaxElapsedTime, and one without Reset 0 s, both a hot loop. The jitter is our own, because
// the library's comes after its cap and from a source that no test can hold still.
func Delay(attempt int, initial, most time.Duration, random float64) time.Duration {
	b := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(initial), backoff.WithMultiplier(2), backoff.WithMaxInterval(most),
		backoff.WithRandomizationFactor(0), backoff.WithMaxElapsedTime(0),
	)
	d := initial
	for range min(max(attempt, 1), maxSteps) {
		d = b.NextBackOff()
	}
	return min(time.Duration(float64(d)*(1-jitter+2*jitter*random)), most)
}

// lastChance is how long before its age limit a purchase gets its last try.
const lastChance = time.Minute

// within keeps a wait inside the age that a purchase has left. One that reaches past it ends a little before,
// so that the purchase is tried once more; what has less left than that waits for its end.
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

// spread adds up to a tenth to a wait, so that many purchases that wait for the same moment do not come back
// in one.
func spread(wait time.Duration, random float64) time.Duration {
	return wait + time.Duration(random*float64(max(wait/10, 100*time.Millisecond)))
}

// remaining is how long a purchase first published at a time may still be tried; 0: it is too old. TikTok
// de-duplicates for 48 h, past that a repeat could count twice. A zero time counts as now.
func remaining(firstPublished, now time.Time, maxAge time.Duration) time.Duration {
	if firstPublished.IsZero() {
		return maxAge
	}
	return max(0, maxAge-now.Sub(firstPublished))
}

// circumstances are what retryIn considers besides the answer.
type circumstances struct {
	backoff   time.Duration // this purchase's own next delay
	slowed    time.Duration // how long the limiter stops all requests
	paused    time.Duration // how long a breaker that is open for access lets nothing pass
	remaining time.Duration // until the age limit
}

// retryIn returns when a purchase is delivered again that an answer neither accepts nor condemns.
func retryIn(a purchase.Answer, c circumstances) time.Duration {
	wait := max(c.backoff, a.RetryAfter)
	switch {
	case a.Class == purchase.ClassRate:
		wait = max(wait, c.slowed)
	case a.Class == purchase.ClassRetry:
	case c.paused > 0:
		// Not the event's fault: it comes back soon after the next probe, however often it was delivered
		// before.
		wait = max(returnLater(c.paused), a.RetryAfter)
	}
	return within(wait, c.remaining)
}
