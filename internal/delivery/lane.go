package delivery

import (
	"math"
	"time"

	"github.com/sony/gobreaker/v2"
	"go.uber.org/zap"

	"purchase-relay/internal/purchase"
)

// lane is the way to one destination (pixel and token): its gate and its circuit are its own, so that a revoked test token
// never stops live purchases.
type lane struct {
	name    string
	to      Destination // nil: nowhere
	gate    gate
	circuit *circuit
}

// pass is the right to send one request on a lane. report or abandon must follow.
type pass struct {
	lane *lane
	gate admission
	done func(class purchase.Class, reason string)
}

// admit asks for one request. A wait above 0 says that there is none, why, and when to ask again.
func (l *lane) admit(now time.Time) (p pass, why string, wait time.Duration) {
	admitted := l.gate.admit(now)
	if !admitted.ok {
		return pass{}, "paused", admitted.wait
	}
	done, wait := l.circuit.allow(now)
	if wait > 0 {
		l.gate.abandon(admitted)
		return pass{}, "open", wait
	}
	return pass{lane: l, gate: admitted, done: done}, "", 0
}

// report tells gate and circuit the answer.
func (p pass) report(class purchase.Class, reason string, now time.Time) (closed, opened bool) {
	p.done(class, reason)
	return p.lane.gate.report(p.gate, class, reason, now)
}

// abandon takes a request back that led to no answer by our own doing.
func (p pass) abandon() {
	p.done(purchase.ClassDelivered, "") // nothing is known against the destination
	p.lane.gate.abandon(p.gate)
}

// probeSize is how many events one request may hold now: a probe is small.
func (l *lane) probeSize() int {
	switch since, _ := l.circuit.state(); {
	case l.gate.closed():
		return 1
	case !since.IsZero():
		return halfOpenBatch
	}
	return math.MaxInt
}

// blocked is how long the circuit lets nothing pass; probing says that what comes next is its probe.
func (l *lane) blocked(now time.Time) (wait time.Duration, probing bool) {
	since, _ := l.circuit.state()
	return l.circuit.wait(now), !since.IsZero()
}

// circuitTeller returns what logs a lane's circuit.
func circuitTeller(name string, log *zap.Logger) func(from, to gobreaker.State, open time.Duration) {
	return func(from, to gobreaker.State, open time.Duration) {
		lane := zap.String("destination", name)
		switch {
		case to == gobreaker.StateOpen && from == gobreaker.StateClosed:
			log.Warn("TikTok gives no usable answers; the circuit is open, purchases wait in the queue", lane, zap.Duration("probe_in", open.Round(time.Millisecond)))
		case to == gobreaker.StateOpen:
			log.Info("TikTok still gives no usable answer", lane, zap.Duration("probe_in", open.Round(time.Millisecond)))
		case to == gobreaker.StateClosed:
			log.Info("TikTok answers again; the circuit is closed", lane)
		default: // half-open: its probe is logged
		}
	}
}
