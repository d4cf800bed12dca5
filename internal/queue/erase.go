package queue

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/message"
)

// Erase removes what the queue still holds of purchases, by their ids, and overwrites it in the server's files: messages that wait, are
// delayed or are being worked on, and dead letters. It returns how many of each there were. It needs rights that neither binary's user has
// (reading and deleting messages of PURCHASES and PURCHASES_DEAD): give it an operator's. Outcomes hold nothing of a buyer.
func (c *Conn) Erase(ctx context.Context, ids []string) (waiting, dead int, err error) {
	if waiting, err = c.erase(ctx, message.StreamPurchases, ids, message.SubjectLive, message.SubjectTest); err != nil {
		return waiting, 0, err
	}
	dead, err = c.erase(ctx, message.StreamPurchasesDead, ids, message.SubjectDead)
	return waiting, dead, err
}

func (c *Conn) erase(ctx context.Context, name string, ids []string, subjects ...string) (n int, err error) {
	stream, err := answered(ctx, func(ctx context.Context) (jetstream.Stream, error) { return c.js.Stream(ctx, name) })
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, nil // nothing was ever published
	} else if err != nil {
		return 0, unerased(name, err)
	}
	for _, id := range ids {
		for _, subject := range subjects {
			for { // one purchase may have died more than once
				msg, err := answered(ctx, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
					return stream.GetLastMsgForSubject(ctx, subject+id)
				})
				if errors.Is(err, jetstream.ErrMsgNotFound) {
					break
				} else if err != nil {
					return n, unerased(name, err)
				}
				// A worker may have settled it a moment ago: then it is gone.
				_, err = answered(ctx, func(ctx context.Context) (struct{}, error) {
					return struct{}{}, stream.SecureDeleteMsg(ctx, msg.Sequence)
				})
				if err != nil && !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
					return n, unerased(name, err)
				}
				n++
			}
		}
	}
	return n, nil
}

func unerased(stream string, err error) error {
	return fmt.Errorf("erase from %s: %w (the user of NATS_URL needs the right to read and delete its messages, which ingest's own has not: give an operator's for this command)", stream, err)
}

// answered bounds one question: where the user may not ask it, nobody answers.
func answered[T any](ctx context.Context, ask func(ctx context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return ask(ctx)
}
