// Package delivery is step 3: a purchase is taken from the queue, sent to TikTok, and settled: delivered, tried again
// later, or given up on with a dead letter.
//
// Its order is its promise: answer from TikTok, outcome published and acknowledged, purchase acknowledged. Whatever is
// killed in between, the purchase comes again and is sent again under the same event_id, which TikTok de-duplicates.
package delivery

import (
	"context"
	"crypto/rand"
	"errors"
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
	"purchase-relay/internal/purchase"
)

// Source is the queue. Fetch blocks for a bounded time for a first message and returns at most so many, or nothing; its
// errors are temporary, and messages beside one are worked on. It is called from several goroutines.
type Source interface {
	Fetch(ctx context.Context, most int) ([]contract.Queued, error)
}

// Destination is a pixel. Send makes one request and classifies whatever comes of it; it is called from several
// goroutines.
type Destination interface {
	Send(ctx context.Context, events []contract.Envelope) purchase.Answer
}

// Reporter tells what became of a purchase. Both return after the server's acknowledgement, and both may be repeated.
type Reporter interface {
	Outcome(ctx context.Context, o contract.Outcome) error
	DeadLetter(ctx context.Context, d contract.DeadLetter) error
}

// Config is what an operator chooses.
type Config struct {
	Live Destination // nil: off, every purchase is skipped (not_configured)
	Test Destination // for livemode=false; nil: those are skipped (test_purchase)

	EventName    string           // for the log
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
	holdPoll       = time.Second            // how often a stop is looked at: it may end before its time
	publishInitial = 100 * time.Millisecond // between tries to tell an outcome, growing
	publishMost    = 5 * time.Second
)

// Worker delivers purchases.
type Worker struct {
	Config
	source   Source
	reporter Reporter
	log      *zap.Logger
	limit    *rate.Limiter
	live     gate
	test     gate
	slow     throttle
	seat     chan struct{} // of the one slot that may fetch while every gate is closed
	random   func() float64
	started  time.Time
	prefix   string // of the attempts' ids
	attempts atomic.Uint64
	starving atomic.Bool
	metrics  *metrics
}

// New returns a Worker; Run makes it work.
func New(c Config, s Source, r Reporter, log *zap.Logger, reg prometheus.Registerer) *Worker {
	random := mathrand.Float64 // jitter alone
	w := &Worker{
		Config: c, source: s, reporter: r, log: log, limit: rate.NewLimiter(rate.Limit(c.MaxRPS), 1),
		live: gate{name: "live", initial: c.RetryInitial, most: c.RetryMax, random: random},
		test: gate{name: "test", initial: c.RetryInitial, most: c.RetryMax, random: random},
		slow: throttle{initial: c.RetryInitial, most: c.RetryMax, random: random},
		seat: make(chan struct{}, 1), random: random, started: c.Now().UTC(), prefix: attemptPrefix(c.Instance),
	}
	w.metrics = newMetrics(reg, w)
	return w
}

// Run delivers until ctx ends: then nothing new is taken, and what is in flight is finished until hard ends.
func (w *Worker) Run(ctx, hard context.Context) error {
	var slots sync.WaitGroup
	for range w.Concurrency {
		slots.Go(func() { w.slot(ctx, hard) })
	}
	slots.Wait()
	return nil
}

// slot is one request in flight at a time. It waits for the right to send before it fetches, so that what it takes from the
// queue does not age in its hands; a message that needed no request leaves the right to the next one.
func (w *Worker) slot(ctx, hard context.Context) {
	mayRequest := w.Live == nil
	for {
		if !mayRequest {
			if w.limit.Wait(ctx) != nil {
				return
			}
			mayRequest = true
		}
		leave, ok := w.turn(ctx)
		if !ok {
			return
		}
		messages, err := w.source.Fetch(ctx, 1)
		for _, m := range messages {
			if w.deliver(hard, m) {
				mayRequest = false
			}
		}
		leave()
		if ctx.Err() != nil || (!w.heard(err) && !pause(ctx, fetchPause)) {
			return
		}
	}
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

// turn waits until something may be sent: a slow-down that TikTok asked for, closed gates. While all that could be sent
// would meet a closed gate, nothing is fetched but the next probe, by one slot, so that no delivery count is spent. leave
// ends the turn; ok is false when ctx ended first.
func (w *Worker) turn(ctx context.Context) (leave func(), ok bool) {
	for {
		hold, stopped := w.hold()
		if hold == 0 && !stopped {
			return func() {}, true
		}
		if hold == 0 {
			select {
			case w.seat <- struct{}{}:
				if hold, _ = w.hold(); hold == 0 { // the slot that left the seat may have probed
					return func() { <-w.seat }, true
				}
				<-w.seat
			default:
				hold = holdPoll
			}
		}
		if !pause(ctx, min(hold, holdPoll)) {
			return nil, false
		}
	}
}

// hold is how long nothing may be sent to anywhere; stopped says that every gate is closed.
func (w *Worker) hold() (hold time.Duration, stopped bool) {
	now := w.Now()
	hold = w.slow.wait(now)
	if w.Live == nil || !w.live.closed() || (w.Test != nil && !w.test.closed()) {
		return hold, false
	}
	closed := w.live.wait(now)
	if w.Test != nil {
		closed = min(closed, w.test.wait(now))
	}
	return max(hold, closed), true
}

// item is one message being worked on.
type item struct {
	contract.Queued
	envelope   contract.Envelope
	generation int
	log        *zap.Logger
}

// deliver takes one message to one of its ends, and says whether that took a request.
func (w *Worker) deliver(ctx context.Context, m contract.Queued) (requested bool) {
	defer w.keepAlive(m)()
	envelope, err := contract.DecodeEnvelope(m.Data)
	switch {
	case errors.Is(err, contract.ErrNewer):
		w.log.Warn("A purchase waits for a newer worker", zap.String("subject", m.Subject), zap.Error(err))
		w.settled(w.log, m.NakWithDelay(newerDelay))
		return false
	case err != nil:
		w.log.Error("A message that is no purchase was removed: who else may publish on purchases.*?", zap.Int("bytes", len(m.Data)), zap.Error(err))
		w.settled(w.log, m.TermWithReason("no purchase"))
		return false
	}
	it := item{Queued: m, envelope: envelope, generation: contract.Generation(m.MsgID), log: w.log.With(zap.String("event_id", envelope.EventID))}
	destination, gate := w.Live, &w.live
	if !envelope.Livemode {
		destination, gate = w.Test, &w.test
	}
	switch {
	case w.Live == nil:
		it.log.Info("TIKTOK_ACCESS_TOKEN not configured, skipping tracking")
		w.skip(ctx, it, purchase.ReasonNotConfigured)
	case destination == nil:
		it.log.Info("Test purchase skipped (TIKTOK_TEST_MODE=skip)")
		w.skip(ctx, it, purchase.ReasonTestPurchase)
	case expired(m.FirstPublished, w.Now(), w.RetryMaxAge):
		w.bury(ctx, it, purchase.ReasonExpired, nil)
	default:
		return w.attempt(ctx, it, destination, gate)
	}
	return false
}

// attempt sends one purchase, if throttle and gate let it, and settles it by the answer.
func (w *Worker) attempt(ctx context.Context, it item, to Destination, g *gate) (requested bool) {
	// The slot may have waited in its fetch when a stop came: what it got goes back, without an outcome.
	if hold := w.slow.wait(w.Now()); hold > 0 {
		w.putBack(it, "slowed", hold)
		return false
	}
	admitted := g.admit(w.Now())
	if !admitted.ok {
		w.putBack(it, "paused", admitted.wait)
		return false
	}
	it.log.Info("Sending "+w.EventName+" event", zap.Bool("livemode", it.envelope.Livemode), zap.Int("delivery", it.NumDelivered))
	began := w.Now()
	answer := to.Send(ctx, []contract.Envelope{it.envelope})
	now := w.Now()
	if ctx.Err() != nil && answer.Class == purchase.ClassRetry {
		g.abandon(admitted) // we broke it off ourselves: the queue delivers it again
		return true
	}
	attempt := &purchase.Attempt{
		ID: w.attemptID(), At: began.UTC(), Took: now.Sub(began), Class: answer.Class, Code: answer.Code,
		Message: answer.Message, RequestID: answer.RequestID,
	}
	w.metrics.attempt(attempt, answer.Known)
	w.tellGate(g, admitted, answer, now)
	w.slow.report(answer, now)
	if !answer.Known {
		it.log.Warn("TikTok answers with a code that is not in our table; it is tried again", codeOf(answer.Code))
	}
	switch v := decide(answer, w.circumstances(it, answer.Class, g, now)); v.result {
	case purchase.StatusDelivered:
		w.delivered(ctx, it, attempt, now)
	case purchase.StatusDead:
		w.bury(ctx, it, v.reason, attempt)
	default:
		w.retry(ctx, it, attempt, v.delay)
	}
	return true
}

// circumstances collects what decide needs to know; the hold is of whatever an answer of the class stops.
func (w *Worker) circumstances(it item, class purchase.Class, g *gate, now time.Time) circumstances {
	c := circumstances{
		backoff:   Delay(it.NumDelivered, w.RetryInitial, w.RetryMax, w.random()),
		remaining: remaining(it.FirstPublished, now, w.RetryMaxAge),
	}
	switch class {
	case purchase.ClassRate:
		c.hold = w.slow.wait(now)
	case purchase.ClassAccess:
		c.hold = g.wait(now)
	default:
	}
	return c
}

// putBack leaves an unsent purchase to the queue until a stop is over.
func (w *Worker) putBack(it item, reason string, hold time.Duration) {
	w.metrics.retries.WithLabelValues(reason).Inc()
	w.settled(it.log, it.NakWithDelay(within(spread(hold, w.random()), remaining(it.FirstPublished, w.Now(), w.RetryMaxAge))))
}

func (w *Worker) tellGate(g *gate, admitted admission, answer purchase.Answer, now time.Time) {
	reason := strings.TrimSpace(codeText(answer.Code) + " " + answer.Message)
	closed, opened := g.report(admitted, answer.Class, reason, now)
	switch {
	case closed:
		w.log.Error("TikTok refuses access; delivery stops and waits, nothing is lost", zap.String("destination", g.name),
			codeOf(answer.Code), zap.String("message", answer.Message), zap.String("request_id", answer.RequestID),
			zap.String("remedy", "check the access token, its permission for the pixel, and TIKTOK_API_URL; delivery goes on by itself"))
	case opened:
		w.log.Info("TikTok grants access again; delivery goes on", zap.String("destination", g.name))
	}
}

func (w *Worker) delivered(ctx context.Context, it item, attempt *purchase.Attempt, now time.Time) {
	w.metrics.acceptance.Observe(max(0, now.Sub(time.Unix(it.envelope.PurchasedAt, 0)).Seconds()))
	if w.publish(ctx, it, w.outcome(it, purchase.StatusDelivered, purchase.ReasonNone, attempt)) {
		it.log.Info("Purchase event sent successfully", zap.String("request_id", attempt.RequestID), codeOf(attempt.Code),
			zap.Int64("took_ms", attempt.Took.Milliseconds()))
		w.settled(it.log, it.DoubleAck(ctx))
	}
}

func (w *Worker) skip(ctx context.Context, it item, reason purchase.Reason) {
	if w.publish(ctx, it, w.outcome(it, purchase.StatusSkipped, reason, nil)) {
		w.metrics.skipped.WithLabelValues(string(reason)).Inc()
		w.settled(it.log, it.DoubleAck(ctx))
	}
}

func (w *Worker) retry(ctx context.Context, it item, attempt *purchase.Attempt, delay time.Duration) {
	w.metrics.retries.WithLabelValues(string(attempt.Class)).Inc()
	it.log.Warn("TikTok tracking failed (non-critical)", zap.String("class", string(attempt.Class)), codeOf(attempt.Code),
		zap.String("message", attempt.Message), zap.String("request_id", attempt.RequestID), zap.Duration("again_in", delay.Round(time.Millisecond)))
	if w.publish(ctx, it, w.outcome(it, purchase.StatusRetrying, purchase.ReasonNone, attempt)) {
		w.settled(it.log, it.NakWithDelay(delay))
	}
}

// bury gives a purchase up: the dead letter first, then the outcome, then the message.
func (w *Worker) bury(ctx context.Context, it item, reason purchase.Reason, attempt *purchase.Attempt) {
	letter := contract.DeadLetter{
		EventID: it.envelope.EventID, Generation: it.generation, Reason: reason, Attempts: it.NumDelivered,
		FirstPublished: it.FirstPublished.UTC(), DiedAt: w.Now().UTC(), Envelope: it.Data,
	}
	if attempt != nil {
		letter.Code, letter.Message, letter.RequestID = attempt.Code, attempt.Message, attempt.RequestID
	}
	it.log.Error("Purchase given up on: see the dead letter, mend the cause, replay it", zap.String("reason", string(reason)),
		codeOf(letter.Code), zap.String("message", letter.Message), zap.String("request_id", letter.RequestID))
	if w.persist(ctx, it, func(ctx context.Context) error { return w.reporter.DeadLetter(ctx, letter) }) &&
		w.publish(ctx, it, w.outcome(it, purchase.StatusDead, reason, attempt)) {
		w.metrics.dead.WithLabelValues(string(reason)).Inc()
		w.settled(it.log, it.TermWithReason(string(reason)))
	}
}

func (w *Worker) outcome(it item, result purchase.Status, reason purchase.Reason, attempt *purchase.Attempt) contract.Outcome {
	o := contract.Outcome{EventID: it.envelope.EventID, Generation: it.generation, Result: result, Reason: reason, At: w.Now().UTC()}
	if attempt != nil {
		o.Attempt = contract.NewAttempt(*attempt)
	}
	return o
}

func (w *Worker) publish(ctx context.Context, it item, o contract.Outcome) bool {
	return w.persist(ctx, it, func(ctx context.Context) error { return w.reporter.Outcome(ctx, o) })
}

// persist publishes until it is acknowledged, for as long as the queue leaves the message to us. Past that the purchase is
// left alone: it is delivered and sent again, and the same event_id makes that harmless.
func (w *Worker) persist(ctx context.Context, it item, publish func(context.Context) error) bool {
	ctx, cancel := context.WithTimeout(ctx, w.AckWait)
	defer cancel()
	for try := 1; ; try++ {
		err := publish(ctx)
		if err == nil {
			return true
		}
		if !pause(ctx, Delay(try, publishInitial, publishMost, w.random())) {
			it.log.Warn("The outcome could not be told; the purchase comes again under the same event_id", zap.Error(err))
			return false
		}
	}
}

// settled tells of a word that the queue did not get: then it delivers the message again.
func (w *Worker) settled(log *zap.Logger, err error) {
	if err != nil {
		log.Debug("The queue did not take our word; it delivers the message again", zap.Error(err))
	}
}

// keepAlive tells the queue that the message is being worked on until the returned function is called.
func (w *Worker) keepAlive(m contract.Queued) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(w.AckWait / 2)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				w.settled(w.log, m.InProgress())
			}
		}
	}()
	return func() { close(done); <-ended }
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

// State is what the worker tells about itself: running, paused (the live destination refuses us) or off, since when, and
// why. A paused test destination is a reason beside running. The version is left to the caller.
func (w *Worker) State() contract.WorkerState {
	if w.Live == nil {
		return contract.WorkerState{State: contract.WorkerOff, Reason: "TIKTOK_ACCESS_TOKEN not configured", Since: w.started}
	}
	if since, reason := w.live.state(); !since.IsZero() {
		return contract.WorkerState{State: contract.WorkerPaused, Reason: "live: " + reason, Since: since.UTC()}
	}
	s := contract.WorkerState{State: contract.WorkerRunning, Since: w.started}
	if opened := w.live.openedAt(); opened.After(s.Since) {
		s.Since = opened.UTC()
	}
	if since, reason := w.test.state(); !since.IsZero() {
		s.Reason = "test purchases wait: " + reason
	}
	return s
}

// Ready returns nil while live purchases may flow, or the switch is off; else why not.
func (w *Worker) Ready() error {
	if since, reason := w.live.state(); !since.IsZero() {
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
