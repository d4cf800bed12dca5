package delivery

import (
	"sync"
	"time"

	"purchase-relay/internal/purchase"
)

// maxFailedProbes bounds a lane's set of failed probes.
const maxFailedProbes = 1000

// lane leads to one destination (pixel and token). Each has a breaker of its own, so that a revoked test
// token never stops live purchases. It is safe for concurrent use.
type lane struct {
	name        string
	destination Destination // nil: purchases are skipped

	// bisecting holds the one sender that splits a batch after a block page: while every event is blocked, the
	// others would only repeat its requests.
	bisecting chan struct{}

	mu           sync.Mutex
	requests     uint64
	breaker      breaker
	faults       faults
	failedProbes map[string]bool // event IDs, since the lane paused
}

func newLane(name string, to Destination, b breaker) *lane {
	return &lane{
		name: name, destination: to, bisecting: make(chan struct{}, 1),
		breaker: b, faults: newFaults(), failedProbes: map[string]bool{},
	}
}

// permit permits one request on a lane. report or abandon must follow.
type permit struct {
	admission
	seq uint64
}

// admit permits one request of at most limit events (0: any number). A wait above 0 denies it until then;
// reason is the metric's label.
func (l *lane) admit(now time.Time) (p permit, limit int, reason string, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	admitted, wait := l.breaker.admit(now)
	if wait > 0 {
		reason = "open"
		if l.breaker.cause == causeAccess {
			reason = "paused"
		}
		return permit{}, 0, reason, wait
	}
	l.requests++
	limit = l.breaker.limit()
	if limit == 0 && l.faults.singlesOnly() {
		limit = 1
	}
	return permit{admission: admitted, seq: l.requests}, limit, "", 0
}

// report records the answer to a request. It returns what happens to the events, and how the breaker changed.
func (l *lane) report(p permit, a purchase.Answer, r sentRequest, now time.Time) (action, change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.seq = p.seq
	found, next := l.faults.observe(a, r, l.requests)
	changed := l.breaker.report(p.admission, found, answerText(a), now)
	switch {
	case l.breaker.cause != causeAccess || len(l.failedProbes) >= maxFailedProbes:
		clear(l.failedProbes)
	case len(r.ids) == 1:
		l.failedProbes[r.ids[0]] = true
	}
	return next, changed
}

// abandon withdraws a request that was cut off or panicked.
func (l *lane) abandon(p permit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breaker.abandon(p.admission)
}

// unfitAsProbe reports whether an event is unfit as a probe: it failed as one, or got a block page alone.
func (l *lane) unfitAsProbe(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failedProbes[id] || l.faults.blocks(id) > 0
}

// blocks returns how many block pages an event got alone.
func (l *lane) blocks(id string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.faults.blocks(id)
}

// wait returns how long the breaker is open for a cause; 0: it is not.
func (l *lane) wait(c cause, now time.Time) time.Duration {
	b := l.state()
	if b.cause != c {
		return 0
	}
	return b.wait(now)
}

// state returns a copy of the breaker.
func (l *lane) state() breaker {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.breaker
}

// probeNow makes the next probe of a paused destination due immediately.
func (l *lane) probeNow(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breaker.probeNow(now)
}

// paused reports whether the destination rejects every event.
func (l *lane) paused() bool { return l.state().cause == causeAccess }

// circuit returns the state of an outage as a metric: 0 closed, 1 half-open, 2 open.
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
