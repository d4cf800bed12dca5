// Package delivery is step 3: it sends the queue's purchases to TikTok in batches and settles each one on its
// own: delivered, retried later, skipped, or dead with a dead letter.
//
// The order guarantees delivery: TikTok's answer, then the outcome published and acknowledged, then the
// purchase acknowledged. After a crash in between, the purchase is redelivered and sent again under the same
// event_id, which TikTok de-duplicates.
//
//	fetch.go   stream ──▶ messages    while something may be sent
//	batch.go   messages ──▶ batches   live and test, together or alone; skipped and expired ones end here
//	send.go    batch ──▶ answer       one request each
//	lane.go    answer ──▶ action      faults.go finds the fault, breaker.go stops, split.go divides
//	settle.go  action ──▶ outcome     then the acknowledgement
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

// Source is the queue. Fetch blocks for a bounded time for a first message and returns at most limit. Its
// errors are temporary; it may return messages and an error. It is safe for concurrent use.
type Source interface {
	Fetch(ctx context.Context, limit int) ([]message.Received, error)
}

// Destination is a pixel. Send makes one request with one or more purchases and classifies its result. It is
// safe for concurrent use.
type Destination interface {
	Send(ctx context.Context, events []message.Envelope) purchase.Answer
}

// Reporter publishes outcomes. Both methods publish concurrently and return, after the server's
// acknowledgements, one error per element: nil if the stream stored it. Both are idempotent.
type Reporter interface {
	Outcomes(ctx context.Context, list []message.Outcome) []error
	DeadLetters(ctx context.Context, list []message.DeadLetter) []error
}

// Config holds the settings of a Worker.
type Config struct {
	Live Destination // nil: off, every purchase is skipped (not_configured)
	Test Destination // for livemode=false; nil: those are skipped (test_purchase)

	EventName    string           // for the log
	BatchSize    int              // purchases per request, above 0
	Concurrency  int              // concurrent requests, above 0
	MaxRPS       float64          // requests per second, above 0
	RetryInitial time.Duration    // first delay before a retry, a probe, or after a rate limit; above 0
	RetryMax     time.Duration    // longest such delay; probes come at least every five minutes
	RetryMaxAge  time.Duration    // counted from the first publish
	AckWait      time.Duration    // of the queue: an unacknowledged message is redelivered after it
	Instance     string           // prefix of the attempts' IDs
	Now          func() time.Time // this machine's clock

	// ClockOffset returns how far the queue's clock is ahead of this machine's; nil: unknown.
	ClockOffset func() time.Duration
}

// Worker delivers purchases.
type Worker struct {
	config   Config
	source   Source
	reporter Reporter
	log      *zap.Logger
	limited  *zap.Logger // for malformed messages, which any client may publish in any number
	metrics  *metrics
	random   func() float64
	started  time.Time

	limiter *limiter
	live    *lane
	test    *lane

	probing       chan struct{} // holds the one sender that fetches a probe while the others are stopped
	lastFetch     atomic.Int64  // when a fetch last ended, Unix nanoseconds
	sourceFailing atomic.Bool   // the failure was logged
	loggedOffset  atomic.Int64  // last logged clock offset, nanoseconds

	attemptPrefix string
	attempts      atomic.Uint64
}

// New returns a Worker that delivers while Run runs.
func New(c Config, s Source, r Reporter, log *zap.Logger, reg prometheus.Registerer) *Worker {
	random := mathrand.Float64 // for jitter
	b := breaker{initial: c.RetryInitial, max: c.RetryMax, random: random}
	w := &Worker{
		config: c, source: s, reporter: r, log: log, limited: log.WithOptions(flood.Limit(log)),
		random: random, started: c.Now().UTC(),
		limiter: &limiter{
			steady: rate.NewLimiter(rate.Limit(c.MaxRPS), 1), initial: c.RetryInitial, max: c.RetryMax, random: random,
		},
		live: newLane("live", c.Live, b), test: newLane("test", c.Test, b),
		probing: make(chan struct{}, 1), attemptPrefix: attemptPrefix(c.Instance),
	}
	w.metrics = newMetrics(reg, w)
	return w
}

// Run delivers until stop ends: then nothing new is fetched. In-flight requests are cut off when abort ends.
func (w *Worker) Run(stop, abort context.Context) error {
	var senders sync.WaitGroup
	for range w.config.Concurrency {
		senders.Go(func() { (&sender{w: w, stop: stop, abort: abort}).run() })
	}
	senders.Wait()
	return nil
}

// ProbeNow makes the next probe of paused destinations due immediately, after a token was changed.
func (w *Worker) ProbeNow() {
	now := w.config.Now()
	w.live.probeNow(now)
	w.test.probeNow(now)
}

// State returns the worker's state: paused (the live destination rejects everything), open (no usable
// answers), running, or off. If test purchases alone are stopped, the state is running, with a reason. The
// caller sets the version.
func (w *Worker) State() message.WorkerState {
	newState := func(state, reason string, since time.Time) message.WorkerState {
		return message.WorkerState{State: state, Reason: reason, Since: since.UTC()}
	}
	if w.config.Live == nil {
		return newState(message.WorkerOff, "TIKTOK_ACCESS_TOKEN not configured", w.started)
	}
	live := w.live.state()
	switch live.cause {
	case causeAccess:
		return newState(message.WorkerPaused, "live: "+live.reason, live.since)
	case causeOutage:
		return newState(message.WorkerOpen, "live: "+live.reason, live.since)
	}
	if test, ok := w.testOnlyOutage(); ok {
		return newState(message.WorkerOpen, "test: "+test.reason, test.since)
	}
	since, reason := w.started, ""
	if live.closed.After(since) {
		since = live.closed
	}
	if test := w.test.state(); test.cause != "" {
		reason = "test purchases wait: " + test.reason
	}
	return newState(message.WorkerRunning, reason, since)
}

// Ready returns an error if delivery is paused. An open circuit stays ready: an outage of TikTok needs no
// repair here.
func (w *Worker) Ready() error {
	if live := w.live.state(); live.cause == causeAccess {
		return fmt.Errorf("paused since %s: live: %s", live.since.UTC().Format(time.RFC3339), live.reason)
	}
	return nil
}

// clockTolerance is the largest clock offset that is not logged.
const clockTolerance = 10 * time.Second

// clockOffset returns how far the queue's clock is ahead of this machine's; 0: unknown.
func (w *Worker) clockOffset() time.Duration {
	if w.config.ClockOffset == nil {
		return 0
	}
	return w.config.ClockOffset()
}

// compareClocks logs each change of the clock offset beyond the tolerance once.
func (w *Worker) compareClocks() {
	offset, logged := w.clockOffset(), time.Duration(w.loggedOffset.Load())
	if offset.Abs() <= clockTolerance {
		offset = 0
	}
	if (offset-logged).Abs() <= clockTolerance || !w.loggedOffset.CompareAndSwap(int64(logged), int64(offset)) {
		return
	}
	if offset == 0 {
		w.log.Info("Clock offset is within tolerance")
		return
	}
	w.log.Warn("Clock offset exceeds tolerance", zap.Duration("offset", offset.Round(time.Second)),
		zap.String("remedy", "synchronize this machine's clock (timedatectl, chrony); "+
			"ages are counted by the NATS server's clock"))
}

// attemptID returns an ID that is unique over all workers and restarts.
func (w *Worker) attemptID() string {
	return w.attemptPrefix + strconv.FormatUint(w.attempts.Add(1), 36)
}

// attemptPrefix returns the prefix of this process's attempt IDs. Invalid characters are replaced: an outcome
// with an invalid ID would never be recorded.
func attemptPrefix(instance string) string {
	name := strings.Map(func(r rune) rune {
		if purchase.ValidID(string(r)) {
			return r
		}
		return '-'
	}, instance)
	return name[:min(len(name), 100)] + "-" + strings.ToLower(rand.Text()[:8]) + "-"
}

// sleep reports whether d passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
