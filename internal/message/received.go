package message

import (
	"context"
	"time"
)

// Received is one delivery of a message by a durable consumer. Delivery and recorder both take it from the
// queue's client.
type Received struct {
	Subject        string
	MsgID          string
	Data           []byte
	FirstPublished time.Time // from the header, else the time at which the stream stored the message
	Sequence       uint64    // stream sequence; 0: unknown
	Taken          time.Time // when the stream stored the message; zero: unknown
	NumDelivered   int       // from 1; a hint: a killed server loses some
	Returned       bool      // the last delivery is known to have been returned; else its worker crashed
	Acker
}

// Acker settles one delivery. Its methods are safe for concurrent use. InProgress may be called any number of
// times, exactly one of the others once; Ack and a failed DoubleAck may be repeated.
type Acker interface {
	// Ack removes the message, without waiting for the server; a later DoubleAck confirms it as well.
	Ack() error
	// DoubleAck removes the message and waits for the server's confirmation.
	DoubleAck(ctx context.Context) error
	// NakWithDelay requests redelivery after the delay, which survives a restart of the server.
	NakWithDelay(delay time.Duration) error
	// TermWithReason removes the message as undeliverable.
	TermWithReason(reason string) error
	// Leave lets the message be redelivered, as returned, when AckWait has passed.
	Leave()
	// InProgress restarts AckWait.
	InProgress() error
}
