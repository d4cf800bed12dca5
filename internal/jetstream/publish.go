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
		if !c.Connected() {
			results[i].Err = errAway
			continue
		}
		msg := nats.NewMsg(p.Subject)
		msg.Data = p.Data
		msg.Header.Set(contract.HeaderMsgID, p.MsgID)
		msg.Header.Set(contract.HeaderFirstPublished, p.FirstPublished.UTC().Format(time.RFC3339Nano))
		futures[i], results[i].Err = c.js.PublishMsgAsync(msg)
	}
	for i, future := range futures {
		if future == nil || results[i].Err != nil {
			continue
		}
		select {
		case ack := <-future.Ok():
			results[i].Sequence = ack.Sequence
		case err := <-future.Err():
			results[i].Err = refusal(err)
		case <-ctx.Done():
			results[i].Err = ctx.Err()
		}
	}
	return results
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

// Outcome publishes an outcome and returns after the stream has acknowledged it.
func (c *Conn) Outcome(ctx context.Context, o contract.Outcome) error {
	data, err := contract.EncodeOutcome(o)
	if err != nil {
		return err
	}
	return c.publish(ctx, contract.SubjectOutcomes, o.MsgID(), data)
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
