package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/message"
	"purchase-relay/internal/relay"
)

const errStoreFailed jetstream.ErrorCode = 10077

var errDisconnected = errors.New("not connected to NATS")

// pendingPublish is a published message without its acknowledgement.
type pendingPublish struct {
	future jetstream.PubAckFuture
	err    error // the client did not write the message
}

func (c *Conn) publishAsync(msg *nats.Msg) (p pendingPublish) {
	if !c.Connected() {
		return pendingPublish{err: errDisconnected}
	}
	p.future, p.err = c.js.PublishMsgAsync(msg)
	return p
}

// wait returns the stream's acknowledgement.
func (p pendingPublish) wait(ctx context.Context) (jetstream.PubAck, error) {
	if p.err != nil {
		return jetstream.PubAck{}, p.err
	}
	select {
	case ack := <-p.future.Ok():
		return *ack, nil
	case err := <-p.future.Err():
		return jetstream.PubAck{}, storeError(err)
	case <-ctx.Done():
		return jetstream.PubAck{}, ctx.Err()
	}
}

// storeError distinguishes the rejections that share one error code.
func storeError(err error) error {
	var api *jetstream.APIError
	if !errors.As(err, &api) || api.ErrorCode != errStoreFailed {
		return err
	}
	switch {
	case strings.Contains(api.Description, "per subject"):
		return relay.ErrStillQueued
	case strings.Contains(api.Description, "maximum bytes"),
		strings.Contains(api.Description, "maximum messages"):
		return relay.ErrStreamFull
	}
	return err
}

// Publish implements relay.Queue.
func (c *Conn) Publish(ctx context.Context, claims []relay.Claim) []relay.PublishResult {
	published := make([]pendingPublish, len(claims))
	for i := range claims {
		p := &claims[i]
		msg := nats.NewMsg(message.Subject(p.ID, p.Livemode))
		msg.Data = p.Envelope
		msg.Header.Set(message.HeaderFirstPublished, p.FirstPublished.UTC().Format(time.RFC3339Nano))
		msg.Header.Set(message.HeaderMsgID, message.MsgID(p.ID, p.Generation))
		published[i] = c.publishAsync(msg)
	}
	results := make([]relay.PublishResult, len(claims))
	for i, p := range published {
		ack, err := p.wait(ctx)
		results[i] = relay.PublishResult{
			Sequence: ack.Sequence, Duplicate: ack.Duplicate, NotStored: notStored(err), Err: err,
		}
	}
	return results
}

// notStored reports whether a publish error proves that the stream did not store the message: the stream
// rejected it, no stream listens on the subject, or the client never wrote it. A store failure other than a
// limit (a full disk) proves nothing.
func notStored(err error) bool {
	if err == nil {
		return false
	}
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		return api.ErrorCode != errStoreFailed
	}
	return slices.ContainsFunc([]error{
		relay.ErrStreamFull, errDisconnected, nats.ErrReconnectBufExceeded, nats.ErrMaxPayload,
		nats.ErrConnectionClosed, nats.ErrConnectionDraining,
		nats.ErrNoResponders, jetstream.ErrNoStreamResponse, jetstream.ErrTooManyStalledMsgs,
	}, func(known error) bool { return errors.Is(err, known) })
}

const (
	// maxOutcomesSize bounds a message of outcomes, in bytes, where the server does not allow less.
	maxOutcomesSize = 256 << 10
	// outcomesOverhead is reserved for headers and for what surrounds the outcomes.
	outcomesOverhead = 1 << 10
)

// Outcomes implements delivery.Reporter. It publishes as many outcomes per message as fit.
func (c *Conn) Outcomes(ctx context.Context, list []message.Outcome) []error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	errs := make([]error, len(list))
	messageOf := make([]int, len(list)) // by outcome; -1: not encodable
	var messages [][][]byte
	limit, room := min(maxOutcomesSize, int(c.nc.MaxPayload()))-outcomesOverhead, 0
	for i, o := range list {
		data, err := message.EncodeOutcome(o)
		if err != nil {
			messageOf[i], errs[i] = -1, err
			continue
		}
		if room -= len(data) + 1; room < 0 {
			messages, room = append(messages, nil), limit-len(data)
		}
		last := len(messages) - 1
		messages[last], messageOf[i] = append(messages[last], data), last
	}
	published := make([]pendingPublish, len(messages))
	for i, encoded := range messages {
		msg := nats.NewMsg(message.SubjectOutcomes)
		msg.Data = message.EncodeOutcomes(encoded)
		published[i] = c.publishAsync(msg)
	}
	failed := make([]error, len(messages))
	for i, p := range published {
		_, failed[i] = p.wait(ctx)
	}
	for i, m := range messageOf {
		if m >= 0 && failed[m] != nil {
			errs[i] = fmt.Errorf("publish outcome of %s: %w", list[i].EventID, failed[m])
		}
	}
	return errs
}

// Stats publishes a day's counts. A repeated publish is harmless.
func (c *Conn) Stats(ctx context.Context, s message.Stats) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	msg := nats.NewMsg(message.SubjectStats)
	data, err := message.EncodeStats(s)
	if err != nil {
		return err
	}
	msg.Data = data
	err = c.requestOn(ctx, []string{msg.Subject}, func(ctx context.Context) error {
		_, err := c.publishAsync(msg).wait(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("publish counts of %s: %w", s.Day, err)
	}
	return nil
}

// maxPendingDeadLetters bounds the memory of unacknowledged dead letters: each holds a purchase message.
const maxPendingDeadLetters = 500

// DeadLetters implements delivery.Reporter. The message ID makes a repeated publish harmless.
func (c *Conn) DeadLetters(ctx context.Context, list []message.DeadLetter) []error {
	errs := make([]error, 0, len(list))
	for window := range slices.Chunk(list, maxPendingDeadLetters) {
		errs = append(errs, c.publishDeadLetters(ctx, window)...)
	}
	return errs
}

func (c *Conn) publishDeadLetters(ctx context.Context, list []message.DeadLetter) []error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	published := make([]pendingPublish, len(list))
	for i, d := range list {
		data, err := message.EncodeDeadLetter(d)
		if err != nil {
			published[i].err = err
			continue
		}
		msg := nats.NewMsg(message.SubjectDead + d.EventID)
		msg.Header.Set(message.HeaderMsgID, "dead:"+d.EventID+":"+strconv.Itoa(d.Generation))
		msg.Data = data
		published[i] = c.publishAsync(msg)
	}
	errs := make([]error, len(list))
	for i, p := range published {
		if _, err := p.wait(ctx); err != nil {
			errs[i] = fmt.Errorf("publish dead letter of %s: %w", list[i].EventID, err)
		}
	}
	return errs
}
