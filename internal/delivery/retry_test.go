package delivery

import (
	"testing"
	"time"

	"purchase-relay/internal/purchase"
)

func TestDelay_GrowsWithinBounds(t *testing.T) {
	t.Parallel()
	const initial, most = time.Second, 15 * time.Minute
	for attempt := 1; attempt < 200; attempt++ {
		ideal := most
		if attempt < 11 {
			ideal = min(most, initial<<(attempt-1))
		}
		if d := Delay(attempt, initial, most, 0.5); d != ideal {
			t.Errorf("attempt %d in the middle: %s, want %s", attempt, d, ideal)
		}
		if d := Delay(attempt, initial, most, 0); d != ideal*3/4 {
			t.Errorf("attempt %d at its shortest: %s, want %s", attempt, d, ideal*3/4)
		}
		if d := Delay(attempt, initial, most, 0.9999); d < ideal || d > most || d > ideal*5/4 {
			t.Errorf("attempt %d at its longest: %s, about %s and at most %s expected", attempt, d, ideal*5/4, most)
		}
	}
	for _, attempt := range []int{0, -1} { // the queue's counts are a hint
		if d := Delay(attempt, initial, most, 0); d != initial*3/4 {
			t.Errorf("attempt %d: %s", attempt, d)
		}
	}
}

func TestWithin(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ wait, remaining, want time.Duration }{
		{30 * time.Second, time.Hour, 30 * time.Second},
		{time.Hour, 10 * time.Minute, 9 * time.Minute}, // one more try before the end
		{time.Hour, time.Hour, 59 * time.Minute},
		{time.Hour, 2 * time.Minute, 2 * time.Minute}, // that was the last
		{time.Hour, time.Second, time.Second},
		{time.Hour, 0, 0},
		{time.Hour, -time.Second, 0},
		{-time.Second, time.Hour, 0},
	} {
		if got := withinAge(tc.wait, tc.remaining); got != tc.want {
			t.Errorf("%s with %s left: %s, want %s", tc.wait, tc.remaining, got, tc.want)
		}
	}
}

func TestRemaining_Expires(t *testing.T) {
	t.Parallel()
	const limit = 47 * time.Hour
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for first, want := range map[time.Time]bool{
		{}:                                  false, // unknown counts as now
		now:                                 false,
		now.Add(time.Minute):                false, // another machine's clock
		now.Add(-limit + time.Nanosecond):   false,
		now.Add(-limit):                     true,
		now.Add(-limit - 10000*time.Second): true,
	} {
		if got := remaining(first, now, limit) == 0; got != want {
			t.Errorf("first published %s before: expired %v", now.Sub(first), got)
		}
	}
}

func TestRetryIn(t *testing.T) {
	t.Parallel()
	const age = 40 * time.Hour
	for name, tc := range map[string]struct {
		class      purchase.Class
		retryAfter time.Duration
		c          retryInputs
		want       time.Duration
	}{
		"retry: the backoff": {
			purchase.ClassRetry, 0,
			retryInputs{backoff: 8 * time.Second, remaining: age},
			8 * time.Second,
		},
		"retry: the server's wish": {
			purchase.ClassRetry, 30 * time.Second,
			retryInputs{backoff: 8 * time.Second, remaining: age},
			30 * time.Second,
		},
		"retry: the backoff is longer": {
			purchase.ClassRetry, time.Second,
			retryInputs{backoff: 8 * time.Second, remaining: age},
			8 * time.Second,
		},
		"retry: near the age limit": {
			purchase.ClassRetry, time.Hour,
			retryInputs{backoff: 8 * time.Second, remaining: time.Minute},
			time.Minute,
		},
		"rate: as long as all wait": {
			purchase.ClassRate, 0,
			retryInputs{backoff: time.Second, slowed: 4 * time.Minute, remaining: age},
			4 * time.Minute,
		},
		"access: after the next probe": {
			purchase.ClassAccess, 0,
			retryInputs{backoff: 15 * time.Minute, paused: 8 * time.Second, remaining: age},
			9 * time.Second,
		},
		"access: it resumed meanwhile": {
			purchase.ClassAccess, 0,
			retryInputs{backoff: 4 * time.Second, remaining: age},
			4 * time.Second,
		},
		"blocked: not told apart yet": {
			purchase.ClassBlocked, 0,
			retryInputs{backoff: 4 * time.Second, remaining: age},
			4 * time.Second,
		},
		"blocked: after the next probe": {
			purchase.ClassBlocked, 0,
			retryInputs{backoff: time.Second, paused: 8 * time.Second, remaining: age},
			9 * time.Second,
		},
		"refused in a full row": {
			purchase.ClassRefused, 0,
			retryInputs{backoff: time.Second, paused: 8 * time.Second, remaining: age},
			9 * time.Second,
		},
		"an unknown class": {
			"novel", 0,
			retryInputs{backoff: time.Second, remaining: age},
			time.Second,
		},
	} {
		if got := retryDelay(purchase.Answer{Class: tc.class, RetryAfter: tc.retryAfter}, tc.c); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

func TestSpread(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		wait   time.Duration
		random float64
		want   time.Duration
	}{
		{5 * time.Minute, 0, 5 * time.Minute},
		{5 * time.Minute, 0.5, 5*time.Minute + 15*time.Second},
		{10 * time.Millisecond, 0.5, 60 * time.Millisecond},
	} {
		if got := spread(tc.wait, tc.random); got != tc.want {
			t.Errorf("%s spread by %v: %s, want %s", tc.wait, tc.random, got, tc.want)
		}
	}
}
