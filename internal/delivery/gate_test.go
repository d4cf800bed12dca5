package delivery

import (
	"testing"
	"time"

	"purchase-relay/internal/purchase"
)

func middle() float64 { return 0.5 }

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) //nolint:gochecknoglobals // a constant

func newGate() *gate {
	return &gate{initial: time.Second, most: 15 * time.Minute, random: middle}
}

func TestGateProbesOneAtATimeAtGrowingIntervals(t *testing.T) {
	g, now := newGate(), start
	if closed, opened := g.report(g.admit(now), purchase.ClassAccess, "40105 revoked", now); !closed || opened {
		t.Fatalf("closed %v, opened %v", closed, opened)
	}
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300} { // seconds; at most five minutes
		if got := g.wait(now); got != want*time.Second {
			t.Errorf("probe %d comes after %s, want %ds", i, got, want)
		}
		now = now.Add(want*time.Second - 1)
		if a := g.admit(now); a.ok || a.wait != 1 {
			t.Errorf("before probe %d: %+v", i, a)
		}
		now = now.Add(1)
		probe := g.admit(now)
		if !probe.ok || !probe.probe {
			t.Fatalf("probe %d: %+v", i, probe)
		}
		if a := g.admit(now); a.ok || a.wait != time.Second {
			t.Errorf("beside probe %d: %+v", i, a)
		}
		if closed, opened := g.report(probe, purchase.ClassAccess, "40105 revoked", now); closed || opened {
			t.Errorf("a failed probe: closed %v, opened %v", closed, opened)
		}
	}
	if since, reason := g.state(); since != start || reason != "40105 revoked" {
		t.Errorf("closed since %s: %s", since, reason)
	}
}

func TestGateOpensByAnyOtherAnswerToItsProbe(t *testing.T) {
	for _, class := range []purchase.Class{purchase.ClassDelivered, purchase.ClassRefused, purchase.ClassRetry, purchase.ClassRate} {
		g := newGate()
		g.report(g.admit(start), purchase.ClassAccess, "r", start)
		now := start.Add(time.Second)
		if _, opened := g.report(g.admit(now), class, "", now); !opened || g.closed() || g.wait(now) != 0 || g.openedAt() != now {
			t.Errorf("%s did not open it", class)
		}
		// The next pause begins with the short intervals again.
		g.report(g.admit(now), purchase.ClassAccess, "r", now)
		if got := g.wait(now); got != time.Second {
			t.Errorf("after %s the next pause begins with %s", class, got)
		}
	}
}

// Requests that were in flight when the gate closed say nothing about it.
func TestGateIgnoresStragglers(t *testing.T) {
	g := newGate()
	first, second, third := g.admit(start), g.admit(start), g.admit(start)
	g.report(first, purchase.ClassAccess, "r", start)
	if closed, _ := g.report(second, purchase.ClassAccess, "r", start); closed || g.wait(start) != time.Second {
		t.Errorf("a second refusal of the same moment: %s", g.wait(start))
	}
	if _, opened := g.report(second, purchase.ClassDelivered, "", start); opened {
		t.Error("an answer from before opened it")
	}
	now := start.Add(time.Second)
	g.report(g.admit(now), purchase.ClassDelivered, "", now)
	if closed, _ := g.report(third, purchase.ClassAccess, "r", now); closed || g.closed() {
		t.Error("a refusal from before the pause closed it again")
	}
}

func TestGateAbandonedProbe(t *testing.T) {
	g := newGate()
	g.report(g.admit(start), purchase.ClassAccess, "r", start)
	now := start.Add(time.Second)
	g.abandon(g.admit(now))
	if a := g.admit(now); !a.probe {
		t.Errorf("no probe after one that was broken off: %+v", a)
	}
}

func TestThrottle(t *testing.T) {
	limited := func(after time.Duration) purchase.Answer {
		return purchase.Answer{Class: purchase.ClassRate, RetryAfter: after}
	}
	th, now := &throttle{initial: time.Second, most: time.Minute, random: middle}, start
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} { // seconds
		th.report(limited(0), now)
		th.report(limited(0), now) // another request of the same moment
		th.report(purchase.Answer{Class: purchase.ClassDelivered}, now)
		if got := th.wait(now); got != want*time.Second {
			t.Errorf("rate limit %d stops for %s, want %ds", i, got, want)
		}
		now = now.Add(want * time.Second)
	}
	th.report(limited(time.Second), now)
	if got := th.wait(now); got != time.Minute {
		t.Errorf("a wish below the backoff: %s", got)
	}
	th.report(limited(10*time.Minute), now) // a later answer asks for more
	th.report(limited(time.Minute), now)
	if got := th.wait(now); got != 10*time.Minute {
		t.Errorf("the longest wish: %s", got)
	}
	now = now.Add(10 * time.Minute)
	th.report(purchase.Answer{Class: purchase.ClassRetry}, now)
	th.report(limited(0), now)
	if got := th.wait(now); got != time.Second {
		t.Errorf("after another answer the first stop is %s", got)
	}
}
