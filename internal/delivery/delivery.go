// Package delivery is step 3: what waits in the queue is sent to TikTok in batches, and each purchase is
// settled on its own: delivered, tried again later, or given up on with a dead letter.
//
// Its order is its promise: answer from TikTok, outcome published and acknowledged, purchase acknowledged.
// Whatever is killed in between, the purchase comes again and is sent again under the same event_id, which
// TikTok de-duplicates.
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

	"purchase-relay/internal/flood"
	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// Source is the queue. Fetch blocks for a bounded time for a first message and returns what waits, at most so
// many, or nothing; its errors are temporary, and messages beside one are worked on. It is called from
// several goroutines.
type Source interface {
	Fetch(ctx context.Context, most int) ([]message.Received, error)
}

// Destination is a pixel. Send makes one request about one or more purchases and classifies whatever comes of
// it; it is called from several goroutines.
type Destination interface {
	Send(ctx context.Context, events []message.Envelope) purchase.Answer
}

// Reporter publishes how purchases ended. Both methods publish all at once and return after the server's
// answers, one error each, nil where the stream holds it; both may be repeated.
type Reporter interface {
	Outcomes(ctx context.Context, list []message.Outcome) []error
	DeadLetters(ctx context.Context, list []message.DeadLetter) []error
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
	Now          func() time.Time // this machine's clock

	// ClockOffset is how far the queue's clock is ahead of this machine's; nil: it is not known.
	ClockOffset func() time.Duration
}

const (
	fetchPause     = time.Second            // after a failed fetch
	newerDelay     = time.Minute            // leaves a message to a newer worker during a rolling upgrade
	unheardHold    = 10 * time.Second       // what a live purchase may wait for a test destination that is down
	exchangeSize   = 10                     // purchases among which another probe is looked for
	exchangeWait   = 100 * time.Millisecond // for these
	exchangeReturn = time.Minute            // when those come back that failed before
	holdPoll       = time.Second            // how often a stop is checked: it may end before its time
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
	limit    *limiter
	live     *lane
	test     *lane
	probing  chan struct{} // has room for the one slot that may fetch while something stops the others
	random   func() float64
	started  time.Time
	prefix   string // of the attempts' ids
	attempts atomic.Uint64
	starving atomic.Bool
	looked   atomic.Int64 // when a fetch last ended, Unix nanoseconds
	offset   atomic.Int64 // of the clocks, as it was last logged
	metrics  *metrics
}

// New returns a Worker; Run makes it work.
func New(c Config, s Source, r Reporter, log *zap.Logger, reg prometheus.Registerer) *Worker {
	random := mathrand.Float64 // jitter alone
	b := breaker{initial: c.RetryInitial, max: c.RetryMax, random: random}
	w := &Worker{
		Config: c, source: s, reporter: r, log: log, junk: log.WithOptions(flood.Limit(log)),
		limit: &limiter{
			steady:  rate.NewLimiter(rate.Limit(c.MaxRPS), 1),
			initial: c.RetryInitial,
			max:     c.RetryMax,
			random:  random,
		},
		live: newLane("live", c.Live, b), test: newLane("test", c.Test, b),
		probing: make(
			chan struct{},
			1,
		), random: random, started: c.Now().UTC(), prefix: attemptPrefix(c.Instance),
	}
	w.metrics = newMetrics(reg, w)
	return w
}

// Run delivers until ctx ends: then nothing new is taken, and the requests in flight are finished until hard
// ends.
func (w *Worker) Run(ctx, hard context.Context) error {
	var slots sync.WaitGroup
	for range w.Concurrency {
		slots.Go(func() { (&slot{w: w}).run(ctx, hard) })
	}
	slots.Wait()
	return nil
}

// ProbeNow makes the next probe of paused destinations due immediately: a token was changed.
func (w *Worker) ProbeNow() {
	now := w.Now()
	w.live.due(now)
	w.test.due(now)
}

// slot makes one request at a time.
type slot struct {
	w     *Worker
	token bool // the right to send one request, by the rate
}

// run waits for the right to send before it fetches, so that what it takes from the queue does not age in its
// hands; messages that needed no request leave the right to the next ones.
func (s *slot) run(ctx, hard context.Context) {
	w := s.w
	for {
		if w.Live != nil && !s.token {
			if !w.limit.token(ctx) {
				return
			}
			s.token = true
		}
		limit, probe, leave, ok := w.mayFetch(ctx)
		if !ok {
			return
		}
		messages, err := w.source.Fetch(ctx, limit)
		if probe && len(messages) == 1 {
			messages = w.exchange(ctx, messages[0])
		}
		w.looked.Store(w.Now().UnixNano())
		w.compareClocks()
		if len(messages) > 0 {
			s.deliver(ctx, hard, messages)
		}
		leave()
		if ctx.Err() != nil || (!w.heard(err) && !pause(ctx, fetchPause)) {
			return
		}
	}
}

// take uses the right to send one request, or waits for one; false: ctx ended first.
func (s *slot) take(ctx context.Context) bool {
	if !s.token {
		return s.w.limit.token(ctx)
	}
	s.token = false
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

// mayFetch waits until something may be sent. While all that could be sent would be held up, only the next
// probe is fetched, by one slot, so that no delivery count is spent. limit is how many purchases may be
// fetched, probe whether that is to probe; leave must be called when they have ended; ok is false when ctx
// ended first.
func (w *Worker) mayFetch(ctx context.Context) (limit int, probe bool, leave func(), ok bool) {
	for {
		wait, size := w.stopped()
		switch {
		case wait == 0 && size == 0:
			return w.BatchSize, false, func() {}, true
		case wait == 0:
			select {
			case w.probing <- struct{}{}:
				// The slot that was here before may have probed.
				if wait, size = w.stopped(); wait == 0 && size > 0 {
					return min(size, w.BatchSize), true, func() { <-w.probing }, true
				}
				<-w.probing
				if wait == 0 {
					continue
				}
			default:
				wait = holdPoll
			}
		}
		if !pause(ctx, min(wait, holdPoll)) {
			return 0, false, nil, false
		}
	}
}

// exchange replaces a probe that failed before by an event that did not, where the queue has one. Else the
// few events that every answer is about would probe for ever, while others wait behind them.
func (w *Worker) exchange(ctx context.Context, m message.Received) []message.Received {
	failed := func(m message.Received) bool {
		id := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
		return w.live.failed(id) || w.test.failed(id)
	}
	if !failed(m) {
		return []message.Received{m}
	}
	soon, cancel := context.WithTimeout(ctx, exchangeWait)
	defer cancel()
	others, err := w.source.Fetch(soon, exchangeSize)
	if err != nil && len(others) == 0 {
		return []message.Received{m} // nothing else waits
	}
	probe := m
	for _, other := range others {
		back, delay := other, min(w.RetryMax, exchangeReturn)
		if !failed(other) {
			if failed(probe) {
				probe, back = other, probe
			} else {
				delay = 0
			}
		}
		w.told(w.log, back.NakWithDelay(delay))
	}
	return []message.Received{probe}
}

// onlyTestKnown returns the outage of the test destination, which has the same address, where the live one
// has given no usable answer since it began.
func (w *Worker) onlyTestKnown() (b breaker, is bool) {
	b = w.test.state()
	return b, b.cause == causeOutage && !w.live.state().answered.After(b.since)
}

// stopped returns how long nothing may be fetched. probe above 0: what is fetched next is a probe, of so many
// purchases.
func (w *Worker) stopped() (wait time.Duration, probe int) {
	now := w.Now()
	wait = w.limit.wait(now)
	if w.Live == nil {
		return wait, 0
	}
	live, test := w.live.state(), w.test.state()
	switch {
	case live.cause == causeOutage:
		// A circuit that is open for test purchases alone stops no live ones: those test purchases go back.
		return max(wait, live.wait(now)), outageProbe
	case live.cause == causeAccess && w.Test == nil:
		return max(wait, live.wait(now)), 1
	case live.cause == causeAccess && test.cause == causeAccess:
		return max(wait, min(live.wait(now), test.wait(now))), 1
	}
	// While nothing shows that live purchases would be answered, little is fetched.
	if b, is := w.onlyTestKnown(); is {
		looked := time.Unix(0, w.looked.Load())
		return max(wait, min(b.wait(now), looked.Add(unheardHold).Sub(now))), outageProbe
	}
	return wait, 0
}

// clockTolerance is how far two clocks may lie apart before it is logged.
const clockTolerance = 10 * time.Second

// clockOffset is how far the queue's clock is ahead of this machine's; 0: it is not known.
func (w *Worker) clockOffset() time.Duration {
	if w.ClockOffset == nil {
		return 0
	}
	return w.ClockOffset()
}

// compareClocks logs a wrong clock once, and when it changes.
func (w *Worker) compareClocks() {
	offset, logged := w.clockOffset(), time.Duration(w.offset.Load())
	if offset.Abs() <= clockTolerance {
		offset = 0
	}
	if (offset-logged).Abs() <= clockTolerance || !w.offset.CompareAndSwap(int64(logged), int64(offset)) {
		return
	}
	if offset == 0 {
		w.log.Info("Clock agrees with the NATS server's again")
		return
	}
	w.log.Warn(
		"Clock differs from the NATS server's",
		zap.Duration("offset", offset.Round(time.Second)),
		zap.String(
			"remedy",
			"let this machine follow a time server (timedatectl, chrony); ages are counted by the server's clock meanwhile",
		),
	)
}

// attemptID is unique over all workers and restarts.
func (w *Worker) attemptID() string { return w.prefix + strconv.FormatUint(w.attempts.Add(1), 36) }

// attemptPrefix makes a process's prefix of attempt ids: what is no id's letter in its name is replaced,
// because an outcome under an unusable id would never be taken, and the purchase never settled.
func attemptPrefix(instance string) string {
	name := strings.Map(func(r rune) rune {
		if purchase.ValidID(string(r)) {
			return r
		}
		return '-'
	}, instance)
	return name[:min(len(name), 100)] + "-" + strings.ToLower(rand.Text()[:8]) + "-"
}

// State is what the worker reports about itself: paused (the live destination refuses everything), open (it
// gives no usable answers), running, or off, since when, and why. What stops test purchases alone is a reason
// beside running. The version is left to the caller.
func (w *Worker) State() message.WorkerState {
	if w.Live == nil {
		return message.WorkerState{
			State:  message.WorkerOff,
			Reason: "TIKTOK_ACCESS_TOKEN not configured",
			Since:  w.started,
		}
	}
	live := w.live.state()
	switch live.cause {
	case causeAccess:
		return message.WorkerState{
			State:  message.WorkerPaused,
			Reason: "live: " + live.reason,
			Since:  live.since.UTC(),
		}
	case causeOutage:
		return message.WorkerState{
			State:  message.WorkerOpen,
			Reason: "live: " + live.reason,
			Since:  live.since.UTC(),
		}
	}
	if b, is := w.onlyTestKnown(); is {
		return message.WorkerState{
			State:  message.WorkerOpen,
			Reason: "test: " + b.reason,
			Since:  b.since.UTC(),
		}
	}
	s := message.WorkerState{State: message.WorkerRunning, Since: w.started}
	if live.closed.After(s.Since) {
		s.Since = live.closed.UTC()
	}
	if test := w.test.state(); test.cause != "" {
		s.Reason = "test purchases wait: " + test.reason
	}
	return s
}

// Ready returns nil unless delivery is paused, else why. TikTok being down is not for us to repair: an open
// circuit stays ready, and State reports it.
func (w *Worker) Ready() error {
	if live := w.live.state(); live.cause == causeAccess {
		return fmt.Errorf("paused since %s: live: %s", live.since.UTC().Format(time.RFC3339), live.reason)
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
