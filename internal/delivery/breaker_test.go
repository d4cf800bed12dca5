package delivery

import (
	"testing"
	"time"

	"purchase-relay/internal/purchase"
)

func middle() float64 { return 0.5 }

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) //nolint:gochecknoglobals // a constant

func newBreaker() *breaker {
	return &breaker{initial: time.Second, max: 15 * time.Minute, random: middle}
}

// send admits one request and reports its finding.
func (b *breaker) send(t *testing.T, f finding, reason string, now time.Time) change {
	t.Helper()
	a, wait := b.admit(now)
	if wait > 0 {
		t.Fatalf("a request was denied for %s", wait)
	}
	return b.report(a, f, reason, now)
}

func TestBreaker_ProbesSinglyAtGrowingIntervals(t *testing.T) {
	t.Parallel()
	b, now := newBreaker(), start
	if got := b.send(t, denied, "40105 revoked", now); got != opened {
		t.Fatalf("change = %v, want opened", got)
	}
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 240, 240, 240} { // seconds
		if got := b.wait(now); got != want*time.Second {
			t.Errorf("wait for probe %d = %s, want %ds", i, got, want)
		}
		now = now.Add(want*time.Second - 1)
		if _, wait := b.admit(now); wait != 1 {
			t.Errorf("wait before probe %d = %s, want 1ns", i, wait)
		}
		now = now.Add(1)
		probe, wait := b.admit(now)
		if wait > 0 || !probe.probe || b.limit() != 1 {
			t.Fatalf("probe %d: %+v, wait %s, limit %d", i, probe, wait, b.limit())
		}
		if _, wait := b.admit(now); wait != time.Second {
			t.Errorf("wait beside probe %d = %s, want 1s", i, wait)
		}
		if got := b.report(probe, denied, "40105 revoked", now); got != stillOpen {
			t.Errorf("change after probe %d = %v, want stillOpen", i, got)
		}
	}
	if b.since != start || b.reason != "40105 revoked" || b.cause != causeAccess {
		t.Errorf("since = %s, cause = %q, reason = %q; want %s, access, 40105 revoked",
			b.since, b.cause, b.reason, start)
	}
}

func TestBreaker_ReactsToProbe(t *testing.T) {
	t.Parallel()
	access, outage := []finding{denied}, []finding{failing, failing, failing}
	for name, tc := range map[string]struct {
		before []finding
		probe  finding
		want   change
		cause  cause
		reason string
	}{
		"access: TikTok answered":              {access, healthy, resumed, "", ""},
		"access: denied again":                 {access, denied, stillOpen, causeAccess, "probe"},
		"access: no answer is inconclusive":    {access, failing, stillOpen, causeAccess, "before"},
		"access: a block page is inconclusive": {access, unclear, stillOpen, causeAccess, "before"},
		"outage: TikTok answered":              {outage, healthy, resumed, "", ""},
		"outage: any answer":                   {outage, unclear, resumed, "", ""},
		"outage: still no answer":              {outage, failing, stillOpen, causeOutage, "probe"},
		"outage: access is denied":             {outage, denied, opened, causeAccess, "probe"},
	} {
		b := newBreaker()
		for _, f := range tc.before {
			b.send(t, f, "before", start)
		}
		now := start.Add(time.Second)
		got := b.send(t, tc.probe, "probe", now)
		if got != tc.want || b.cause != tc.cause || b.reason != tc.reason {
			t.Errorf("%s: change %v, cause %q, reason %q; want %v, %q, %q",
				name, got, b.cause, b.reason, tc.want, tc.cause, tc.reason)
		}
		if tc.want == resumed && (b.wait(now) != 0 || b.closed != now || !b.since.IsZero()) {
			t.Errorf("%s: %+v is not closed", name, b)
		}
	}
}

func TestBreaker_OpensAfterThreeConsecutiveFailures(t *testing.T) {
	t.Parallel()
	b := newBreaker()
	for _, f := range []finding{failing, failing, healthy, failing, failing, unclear, failing, failing} {
		if got := b.send(t, f, "503", start); got != unchanged {
			t.Fatalf("change after %v = %v, want unchanged", f, got)
		}
	}
	if got := b.send(t, failing, "503", start); got != opened || b.cause != causeOutage ||
		b.limit() != outageProbe {
		t.Errorf("change = %v, cause %q, limit %d", got, b.cause, b.limit())
	}
}

func TestBreaker_ResetsIntervals(t *testing.T) {
	t.Parallel()
	b, now := newBreaker(), start
	for range 5 {
		b.send(t, denied, "r", now)
		now = now.Add(b.wait(now))
	}
	b.send(t, healthy, "", now)
	b.send(t, denied, "r", now)
	if got := b.wait(now); got != time.Second {
		t.Errorf("first wait of the next pause = %s, want 1s", got)
	}
}

// Requests that were in flight when the breaker opened or closed do not change it.
func TestBreaker_IgnoresEarlierRequests(t *testing.T) {
	t.Parallel()
	b := newBreaker()
	var early [4]admission
	for i := range early {
		early[i], _ = b.admit(start)
	}
	b.report(early[0], denied, "r", start)
	if got := b.report(early[1], denied, "r", start); got != unchanged || b.wait(start) != time.Second {
		t.Errorf("second denial: change %v, wait %s; want unchanged, 1s", got, b.wait(start))
	}
	if got := b.report(early[2], healthy, "", start); got != unchanged || b.cause == "" {
		t.Errorf("earlier success: change %v, cause %q; want unchanged, access", got, b.cause)
	}
	b.send(t, healthy, "", start.Add(time.Second))
	if got := b.report(early[3], denied, "r", start.Add(time.Second)); got != unchanged || b.cause != "" {
		t.Errorf("earlier denial: change %v, cause %q; want unchanged, closed", got, b.cause)
	}
}

func TestBreaker_RepeatsAbandonedProbe(t *testing.T) {
	t.Parallel()
	b := newBreaker()
	b.send(t, denied, "r", start)
	now := start.Add(time.Second)
	probe, _ := b.admit(now)
	b.abandon(probe)
	if a, wait := b.admit(now); wait > 0 || !a.probe {
		t.Errorf("admission = %+v, wait %s; want another probe, 0s", a, wait)
	}
}

// A lone purchase probes at least every five minutes.
func TestAfterProbe_IsWithinFiveMinutes(t *testing.T) {
	t.Parallel()
	for _, wait := range []time.Duration{time.Millisecond, time.Second, maxProbeWait} {
		if got := afterProbe(wait); got <= wait || got > 5*time.Minute {
			t.Errorf("afterProbe(%s) = %s, want more, and at most 5m", wait, got)
		}
	}
}

func TestLimiter_StopsForRateLimits(t *testing.T) {
	t.Parallel()
	limited := func(after time.Duration) purchase.Answer {
		return purchase.Answer{Class: purchase.ClassRate, RetryAfter: after}
	}
	l, now := &limiter{initial: time.Second, max: time.Minute, random: middle}, start
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} { // seconds
		l.report(limited(0), now)
		l.report(limited(0), now) // a concurrent request
		l.report(purchase.Answer{Class: purchase.ClassDelivered}, now)
		if got := l.wait(now); got != want*time.Second {
			t.Errorf("rate limit %d stops for %s, want %ds", i, got, want)
		}
		now = now.Add(want * time.Second)
	}
	l.report(limited(time.Second), now)
	if got := l.wait(now); got != time.Minute {
		t.Errorf("wait after a Retry-After below the backoff = %s, want 1m", got)
	}
	l.report(limited(10*time.Minute), now) // a later answer demands more
	l.report(limited(time.Minute), now)
	if got := l.wait(now); got != 10*time.Minute {
		t.Errorf("wait after two Retry-Afters = %s, want the longer, 10m", got)
	}
	now = now.Add(10 * time.Minute)
	l.report(purchase.Answer{Class: purchase.ClassRetry}, now)
	l.report(limited(0), now)
	if got := l.wait(now); got != time.Second {
		t.Errorf("wait after a reset = %s, want 1s", got)
	}
}
