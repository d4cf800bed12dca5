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
// opens the gate. Its methods are functions of what it is told and the time; it is safe for concurrent use.
//
//	open ──access──▶ closed ──probe due──▶ probing ──access──▶ closed (longer)
//	  ▲                                       └──any other answer──▶ open
type gate struct {
	initial, most time.Duration
	random        func() float64

	mu        sync.Mutex
	since     time.Time // closed since; zero: open
	opened    time.Time // when it last opened again; zero: it never closed
	epoch     int       // counts the times it opened
	reason    string
	probes    int
	nextProbe time.Time
	probing   bool
}

// admission is the gate's word about one event.
type admission struct {
	ok    bool
	probe bool          // this event is the probe: report or abandon must follow
	epoch int           // the opening under which it was admitted
	wait  time.Duration // not ok: when to ask again
}

// admit asks whether an event may be sent now.
func (g *gate) admit(now time.Time) admission {
	g.mu.Lock()
	defer g.mu.Unlock()
	if hold := g.hold(now); hold > 0 {
		return admission{wait: hold}
	}
	g.probing = !g.since.IsZero()
	return admission{ok: true, probe: g.probing, epoch: g.epoch}
}

// wait says how long nothing may pass; 0: something may.
func (g *gate) wait(now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.hold(now)
}

func (g *gate) hold(now time.Time) time.Duration {
	switch {
	case g.since.IsZero():
		return 0
	case g.probing:
		return g.initial // the answer may come any moment
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
	case !a.probe && (!isOpen || a.epoch != g.epoch):
		// It was sent before the gate closed: only a probe's answer speaks for a closed gate, and none from before a pause
		// for one that has opened since.
		return false, false
	case class != purchase.ClassAccess:
		if isOpen {
			return false, false
		}
		g.since, g.reason, g.probes = time.Time{}, "", 0
		g.opened = now
		g.epoch++
		return false, true
	case isOpen:
		g.since = now
	}
	g.reason = reason
	g.probes++
	g.nextProbe = now.Add(Delay(g.probes, g.initial, min(g.most, maxProbeWait), g.random()))
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

// due makes the next probe of a closed gate due now, and the waits after it short again.
func (g *gate) due(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.since.IsZero() {
		g.nextProbe, g.probes = now, 0
	}
}

// closed says whether the gate is closed, a probe under way or not.
func (g *gate) closed() bool {
	since, _ := g.state()
	return !since.IsZero()
}

// state returns since when the gate is closed (zero: open) and why.
func (g *gate) state() (since time.Time, reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.since, g.reason
}

// openedAt returns when the gate last opened again; zero: it never closed.
func (g *gate) openedAt() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened
}
