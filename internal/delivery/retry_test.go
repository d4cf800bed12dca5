package delivery

import (
	"testing"
	"time"

	"purchase-relay/internal/purchase"
)

func TestBackoffDelay_GrowsWithinBounds(t *testing.T) {
	t.Parallel()
	const initial, limit = time.Second, 15 * time.Minute
	for attempt := 1; attempt < 200; attempt++ {
		ideal := limit
		if attempt < 11 {
			ideal = min(limit, initial<<(attempt-1))
		}
		if d := backoffDelay(attempt, initial, limit, 0.5); d != ideal {
			t.Errorf("median delay of attempt %d = %s, want %s", attempt, d, ideal)
		}
		if d := backoffDelay(attempt, initial, limit, 0); d != ideal*3/4 {
			t.Errorf("shortest delay of attempt %d = %s, want %s", attempt, d, ideal*3/4)
		}
		if d := backoffDelay(attempt, initial, limit, 0.9999); d < ideal || d > limit || d > ideal*5/4 {
			t.Errorf("longest delay of attempt %d = %s, want %s to %s", attempt, d, ideal, min(limit, ideal*5/4))
		}
	}
	for _, attempt := range []int{0, -1} { // delivery counts are a hint
		if d := backoffDelay(attempt, initial, limit, 0); d != initial*3/4 {
			t.Errorf("delay of attempt %d = %s, want %s", attempt, d, initial*3/4)
		}
	}
}

func TestWithinAge(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ wait, remaining, want time.Duration }{
		{30 * time.Second, time.Hour, 30 * time.Second},
		{time.Hour, 10 * time.Minute, 9 * time.Minute}, // one more attempt before the limit
		{time.Hour, time.Hour, 59 * time.Minute},
		{time.Hour, 2 * time.Minute, 2 * time.Minute}, // no further attempt
		{time.Hour, time.Second, time.Second},
		{time.Hour, 0, 0},
		{time.Hour, -time.Second, 0},
		{-time.Second, time.Hour, 0},
	} {
		if got := withinAge(tc.wait, tc.remaining); got != tc.want {
			t.Errorf("withinAge(%s, %s) = %s, want %s", tc.wait, tc.remaining, got, tc.want)
		}
	}
}

func TestRemaining_Expires(t *testing.T) {
	t.Parallel()
	const maxAge = 47 * time.Hour
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for first, want := range map[time.Time]bool{
		{}:                                   false, // unknown counts as now
		now:                                  false,
		now.Add(time.Minute):                 false, // by another machine's clock
		now.Add(-maxAge + time.Nanosecond):   false,
		now.Add(-maxAge):                     true,
		now.Add(-maxAge - 10000*time.Second): true,
	} {
		if got := remaining(first, now, maxAge) == 0; got != want {
			t.Errorf("first published %s ago: expired = %t, want %t", now.Sub(first), got, want)
		}
	}
}

func TestRetryDelay(t *testing.T) {
	t.Parallel()
	const sec, age = time.Second, 40 * time.Hour
	type in = retryInputs
	for name, tc := range map[string]struct {
		class      purchase.Class
		retryAfter time.Duration
		in         retryInputs
		want       time.Duration
	}{
		"retry: backoff":            {"retry", 0, in{backoff: 8 * sec, remaining: age}, 8 * sec},
		"retry: longer Retry-After": {"retry", 30 * sec, in{backoff: 8 * sec, remaining: age}, 30 * sec},
		"retry: longer backoff":     {"retry", sec, in{backoff: 8 * sec, remaining: age}, 8 * sec},
		"retry: near the age limit": {"retry", 3600 * sec, in{backoff: 8 * sec, remaining: 60 * sec}, 60 * sec},
		"rate: limiter":             {"rate", 0, in{backoff: sec, slowed: 240 * sec, remaining: age}, 240 * sec},
		"access: next probe":        {"access", 0, in{backoff: age, paused: 8 * sec, remaining: age}, 9 * sec},
		"access: resumed since":     {"access", 0, in{backoff: 4 * sec, remaining: age}, 4 * sec},
		"blocked: fault unknown":    {"blocked", 0, in{backoff: 4 * sec, remaining: age}, 4 * sec},
		"blocked: next probe":       {"blocked", 0, in{backoff: sec, paused: 8 * sec, remaining: age}, 9 * sec},
		"refused: full streak":      {"refused", 0, in{backoff: sec, paused: 8 * sec, remaining: age}, 9 * sec},
		"unknown class":             {"new", 0, in{backoff: sec, remaining: age}, sec},
	} {
		if got := retryDelay(purchase.Answer{Class: tc.class, RetryAfter: tc.retryAfter}, tc.in); got != tc.want {
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
			t.Errorf("spread(%s, %v) = %s, want %s", tc.wait, tc.random, got, tc.want)
		}
	}
}
