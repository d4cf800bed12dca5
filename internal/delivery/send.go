package delivery

import (
	"cmp"
	"context"
	"fmt"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// send sends pieces on a lane, one request each, and divides those whose events need answers of their own. It
// ends when each piece has its answer, or when nothing more may be sent: the rest is then returned to the
// queue.
func (s *sender) send(l *lane, pieces []piece) {
	w := s.w
	trustIndex := true // until TikTok named the wrong event
	passed := 0        // events that TikTok judged
	narrowing := false // this sender holds l.narrowing
	release := func() {
		if narrowing {
			<-l.narrowing
			narrowing = false
		}
	}
	defer release()
	for len(pieces) > 0 {
		if !s.useToken() {
			w.returnUnsent(pieces, "stopping", immediately)
			return
		}
		reason, wait := "slowed", w.limiter.wait(w.config.Now())
		var p permit
		var limit int
		if wait == 0 {
			p, limit, reason, wait = l.admit(w.config.Now())
		}
		if wait > 0 {
			s.token = true // nothing was sent
			w.returnUnsent(pieces, reason, func(item) time.Duration { return spread(wait, w.random()) })
			return
		}
		pieces = cut(pieces, limit)
		current := pieces[0]
		a, panicked := w.request(s.abort, l, p, current, passed)
		if panicked {
			w.settlePanicked(s.abort, current)
			pieces = pieces[1:]
			continue
		}
		if a.aborted {
			w.returnUnsent(pieces, "stopping", immediately)
			return
		}
		pieces = pieces[1:]
		if a.Class == purchase.ClassDelivered || a.Class == purchase.ClassRefused {
			passed += len(current.items)
			release()
		}
		if a.fate == fateSplit {
			if a.Class == purchase.ClassBlocked {
				current = current.metPage(passed)
				if !narrowing { // one sender finds the event at fault; the others wait until something passes
					select {
					case l.narrowing <- struct{}{}:
						narrowing = true
					case <-s.stop.Done():
					}
				}
			}
			pieces = append(split(current, a.Message, trustIndex), pieces...)
			continue
		}
		if a.fate == fateDelivered && current.origin == named {
			// TikTok named an event that is good: its index is wrong, and the rest still holds a bad one.
			trustIndex = false
			pieces = append(halves(pieces[0]), pieces[1:]...)
		}
		w.settle(s.abort, w.judge(l, current, a))
		if a.Class == purchase.ClassRetry {
			w.returnUnsent(pieces, "unsent", w.backoff)
			return
		}
	}
}

// answered is the answer to one request.
type answered struct {
	purchase.Answer
	fate    fate
	attempt purchase.Attempt // the same for all its events
	at      time.Time        // when it was received
	aborted bool             // the request was cut off on shutdown
}

// request sends one piece, after passed events of this batch were judged, and reports the answer to the lane.
func (w *Worker) request(
	ctx context.Context, l *lane, p permit, sent piece, passed int,
) (a answered, panicked bool) {
	defer func() {
		if cause := recover(); cause != nil {
			l.abandon(p)
			w.log.Error("Request to TikTok panicked", zap.Int("events", len(sent.items)),
				zap.String("event_id", sent.items[0].envelope.EventID), zap.String("panic", fmt.Sprintf("%T", cause)),
				zap.ByteString("stack", debug.Stack()))
			panicked = true
		}
	}()
	events := make([]message.Envelope, len(sent.items))
	for i, it := range sent.items {
		events[i] = it.envelope
		it.log.Info("Sending "+cmp.Or(it.envelope.Event, w.config.EventName)+" event",
			zap.Bool("livemode", it.envelope.Livemode), zap.Int("delivery", it.NumDelivered),
			zap.Int("events", len(events)))
	}
	began := w.config.Now()
	a.Answer = l.destination.Send(ctx, events)
	a.at = w.config.Now()
	for i := range a.Sent {
		sent.items[i].sent = &a.Sent[i]
	}
	a.attempt = purchase.Attempt{
		ID: w.attemptID(), At: began.UTC(), Took: a.at.Sub(began),
		Class: a.Class, Code: a.Code, Message: a.Message, RequestID: a.RequestID,
	}
	if a.aborted = ctx.Err() != nil && a.Class == purchase.ClassRetry; a.aborted {
		l.abandon(p)
		return a, false
	}
	w.metrics.request(&a.attempt, a.Known, len(events))
	w.limiter.report(a.Answer, a.at)
	r := requested{ids: sent.ids(), first: sent.origin == whole && sent.items[0].NumDelivered <= 1}
	if sent.paged {
		r.passed = passed - sent.passed
	}
	var changed change
	a.fate, changed = l.report(p, a.Answer, r, a.at)
	w.logAnswer(l, a, changed, len(events))
	return a, false
}

// logAnswer logs what an answer changes.
func (w *Worker) logAnswer(l *lane, a answered, changed change, events int) {
	with := func(more ...zap.Field) []zap.Field {
		return append([]zap.Field{
			zap.String("destination", l.name), codeField(a.Code), zap.String("message", a.Message),
			zap.String("request_id", a.RequestID),
		}, more...)
	}
	if !a.Known {
		w.log.Warn("Unknown TikTok code; retrying", with()...)
	}
	if a.fate == fateSplit {
		w.log.Info("Batch not accepted as a whole; splitting",
			with(zap.Int("events", events), zap.String("class", string(a.Class)))...)
	}
	if changed == unchanged {
		return
	}
	state := l.state()
	probeIn := zap.Duration("probe_in", state.wait(a.at).Round(time.Millisecond))
	switch {
	case changed == resumed:
		w.log.Info("Delivery resumed", zap.String("destination", l.name))
	case changed == stillOpen:
		w.log.Info("Probe failed", with(probeIn)...)
	case state.cause == causeOutage:
		w.log.Warn("No usable answers from TikTok; circuit opened", with(probeIn)...)
	default:
		what, remedy := pauseLog(a.Class)
		w.log.Error(what, with(zap.String("remedy", remedy+"; purchases wait, delivery resumes automatically"))...)
	}
}

// pauseLog returns the log line of a pause and its remedy. Only TikTok's own answer about access blames the
// token.
func pauseLog(c purchase.Class) (what, remedy string) {
	switch c {
	case purchase.ClassRefused:
		return "TikTok refuses every event; delivery paused",
			"check TIKTOK_PIXEL_ID, TIKTOK_EVENT_NAME and TIKTOK_PAYLOAD against the message"
	case purchase.ClassBlocked:
		return "A page answers every event; delivery paused",
			"check TIKTOK_API_URL and the proxy or firewall on the way, then the access token"
	default:
		return "TikTok refuses access; delivery paused",
			"check the access token, its permission for the pixel, and TIKTOK_API_URL"
	}
}

// judge returns how each purchase of a piece ends by the answer to it.
func (w *Worker) judge(l *lane, p piece, a answered) []settlement {
	settlements := make([]settlement, 0, len(p.items))
	for _, it := range p.items {
		switch a.fate {
		case fateDelivered:
			settlements = append(settlements, w.delivered(it, a))
		case fateDead:
			settlements = append(settlements, w.dead(it, purchase.ReasonRefused, &a.attempt))
		default:
			settlements = append(settlements, w.retrying(it, &a.attempt, w.retryDelay(l, it, a)))
		}
	}
	return settlements
}

// retryDelay returns when a purchase is retried that an answer neither accepts nor condemns.
func (w *Worker) retryDelay(l *lane, it item, a answered) time.Duration {
	c := circumstances{
		backoff:   w.backoff(it),
		slowed:    w.limiter.wait(a.at),
		paused:    l.wait(causeAccess, a.at),
		remaining: w.remaining(it),
	}
	if pages := l.pages(it.envelope.EventID); a.Class == purchase.ClassBlocked && pages > 0 {
		// Only its own pages count, and not its deliveries together with others.
		c.backoff = Delay(pages, w.config.RetryInitial, w.config.RetryMax, w.random())
	}
	return retryIn(a.Answer, c)
}

// backoff returns a purchase's own next delay.
func (w *Worker) backoff(it item) time.Duration {
	return Delay(it.NumDelivered, w.config.RetryInitial, w.config.RetryMax, w.random())
}

func immediately(item) time.Duration { return 0 }

// returnUnsent returns purchases to the queue without an outcome. reason is the metric's label.
func (w *Worker) returnUnsent(pieces []piece, reason string, delay func(it item) time.Duration) {
	for _, p := range pieces {
		for _, it := range p.items {
			w.metrics.retries.WithLabelValues(reason).Inc()
			it.ended.Store(true)
			logAckError(it.log, it.NakWithDelay(within(delay(it), w.remaining(it))))
		}
	}
}

// answerText returns an answer as State and Ready report it.
func answerText(a purchase.Answer) string {
	code := ""
	if a.Code != nil {
		code = strconv.Itoa(*a.Code)
	}
	return strings.TrimSpace(code + " " + a.Message)
}

func codeField(code *int) zap.Field {
	if code == nil {
		return zap.Skip()
	}
	return zap.Int("code", *code)
}
