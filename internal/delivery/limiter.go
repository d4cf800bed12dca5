package delivery

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"purchase-relay/internal/purchase"
)

// limiter limits the requests of the whole process: TikTok's limit is on the app, not on a pixel. It keeps a
// steady rate, and stops all requests for as long as TikTok demands. It is safe for concurrent use.
type limiter struct {
	steady       *rate.Limiter
	initial, max time.Duration
	random       func() float64

	mu    sync.Mutex
	hits  int // consecutive rate limits; those during a stop count once
	until time.Time
}

// token waits for the rate token of one request. It reports whether there was one before ctx ended.
func (l *limiter) token(ctx context.Context) bool { return l.steady.Wait(ctx) == nil }

// report records an answer: a rate limit stops all requests for its Retry-After, and at least for a backoff.
func (l *limiter) report(a purchase.Answer, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	stopped := now.Before(l.until) // the request was in flight when the stop began
	wait := a.RetryAfter
	switch {
	case a.Class == purchase.ClassRate && !stopped:
		l.hits++
		wait = max(wait, backoffDelay(l.hits, l.initial, l.max, l.random()))
	case a.Class == purchase.ClassRate:
	case stopped:
		return
	default:
		l.hits = 0
		return
	}
	if until := now.Add(wait); until.After(l.until) {
		l.until = until
	}
}

// wait returns how long nothing may be sent.
func (l *limiter) wait(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(0, l.until.Sub(now))
}
