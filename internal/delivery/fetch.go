package delivery

import (
	"context"
	"strings"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/message"
)

const (
	fetchRetry     = time.Second      // after a failed fetch
	stopPoll       = time.Second      // how often a stopped sender checks whether it may resume
	testOutageWait = 10 * time.Second // how long an outage of the test destination may delay a live purchase

	// A probe that failed before is replaced by one of up to replaceLimit other purchases.
	replaceLimit   = 10
	replaceTimeout = 100 * time.Millisecond // of their fetch
	replaceRetry   = time.Minute            // until those that failed before are redelivered
)

// sender is one of Concurrency loops: it fetches messages and makes one request after the other.
type sender struct {
	w     *Worker
	stop  context.Context // then nothing new is fetched or sent
	abort context.Context // then in-flight requests are cut off
	token bool            // a rate token that is not used yet
}

// run takes a rate token before it fetches, so that fetched messages do not age while they wait for one. A
// token that no request used is kept for the next.
func (s *sender) run() {
	w := s.w
	for {
		if w.config.Live != nil && !s.token {
			if !w.limiter.token(s.stop) {
				return
			}
			s.token = true
		}
		limit, probe, ok := w.awaitFetch(s.stop)
		if !ok {
			return
		}
		messages, err := w.source.Fetch(s.stop, limit)
		if probe && len(messages) == 1 {
			messages[0] = w.replaceProbe(s.stop, messages[0])
		}
		w.lastFetch.Store(w.config.Now().UnixNano())
		w.compareClocks()
		if len(messages) > 0 {
			s.deliver(messages)
		}
		if probe {
			<-w.probing
		}
		if s.stop.Err() != nil {
			return
		}
		w.logFetch(err)
		if err != nil && !sleep(s.stop, fetchRetry) {
			return
		}
	}
}

// useToken uses the kept rate token or waits for one. It reports whether the sender may still send.
func (s *sender) useToken() bool {
	if !s.token {
		return s.w.limiter.token(s.stop)
	}
	s.token = false
	return s.stop.Err() == nil
}

// logFetch logs the first of consecutive failures of the queue, and their end.
func (w *Worker) logFetch(err error) {
	switch {
	case err != nil && w.sourceFailing.CompareAndSwap(false, true):
		w.log.Warn("Fetch failed; retrying", zap.Error(err))
	case err == nil && w.sourceFailing.CompareAndSwap(true, false):
		w.log.Info("Fetch recovered")
	}
}

// awaitFetch waits until something may be sent and returns how many purchases to fetch. While everything is
// stopped, one sender alone fetches the next probe: a message that another sender fetched would only be
// returned. Then probe is true, and the caller must receive from probing afterwards. ok is false once ctx has
// ended.
func (w *Worker) awaitFetch(ctx context.Context) (limit int, probe, ok bool) {
	for {
		wait, size := w.nextFetch()
		switch {
		case wait == 0 && size == 0:
			return w.config.BatchSize, false, true
		case wait == 0:
			select {
			case w.probing <- struct{}{}:
				// Another sender may have probed in between.
				if wait, size = w.nextFetch(); wait == 0 && size > 0 {
					return min(size, w.config.BatchSize), true, true
				}
				<-w.probing
				if wait == 0 {
					continue
				}
			default:
				wait = stopPoll
			}
		}
		if !sleep(ctx, min(wait, stopPoll)) {
			return 0, false, false
		}
	}
}

// nextFetch returns how long nothing may be fetched. If probe is above 0, the next fetch is a probe of that
// many purchases.
func (w *Worker) nextFetch() (wait time.Duration, probe int) {
	now := w.config.Now()
	wait = w.limiter.wait(now)
	if w.config.Live == nil {
		return wait, 0
	}
	live, test := w.live.state(), w.test.state()
	switch {
	case live.cause == causeOutage:
		return max(wait, live.wait(now)), outageProbe
	case live.cause == causeAccess && w.config.Test == nil:
		return max(wait, live.wait(now)), 1
	case live.cause == causeAccess && test.cause == causeAccess:
		return max(wait, min(live.wait(now), test.wait(now))), 1
	}
	// An outage of the test destination does not stop live purchases. But until a live answer proves that TikTok
	// is up, the fetches stay small.
	if test, ok := w.testOnlyOutage(); ok {
		last := time.Unix(0, w.lastFetch.Load())
		return max(wait, min(test.wait(now), last.Add(testOutageWait).Sub(now))), outageProbe
	}
	return wait, 0
}

// testOnlyOutage returns the test destination's breaker. ok reports whether it has an outage and the live
// destination, which has the same address, has given no usable answer since.
func (w *Worker) testOnlyOutage() (test breaker, ok bool) {
	test = w.test.state()
	return test, test.cause == causeOutage && !w.live.state().answered.After(test.since)
}

// replaceProbe replaces a probe that failed before by a purchase that did not, if the queue has one.
// Otherwise the same few purchases would probe forever while others wait behind them.
func (w *Worker) replaceProbe(ctx context.Context, probe message.Received) message.Received {
	if !w.unfitAsProbe(probe) {
		return probe
	}
	ctx, cancel := context.WithTimeout(ctx, replaceTimeout)
	defer cancel()
	others, err := w.source.Fetch(ctx, replaceLimit)
	if err != nil && len(others) == 0 {
		return probe
	}
	for _, other := range others {
		returned, delay := other, min(w.config.RetryMax, replaceRetry, w.untilNextProbe())
		switch {
		case w.unfitAsProbe(other):
		case w.unfitAsProbe(probe):
			probe, returned = other, probe
		default:
			delay = 0
		}
		logAckError(w.log, returned.NakWithDelay(delay))
	}
	return probe
}

// untilNextProbe estimates when the probe after the one that is due comes: the intervals double, so the next
// is about as long as the stop so far.
func (w *Worker) untilNextProbe() time.Duration {
	stopped := time.Duration(0)
	for _, l := range []*lane{w.live, w.test} {
		if b := l.state(); b.cause != "" {
			stopped = max(stopped, w.config.Now().Sub(b.since))
		}
	}
	return afterProbe(stopped)
}

// unfitAsProbe reports whether a purchase is unfit as a probe.
func (w *Worker) unfitAsProbe(m message.Received) bool {
	id := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
	return w.live.unfitAsProbe(id) || w.test.unfitAsProbe(id)
}
