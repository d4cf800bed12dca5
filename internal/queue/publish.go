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
)

const errStoreFailed jetstream.ErrorCode = 10077

var errAway = errors.New("not connected to NATS")

// Publish publishes purchases and waits for the stream's answers: one result per publication, in their order. See
// contract.Published for what an error means.
func (c *Conn) Publish(ctx context.Context, batch []message.Publication) []message.Published {
	results := make([]message.Published, len(batch))
	futures := make([]jetstream.PubAckFuture, len(batch))
	for i, p := range batch {
		msg := nats.NewMsg(p.Subject)
		msg.Data = p.Data
		msg.Header.Set(message.HeaderFirstPublished, p.FirstPublished.UTC().Format(time.RFC3339Nano))
		msg.Header.Set(message.HeaderMsgID, p.MsgID)
		futures[i], results[i].Err = c.publishAsync(msg)
	}
	collect(ctx, futures, results)
	for i := range results {
		results[i].Refused = notStored(results[i].Err)
	}
	return results
}

func (c *Conn) publishAsync(msg *nats.Msg) (jetstream.PubAckFuture, error) {
	if !c.Connected() {
		return nil, errAway
	}
	return c.js.PublishMsgAsync(msg)
}

// collect waits for the answers to what was published.
func collect(ctx context.Context, futures []jetstream.PubAckFuture, results []message.Published) {
	for i, future := range futures {
		if future == nil || results[i].Err != nil {
			continue
		}
		select {
		case ack := <-future.Ok():
			results[i].Sequence, results[i].Duplicate = ack.Sequence, ack.Duplicate
		case err := <-future.Err():
			results[i].Err = refusal(err)
		case <-ctx.Done():
			results[i].Err = ctx.Err()
		}
	}
}

// refusal tells apart the two refusals that share a number.
func refusal(err error) error {
	var api *jetstream.APIError
	if !errors.As(err, &api) || api.ErrorCode != errStoreFailed {
		return err
	}
	switch {
	case strings.Contains(api.Description, "per subject"):
		return message.ErrStillQueued
	case strings.Contains(api.Description, "maximum bytes"), strings.Contains(api.Description, "maximum messages"):
		return message.ErrStreamFull
	}
	return err
}

// notStored reports whether a publish error proves that the stream did not store the message: the stream
// rejected it, no stream listens on the subject, or the client never wrote it. A store failure other than a
// limit (a full disk) proves nothing.
func notStored(err error) bool {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		return api.ErrorCode != errStoreFailed
	}
	return slices.ContainsFunc([]error{
		message.ErrStreamFull, errAway, nats.ErrReconnectBufExceeded, nats.ErrMaxPayload,
		nats.ErrConnectionClosed, nats.ErrConnectionDraining,
		nats.ErrNoResponders, jetstream.ErrNoStreamResponse, jetstream.ErrTooManyStalledMsgs,
	}, func(known error) bool { return errors.Is(err, known) })
}

// A message of outcomes is bounded by what the server takes, less some room for what is around them, and at most by mostOutcomes, in bytes.
const (
	mostOutcomes   = 256 << 10
	aroundOutcomes = 1 << 10
)

// Outcomes publishes outcomes, as many as fit in one message, and waits for the stream's answers: one error each, nil where it was
// acknowledged. Any other may have been stored all the same.
func (c *Conn) Outcomes(ctx context.Context, list []message.Outcome) []error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	errs := make([]error, len(list))
	in := make([]int, len(list)) // which message each is in
	var messages [][][]byte
	most, room := min(mostOutcomes, int(c.nc.MaxPayload()))-aroundOutcomes, 0
	for i, o := range list {
		data, err := message.EncodeOutcome(o)
		if err != nil {
			in[i], errs[i] = -1, err
			continue
		}
		if room -= len(data) + 1; room < 0 {
			messages, room = append(messages, nil), most-len(data)
		}
		in[i] = len(messages) - 1
		messages[in[i]] = append(messages[in[i]], data)
	}
	results := make([]message.Published, len(messages))
	futures := make([]jetstream.PubAckFuture, len(messages))
	for i, encoded := range messages {
		msg := nats.NewMsg(message.SubjectOutcomes)
		msg.Data = message.EncodeOutcomes(encoded)
		futures[i], results[i].Err = c.publishAsync(msg)
	}
	collect(ctx, futures, results)
	for i, o := range list {
		if in[i] >= 0 && results[in[i]].Err != nil {
			errs[i] = fmt.Errorf("publish the outcome of %s: %w", o.EventID, results[in[i]].Err)
		}
	}
	return errs
}

// deadLetterWindow bounds the dead letters that await their acknowledgement: each holds a purchase message.
const deadLetterWindow = 500

// DeadLetters publishes dead letters and waits for the stream's answers, one window after the other: one
// error each, nil where the stream holds the letter. The message id makes a repeated publish harmless.
func (c *Conn) DeadLetters(ctx context.Context, list []message.DeadLetter) []error {
	errs := make([]error, 0, len(list))
	for window := range slices.Chunk(list, deadLetterWindow) {
		errs = append(errs, c.deadLetters(ctx, window)...)
	}
	return errs
}

func (c *Conn) deadLetters(ctx context.Context, list []message.DeadLetter) []error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	results := make([]message.Published, len(list))
	futures := make([]jetstream.PubAckFuture, len(list))
	for i, d := range list {
		msg := nats.NewMsg(message.SubjectDead + d.EventID)
		msg.Header.Set(message.HeaderMsgID, "dead:"+d.EventID+":"+strconv.Itoa(d.Generation))
		if msg.Data, results[i].Err = message.EncodeDeadLetter(d); results[i].Err == nil {
			futures[i], results[i].Err = c.publishAsync(msg)
		}
	}
	collect(ctx, futures, results)
	errs := make([]error, len(list))
	for i, d := range list {
		if err := results[i].Err; err != nil {
			errs[i] = fmt.Errorf("publish dead letter of %s: %w", d.EventID, err)
		}
	}
	return errs
}
