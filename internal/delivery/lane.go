package delivery

import (
	"sync"
	"time"

	"purchase-relay/internal/purchase"
)

// maxTried bounds what a lane remembers of its probes.
const maxTried = 1000

// lane is the way to one destination (pixel and token). Its breaker and its evidence are its own, so that a
// revoked test token never stops live purchases. It is safe for concurrent use.
type lane struct {
	name string
	to   Destination // nil: nowhere

	// narrowing has room for the one slot that divides a batch for a page: while every event meets one, the
	// others would only repeat its requests.
	narrowing chan struct{}

	mu       sync.Mutex
	requests uint64
	breaker  breaker
	evidence evidence
	tried    map[string]bool // events that probed without success since it paused
}

func newLane(name string, to Destination, b breaker) *lane {
	return &lane{
		name:      name,
		to:        to,
		narrowing: make(chan struct{}, 1),
		breaker:   b,
		evidence:  newEvidence(),
		tried:     map[string]bool{},
	}
}

// permit is the right to send one request on a lane. report or abandon must follow.
type permit struct {
	admission
	seq uint64
}

// admit asks for one request of at most limit events (0: any number). A wait above 0 denies it until then,
// and why is the metric's label.
func (l *lane) admit(now time.Time) (p permit, limit int, why string, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	admitted, wait := l.breaker.admit(now)
	if wait > 0 {
		return permit{}, 0, map[cause]string{causeAccess: "paused", causeOutage: "open"}[l.breaker.cause], wait
	}
	l.requests++
	limit = l.breaker.limit()
	if limit == 0 && l.evidence.doubtful() {
		limit = 1
	}
	return permit{admission: admitted, seq: l.requests}, limit, "", 0
}

// report takes in the answer to a request and returns what it means for the request's events, and for the
// lane.
func (l *lane) report(p permit, a purchase.Answer, r request, reason string, now time.Time) (fate, change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.seq = p.seq
	found, what := l.evidence.weigh(a, r, l.requests)
	changed := l.breaker.report(p.admission, found, reason, now)
	switch {
	case l.breaker.cause != causeAccess || len(l.tried) >= maxTried:
		clear(l.tried)
	case len(r.ids) == 1:
		l.tried[r.ids[0]] = true
	}
	return what, changed
}

// failed reports whether an event would be no new probe: it probed without success, or met a page alone.
func (l *lane) failed(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tried[id] || l.evidence.pages(id) > 0
}

// abandon withdraws a request that led to no answer for a reason of ours.
func (l *lane) abandon(p permit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breaker.abandon(p.admission)
}

// pages returns how many pages an event met alone.
func (l *lane) pages(id string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.evidence.pages(id)
}

// wait returns how long no request may be sent for a cause; 0: one may, as far as that goes.
func (l *lane) wait(c cause, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.breaker.cause != c {
		return 0
	}
	return l.breaker.wait(now)
}

// state is a copy of the breaker.
func (l *lane) state() breaker {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.breaker
}

// due makes the next probe of a destination that refuses everything due now.
func (l *lane) due(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breaker.due(now)
}

// paused reports whether the destination refuses every event.
func (l *lane) paused() bool { return l.state().cause == causeAccess }

// circuit is the outage's part as a metric: 0 closed, 1 half-open, 2 open.
func (l *lane) circuit(now time.Time) float64 {
	b := l.state()
	switch {
	case b.cause != causeOutage:
		return 0
	case b.probing || b.wait(now) == 0:
		return 1
	}
	return 2
}
