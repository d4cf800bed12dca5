package delivery

import (
	"sync"
	"time"

	"purchase-relay/internal/purchase"
)

// throttle slows the whole process: TikTok's rate limit is on the app, not on an event or a pixel. That is why it is no
// gate: it has no probes, stands before all destinations, and does not count as a pause.
type throttle struct {
	initial, most time.Duration
	random        func() float64

	mu    sync.Mutex
	row   int // rate answers in a row, those of one moment counted once
	until time.Time
}

// report takes in an answer: a rate limit stops all requests for what the server asks, at least for a growing time.
func (t *throttle) report(a purchase.Answer, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	inForce := now.Before(t.until) // the answer is to a request that was in flight when the stop came
	wait := a.RetryAfter
	switch {
	case a.Class == purchase.ClassRate && !inForce:
		t.row++
		wait = max(wait, Delay(t.row, t.initial, t.most, t.random()))
	case a.Class == purchase.ClassRate:
	case inForce:
		return
	default:
		t.row = 0
		return
	}
	if until := now.Add(wait); until.After(t.until) {
		t.until = until
	}
}

// wait is how long nothing may be sent.
func (t *throttle) wait(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(0, t.until.Sub(now))
}
