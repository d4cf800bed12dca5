package delivery

import (
	"context"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// ending is how one delivery of a purchase ends: what is told of it, and, once that is acknowledged, the word to the queue.
type ending struct {
	item
	outcome message.Outcome
	letter  *message.DeadLetter // of a dead one, until it is stored: published before the outcome
	again   time.Duration       // of a retrying one
	then    func()              // called once the outcome is stored
}

func (w *Worker) outcome(it item, result purchase.Status, reason purchase.Reason, attempt *purchase.Attempt) message.Outcome {
	o := message.Outcome{
		EventID: it.envelope.EventID, Generation: it.generation, Result: result, Reason: reason, At: w.Now().UTC(),
		Sequence: it.Sequence, Taken: it.Taken,
	}
	if attempt != nil {
		o.Attempt = message.NewAttempt(*attempt)
	}
	return o
}

// deliveredAs ends a purchase that TikTok accepted.
func (w *Worker) deliveredAs(it item, a answered) ending {
	w.metrics.acceptance.Observe(max(0, a.at.Sub(time.Unix(it.envelope.PurchasedAt, 0)).Seconds()))
	outcome := w.outcome(it, purchase.StatusDelivered, purchase.ReasonNone, &a.attempt)
	outcome.Sent = it.sent
	return ending{item: it, outcome: outcome, then: func() {
		it.log.Info("Purchase event sent successfully", zap.String("request_id", a.RequestID), codeOf(a.Code), zap.Int64("took_ms", a.attempt.Took.Milliseconds()))
	}}
}

// skip ends a purchase that is not sent on purpose.
func (w *Worker) skip(it item, reason purchase.Reason) ending {
	return ending{item: it, outcome: w.outcome(it, purchase.StatusSkipped, reason, nil), then: func() {
		w.metrics.skipped.WithLabelValues(string(reason)).Inc()
	}}
}

// retry puts a purchase off.
func (w *Worker) retry(it item, attempt *purchase.Attempt, delay time.Duration) ending {
	w.metrics.retries.WithLabelValues(string(attempt.Class)).Inc()
	it.log.Warn("TikTok tracking failed (non-critical)", zap.String("class", string(attempt.Class)), codeOf(attempt.Code),
		zap.String("message", attempt.Message), zap.String("request_id", attempt.RequestID), zap.Duration("again_in", delay.Round(time.Millisecond)))
	return ending{item: it, outcome: w.outcome(it, purchase.StatusRetrying, purchase.ReasonNone, attempt), again: delay}
}

// bury gives a purchase up; attempt is nil where nothing was answered.
func (w *Worker) bury(it item, reason purchase.Reason, attempt *purchase.Attempt) ending {
	letter := &message.DeadLetter{
		EventID: it.envelope.EventID, Generation: it.generation, Reason: reason, Attempts: it.NumDelivered,
		FirstPublished: it.FirstPublished.UTC(), DiedAt: w.Now().UTC(), Envelope: it.Data,
	}
	if attempt != nil {
		letter.Code, letter.Message, letter.RequestID = attempt.Code, attempt.Message, attempt.RequestID
	}
	it.log.Error("Purchase given up on: see the dead letter, mend the cause, replay it", zap.String("reason", string(reason)),
		codeOf(letter.Code), zap.String("message", letter.Message), zap.String("request_id", letter.RequestID))
	return ending{item: it, letter: letter, outcome: w.outcome(it, purchase.StatusDead, reason, attempt), then: func() {
		w.metrics.dead.WithLabelValues(string(reason)).Inc()
	}}
}

// settle publishes how purchases ended and then answers the queue. For each purchase the order is: dead
// letter stored, outcome stored, message acknowledged. Publishes that fail are repeated until AckWait is over
// and hold back their own purchase alone; then the queue delivers it again, which the same event_id makes
// harmless.
func (w *Worker) settle(ctx context.Context, endings []ending) {
	if len(endings) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, w.AckWait)
	defer cancel()
	for try := 1; ; try++ {
		left, err := w.settleOnce(ctx, endings)
		if len(left) == 0 {
			return
		}
		endings = left
		if !pause(ctx, Delay(try, publishInitial, publishMost, w.random())) {
			w.log.Warn("Publish outcomes failed; messages will be redelivered",
				zap.Int("purchases", len(endings)), zap.Error(err))
			break
		}
	}
	for _, e := range endings {
		w.leave(e)
	}
}

// settleOnce publishes the missing dead letters together, then the outcomes of the purchases that need none
// or whose letter is stored, and answers the queue for those whose outcome is stored. It returns the others,
// and one of the errors.
func (w *Worker) settleOnce(ctx context.Context, endings []ending) (left []ending, err error) {
	ready, left, err := w.publishLetters(ctx, endings)
	if len(ready) == 0 {
		return left, err
	}
	outcomes := make([]message.Outcome, len(ready))
	for i, e := range ready {
		outcomes[i] = e.outcome
	}
	var finished []ending
	for i, failed := range w.reporter.Outcomes(ctx, outcomes) {
		if failed != nil {
			left, err = append(left, ready[i]), failed
			continue
		}
		if e := ready[i]; !w.answer(e) {
			finished = append(finished, e)
		}
	}
	w.acknowledge(ctx, finished)
	return left, err
}

// publishLetters publishes the dead letters that are not stored yet. ready needs no letter, or no longer.
func (w *Worker) publishLetters(ctx context.Context, endings []ending) (ready, left []ending, err error) {
	var dead []ending
	var letters []message.DeadLetter
	for _, e := range endings {
		if e.letter == nil {
			ready = append(ready, e)
			continue
		}
		dead, letters = append(dead, e), append(letters, *e.letter)
	}
	if len(letters) == 0 {
		return ready, nil, nil
	}
	for i, failed := range w.reporter.DeadLetters(ctx, letters) {
		e := dead[i]
		if failed != nil {
			left, err = append(left, e), failed
			continue
		}
		e.letter = nil
		ready = append(ready, e)
	}
	return ready, left, err
}

// answer ends a purchase whose outcome is stored, and answers the queue unless its message is yet to be
// acknowledged.
func (w *Worker) answer(e ending) (answered bool) {
	e.ended.Store(true)
	if e.then != nil {
		e.then()
	}
	switch e.outcome.Result {
	case purchase.StatusDead:
		w.told(e.log, e.TermWithReason(string(e.outcome.Reason)))
	case purchase.StatusRetrying:
		w.told(e.log, e.NakWithDelay(e.again))
	default:
		return false
	}
	return true
}

// acknowledge removes finished purchases from the queue, again and again until the server says that it has: a server that
// dies with our word would have all of them sent once more.
func (w *Worker) acknowledge(ctx context.Context, finished []ending) {
	for try := 1; len(finished) > 0; try++ {
		err := acknowledgeOnce(ctx, finished)
		if err == nil {
			return
		}
		if !pause(ctx, Delay(try, publishInitial, publishMost, w.random())) {
			w.told(finished[len(finished)-1].log, err)
			return
		}
	}
}

// acknowledgeOnce waits for the answer to the last one alone: one connection keeps the order, so that it stands for those
// before it.
func acknowledgeOnce(ctx context.Context, finished []ending) error {
	ctx, cancel := context.WithTimeout(ctx, ackPatience)
	defer cancel()
	last := len(finished) - 1
	for _, e := range finished[:last] {
		if err := e.Ack(); err != nil {
			return err
		}
	}
	return finished[last].DoubleAck(ctx)
}

// leave does not answer the queue for a purchase whose outcome is not stored.
func (w *Worker) leave(e ending) {
	e.ended.Store(true)
	e.Leave()
	e.log.Warn("Publish outcome failed; message will be redelivered")
}

// told logs that the queue did not get our word: then it delivers the message again.
func (w *Worker) told(log *zap.Logger, err error) {
	if err != nil {
		log.Debug("The queue did not take our word; it delivers the message again", zap.Error(err))
	}
}
