package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/contract"
	"purchase-relay/internal/purchase"
)

// item is one message being worked on.
type item struct {
	contract.Queued
	envelope   contract.Envelope
	generation int
	log        *zap.Logger
	ended      *atomic.Bool   // settled, or left to the queue: nothing more is said about it
	sent       *purchase.Sent // what its event carried; nil: not delivered
}

// suspect says that the message came again although nobody handed it back: whoever had it died. It is sent alone, so that
// it takes no others along, should it be the cause.
func (it item) suspect() bool { return it.NumDelivered > 1 && !it.Returned }

// piece is what goes into one request.
type piece struct {
	items []item
	origin
}

// origin says how a piece came to be.
type origin int

const (
	whole origin = iota // as it was fetched
	half                // of what was refused
	named               // TikTok's message pointed at this one event
	rest                // what is left without the named one
)

// deliver takes messages to their ends.
func (s *slot) deliver(ctx, hard context.Context, messages []contract.Queued) {
	items := make([]item, 0, len(messages))
	for _, m := range messages {
		if it, ok := s.open(m); ok {
			items = append(items, it)
		}
	}
	defer s.keepAlive(items)()
	var skipped, expired []ending
	ordinary, suspects := map[*lane][]item{}, map[*lane][]item{}
	for _, it := range items {
		way := &s.live
		if !it.envelope.Livemode {
			way = &s.test
		}
		switch {
		case s.Live == nil:
			it.log.Info("TIKTOK_ACCESS_TOKEN not configured, skipping tracking")
			skipped = append(skipped, s.skip(it, purchase.ReasonNotConfigured))
		case way.to == nil:
			it.log.Info("Test purchase skipped (TIKTOK_TEST_MODE=skip)")
			skipped = append(skipped, s.skip(it, purchase.ReasonTestPurchase))
		case remaining(it.FirstPublished, s.Now(), s.RetryMaxAge) == 0:
			expired = append(expired, s.bury(it, purchase.ReasonExpired, nil))
		case it.suspect():
			suspects[way] = append(suspects[way], it)
		default:
			ordinary[way] = append(ordinary[way], it)
		}
	}
	s.settle(hard, skipped)
	s.settle(hard, expired)
	for _, way := range []*lane{&s.live, &s.test} {
		var pieces []piece
		if len(ordinary[way]) > 0 {
			pieces = append(pieces, piece{items: ordinary[way]})
		}
		for _, it := range suspects[way] {
			pieces = append(pieces, piece{items: []item{it}})
		}
		s.send(ctx, hard, way, pieces)
	}
}

// open reads a message. What is none of ours ends here.
func (s *slot) open(m contract.Queued) (it item, ok bool) {
	envelope, err := contract.DecodeEnvelope(m.Data)
	if err == nil && m.Subject != contract.Subject(envelope.EventID, envelope.Livemode) {
		err = errors.New("its subject is not its own")
	}
	switch {
	case errors.Is(err, contract.ErrNewer):
		s.log.Warn("A purchase waits for a newer worker", zap.String("subject", m.Subject), zap.Error(err))
		s.told(s.log, m.NakWithDelay(newerDelay))
		return item{}, false
	case err != nil:
		s.metrics.junk.Inc()
		s.junk.Error("A message that is no purchase was removed: who else may publish on purchases.*?", zap.Int("bytes", len(m.Data)), zap.Error(err))
		s.told(s.log, m.TermWithReason("no purchase"))
		return item{}, false
	}
	return item{
		Queued: m, envelope: envelope, generation: contract.Generation(m.MsgID),
		log: s.log.With(zap.String("event_id", envelope.EventID)), ended: new(atomic.Bool),
	}, true
}

// send takes pieces to a destination, one request each, and splits what is refused for its content until each bad event
// is alone. Any other failure ends it: what is left goes back.
func (s *slot) send(ctx, hard context.Context, way *lane, pieces []piece) {
	hints := true // until one was wrong
	for len(pieces) > 0 {
		if !s.take(ctx) {
			s.putBack(pieces, "stopping", atOnce)
			return
		}
		why, hold := "slowed", s.slow.wait(s.Now())
		var p pass
		if hold == 0 {
			p, why, hold = way.admit(s.Now())
		}
		if hold > 0 {
			s.right = true // nothing was sent
			s.putBack(pieces, why, func(item) time.Duration { return spread(hold, s.random()) })
			return
		}
		current := pieces[0]
		if most := way.probeSize(); most < len(current.items) {
			pieces = append([]piece{{items: current.items[:most]}, {items: current.items[most:], origin: current.origin}}, pieces[1:]...)
			current = pieces[0]
		}
		answer, crashed := s.request(hard, p, current)
		if crashed {
			s.crashed(hard, current)
			pieces = pieces[1:]
			continue
		}
		if hard.Err() != nil && answer.Class == purchase.ClassRetry { // we broke it off ourselves
			s.putBack(pieces, "stopping", atOnce)
			return
		}
		pieces = pieces[1:]
		switch {
		case answer.Class == purchase.ClassRefused && len(current.items) > 1:
			parts := split(current, answer.Message, hints)
			s.log.Info("TikTok refuses a batch for its content; it is split", zap.Int("events", len(current.items)),
				codeOf(answer.Code), zap.String("message", answer.Message), zap.String("request_id", answer.RequestID))
			pieces = append(parts, pieces...)
			continue
		case answer.Class == purchase.ClassDelivered && current.origin == named:
			// TikTok named an event that is good: its index is not to be trusted, and the rest holds a bad one still.
			hints = false
			pieces = append(halves(pieces[0]), pieces[1:]...)
		}
		s.judge(hard, way, current, answer)
		if answer.Class != purchase.ClassDelivered && answer.Class != purchase.ClassRefused {
			s.putBack(pieces, "unsent", func(it item) time.Duration { return s.backoff(it) })
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
	attempt purchase.Attempt // the same for all of its events
	at      time.Time        // when it came
}

// request sends one piece and tells everybody of the answer. A panic over it is caught: crashed.
func (s *slot) request(hard context.Context, p pass, what piece) (a answered, crashed bool) {
	defer func() {
		if cause := recover(); cause != nil {
			p.abandon()
			s.log.Error("A request to TikTok panicked", zap.Int("events", len(what.items)), zap.String("event_id", what.items[0].envelope.EventID),
				zap.String("panic", fmt.Sprintf("%T", cause)), zap.ByteString("stack", debug.Stack()))
			crashed = true
		}
	}()
	events := make([]contract.Envelope, len(what.items))
	for i, it := range what.items {
		events[i] = it.envelope
		it.log.Info("Sending "+cmp.Or(it.envelope.Event, s.EventName)+" event", zap.Bool("livemode", it.envelope.Livemode), zap.Int("delivery", it.NumDelivered), zap.Int("events", len(events)))
	}
	began := s.Now()
	a.Answer = p.lane.to.Send(hard, events)
	a.at = s.Now()
	for i := range a.Sent {
		what.items[i].sent = &a.Sent[i]
	}
	a.attempt = purchase.Attempt{
		ID: s.attemptID(), At: began.UTC(), Took: a.at.Sub(began), Class: a.Class, Code: a.Code, Message: a.Message, RequestID: a.RequestID,
	}
	if hard.Err() != nil && a.Class == purchase.ClassRetry {
		p.abandon()
		return a, false
	}
	s.metrics.request(&a.attempt, a.Known, len(events))
	s.tellGate(p, a)
	s.slow.report(a.Answer, a.at)
	if !a.Known {
		s.log.Warn("TikTok answers with a code that is not in our table; it is tried again", codeOf(a.Code), zap.String("request_id", a.RequestID))
	}
	return a, false
}

func (w *Worker) tellGate(p pass, a answered) {
	reason := strings.TrimSpace(codeText(a.Code) + " " + a.Message)
	closed, opened := p.report(a.Class, reason, a.at)
	switch {
	case closed:
		w.log.Error("TikTok refuses access; delivery stops and waits, nothing is lost", zap.String("destination", p.lane.name),
			codeOf(a.Code), zap.String("message", a.Message), zap.String("request_id", a.RequestID),
			zap.String("remedy", "check the access token, its permission for the pixel, and TIKTOK_API_URL; delivery goes on by itself"))
	case opened:
		w.log.Info("TikTok grants access again; delivery goes on", zap.String("destination", p.lane.name))
	}
}

// judge settles every purchase of a piece by the answer to it.
func (s *slot) judge(ctx context.Context, way *lane, p piece, a answered) {
	var hold time.Duration // of whatever an answer of the class stops
	switch a.Class {
	case purchase.ClassRate:
		hold = s.slow.wait(a.at)
	case purchase.ClassAccess:
		hold = way.gate.wait(a.at)
	default:
	}
	endings := make([]ending, 0, len(p.items))
	for _, it := range p.items {
		v := decide(a.Answer, circumstances{
			backoff: s.backoff(it), hold: hold, remaining: remaining(it.FirstPublished, a.at, s.RetryMaxAge),
			first: p.origin == whole && it.NumDelivered <= 1,
		})
		switch v.result {
		case purchase.StatusDelivered:
			endings = append(endings, s.deliveredAs(it, a))
		case purchase.StatusDead:
			endings = append(endings, s.bury(it, v.reason, &a.attempt))
		default:
			endings = append(endings, s.retry(it, &a.attempt, v.delay))
		}
	}
	s.settle(ctx, endings)
}

// crashed settles what a request panicked over. The first time, and in company, it is left to the queue without a word, so
// that each comes again as a suspect, alone; alone and again, it is given up on: it would stop worker after worker.
func (s *slot) crashed(ctx context.Context, p piece) {
	if it := p.items[0]; len(p.items) == 1 && it.suspect() {
		s.settle(ctx, []ending{s.bury(it, purchase.ReasonCrash, nil)})
		return
	}
	for _, it := range p.items {
		it.ended.Store(true)
	}
}

// putBack hands unsent purchases back to the queue, without an outcome.
func (s *slot) putBack(pieces []piece, reason string, delay func(it item) time.Duration) {
	for _, p := range pieces {
		for _, it := range p.items {
			s.metrics.retries.WithLabelValues(reason).Inc()
			it.ended.Store(true)
			s.told(it.log, it.NakWithDelay(within(delay(it), remaining(it.FirstPublished, s.Now(), s.RetryMaxAge))))
		}
	}
}

// keepAlive tells the queue that messages are being worked on until each has ended and the returned function is called.
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

// eventIndex finds which event of a batch TikTok names: "Batch.3.properties.contents.0.content_id: Not a valid string".
var eventIndex = regexp.MustCompile(`\bBatch\.(\d{1,6})\.`)

// split divides a refused piece of two or more: the named event and the rest, where TikTok names one and has not been wrong
// about it; else in two halves.
func split(p piece, message string, hints bool) []piece {
	if match := eventIndex.FindStringSubmatch(message); hints && match != nil {
		if i, err := strconv.Atoi(match[1]); err == nil && i < len(p.items) {
			return []piece{
				{items: p.items[i : i+1], origin: named},
				{items: slices.Concat(p.items[:i], p.items[i+1:]), origin: rest},
			}
		}
	}
	return halves(p)
}

// halves divides a piece in two; one of a single event stays as it is.
func halves(p piece) []piece {
	if len(p.items) < 2 {
		return []piece{{items: p.items, origin: half}}
	}
	middle := len(p.items) / 2
	return []piece{{items: p.items[:middle], origin: half}, {items: p.items[middle:], origin: half}}
}
