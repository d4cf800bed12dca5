package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// item is one message being worked on.
type item struct {
	message.Received
	envelope   message.Envelope
	generation int
	log        *zap.Logger
	ended      *atomic.Bool   // settled, or left to the queue: nothing more is said about it
	sent       *purchase.Sent // what its event carried; nil: not delivered
}

// suspect says that the message came again although nobody handed it back: whoever had it died. It is sent
// alone, so that it takes no others along, should it be the cause.
func (it item) suspect() bool { return it.NumDelivered > 1 && !it.Returned }

// deliver takes messages to their ends.
func (s *slot) deliver(ctx, hard context.Context, messages []message.Received) {
	w := s.w
	items := make([]item, 0, len(messages))
	for _, m := range messages {
		if it, ok := w.open(m); ok {
			items = append(items, it)
		}
	}
	defer w.keepAlive(items)()
	var skipped, expired []ending
	ordinary, alone := map[*lane][]item{}, map[*lane][]item{}
	for _, it := range items {
		way := w.live
		if !it.envelope.Livemode {
			way = w.test
		}
		switch {
		case w.Live == nil:
			it.log.Info("TIKTOK_ACCESS_TOKEN not configured, skipping tracking")
			skipped = append(skipped, w.skip(it, purchase.ReasonNotConfigured))
		case way.to == nil:
			it.log.Info("Test purchase skipped (TIKTOK_TEST_MODE=skip)")
			skipped = append(skipped, w.skip(it, purchase.ReasonTestPurchase))
		case w.remaining(it) == 0:
			expired = append(expired, w.bury(it, purchase.ReasonExpired, nil))
		case it.suspect(), way.pages(it.envelope.EventID) > 0:
			alone[way] = append(alone[way], it)
		default:
			ordinary[way] = append(ordinary[way], it)
		}
	}
	w.settle(hard, skipped)
	w.settle(hard, expired)
	for _, way := range []*lane{w.live, w.test} {
		var pieces []piece
		if len(ordinary[way]) > 0 {
			pieces = append(pieces, piece{items: ordinary[way]})
		}
		for _, it := range alone[way] {
			pieces = append(pieces, piece{items: []item{it}})
		}
		s.send(ctx, hard, way, pieces)
	}
}

// open reads a message. What is none of ours ends here.
func (w *Worker) open(m message.Received) (it item, ok bool) {
	envelope, err := message.DecodeEnvelope(m.Data)
	if err == nil && m.Subject != message.Subject(envelope.EventID, envelope.Livemode) {
		err = errors.New("its subject is not its own")
	}
	switch {
	case errors.Is(err, message.ErrNewer):
		w.log.Warn("A purchase waits for a newer worker", zap.String("subject", m.Subject), zap.Error(err))
		w.told(w.log, m.NakWithDelay(newerDelay))
		return item{}, false
	case err != nil:
		w.metrics.junk.Inc()
		w.junk.Error(
			"A message that is no purchase was removed: who else may publish on purchases.*?",
			zap.Int("bytes", len(m.Data)),
			zap.Error(err),
		)
		w.told(w.log, m.TermWithReason("malformed purchase"))
		return item{}, false
	}
	return item{
		Received: m, envelope: envelope, generation: message.Generation(m.MsgID),
		log: w.log.With(zap.String("event_id", envelope.EventID)), ended: new(atomic.Bool),
	}, true
}

// send takes pieces to a destination, one request each, and divides what needs more than one answer. It goes
// on until each piece has its answer, or no more may be sent: what is left then goes back.
func (s *slot) send(ctx, hard context.Context, way *lane, pieces []piece) {
	w := s.w
	hints := true // until one was wrong
	passed := 0   // events that TikTok judged
	narrowing := false
	release := func() {
		if narrowing {
			<-way.narrowing
			narrowing = false
		}
	}
	defer release()
	for len(pieces) > 0 {
		if !s.take(ctx) {
			w.putBack(pieces, "stopping", atOnce)
			return
		}
		why, hold := "slowed", w.limit.wait(w.Now())
		var p permit
		var limit int
		if hold == 0 {
			p, limit, why, hold = way.admit(w.Now())
		}
		if hold > 0 {
			s.token = true // nothing was sent
			w.putBack(pieces, why, func(item) time.Duration { return spread(hold, w.random()) })
			return
		}
		pieces = cut(pieces, limit)
		current := pieces[0]
		a, crashed := w.request(hard, way, p, current, passed)
		if crashed {
			w.crashed(hard, current)
			pieces = pieces[1:]
			continue
		}
		if hard.Err() != nil && a.Class == purchase.ClassRetry { // we broke it off ourselves
			w.putBack(pieces, "stopping", atOnce)
			return
		}
		pieces = pieces[1:]
		judged := a.Class == purchase.ClassDelivered || a.Class == purchase.ClassRefused
		if judged {
			passed += len(current.items)
			release()
		}
		if a.fate == fateSplit {
			if a.Class == purchase.ClassBlocked {
				current = current.met(passed)
				if !narrowing { // one slot finds out whose fault it is; the others wait until something passes
					select {
					case way.narrowing <- struct{}{}:
						narrowing = true
					case <-ctx.Done():
					}
				}
			}
			pieces = append(split(current, a.Message, hints), pieces...)
			continue
		}
		if a.fate == fateDelivered && current.origin == named {
			// TikTok named an event that is good: its index is not to be trusted, and the rest holds a bad
			// one still.
			hints = false
			pieces = append(halves(pieces[0]), pieces[1:]...)
		}
		w.judge(hard, way, current, a)
		if a.Class == purchase.ClassRetry {
			w.putBack(pieces, "unsent", w.backoff)
			return
		}
	}
}

func atOnce(item) time.Duration { return 0 }

// backoff is a purchase's own next delay.
func (w *Worker) backoff(it item) time.Duration {
	return Delay(it.NumDelivered, w.RetryInitial, w.RetryMax, w.random())
}

// answered is what came of one request.
type answered struct {
	purchase.Answer
	fate    fate
	attempt purchase.Attempt // the same for all of its events
	at      time.Time        // when it came
}

// request sends one piece, after so many events of this slot had passed, and reports the answer. A panic over
// it is caught: crashed.
func (w *Worker) request(
	hard context.Context, way *lane, p permit, what piece, passed int,
) (a answered, crashed bool) {
	defer func() {
		if cause := recover(); cause != nil {
			way.abandon(p)
			w.log.Error(
				"A request to TikTok panicked",
				zap.Int("events", len(what.items)),
				zap.String("event_id", what.items[0].envelope.EventID),
				zap.String("panic", fmt.Sprintf("%T", cause)),
				zap.ByteString("stack", debug.Stack()),
			)
			crashed = true
		}
	}()
	events := make([]message.Envelope, len(what.items))
	for i, it := range what.items {
		events[i] = it.envelope
		it.log.Info(
			"Sending "+cmp.Or(it.envelope.Event, w.EventName)+" event",
			zap.Bool("livemode", it.envelope.Livemode),
			zap.Int("delivery", it.NumDelivered),
			zap.Int("events", len(events)),
		)
	}
	began := w.Now()
	a.Answer = way.to.Send(hard, events)
	a.at = w.Now()
	for i := range a.Sent {
		what.items[i].sent = &a.Sent[i]
	}
	a.attempt = purchase.Attempt{
		ID: w.attemptID(), At: began.UTC(), Took: a.at.Sub(began), Class: a.Class, Code: a.Code, Message: a.Message, RequestID: a.RequestID,
	}
	if hard.Err() != nil && a.Class == purchase.ClassRetry {
		way.abandon(p)
		return a, false
	}
	w.metrics.request(&a.attempt, a.Known, len(events))
	w.limit.report(a.Answer, a.at)
	r := request{ids: what.ids(), first: what.origin == whole && what.items[0].NumDelivered <= 1}
	if what.paged {
		r.passed = passed - what.passed
	}
	var changed change
	a.fate, changed = way.report(p, a.Answer, r, strings.TrimSpace(codeText(a.Code)+" "+a.Message), a.at)
	w.logAnswer(way, a, changed, len(events))
	return a, false
}

// logAnswer logs what an answer changes.
func (w *Worker) logAnswer(way *lane, a answered, changed change, events int) {
	about := []zap.Field{
		zap.String("destination", way.name),
		codeOf(a.Code),
		zap.String("message", a.Message),
		zap.String("request_id", a.RequestID),
	}
	if !a.Known {
		w.log.Warn("Unknown TikTok code; retrying", about...)
	}
	if a.fate == fateSplit {
		w.log.Info(
			"Batch not accepted as a whole; splitting",
			append(about, zap.Int("events", events), zap.String("class", string(a.Class)))...)
	}
	state := way.state()
	switch {
	case changed == resumed:
		w.log.Info("Delivery resumed", zap.String("destination", way.name))
	case changed == stillOpen:
		w.log.Info(
			"Probe failed",
			append(about, zap.Duration("probe_in", state.wait(a.at).Round(time.Millisecond)))...)
	case changed == opened && state.cause == causeOutage:
		w.log.Warn(
			"No usable answers from TikTok; circuit opened",
			append(about, zap.Duration("probe_in", state.wait(a.at).Round(time.Millisecond)))...)
	case changed == opened:
		data, remedy := whyPaused(a.Class)
		w.log.Error(
			data,
			append(about, zap.String("remedy", remedy+"; purchases wait, delivery resumes automatically"))...)
	}
}

// whyPaused returns the log line of a pause, and what to do. Only an answer of TikTok's about access blames
// the token.
func whyPaused(c purchase.Class) (data, remedy string) {
	switch c {
	case purchase.ClassRefused:
		return "TikTok refuses every event; delivery paused", "check TIKTOK_PIXEL_ID, TIKTOK_EVENT_NAME and TIKTOK_PAYLOAD against the message"
	case purchase.ClassBlocked:
		return "A page answers every event; delivery paused", "check TIKTOK_API_URL and the proxy or firewall on the way, then the access token"
	default:
		return "TikTok refuses access; delivery paused", "check the access token, its permission for the pixel, and TIKTOK_API_URL"
	}
}

// judge settles every purchase of a piece by the answer to it.
func (w *Worker) judge(ctx context.Context, way *lane, p piece, a answered) {
	endings := make([]ending, 0, len(p.items))
	for _, it := range p.items {
		switch a.fate {
		case fateDelivered:
			endings = append(endings, w.deliveredAs(it, a))
		case fateDead:
			endings = append(endings, w.bury(it, purchase.ReasonRefused, &a.attempt))
		default:
			c := circumstances{
				backoff:   w.backoff(it),
				slowed:    w.limit.wait(a.at),
				paused:    way.wait(causeAccess, a.at),
				remaining: w.remaining(it),
			}
			if pages := way.pages(it.envelope.EventID); a.Class == purchase.ClassBlocked && pages > 0 {
				// It need not wait as often as it was delivered in others' company.
				c.backoff = Delay(pages, w.RetryInitial, w.RetryMax, w.random())
			}
			endings = append(endings, w.retry(it, &a.attempt, retryIn(a.Answer, c)))
		}
	}
	w.settle(ctx, endings)
}

// crashed settles what a request panicked over. The first time, and in company, it is left to the queue
// without a word, so that each comes again as a suspect, alone; alone and again, it is given up on: it would
// stop worker after worker.
func (w *Worker) crashed(ctx context.Context, p piece) {
	if it := p.items[0]; len(p.items) == 1 && it.suspect() {
		w.settle(ctx, []ending{w.bury(it, purchase.ReasonCrash, nil)})
		return
	}
	for _, it := range p.items {
		it.ended.Store(true)
	}
}

// putBack hands unsent purchases back to the queue, without an outcome.
func (w *Worker) putBack(pieces []piece, reason string, delay func(it item) time.Duration) {
	for _, p := range pieces {
		for _, it := range p.items {
			w.metrics.retries.WithLabelValues(reason).Inc()
			it.ended.Store(true)
			w.told(it.log, it.NakWithDelay(within(delay(it), w.remaining(it))))
		}
	}
}

// remaining is how long a purchase may still be tried; 0: it is too old. Its age is counted by the queue's
// clock.
func (w *Worker) remaining(it item) time.Duration {
	return remaining(it.FirstPublished, w.Now().Add(w.clockOffset()), w.RetryMaxAge)
}

// keepAlive tells the queue that messages are being worked on until each has ended and the returned function
// is called.
func (w *Worker) keepAlive(items []item) (stop func()) {
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
				for _, it := range items {
					if !it.ended.Load() {
						w.told(it.log, it.InProgress())
					}
				}
			}
		}
	}()
	return func() { close(done); <-ended }
}
