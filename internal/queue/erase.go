package queue

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/message"
)

// Erase removes the messages of purchases, by their IDs, and overwrites them in the server's files. It
// counts the purchases (queued, delayed or in flight) and the dead letters. It needs an operator's user,
// which may read and delete messages of PURCHASES and PURCHASES_DEAD: neither binary's may. Outcomes hold no
// buyer's data.
func (c *Conn) Erase(ctx context.Context, ids []string) (waiting, dead int, err error) {
	waiting, err = c.erase(ctx, message.StreamPurchases, ids, message.SubjectLive, message.SubjectTest)
	if err != nil {
		return waiting, 0, err
	}
	dead, err = c.erase(ctx, message.StreamPurchasesDead, ids, message.SubjectDead)
	return waiting, dead, err
}

func (c *Conn) erase(ctx context.Context, name string, ids []string, subjects ...string) (n int, err error) {
	stream, err := request(ctx, func(ctx context.Context) (jetstream.Stream, error) {
		return c.js.Stream(ctx, name)
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, nil // nothing was ever published
	} else if err != nil {
		return 0, eraseError(name, err)
	}
	for _, id := range ids {
		for _, subject := range subjects {
			for { // a replayed purchase may have more than one dead letter
				msg, err := request(ctx, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
					return stream.GetLastMsgForSubject(ctx, subject+id)
				})
				if errors.Is(err, jetstream.ErrMsgNotFound) {
					break
				} else if err != nil {
					return n, eraseError(name, err)
				}
				// A worker may have settled the message in between.
				_, err = request(ctx, func(ctx context.Context) (struct{}, error) {
					return struct{}{}, stream.SecureDeleteMsg(ctx, msg.Sequence)
				})
				if err != nil && !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
					return n, eraseError(name, err)
				}
				n++
			}
		}
	}
	return n, nil
}

func eraseError(stream string, err error) error {
	return fmt.Errorf("erase from %s (requires an operator's NATS_URL): %w", stream, err)
}

// request bounds one request: the server does not respond to a denied one.
func request[T any](ctx context.Context, send func(ctx context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return send(ctx)
}
