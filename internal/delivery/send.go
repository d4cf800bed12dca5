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

// send sends batches on a lane, one request each, and splits those whose events need answers of their own. It
// returns when each batch has its answer, or when nothing more may be sent: the rest is then returned to the
// queue.
func (s *sender) send(l *lane, batches []batch) {
	w := s.w
	trustIndex := true // until TikTok named the wrong event
	passed := 0        // events that TikTok answered
	bisecting := false // this sender holds l.bisecting
	release := func() {
		if bisecting {
			<-l.bisecting
			bisecting = false
		}
	}
	defer release()
	for len(batches) > 0 {
		if !s.useToken() {
			w.returnUnsent(batches, "stopping", immediately)
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
			w.returnUnsent(batches, reason, func(item) time.Duration { return spread(wait, w.random()) })
			return
		}
		batches = limitFirst(batches, limit)
		current := batches[0]
		r, panicked := w.request(s.abort, l, p, current, passed)
		if panicked {
			w.settlePanicked(s.abort, current)
			batches = batches[1:]
			continue
		}
		if r.aborted {
			w.returnUnsent(batches, "stopping", immediately)
			return
		}
		batches = batches[1:]
		if r.Class == purchase.ClassDelivered || r.Class == purchase.ClassRefused {
			passed += len(current.items)
			release()
		}
		if r.action == actionSplit {
			if r.Class == purchase.ClassBlocked {
				// Only later passes count against these events: an earlier block page may have been another
				// event's fault.
				current.blocked, current.passed = true, passed
				if !bisecting { // one sender finds the event at fault; the others wait until something passes
					select {
					case l.bisecting <- struct{}{}:
						bisecting = true
					case <-s.stop.Done():
					}
				}
			}
			batches = append(split(current, r.Message, trustIndex), batches...)
			continue
		}
		if r.action == actionComplete && current.origin == named {
			// TikTok named a good event: its index is wrong, and the rest still holds a bad one.
			trustIndex = false
			batches = append(bisect(batches[0]), batches[1:]...)
		}
		w.settle(s.abort, w.settlements(l, current, r))
		if r.Class == purchase.ClassRetry {
			w.returnUnsent(batches, "unsent", w.backoff)
			return
		}
	}
}

// result is the outcome of one request.
type result struct {
	purchase.Answer
	action  action
	attempt purchase.Attempt // the same for all its events
	at      time.Time        // when the answer was received
	aborted bool             // the request was cut off on shutdown
}

// request sends one batch, after passed events of this fetch were answered, and reports the answer to the
// lane.
func (w *Worker) request(
	ctx context.Context, l *lane, p permit, sent batch, passed int,
) (r result, panicked bool) {
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
	start := w.config.Now()
	r.Answer = l.destination.Send(ctx, events)
	r.at = w.config.Now()
	for i := range r.Sent {
		sent.items[i].sent = &r.Sent[i]
	}
	r.attempt = purchase.Attempt{
		ID: w.attemptID(), At: start.UTC(), Took: r.at.Sub(start),
		Class: r.Class, Code: r.Code, Message: r.Message, RequestID: r.RequestID,
	}
	if r.aborted = ctx.Err() != nil && r.Class == purchase.ClassRetry; r.aborted {
		l.abandon(p)
		return r, false
	}
	w.metrics.request(&r.attempt, r.Known, len(events))
	w.limiter.report(r.Answer, r.at)
	req := sentRequest{ids: sent.ids(), first: sent.origin == whole && sent.items[0].NumDelivered <= 1}
	if sent.blocked {
		req.passed = passed - sent.passed
	}
	var changed change
	r.action, changed = l.report(p, r.Answer, req, r.at)
	w.logChange(l, r, changed, len(events))
	return r, false
}

// logChange logs unknown codes, splits and state changes of a lane.
func (w *Worker) logChange(l *lane, r result, changed change, events int) {
	with := func(more ...zap.Field) []zap.Field {
		return append([]zap.Field{
			zap.String("destination", l.name), codeField(r.Code), zap.String("message", r.Message),
			zap.String("request_id", r.RequestID),
		}, more...)
	}
	if !r.Known {
		w.log.Warn("Unknown TikTok code; retrying", with()...)
	}
	if r.action == actionSplit {
		w.log.Info("Splitting batch", with(zap.Int("events", events), zap.String("class", string(r.Class)))...)
	}
	if changed == unchanged {
		return
	}
	state := l.state()
	probeIn := zap.Duration("probe_in", state.wait(r.at).Round(time.Millisecond))
	switch {
	case changed == resumed:
		w.log.Info("Delivery resumed", zap.String("destination", l.name))
	case changed == stillOpen:
		w.log.Info("Probe failed", with(probeIn)...)
	case state.cause == causeOutage:
		w.log.Warn("Circuit opened", with(probeIn)...)
	default:
		cause, remedy := pauseFields(r.Class)
		w.log.Error("Delivery paused", with(zap.String("cause", cause), zap.String("remedy", remedy+
			"; purchases wait, delivery resumes automatically"))...)
	}
}

// pauseFields returns the cause and remedy of a pause. Only TikTok's own denial blames the token.
func pauseFields(c purchase.Class) (cause, remedy string) {
	switch c {
	case purchase.ClassRefused:
		return "TikTok rejects every event",
			"check TIKTOK_PIXEL_ID, TIKTOK_EVENT_NAME and TIKTOK_PAYLOAD against the message"
	case purchase.ClassBlocked:
		return "every event gets a block page",
			"check TIKTOK_API_URL and the proxy or firewall in between, then the access token"
	default:
		return "TikTok denies access",
			"check the access token, its permission for the pixel, and TIKTOK_API_URL"
	}
}

// settlements returns how each purchase of a batch ends.
func (w *Worker) settlements(l *lane, b batch, r result) []settlement {
	list := make([]settlement, 0, len(b.items))
	for _, it := range b.items {
		switch r.action {
		case actionComplete:
			list = append(list, w.delivered(it, r))
		case actionDead:
			list = append(list, w.dead(it, purchase.ReasonRefused, &r.attempt))
		default:
			list = append(list, w.retrying(it, &r.attempt, w.delayAfter(l, it, r)))
		}
	}
	return list
}

// delayAfter returns the delay before a purchase is retried after an inconclusive answer.
func (w *Worker) delayAfter(l *lane, it item, r result) time.Duration {
	in := retryInputs{
		backoff:   w.backoff(it),
		slowed:    w.limiter.wait(r.at),
		paused:    l.wait(causeAccess, r.at),
		remaining: w.remaining(it),
	}
	if blocks := l.blocks(it.envelope.EventID); r.Class == purchase.ClassBlocked && blocks > 0 {
		// Deliveries in a batch with others do not count.
		in.backoff = backoffDelay(blocks, w.config.RetryInitial, w.config.RetryMax, w.random())
	}
	return retryDelay(r.Answer, in)
}

// backoff returns a purchase's own next delay.
func (w *Worker) backoff(it item) time.Duration {
	return backoffDelay(it.NumDelivered, w.config.RetryInitial, w.config.RetryMax, w.random())
}

func immediately(item) time.Duration { return 0 }

// returnUnsent returns purchases to the queue without an outcome. reason is the metric's label.
func (w *Worker) returnUnsent(batches []batch, reason string, delay func(it item) time.Duration) {
	for _, b := range batches {
		for _, it := range b.items {
			w.metrics.retries.WithLabelValues(reason).Inc()
			it.ended.Store(true)
			logAckError(it.log, it.NakWithDelay(withinAge(delay(it), w.remaining(it))))
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
