package delivery

import (
	"testing"
	"time"

	"purchase-relay/internal/purchase"
)

func TestDelayGrowsWithinItsBounds(t *testing.T) {
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

func TestWithinTheAgeLimit(t *testing.T) {
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
		if got := within(tc.wait, tc.remaining); got != tc.want {
			t.Errorf("%s with %s left: %s, want %s", tc.wait, tc.remaining, got, tc.want)
		}
	}
}

func TestExpired(t *testing.T) {
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

func TestDecide(t *testing.T) {
	const age = 40 * time.Hour
	retrying := func(d time.Duration) verdict { return verdict{result: purchase.StatusRetrying, delay: d} }
	for name, tc := range map[string]struct {
		class      purchase.Class
		retryAfter time.Duration
		c          circumstances
		want       verdict
	}{
		"delivered":                     {purchase.ClassDelivered, time.Hour, circumstances{time.Second, time.Hour, 0, false}, verdict{result: purchase.StatusDelivered}},
		"refused":                       {purchase.ClassRefused, time.Hour, circumstances{time.Second, 0, age, false}, verdict{result: purchase.StatusDead, reason: purchase.ReasonRefused}},
		"retry: the backoff":            {purchase.ClassRetry, 0, circumstances{8 * time.Second, 0, age, false}, retrying(8 * time.Second)},
		"retry: the server's wish":      {purchase.ClassRetry, 30 * time.Second, circumstances{8 * time.Second, 0, age, false}, retrying(30 * time.Second)},
		"retry: the backoff is longer":  {purchase.ClassRetry, time.Second, circumstances{8 * time.Second, 0, age, false}, retrying(8 * time.Second)},
		"retry: near the age limit":     {purchase.ClassRetry, time.Hour, circumstances{8 * time.Second, 0, time.Minute, false}, retrying(time.Minute)},
		"rate: as long as all wait":     {purchase.ClassRate, 0, circumstances{time.Second, 4 * time.Minute, age, false}, retrying(4 * time.Minute)},
		"access: until the next probe":  {purchase.ClassAccess, 0, circumstances{15 * time.Minute, 2 * time.Second, age, false}, retrying(2 * time.Second)},
		"access: the gate opened again": {purchase.ClassAccess, 0, circumstances{4 * time.Second, 0, age, false}, retrying(4 * time.Second)},
		"a class of tomorrow":           {"novel", 0, circumstances{time.Second, 0, age, false}, retrying(time.Second)},
	} {
		if got := decide(purchase.Answer{Class: tc.class, RetryAfter: tc.retryAfter}, tc.c); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

// A partial refusal of a single event says nothing for sure at first; once more, or after a split, it does.
func TestDecidePartial(t *testing.T) {
	partial := purchase.Answer{Class: purchase.ClassRefused, Code: new(codePartial)}
	c := circumstances{backoff: time.Second, remaining: time.Hour, first: true}
	if got := decide(partial, c); got.result != purchase.StatusRetrying || got.delay != time.Second {
		t.Errorf("at first: %+v", got)
	}
	c.first = false
	if got := decide(partial, c); got.result != purchase.StatusDead {
		t.Errorf("again: %+v", got)
	}
}

func TestSpread(t *testing.T) {
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
