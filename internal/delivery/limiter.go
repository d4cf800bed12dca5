package delivery

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"purchase-relay/internal/purchase"
)

// limiter slows the whole process: TikTok's limit is on the app, not on an event or a pixel. It keeps to a
// steady rate, and stops all requests for as long as TikTok asks. It is safe for concurrent use.
type limiter struct {
	steady       *rate.Limiter
	initial, max time.Duration
	random       func() float64

	mu    sync.Mutex
	row   int // rate answers in a row, those of one moment counted once
	until time.Time
}

// token waits for the right to send one request; false: ctx ended first.
func (l *limiter) token(ctx context.Context) bool { return l.steady.Wait(ctx) == nil }

// report takes in an answer: a rate limit stops all requests for what the server asks, at least for a growing
// time.
func (l *limiter) report(a purchase.Answer, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	inForce := now.Before(l.until) // the answer is to a request that was in flight when the stop came
	wait := a.RetryAfter
	switch {
	case a.Class == purchase.ClassRate && !inForce:
		l.row++
		wait = max(wait, Delay(l.row, l.initial, l.max, l.random()))
	case a.Class == purchase.ClassRate:
	case inForce:
		return
	default:
		l.row = 0
		return
	}
	if until := now.Add(wait); until.After(l.until) {
		l.until = until
	}
}

// wait returns how long nothing may be sent; 0: a request may.
func (l *limiter) wait(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(0, l.until.Sub(now))
}
