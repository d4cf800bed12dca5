package delivery

import (
	"context"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

const (
	publishInitial = 100 * time.Millisecond // first delay before an outcome is published again
	publishMax     = 5 * time.Second
	ackTimeout     = 3 * time.Second // a crashed server does not confirm an acknowledgement
)

// settlement is how one delivery of a purchase ends: the outcome is published, then the message acknowledged.
type settlement struct {
	item
	outcome message.Outcome
	letter  *message.DeadLetter // of a dead purchase, published before the outcome; nil once it is stored
	delay   time.Duration       // of a retrying purchase
}

// delivered settles a purchase that TikTok accepted.
func (w *Worker) delivered(it item, r result) settlement {
	w.metrics.acceptance.Observe(max(0, r.at.Sub(time.Unix(it.envelope.PurchasedAt, 0)).Seconds()))
	outcome := w.outcome(it, purchase.StatusDelivered, purchase.ReasonNone, &r.attempt)
	outcome.Sent = it.sent
	return settlement{item: it, outcome: outcome}
}

// skipped settles a purchase that is not sent on purpose.
func (w *Worker) skipped(it item, reason purchase.Reason) settlement {
	return settlement{item: it, outcome: w.outcome(it, purchase.StatusSkipped, reason, nil)}
}

// retrying settles an attempt after which the purchase is retried.
func (w *Worker) retrying(it item, attempt *purchase.Attempt, delay time.Duration) settlement {
	w.metrics.retries.WithLabelValues(string(attempt.Class)).Inc()
	it.log.Warn("TikTok tracking failed (non-critical)", zap.String("class", string(attempt.Class)),
		codeField(attempt.Code), zap.String("message", attempt.Message),
		zap.String("request_id", attempt.RequestID), zap.Duration("again_in", delay.Round(time.Millisecond)))
	outcome := w.outcome(it, purchase.StatusRetrying, purchase.ReasonNone, attempt)
	outcome.Next = outcome.At.Add(delay)
	return settlement{item: it, outcome: outcome, delay: delay}
}

// dead settles a purchase that is not retried; attempt is nil if there was none.
func (w *Worker) dead(it item, reason purchase.Reason, attempt *purchase.Attempt) settlement {
	letter := &message.DeadLetter{
		EventID: it.envelope.EventID, Generation: it.generation, Reason: reason, Attempts: it.NumDelivered,
		FirstPublished: it.FirstPublished.UTC(), DiedAt: w.config.Now().UTC(), Envelope: it.Data,
	}
	if attempt != nil {
		letter.Code, letter.Message, letter.RequestID = attempt.Code, attempt.Message, attempt.RequestID
	}
	it.log.Error("Purchase dead-lettered", zap.String("reason", string(reason)), codeField(letter.Code),
		zap.String("message", letter.Message), zap.String("request_id", letter.RequestID),
		zap.String("remedy", "fix the cause, then replay it"))
	return settlement{item: it, letter: letter, outcome: w.outcome(it, purchase.StatusDead, reason, attempt)}
}

func (w *Worker) outcome(
	it item, result purchase.Status, reason purchase.Reason, attempt *purchase.Attempt,
) message.Outcome {
	o := message.Outcome{
		EventID: it.envelope.EventID, Generation: it.generation, Result: result, Reason: reason,
		At: w.config.Now().UTC(), Sequence: it.Sequence, Taken: it.Taken,
	}
	if attempt != nil {
		o.Attempt = message.NewAttempt(*attempt)
	}
	return o
}

// settlePanicked settles a batch whose request panicked. A purchase that was sent alone, and crashed a worker
// before, is dead: it would crash one worker after another. Others are left to the queue, so that each is
// redelivered as crashed and sent alone.
func (w *Worker) settlePanicked(ctx context.Context, b batch) {
	if it := b.items[0]; len(b.items) == 1 && it.crashed() {
		w.settle(ctx, []settlement{w.dead(it, purchase.ReasonCrash, nil)})
		return
	}
	for _, it := range b.items {
		it.ended.Store(true)
	}
}

// settle publishes outcomes and then acknowledges their purchases. For each purchase the order is: dead
// letter stored, outcome stored, message acknowledged. Failed publishes are retried until AckWait has passed,
// and delay their own purchase alone. Then the queue redelivers it, which the same event_id makes harmless.
func (w *Worker) settle(ctx context.Context, list []settlement) {
	if len(list) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, w.config.AckWait)
	defer cancel()
	for try := 1; ; try++ {
		failed, err := w.settleOnce(ctx, list)
		if len(failed) == 0 {
			return
		}
		list = failed
		if !sleep(ctx, backoffDelay(try, publishInitial, publishMax, w.random())) {
			w.log.Warn("Publish outcomes failed; messages will be redelivered",
				zap.Int("purchases", len(list)), zap.Error(err))
			break
		}
	}
	for _, s := range list {
		s.ended.Store(true)
		s.Leave()
		s.log.Warn("Publish outcome failed; message will be redelivered")
	}
}

// settleOnce publishes the missing dead letters together, then the outcomes of the purchases whose letter is
// stored or not needed, and acknowledges those whose outcome is stored. It returns the others with one error.
func (w *Worker) settleOnce(ctx context.Context, list []settlement) (failed []settlement, err error) {
	ready, failed, err := w.publishLetters(ctx, list)
	if len(ready) == 0 {
		return failed, err
	}
	outcomes := make([]message.Outcome, len(ready))
	for i, s := range ready {
		outcomes[i] = s.outcome
	}
	var finished []settlement
	for i, publishErr := range w.reporter.Outcomes(ctx, outcomes) {
		s := ready[i]
		if publishErr != nil {
			failed, err = append(failed, s), publishErr
			continue
		}
		s.ended.Store(true)
		switch o := s.outcome; o.Result {
		case purchase.StatusDead:
			w.metrics.dead.WithLabelValues(string(o.Reason)).Inc()
			logAckError(s.log, s.TermWithReason(string(o.Reason)))
		case purchase.StatusRetrying:
			logAckError(s.log, s.NakWithDelay(s.delay))
		case purchase.StatusSkipped:
			w.metrics.skipped.WithLabelValues(string(o.Reason)).Inc()
			finished = append(finished, s)
		default:
			s.log.Info("Purchase event sent successfully", zap.String("request_id", o.Attempt.RequestID),
				codeField(o.Attempt.Code), zap.Int64("took_ms", o.Attempt.TookMS))
			finished = append(finished, s)
		}
	}
	w.acknowledge(ctx, finished)
	return failed, err
}

// publishLetters publishes the dead letters that are not stored yet. ready are the settlements whose letter
// is stored or not needed.
func (w *Worker) publishLetters(
	ctx context.Context, list []settlement,
) (ready, failed []settlement, err error) {
	var dead []settlement
	var letters []message.DeadLetter
	for _, s := range list {
		if s.letter == nil {
			ready = append(ready, s)
			continue
		}
		dead, letters = append(dead, s), append(letters, *s.letter)
	}
	if len(letters) == 0 {
		return ready, nil, nil
	}
	for i, publishErr := range w.reporter.DeadLetters(ctx, letters) {
		s := dead[i]
		if publishErr != nil {
			failed, err = append(failed, s), publishErr
			continue
		}
		s.letter = nil
		ready = append(ready, s)
	}
	return ready, failed, err
}

// acknowledge removes finished purchases from the queue, and repeats it until the server confirms: a crash
// that loses the acknowledgements would have all of them sent again.
func (w *Worker) acknowledge(ctx context.Context, finished []settlement) {
	for try := 1; len(finished) > 0; try++ {
		bounded, cancel := context.WithTimeout(ctx, ackTimeout)
		err := message.Acknowledge(bounded, finished)
		cancel()
		if err == nil {
			return
		}
		if !sleep(ctx, backoffDelay(try, publishInitial, publishMax, w.random())) {
			logAckError(finished[len(finished)-1].log, err)
			return
		}
	}
}

func logAckError(log *zap.Logger, err error) {
	if err != nil {
		log.Debug("Ack failed; message will be redelivered", zap.Error(err))
	}
}
