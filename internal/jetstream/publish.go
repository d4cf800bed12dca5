package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/contract"
)

const errStoreFailed jetstream.ErrorCode = 10077

var errAway = errors.New("not connected to NATS")

// Publish publishes purchases and waits for the stream's answers: one result per publication, in their order. See
// contract.Published for what an error means.
func (c *Conn) Publish(ctx context.Context, batch []contract.Publication) []contract.Published {
	results := make([]contract.Published, len(batch))
	futures := make([]jetstream.PubAckFuture, len(batch))
	for i, p := range batch {
		msg := nats.NewMsg(p.Subject)
		msg.Data = p.Data
		msg.Header.Set(contract.HeaderFirstPublished, p.FirstPublished.UTC().Format(time.RFC3339Nano))
		msg.Header.Set(contract.HeaderMsgID, p.MsgID)
		futures[i], results[i].Err = c.publishAsync(msg)
	}
	collect(ctx, futures, results)
	return results
}

func (c *Conn) publishAsync(msg *nats.Msg) (jetstream.PubAckFuture, error) {
	if !c.Connected() {
		return nil, errAway
	}
	return c.js.PublishMsgAsync(msg)
}

// collect waits for the answers to what was published.
func collect(ctx context.Context, futures []jetstream.PubAckFuture, results []contract.Published) {
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
		return contract.ErrStillQueued
	case strings.Contains(api.Description, "maximum bytes"), strings.Contains(api.Description, "maximum messages"):
		return contract.ErrStreamFull
	}
	return err
}

// A message of outcomes is bounded by what the server takes, less some room for what is around them, and at most by mostOutcomes, in bytes.
const (
	mostOutcomes   = 256 << 10
	aroundOutcomes = 1 << 10
)

// Outcomes publishes outcomes, as many as fit in one message, and waits for the stream's answers: one error each, nil where it was
// acknowledged. Any other may have been stored all the same.
func (c *Conn) Outcomes(ctx context.Context, list []contract.Outcome) []error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	errs := make([]error, len(list))
	in := make([]int, len(list)) // which message each is in
	var messages [][][]byte
	most, room := min(mostOutcomes, int(c.nc.MaxPayload()))-aroundOutcomes, 0
	for i, o := range list {
		data, err := contract.EncodeOutcome(o)
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
	results := make([]contract.Published, len(messages))
	futures := make([]jetstream.PubAckFuture, len(messages))
	for i, encoded := range messages {
		msg := nats.NewMsg(contract.SubjectOutcomes)
		msg.Data = contract.EncodeOutcomes(encoded)
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

// DeadLetter publishes a dead letter and returns after the stream has acknowledged it.
func (c *Conn) DeadLetter(ctx context.Context, d contract.DeadLetter) error {
	data, err := contract.EncodeDeadLetter(d)
	if err != nil {
		return err
	}
	return c.publish(ctx, contract.SubjectDead+d.EventID, "dead:"+d.EventID+":"+strconv.Itoa(d.Generation), data)
}

func (c *Conn) publish(ctx context.Context, subject, id string, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	msg := nats.NewMsg(subject)
	msg.Data = data
	if _, err := c.js.PublishMsg(ctx, msg, jetstream.WithMsgID(id)); err != nil {
		return fmt.Errorf("publish on %s: %w", subject, refusal(err))
	}
	return nil
}
