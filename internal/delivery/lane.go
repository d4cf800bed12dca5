package delivery

import (
	"sync"
	"time"

	"purchase-relay/internal/purchase"
)

// maxProbed bounds what a lane remembers of its probes.
const maxProbed = 1000

// lane leads to one destination (pixel and token). Its breaker and its evidence are its own, so that a
// revoked test token never stops live purchases. It is safe for concurrent use.
type lane struct {
	name        string
	destination Destination // nil: purchases are skipped

	// narrowing holds the one sender that divides a batch after a page: while every event meets one, the others
	// would only repeat its requests.
	narrowing chan struct{}

	mu       sync.Mutex
	requests uint64
	breaker  breaker
	evidence evidence
	probed   map[string]bool // events that probed without success since the lane paused
}

func newLane(name string, to Destination, b breaker) *lane {
	return &lane{
		name: name, destination: to, narrowing: make(chan struct{}, 1),
		breaker: b, evidence: newEvidence(), probed: map[string]bool{},
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
	if limit == 0 && l.evidence.doubtful() {
		limit = 1
	}
	return permit{admission: admitted, seq: l.requests}, limit, "", 0
}

// report takes the answer to a request and returns the fate of its events, and how the breaker changed.
func (l *lane) report(p permit, a purchase.Answer, r requested, now time.Time) (fate, change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.seq = p.seq
	found, result := l.evidence.weigh(a, r, l.requests)
	changed := l.breaker.report(p.admission, found, answerText(a), now)
	switch {
	case l.breaker.cause != causeAccess || len(l.probed) >= maxProbed:
		clear(l.probed)
	case len(r.ids) == 1:
		l.probed[r.ids[0]] = true
	}
	return result, changed
}

// abandon withdraws a request that was cut off or panicked.
func (l *lane) abandon(p permit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breaker.abandon(p.admission)
}

// failed reports whether an event would be no new probe: it probed without success, or met a page alone.
func (l *lane) failed(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.probed[id] || l.evidence.pages(id) > 0
}

// pages returns how many pages an event met alone.
func (l *lane) pages(id string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.evidence.pages(id)
}

// wait returns how long the breaker is open for a cause; 0: it is not.
func (l *lane) wait(c cause, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.breaker.cause != c {
		return 0
	}
	return l.breaker.wait(now)
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
