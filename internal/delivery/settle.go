package delivery

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/contract"
	"purchase-relay/internal/purchase"
)

// ending is how one delivery of a purchase ends: what is told of it, and, once that is acknowledged, the word to the queue.
type ending struct {
	item
	outcome contract.Outcome
	letter  *contract.DeadLetter // of a dead one: told before the outcome
	again   time.Duration        // of a retrying one
	then    func()               // once it is told
}

func (w *Worker) outcome(it item, result purchase.Status, reason purchase.Reason, attempt *purchase.Attempt) contract.Outcome {
	o := contract.Outcome{
		EventID: it.envelope.EventID, Generation: it.generation, Result: result, Reason: reason, At: w.Now().UTC(),
		Sequence: it.Sequence, Taken: it.Taken,
	}
	if attempt != nil {
		o.Attempt = contract.NewAttempt(*attempt)
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
	letter := &contract.DeadLetter{
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

// settle tells what became of purchases, dead letters first, and then answers the queue for those that were told. The others
// are left to it: it delivers them again, and the same event_id makes that harmless.
func (w *Worker) settle(ctx context.Context, endings []ending) {
	if len(endings) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, w.AckWait) // for as long as the queue leaves the messages to us
	defer cancel()
	tellable := make([]ending, 0, len(endings))
	for _, e := range endings {
		if e.letter == nil || w.persist(ctx, func() error { return w.reporter.DeadLetter(ctx, *e.letter) }) {
			tellable = append(tellable, e)
			continue
		}
		w.leave(e)
	}
	var finished []ending
	for _, e := range w.tell(ctx, tellable) {
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
			finished = append(finished, e)
		}
	}
	w.acknowledge(ctx, finished)
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

// tell publishes outcomes until each is acknowledged or the time is over, and returns those that were.
func (w *Worker) tell(ctx context.Context, endings []ending) (told []ending) {
	w.persist(ctx, func() error {
		outcomes := make([]contract.Outcome, len(endings))
		for i, e := range endings {
			outcomes[i] = e.outcome
		}
		var missing []ending
		errs := w.reporter.Outcomes(ctx, outcomes)
		for i, e := range endings {
			if errs[i] == nil {
				told = append(told, e)
			} else {
				missing = append(missing, e)
			}
		}
		endings = missing
		return errors.Join(errs...)
	})
	for _, e := range endings {
		w.leave(e)
	}
	return told
}

// leave says nothing to the queue about a purchase that could not be told.
func (w *Worker) leave(e ending) {
	e.ended.Store(true)
	e.Leave()
	e.log.Warn("The outcome could not be told; the purchase comes again under the same event_id")
}

// persist repeats a publication until it is acknowledged; false: ctx ended first.
func (w *Worker) persist(ctx context.Context, publish func() error) bool {
	for try := 1; ; try++ {
		err := publish()
		if err == nil {
			return true
		}
		if !pause(ctx, Delay(try, publishInitial, publishMost, w.random())) {
			w.log.Warn("The queue does not take what became of purchases", zap.Error(firstOf(err)))
			return false
		}
	}
}

// firstOf is the first of joined errors: hundreds that say the same are one line.
func firstOf(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) > 0 {
		return joined.Unwrap()[0]
	}
	return err
}

// told logs that the queue did not get our word: then it delivers the message again.
func (w *Worker) told(log *zap.Logger, err error) {
	if err != nil {
		log.Debug("The queue did not take our word; it delivers the message again", zap.Error(err))
	}
}
