package delivery

import (
	"sync"
	"time"

	"purchase-relay/internal/purchase"
)

// throttle slows the whole process: TikTok's rate limit is on the app, not on an event or a pixel.
type throttle struct {
	initial, most time.Duration

	mu    sync.Mutex
	row   int // rate answers in a row
	until time.Time
}

// report takes in an answer: a rate limit stops all requests for what the server asks, or for a growing time.
func (t *throttle) report(a purchase.Answer, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case a.Class != purchase.ClassRate:
		t.row = 0
	case now.Before(t.until) && a.RetryAfter == 0:
		// Another request of the same moment: one stop is enough.
	default:
		t.row++
		wait := a.RetryAfter
		if wait == 0 {
			wait = Delay(t.row, t.initial, t.most)
		}
		if until := now.Add(wait); until.After(t.until) {
			t.until = until
		}
	}
}

// wait is how long nothing may be sent.
func (t *throttle) wait(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(0, t.until.Sub(now))
}
