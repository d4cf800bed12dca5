package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/message"
)

const (
	// fetchTimeout bounds how long Fetch waits for a first message.
	fetchTimeout = 5 * time.Second
	// pullGrace is how late the server's response may be. The messages of a later one are redelivered after
	// AckWait, as if their worker had crashed.
	pullGrace = 2 * time.Second
	// pullDrain is how long messages are read after that: they may wait in the socket.
	pullDrain = 50 * time.Millisecond
)

// Consumer reads one durable consumer, which ingest creates. It is safe for concurrent use.
type Consumer struct {
	conn            *Conn
	stream, durable string

	mu    sync.Mutex
	bound jetstream.Consumer

	returned returnSet
	clock    clock
}

// Consumer returns a reader of a durable consumer. It binds when it is first needed.
func (c *Conn) Consumer(stream, durable string) *Consumer {
	return &Consumer{conn: c, stream: stream, durable: durable, clock: clock{now: time.Now}}
}

// Fetch returns up to limit pending messages. It waits up to five seconds for a first one, and not for more.
// An error is temporary: the server is down or the consumer is missing.
func (c *Consumer) Fetch(ctx context.Context, limit int) ([]message.Received, error) {
	if err := ctx.Err(); err != nil {
		return nil, err // the caller is stopping
	}
	bound, err := c.bind(ctx)
	if err != nil {
		return nil, err
	}
	c.compareClocks(ctx, bound)
	messages, err := c.pull(ctx, limit, fetchTimeout)
	switch {
	case len(messages) == 1 && limit > 1: // probably awaited: others may have arrived behind it
		more, _ := c.pull(ctx, limit-1, 0) // the next call fails again
		return append(messages, more...), nil
	case len(messages) > 0:
		return messages, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil && !errors.Is(err, nats.ErrTimeout):
		return nil, c.unbind(err)
	case !c.conn.Connected():
		return nil, errDisconnected
	}
	return nil, c.checkExists(ctx, bound)
}

// pullRequest asks for up to Batch pending messages. Without one, the server waits up to Expires for a first
// message. Source: NATS, ADR-13.
type pullRequest struct {
	Batch   int           `json:"batch"`
	Expires time.Duration `json:"expires,omitempty"` // nanoseconds
	NoWait  bool          `json:"no_wait"`
}

// pull makes one request for up to limit messages. The library has no request that returns the pending
// messages or else waits: it would need three, and it drops a response that is more than a second late.
func (c *Consumer) pull(
	ctx context.Context, limit int, wait time.Duration,
) (messages []message.Received, err error) {
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, max(0, time.Until(deadline)))
	}
	body, err := json.Marshal(pullRequest{Batch: limit, Expires: wait, NoWait: true})
	if err != nil {
		return nil, err
	}
	inbox := c.conn.nc.NewInbox()
	responses, err := c.conn.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = responses.Unsubscribe() }() // fails on a closed connection
	if err := c.conn.nc.PublishRequest(subjectNext+c.stream+"."+c.durable, inbox, body); err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, wait+pullGrace)
	defer cancel()
	for len(messages) < limit {
		msg, err := responses.NextMsgWithContext(bounded)
		if err != nil && ctx.Err() == nil { // also after a pause of this process
			msg, err = responses.NextMsg(pullDrain)
		}
		if err != nil {
			return messages, err
		}
		switch status := msg.Header.Get("Status"); {
		case status == "" || len(msg.Data) > 0:
			messages = append(messages, c.received(msg))
		case status == "100": // a heartbeat
		case status == "404" || status == "408": // no more messages; none until Expires
			return messages, nil
		default:
			return messages, fmt.Errorf("fetch: %s %s", status, msg.Header.Get("Description"))
		}
	}
	return messages, nil
}

// subjectNext is the prefix of a consumer's subject for pull requests.
const subjectNext = "$JS.API.CONSUMER.MSG.NEXT."

// bind looks up the consumer without holding the lock: Ready must not block on the request.
func (c *Consumer) bind(ctx context.Context) (jetstream.Consumer, error) {
	if !c.conn.Connected() {
		return nil, errDisconnected
	}
	c.mu.Lock()
	bound := c.bound
	c.mu.Unlock()
	if bound != nil {
		return bound, nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	before := c.clock.now()
	bound, err := c.conn.js.Consumer(ctx, c.stream, c.durable)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, fmt.Errorf("consumer %s on %s is missing: %w", c.durable, c.stream, err)
	case err != nil:
		return nil, fmt.Errorf("bind to consumer %s on %s: %w", c.durable, c.stream, err)
	}
	c.clock.compare(before, bound.CachedInfo())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bound = bound
	return bound, nil
}

// checkExists returns an error if the consumer was deleted: a pull request to a deleted one gets no response.
func (c *Consumer) checkExists(ctx context.Context, bound jetstream.Consumer) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if _, err := bound.Info(ctx); err != nil {
		return c.unbind(err)
	}
	return nil
}

// unbind drops the binding, so that the next call binds again, and wraps err.
func (c *Consumer) unbind(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bound = nil
	return fmt.Errorf("consumer %s on %s: %w", c.durable, c.stream, err)
}

// Ready returns an error unless NATS is connected and the consumer is bound.
func (c *Consumer) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.conn.Connected():
		return errors.New("down")
	case c.bound == nil:
		return fmt.Errorf("consumer %s on %s is missing", c.durable, c.stream)
	}
	return nil
}

// Pending counts the messages that were not delivered yet, and the unacknowledged ones: in flight or delayed.
// An error is temporary.
func (c *Consumer) Pending(ctx context.Context) (waiting, unacknowledged uint64, err error) {
	bound, err := c.bind(ctx)
	if err != nil {
		return 0, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	info, err := bound.Info(ctx)
	if err != nil {
		return 0, 0, c.unbind(err)
	}
	return info.NumPending, uint64(info.NumAckPending), nil //nolint:gosec // counts messages
}

// OutcomeLag returns the age of the oldest unrecorded outcome, 0 without one. Both times are the server's.
//
// A recorded outcome leaves the stream, but a killed server may restore one whose acknowledgement its
// consumer has stored. Such an orphan is at or below the acknowledgement floor and is never delivered. While
// one is at the head of the stream, the age of the others is unknown, and OutcomeLag returns the time since
// the last acknowledgement instead. An error is temporary.
func (c *Conn) OutcomeLag(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	// The consumer's state comes first: with a newer one, each outcome that was recorded in between would pass
	// for an orphan.
	recorder, err := c.js.Consumer(ctx, message.StreamOutcomes, message.ConsumerRecorder)
	if err != nil {
		return 0, fmt.Errorf("get state of consumer %s: %w", message.ConsumerRecorder, err)
	}
	info := recorder.CachedInfo()
	if info.NumPending == 0 && info.NumAckPending == 0 {
		return 0, nil
	}
	floor := info.AckFloor
	var state jetstream.StreamState
	for range 2 { // the server removes an acknowledged message a moment after it counts the acknowledgement
		stream, err := c.js.Stream(ctx, message.StreamOutcomes)
		if err != nil {
			return 0, fmt.Errorf("get state of stream %s: %w", message.StreamOutcomes, err)
		}
		if state = stream.CachedInfo().State; state.Msgs == 0 {
			return 0, nil
		}
		if state.FirstSeq > floor.Stream {
			break
		}
	}
	since := state.FirstTime
	if state.FirstSeq <= floor.Stream && floor.Last != nil {
		since = *floor.Last
	}
	return max(0, info.TimeStamp.Sub(since)), nil
}

// received converts a message. A missing or malformed header gets a harmless default: any permitted client
// can forge one.
func (c *Consumer) received(msg *nats.Msg) message.Received {
	r := message.Received{
		Subject: msg.Subject, MsgID: msg.Header.Get(message.HeaderMsgID), Data: msg.Data, NumDelivered: 1,
	}
	var at deliveryID
	if meta, err := msg.Metadata(); err == nil {
		r.NumDelivered, r.FirstPublished = int(meta.NumDelivered), meta.Timestamp //nolint:gosec // a small count
		r.Sequence, r.Taken = meta.Sequence.Stream, meta.Timestamp.UTC()
		at = deliveryID{sequence: meta.Sequence.Stream, number: meta.NumDelivered}
		r.Returned = c.returned.has(deliveryID{sequence: at.sequence, number: at.number - 1})
	}
	first, err := time.Parse(time.RFC3339, msg.Header.Get(message.HeaderFirstPublished))
	if err == nil && (r.Taken.IsZero() || first.Before(r.Taken)) { // a later time is a wrong clock's
		r.FirstPublished = first
	}
	r.Acker = acker{reply: msg.Reply, consumer: c, delivery: at}
	return r
}
