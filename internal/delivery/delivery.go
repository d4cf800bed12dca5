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

// Source is the queue. Fetch blocks for a bounded time for a first message and returns what is there, or nothing; its
// errors are temporary. It is called from several goroutines.
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

	EventName    string  // for the log
	Concurrency  int     // requests in flight
	MaxRPS       float64 // requests per second
	RetryInitial time.Duration
	RetryMax     time.Duration
	RetryMaxAge  time.Duration // counted from the first publish
	AckWait      time.Duration // the queue's: a delivery without a word for so long is repeated
	Instance     string        // this process, in the form of an id
	Now          func() time.Time
}

// fetchPause follows a failed fetch, newerDelay leaves a message to a newer worker during a rolling upgrade.
const (
	fetchPause = time.Second
	newerDelay = time.Minute
	holdPoll   = time.Second
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
	started  time.Time
	nonce    string
	attempts atomic.Uint64
	starving atomic.Bool
	metrics  metrics
}

// New returns a Worker; Run makes it work.
func New(c Config, s Source, r Reporter, log *zap.Logger, reg prometheus.Registerer) *Worker {
	w := &Worker{
		Config: c, source: s, reporter: r, log: log, limit: rate.NewLimiter(rate.Limit(c.MaxRPS), 1),
		live:    gate{name: "live", initial: c.RetryInitial, most: c.RetryMax},
		test:    gate{name: "test", initial: c.RetryInitial, most: c.RetryMax},
		slow:    throttle{initial: c.RetryInitial, most: c.RetryMax},
		started: c.Now().UTC(), nonce: strings.ToLower(rand.Text()[:8]),
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

// slot is one request in flight at a time.
func (w *Worker) slot(ctx, hard context.Context) {
	for w.turn(ctx) {
		messages, err := w.source.Fetch(ctx, 1)
		switch {
		case ctx.Err() != nil && len(messages) == 0:
			return
		case err != nil:
			if w.starving.CompareAndSwap(false, true) {
				w.log.Warn("Waiting for the queue", zap.Error(err))
			}
			if !pause(ctx, fetchPause) {
				return
			}
			continue
		}
		if w.starving.CompareAndSwap(true, false) {
			w.log.Info("The queue is there")
		}
		for _, m := range messages {
			w.deliver(hard, m)
		}
	}
}

// turn waits until something may be sent: the rate, a slow-down that TikTok asked for, closed gates. While all that could
// be sent would meet a closed gate, nothing is fetched, and no delivery count is spent.
func (w *Worker) turn(ctx context.Context) bool {
	for {
		hold := w.slow.wait(w.Now())
		if w.Live != nil && (w.Test == nil || w.test.wait(w.Now()) > 0) {
			hold = max(hold, w.live.wait(w.Now()))
		}
		if hold == 0 {
			return w.Live == nil || w.limit.Wait(ctx) == nil
		}
		if !pause(ctx, min(hold, holdPoll)) {
			return false
		}
	}
}

// item is one message being worked on.
type item struct {
	contract.Queued
	envelope   contract.Envelope
	generation int
	log        *zap.Logger
}

// deliver takes one message to one of its ends.
func (w *Worker) deliver(ctx context.Context, m contract.Queued) {
	defer w.keepAlive(m)()
	envelope, err := contract.DecodeEnvelope(m.Data)
	switch {
	case errors.Is(err, contract.ErrNewer):
		w.log.Warn("A purchase waits for a newer worker", zap.String("subject", m.Subject), zap.Error(err))
		w.settled(w.log, m.NakWithDelay(newerDelay))
		return
	case err != nil:
		w.log.Error("A message that is no purchase was removed: who else may publish on purchases.*?", zap.Int("bytes", len(m.Data)), zap.Error(err))
		w.settled(w.log, m.TermWithReason("no purchase"))
		return
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
		w.attempt(ctx, it, destination, gate)
	}
}

// attempt sends one purchase, if the gate lets it, and settles it by the answer.
func (w *Worker) attempt(ctx context.Context, it item, to Destination, g *gate) {
	admitted := g.admit(w.Now())
	if !admitted.ok {
		w.metrics.retries.WithLabelValues("paused").Inc()
		w.settled(it.log, it.NakWithDelay(admitted.wait))
		return
	}
	it.log.Info("Sending "+w.EventName+" event", zap.Bool("livemode", it.envelope.Livemode), zap.Int("delivery", it.NumDelivered))
	began := w.Now()
	answer := to.Send(ctx, []contract.Envelope{it.envelope})
	now := w.Now()
	if ctx.Err() != nil && answer.Class == purchase.ClassRetry {
		g.abandon(admitted) // we broke it off ourselves: the queue delivers it again
		return
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
	switch answer.Class {
	case purchase.ClassDelivered:
		w.delivered(ctx, it, attempt, now)
	case purchase.ClassRefused:
		w.bury(ctx, it, purchase.ReasonRefused, attempt)
	default:
		w.retry(ctx, it, attempt, w.delayAfter(it, answer, g, now))
	}
}

// delayAfter is the wait that an answer asks for.
func (w *Worker) delayAfter(it item, answer purchase.Answer, g *gate, now time.Time) time.Duration {
	wish := answer.RetryAfter
	switch answer.Class {
	case purchase.ClassRate:
		wish = max(wish, w.slow.wait(now))
	case purchase.ClassAccess:
		return min(max(wish, g.wait(now)), w.remaining(it, now))
	default:
	}
	return nextDelay(it.NumDelivered, wish, w.RetryInitial, w.RetryMax, w.remaining(it, now))
}

// remaining is how long a purchase may still be tried.
func (w *Worker) remaining(it item, now time.Time) time.Duration {
	if it.FirstPublished.IsZero() {
		return w.RetryMaxAge
	}
	return max(0, w.RetryMaxAge-now.Sub(it.FirstPublished))
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
	w.metrics.skipped.WithLabelValues(string(reason)).Inc()
	if w.publish(ctx, it, w.outcome(it, purchase.StatusSkipped, reason, nil)) {
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
	w.metrics.dead.WithLabelValues(string(reason)).Inc()
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
	deadline := w.Now().Add(w.AckWait)
	for try := 1; ; try++ {
		err := publish(ctx)
		if err == nil {
			return true
		}
		if w.Now().After(deadline) || !pause(ctx, Delay(try, 100*time.Millisecond, 5*time.Second)) {
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
func (w *Worker) attemptID() string {
	return w.Instance + "-" + w.nonce + "-" + strconv.FormatUint(w.attempts.Add(1), 36)
}

// State is what the worker tells about itself; the version is the caller's.
func (w *Worker) State() contract.WorkerState {
	if w.Live == nil {
		return contract.WorkerState{State: contract.WorkerOff, Reason: "TIKTOK_ACCESS_TOKEN not configured", Since: w.started}
	}
	s := contract.WorkerState{State: contract.WorkerRunning, Since: w.started}
	if since, reason := w.test.state(); !since.IsZero() {
		s.Reason = "test purchases wait: " + reason
	}
	if since, reason := w.live.state(); !since.IsZero() {
		s.State, s.Reason, s.Since = contract.WorkerPaused, reason, since.UTC()
	}
	return s
}

// Ready returns nil while live purchases may flow, or the switch is off; else why not.
func (w *Worker) Ready() error {
	if since, reason := w.live.state(); !since.IsZero() {
		return fmt.Errorf("paused since %s: %s", since.UTC().Format(time.RFC3339), reason)
	}
	return nil
}

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
