package delivery

import (
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"purchase-relay/internal/purchase"
)

const (
	// tripAfter is how many requests in a row without a usable answer open the circuit. A single purchase that TikTok cannot
	// answer is among others that it can, and those start the row anew.
	tripAfter = 3
	// halfOpenBatch is how many purchases the probe of a half-open circuit takes along.
	halfOpenBatch = 10
)

// circuit stops the requests to one destination while nothing useful comes back from it: no answer, a gateway's page, a
// fault of TikTok's own. gobreaker counts and decides; what it does not know, an open time that grows from one opening to
// the next, is kept here. It is safe for concurrent use.
//
//	closed ──3 failures in a row──▶ open ──its time is over──▶ half-open ──failure──▶ open (longer)
//	  ▲                                                            └──any answer──▶ closed
type circuit struct {
	breaker       *gobreaker.TwoStepCircuitBreaker[purchase.Answer]
	initial, most time.Duration
	random        func() float64
	now           func() time.Time
	changed       func(from, to gobreaker.State, open time.Duration)

	mu       sync.Mutex
	opens    int       // openings in a row
	since    time.Time // not closed since; zero: closed
	closed   time.Time // when it last closed again; zero: it was never open
	until    time.Time // open until
	answered time.Time // the last usable answer; zero: none
	reason   string    // the last failure
}

// errFailed is what gobreaker counts; the answer itself says what was wrong.
type errFailed struct{}

func (errFailed) Error() string { return "no usable answer" }

func newCircuit(initial, most time.Duration, random func() float64, now func() time.Time, changed func(from, to gobreaker.State, open time.Duration)) *circuit {
	c := &circuit{initial: initial, most: min(most, maxProbeWait), random: random, now: now, changed: changed}
	c.breaker = gobreaker.NewTwoStepCircuitBreaker[purchase.Answer](gobreaker.Settings{
		MaxRequests: 1,
		Timeout:     max(initial/2, 1), // gobreaker's own open time; until is always longer
		ReadyToTrip: func(counts gobreaker.Counts) bool { return counts.ConsecutiveFailures >= tripAfter },
		OnStateChange: func(_ string, from, to gobreaker.State) {
			c.changed(from, to, c.moved(to))
		},
	})
	return c
}

// moved keeps the books of a change and returns how long the circuit stays open.
func (c *circuit) moved(to gobreaker.State) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	switch to {
	case gobreaker.StateOpen:
		c.opens++
		if c.since.IsZero() {
			c.since = now
		}
		open := Delay(c.opens, c.initial, c.most, c.random())
		c.until = now.Add(open)
		return open
	case gobreaker.StateClosed:
		c.opens, c.since, c.until, c.closed, c.reason = 0, time.Time{}, time.Time{}, now, ""
	case gobreaker.StateHalfOpen: // its end decides
	}
	return 0
}

// wait says how long nothing may be sent; 0: something may.
func (c *circuit) wait(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(0, c.until.Sub(now))
}

// state returns since when the circuit is not closed (zero: it is), and why.
func (c *circuit) state() (since time.Time, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.since, c.reason
}

// heardSince says whether a usable answer came after a time.
func (c *circuit) heardSince(t time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answered.After(t)
}

// closedAt returns when it last closed again; zero: it was never open.
func (c *circuit) closedAt() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// allow asks for one request; done must follow with its answer's class. A wait above 0 says that there is none, and when to
// ask again.
func (c *circuit) allow(now time.Time) (done func(class purchase.Class, reason string), wait time.Duration) {
	if wait := c.wait(now); wait > 0 {
		return nil, wait
	}
	report, err := c.breaker.Allow()
	if err != nil {
		return nil, c.initial // half-open, and its probe is under way
	}
	return func(class purchase.Class, reason string) {
		if class != purchase.ClassRetry {
			c.mu.Lock()
			c.answered = c.now()
			c.mu.Unlock()
			report(nil) // whatever it says of the event or of us: somebody is there
			return
		}
		c.mu.Lock()
		c.reason = reason
		c.mu.Unlock()
		report(errFailed{})
	}, 0
}

// number is the state as a metric: 0 closed, 1 half-open, 2 open.
func (c *circuit) number(now time.Time) float64 {
	since, _ := c.state()
	switch {
	case since.IsZero():
		return 0
	case c.wait(now) > 0:
		return 2
	}
	return 1
}
