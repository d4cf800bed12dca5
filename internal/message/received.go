package message

import (
	"context"
	"time"
)

// Received is one delivery of a message by a durable consumer.
type Received struct {
	Subject        string
	MsgID          string
	Data           []byte
	FirstPublished time.Time // from the header, else Taken
	Sequence       uint64    // stream sequence; 0: unknown
	Taken          time.Time // when the stream stored the message; zero: unknown
	NumDelivered   int       // from 1; a hint: a killed server loses counts
	Returned       bool      // the last delivery got a NAK; otherwise its worker crashed
	Acker
}

// Acker acknowledges one delivery and is safe for concurrent use. The caller calls exactly one of the methods
// besides InProgress, once; Ack and a failed DoubleAck may be repeated.
type Acker interface {
	// Ack removes the message without waiting for the server. A later DoubleAck confirms it.
	Ack() error
	// DoubleAck removes the message and waits for the server's confirmation.
	DoubleAck(ctx context.Context) error
	// NakWithDelay requests redelivery after a delay, which survives a server restart.
	NakWithDelay(delay time.Duration) error
	// TermWithReason removes an undeliverable message.
	TermWithReason(reason string) error
	// Leave lets the message be redelivered after AckWait, with Returned set.
	Leave()
	// InProgress restarts AckWait.
	InProgress() error
}

// Acknowledge removes messages and returns once the server has confirmed it. A connection keeps their order,
// so the confirmation of the last one covers all, in one round trip instead of one per message. list must not
// be empty.
func Acknowledge[T Acker](ctx context.Context, list []T) error {
	last := len(list) - 1
	for _, m := range list[:last] {
		if err := m.Ack(); err != nil {
			return err
		}
	}
	return list[last].DoubleAck(ctx)
}
