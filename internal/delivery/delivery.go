// Package delivery is step 3: what waits in the queue is sent to TikTok in batches, and each purchase is settled on its own:
// delivered, tried again later, or given up on with a dead letter.
//
// Its order is its promise: answer from TikTok, outcome published and acknowledged, purchase acknowledged. Whatever is
// killed in between, the purchase comes again and is sent again under the same event_id, which TikTok de-duplicates.
//
//	fetch ──▶ sort (live, test, skipped, expired) ──▶ one request ──▶ settle
//	                                                      │ refused: split, until each bad one is alone
//	                                                      ▼
//	                                                 smaller requests
package delivery

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"purchase-relay/internal/contract"
	"purchase-relay/internal/flood"
	"purchase-relay/internal/purchase"
)

// Source is the queue. Fetch blocks for a bounded time for a first message and returns what waits, at most so many, or
// nothing; its errors are temporary, and messages beside one are worked on. It is called from several goroutines.
type Source interface {
	Fetch(ctx context.Context, most int) ([]contract.Queued, error)
}

// Destination is a pixel. Send makes one request about one or more purchases and classifies whatever comes of it; it is
// called from several goroutines.
type Destination interface {
	Send(ctx context.Context, events []contract.Envelope) purchase.Answer
}

// Reporter tells what became of purchases. Both return after the server's acknowledgement, and both may be repeated.
// Outcomes returns one error for each outcome, nil where it was acknowledged.
type Reporter interface {
	Outcomes(ctx context.Context, list []contract.Outcome) []error
	DeadLetter(ctx context.Context, d contract.DeadLetter) error
}

// Config is what an operator chooses.
type Config struct {
	Live Destination // nil: off, every purchase is skipped (not_configured)
	Test Destination // for livemode=false; nil: those are skipped (test_purchase)

	EventName    string           // for the log
	BatchSize    int              // purchases per request, above 0
	Concurrency  int              // requests in flight, above 0
	MaxRPS       float64          // requests per second, above 0
	RetryInitial time.Duration    // the first wait before a retry, a probe, or after a rate limit; above 0
	RetryMax     time.Duration    // the longest such wait; a probe comes at least every five minutes
	RetryMaxAge  time.Duration    // counted from the first publish
	AckWait      time.Duration    // the queue's: a delivery without a word for so long is repeated
	Instance     string           // names this process in the attempts' ids
	Now          func() time.Time // the clock
}

const (
	fetchPause     = time.Second            // after a failed fetch
	newerDelay     = time.Minute            // leaves a message to a newer worker during a rolling upgrade
	unheardHold    = 10 * time.Second       // what a live purchase may wait for a test destination that is down
	holdPoll       = time.Second            // how often a stop is looked at: it may end before its time
	publishInitial = 100 * time.Millisecond // between tries to tell an outcome, growing
	publishMost    = 5 * time.Second
	ackPatience    = 3 * time.Second // for the answer to an acknowledgement: a server that died gives none
)

// Worker delivers purchases.
type Worker struct {
	Config
	source   Source
	reporter Reporter
	log      *zap.Logger
	junk     *zap.Logger // limited: anybody with the right to publish can multiply its lines
	limit    *rate.Limiter
	live     lane
	test     lane
	slow     throttle
	seat     chan struct{} // of the one slot that may fetch while something stops the others
	random   func() float64
	started  time.Time
	prefix   string // of the attempts' ids
	attempts atomic.Uint64
	starving atomic.Bool
	looked   atomic.Int64 // when a fetch last ended, Unix nanoseconds
	metrics  *metrics
}

// New returns a Worker; Run makes it work.
func New(c Config, s Source, r Reporter, log *zap.Logger, reg prometheus.Registerer) *Worker {
	random := mathrand.Float64 // jitter alone
	newLane := func(name string, to Destination) lane {
		return lane{
			name: name, to: to, gate: gate{initial: c.RetryInitial, most: c.RetryMax, random: random},
			circuit: newCircuit(c.RetryInitial, c.RetryMax, random, c.Now, circuitTeller(name, log)),
		}
	}
	w := &Worker{
		Config: c, source: s, reporter: r, log: log, junk: log.WithOptions(flood.Limit(log)), limit: rate.NewLimiter(rate.Limit(c.MaxRPS), 1),
		live: newLane("live", c.Live), test: newLane("test", c.Test),
		slow: throttle{initial: c.RetryInitial, most: c.RetryMax, random: random},
		seat: make(chan struct{}, 1), random: random, started: c.Now().UTC(), prefix: attemptPrefix(c.Instance),
	}
	w.metrics = newMetrics(reg, w)
	return w
}

// Run delivers until ctx ends: then nothing new is taken, and the requests in flight are finished until hard ends.
func (w *Worker) Run(ctx, hard context.Context) error {
	var slots sync.WaitGroup
	for range w.Concurrency {
		slots.Go(func() { (&slot{Worker: w}).run(ctx, hard) })
	}
	slots.Wait()
	return nil
}

// ProbeNow makes the next probe of closed gates due at once: a token was changed.
func (w *Worker) ProbeNow() {
	now := w.Now()
	w.live.gate.due(now)
	w.test.gate.due(now)
}

// slot is one request in flight at a time.
type slot struct {
	*Worker
	right bool // to send one request, by the rate
}

// run waits for the right to send before it fetches, so that what it takes from the queue does not age in its hands;
// messages that needed no request leave the right to the next ones.
func (s *slot) run(ctx, hard context.Context) {
	for {
		if s.Live != nil && !s.right {
			if s.limit.Wait(ctx) != nil {
				return
			}
			s.right = true
		}
		most, leave, ok := s.turn(ctx)
		if !ok {
			return
		}
		messages, err := s.source.Fetch(ctx, most)
		s.looked.Store(s.Now().UnixNano())
		if len(messages) > 0 {
			s.deliver(ctx, hard, messages)
		}
		leave()
		if ctx.Err() != nil || (!s.heard(err) && !pause(ctx, fetchPause)) {
			return
		}
	}
}

// take uses the right to send one request, or waits for one; false: ctx ended first.
func (s *slot) take(ctx context.Context) bool {
	if !s.right {
		return s.limit.Wait(ctx) == nil
	}
	s.right = false
	return ctx.Err() == nil
}

// heard tells once when the queue is away, and once when it is back.
func (w *Worker) heard(err error) bool {
	switch {
	case err != nil && w.starving.CompareAndSwap(false, true):
		w.log.Warn("Waiting for the queue", zap.Error(err))
	case err == nil && w.starving.CompareAndSwap(true, false):
		w.log.Info("The queue is there")
	}
	return err == nil
}

// turn waits until something may be sent: a slow-down that TikTok asked for, an open circuit, closed gates. While all that
// could be sent would be held up, nothing is fetched but the next probe, by one slot, so that no delivery count is spent.
// most is how many purchases may be fetched; leave ends the turn; ok is false when ctx ended first.
func (w *Worker) turn(ctx context.Context) (most int, leave func(), ok bool) {
	for {
		hold, probe := w.hold()
		switch {
		case hold == 0 && probe == 0:
			return w.BatchSize, func() {}, true
		case hold == 0:
			select {
			case w.seat <- struct{}{}:
				// The slot that left the seat may have probed.
				if hold, probe = w.hold(); hold == 0 && probe > 0 {
					return min(probe, w.BatchSize), func() { <-w.seat }, true
				}
				<-w.seat
				if hold == 0 {
					continue
				}
			default:
				hold = holdPoll
			}
		}
		if !pause(ctx, min(hold, holdPoll)) {
			return 0, nil, false
		}
	}
}

// onlyTestKnown returns since when the test destination, which has the same address, gives no usable answers, where the live
// one has given none since; zero: else.
func (w *Worker) onlyTestKnown() (since time.Time, reason string) {
	since, reason = w.test.circuit.state()
	if since.IsZero() || w.live.circuit.heardSince(since) {
		return time.Time{}, ""
	}
	return since, reason
}

// hold is how long nothing may be fetched. probe above 0 says that what is fetched next is a probe, and of how many.
func (w *Worker) hold() (hold time.Duration, probe int) {
	now := w.Now()
	hold = w.slow.wait(now)
	if w.Live == nil {
		return hold, 0
	}
	// A circuit that is open for test purchases alone stops no live ones: those test purchases go back. But while nothing says
	// that live ones would be answered, little is fetched.
	if wait, probing := w.live.blocked(now); probing {
		hold, probe = max(hold, wait), halfOpenBatch
	} else if since, _ := w.onlyTestKnown(); !since.IsZero() {
		looked := time.Unix(0, w.looked.Load())
		hold, probe = max(hold, min(w.test.circuit.wait(now), looked.Add(unheardHold).Sub(now))), halfOpenBatch
	}
	if !w.live.gate.closed() || (w.Test != nil && !w.test.gate.closed()) {
		return hold, probe
	}
	closed := w.live.gate.wait(now)
	if w.Test != nil {
		closed = min(closed, w.test.gate.wait(now))
	}
	return max(hold, closed), 1
}

// attemptID is unique over all workers and restarts.
func (w *Worker) attemptID() string { return w.prefix + strconv.FormatUint(w.attempts.Add(1), 36) }

// attemptPrefix makes a process's prefix of attempt ids: what is no id's letter in its name is replaced, because an outcome
// under an unusable id would never be taken, and the purchase never settled.
func attemptPrefix(instance string) string {
	name := strings.Map(func(r rune) rune {
		if purchase.ValidID(string(r)) {
			return r
		}
		return '-'
	}, instance)
	return name[:min(len(name), 100)] + "-" + strings.ToLower(rand.Text()[:8]) + "-"
}

// State is what the worker tells about itself: paused (the live destination refuses us), open (it does not answer), running,
// or off, since when, and why. What stops test purchases alone is a reason beside running. The version is left to the caller.
func (w *Worker) State() contract.WorkerState {
	if w.Live == nil {
		return contract.WorkerState{State: contract.WorkerOff, Reason: "TIKTOK_ACCESS_TOKEN not configured", Since: w.started}
	}
	if since, reason := w.live.gate.state(); !since.IsZero() {
		return contract.WorkerState{State: contract.WorkerPaused, Reason: "live: " + reason, Since: since.UTC()}
	}
	if since, reason := w.live.circuit.state(); !since.IsZero() {
		return contract.WorkerState{State: contract.WorkerOpen, Reason: "live: " + reason, Since: since.UTC()}
	}
	if since, reason := w.onlyTestKnown(); !since.IsZero() {
		return contract.WorkerState{State: contract.WorkerOpen, Reason: "test: " + reason, Since: since.UTC()}
	}
	s := contract.WorkerState{State: contract.WorkerRunning, Since: w.started}
	for _, again := range []time.Time{w.live.gate.openedAt(), w.live.circuit.closedAt()} {
		if again.After(s.Since) {
			s.Since = again.UTC()
		}
	}
	if since, reason := w.test.gate.state(); !since.IsZero() {
		s.Reason = "test purchases wait: " + reason
	} else if since, reason := w.test.circuit.state(); !since.IsZero() {
		s.Reason = "test purchases wait: " + reason
	}
	return s
}

// Ready returns nil unless delivery is paused, else why. TikTok being down is not ours to repair: an open circuit stays
// ready, and State tells of it.
func (w *Worker) Ready() error {
	if since, reason := w.live.gate.state(); !since.IsZero() {
		return fmt.Errorf("paused since %s: live: %s", since.UTC().Format(time.RFC3339), reason)
	}
	return nil
}

// pause waits; false: ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func codeText(code *int) string {
	if code == nil {
		return ""
	}
	return strconv.Itoa(*code)
}

func codeOf(code *int) zap.Field {
	if code == nil {
		return zap.Skip()
	}
	return zap.Int("code", *code)
}
