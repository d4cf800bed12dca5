package delivery

import (
	"errors"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// newerDelay is the redelivery delay of a message that needs a newer worker, during a rolling upgrade.
const newerDelay = time.Minute

// item is one delivery of a purchase.
type item struct {
	message.Received
	envelope   message.Envelope
	generation int
	log        *zap.Logger
	ended      *atomic.Bool   // settled, or left to the queue: AckWait is no longer extended
	sent       *purchase.Sent // fields of its event; nil: not delivered
}

// crashed reports whether the message was redelivered without a NAK: its worker crashed. It is sent alone,
// because it may be the cause.
func (it item) crashed() bool { return it.NumDelivered > 1 && !it.Returned }

// laneItems are the fetched items of one lane.
type laneItems struct {
	together []item // in one request
	alone    []item // each in a request of its own
}

// deliver settles fetched messages.
func (s *sender) deliver(messages []message.Received) {
	w := s.w
	items := make([]item, 0, len(messages))
	for _, m := range messages {
		if it, ok := w.decode(m); ok {
			items = append(items, it)
		}
	}
	defer w.keepAlive(items)()
	var live, test laneItems
	var skipped, expired []settlement
	for _, it := range items {
		l, group := w.live, &live
		if !it.envelope.Livemode {
			l, group = w.test, &test
		}
		switch {
		case w.config.Live == nil:
			it.log.Info("TIKTOK_ACCESS_TOKEN not configured, skipping tracking")
			skipped = append(skipped, w.skipped(it, purchase.ReasonNotConfigured))
		case l.destination == nil:
			it.log.Info("Test purchase skipped", zap.String("cause", "TIKTOK_TEST_MODE=skip"))
			skipped = append(skipped, w.skipped(it, purchase.ReasonTestPurchase))
		case w.remaining(it) == 0:
			expired = append(expired, w.dead(it, purchase.ReasonExpired, nil))
		case it.crashed(), l.blocks(it.envelope.EventID) > 0:
			group.alone = append(group.alone, it)
		default:
			group.together = append(group.together, it)
		}
	}
	w.settle(s.abort, skipped)
	w.settle(s.abort, expired)
	s.send(w.live, live.batches())
	s.send(w.test, test.batches())
}

func (g *laneItems) batches() (list []batch) {
	if len(g.together) > 0 {
		list = append(list, batch{items: g.together})
	}
	for i := range g.alone {
		list = append(list, batch{items: g.alone[i : i+1 : i+1]})
	}
	return list
}

// decode decodes a message. It removes a malformed one and returns one of a newer version to the queue.
func (w *Worker) decode(m message.Received) (it item, ok bool) {
	envelope, err := message.DecodeEnvelope(m.Data)
	if err == nil && m.Subject != message.Subject(envelope.EventID, envelope.Livemode) {
		err = errors.New("subject does not match event_id")
	}
	switch {
	case errors.Is(err, message.ErrNewer):
		w.log.Warn("Purchase needs a newer worker", zap.String("subject", m.Subject), zap.Error(err))
		logAckError(w.log, m.NakWithDelay(newerDelay))
		return item{}, false
	case err != nil:
		w.metrics.malformed.Inc()
		w.limited.Error("Malformed purchase message removed", zap.Int("bytes", len(m.Data)), zap.Error(err),
			zap.String("remedy", "check which users may publish on purchases.*"))
		logAckError(w.log, m.TermWithReason("malformed purchase"))
		return item{}, false
	}
	return item{
		Received: m, envelope: envelope, generation: message.Generation(m.MsgID),
		log: w.log.With(zap.String("event_id", envelope.EventID)), ended: new(atomic.Bool),
	}, true
}

// remaining returns how long a purchase may still be retried, by the queue's clock; 0: it is too old.
func (w *Worker) remaining(it item) time.Duration {
	return remaining(it.FirstPublished, w.config.Now().Add(w.clockOffset()), w.config.RetryMaxAge)
}

// keepAlive extends AckWait for messages until each has ended and the returned function is called.
func (w *Worker) keepAlive(items []item) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(w.config.AckWait / 2)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				for _, it := range items {
					if !it.ended.Load() {
						logAckError(it.log, it.InProgress())
					}
				}
			}
		}
	}()
	return func() { close(done); <-ended }
}
