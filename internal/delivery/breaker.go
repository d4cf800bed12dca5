package delivery

import "time"

const (
	// tripAfter is how many consecutive requests without a usable answer open the circuit. One purchase that
	// TikTok cannot answer does not: the others in between reset the count.
	tripAfter = 3
	// outageProbe is how many purchases probe a destination that gives no usable answers.
	outageProbe = 10
	// maxProbeWait bounds the time between two probes. With afterProbe's margin, a lone purchase probes at least
	// every five minutes.
	maxProbeWait = 4 * time.Minute
)

// cause is why a breaker is open; "" if it is closed.
type cause string

const (
	causeAccess cause = "access" // the destination rejects every event: the worker is paused
	causeOutage cause = "outage" // the destination gives no usable answers
)

// breaker stops the requests to one destination (pixel and token) while every event would fail alike. While
// open, it admits one probe at a time, at growing intervals. It is a pure state machine of findings and time.
//
//	closed ─denied, or 3 × failing─▶ open ─probe due─▶ probing ─failed─▶ open (longer)
//	                                                      └─TikTok answered─▶ closed
type breaker struct {
	initial, max time.Duration
	random       func() float64

	cause     cause
	reason    string    // the answer that keeps it open
	since     time.Time // open since; zero: closed
	closed    time.Time // when it last closed again; zero: it never opened
	probes    int       // consecutive, without success
	nextProbe time.Time
	probing   bool
	epoch     int       // number of times it opened or closed
	failures  int       // consecutive, while it is closed
	answered  time.Time // the last usable answer; zero: none
}

// admission permits one request.
type admission struct {
	probe bool
	epoch int
}

// change is what a report did to a breaker.
type change int

const (
	unchanged change = iota
	opened
	stillOpen
	resumed
)

// wait returns how long no request may be sent; 0: one may.
func (b *breaker) wait(now time.Time) time.Duration {
	switch {
	case b.cause == "":
		return 0
	case b.probing:
		return b.initial // the probe's answer is pending
	}
	return max(0, b.nextProbe.Sub(now))
}

// limit returns how many events the next request may hold; 0: any number.
func (b *breaker) limit() int {
	switch b.cause {
	case causeAccess:
		return 1
	case causeOutage:
		return outageProbe
	}
	return 0
}

// admit permits a request; report or abandon must follow. A wait above 0 denies it until then.
func (b *breaker) admit(now time.Time) (a admission, wait time.Duration) {
	if wait := b.wait(now); wait > 0 {
		return admission{}, wait
	}
	b.probing = b.cause != ""
	return admission{probe: b.probing, epoch: b.epoch}, 0
}

// abandon withdraws a request that was cut off or panicked.
func (b *breaker) abandon(a admission) {
	if a.probe {
		b.probing = false
	}
}

// report records the finding of a request's answer; reason is the answer's text.
func (b *breaker) report(a admission, f finding, reason string, now time.Time) change {
	if a.probe {
		b.probing = false
	}
	if f != failing {
		b.answered = now
	}
	switch {
	case a.epoch != b.epoch:
		return unchanged // the breaker opened or closed after the request was sent
	case b.cause == "":
		return b.reportClosed(f, reason, now)
	case f == healthy, f == unclear && b.cause == causeOutage:
		b.cause, b.reason, b.since, b.probes, b.failures, b.closed = "", "", time.Time{}, 0, 0, now
		b.epoch++
		return resumed
	case f == denied && b.cause == causeOutage:
		b.open(causeAccess, reason, now)
		return opened
	case f == denied, f == failing && b.cause == causeOutage:
		b.reason = reason
	}
	b.probeAgain(now)
	return stillOpen
}

// reportClosed is report while the breaker is closed.
func (b *breaker) reportClosed(f finding, reason string, now time.Time) change {
	switch f {
	case denied:
		b.open(causeAccess, reason, now)
		return opened
	case failing:
		if b.failures++; b.failures >= tripAfter {
			b.open(causeOutage, reason, now)
			return opened
		}
	default:
		b.failures = 0
	}
	return unchanged
}

func (b *breaker) open(c cause, reason string, now time.Time) {
	b.cause, b.reason, b.since, b.probes, b.failures = c, reason, now, 0, 0
	b.epoch++
	b.probeAgain(now)
}

func (b *breaker) probeAgain(now time.Time) {
	b.probes++
	b.nextProbe = now.Add(backoffDelay(b.probes, b.initial, min(b.max, maxProbeWait), b.random()))
}

// probeNow makes the next probe of a pause due immediately and resets the interval: a new token does not end
// an outage.
func (b *breaker) probeNow(now time.Time) {
	if b.cause == causeAccess {
		b.nextProbe, b.probes = now, 0
	}
}

// afterProbe returns the delay of a purchase that failed as a probe or opened the breaker: past the next
// probe, so that another purchase probes.
func afterProbe(wait time.Duration) time.Duration {
	return wait + max(wait/8, 100*time.Millisecond)
}
