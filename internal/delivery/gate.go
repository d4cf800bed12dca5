package delivery

import (
	"sync"
	"time"

	"purchase-relay/internal/purchase"
)

// maxProbeWait is the longest time between two probes of a destination that refuses us.
const maxProbeWait = 5 * time.Minute

// gate stands before one destination (pixel and token). An answer of the class access closes it: the fault is not the
// event's, and every further event would meet it too. One event at a time probes, at growing intervals; any other answer
// opens the gate.
//
//	open ──access──▶ closed ──probe due──▶ probing ──access──▶ closed (longer)
//	  ▲                                       └──any other answer──▶ open
type gate struct {
	name          string
	initial, most time.Duration

	mu        sync.Mutex
	since     time.Time // zero: open
	reason    string
	probes    int
	nextProbe time.Time
	probing   bool
}

// admission is the gate's word about one event.
type admission struct {
	ok    bool
	probe bool          // this event is the probe: report must follow
	wait  time.Duration // not ok: when to ask again
}

// admit asks whether an event may be sent now.
func (g *gate) admit(now time.Time) admission {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.since.IsZero():
		return admission{ok: true}
	case g.probing:
		return admission{wait: max(g.initial, time.Second)}
	case now.Before(g.nextProbe):
		return admission{wait: g.nextProbe.Sub(now)}
	}
	g.probing = true
	return admission{ok: true, probe: true}
}

// wait says how long nothing may pass; 0: something may.
func (g *gate) wait(now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.since.IsZero():
		return 0
	case g.probing:
		return g.initial
	}
	return max(0, g.nextProbe.Sub(now))
}

// report tells the gate an admitted event's answer; closed and opened say what that changed.
func (g *gate) report(a admission, class purchase.Class, reason string, now time.Time) (closed, opened bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	isOpen := g.since.IsZero()
	if a.probe {
		g.probing = false
	}
	switch {
	case class != purchase.ClassAccess:
		// Only the probe's answer speaks for a closed gate: others were sent before it closed.
		if !isOpen && a.probe {
			g.since, g.reason, g.probes = time.Time{}, "", 0
			return false, true
		}
		return false, false
	case isOpen:
		g.since, g.probes = now, 0
	case !a.probe:
		return false, false
	}
	g.reason = reason
	g.probes++
	g.nextProbe = now.Add(Delay(g.probes, g.initial, min(g.most, maxProbeWait)))
	return isOpen, false
}

// abandon takes an admission back that led to no answer.
func (g *gate) abandon(a admission) {
	if a.probe {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.probing = false
	}
}

// state returns since when the gate is closed (zero: open) and why.
func (g *gate) state() (since time.Time, reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.since, g.reason
}
