package message

import (
	"context"
	"errors"
	"time"
)

// ClaimFor is how long a claim on a pending purchase stands; far longer than a publish may take (5 s).
const ClaimFor = 30 * time.Second

// Claim is one pending purchase of the ledger that a relay may publish.
type Claim struct {
	ID             string
	Livemode       bool
	Generation     int
	FirstPublished time.Time // kept over repeats, so that the age limit holds
	Envelope       []byte
}

// Mark is a claim's good end: the stream holds the message, under Sequence where it was taken now (0: it was
// there already).
type Mark struct {
	ID         string
	Generation int
	Sequence   uint64
	Age        time.Duration // since the stream acknowledged it
	First      time.Time     // the claim's FirstPublished: a row of another time was recreated since; zero: not compared
}

// Publication is a purchase message to be published.
type Publication struct {
	Subject        string
	MsgID          string
	FirstPublished time.Time
	Data           []byte
}

// Published is what became of a Publication. Err nil means that the stream holds the message under Sequence
// or, where it is a Duplicate, that it has taken one under this message id before: that one may still be
// queued, or be done with. Refused means that this publication was certainly not stored. Every other error
// but ErrStillQueued is ambiguous: the message may have been stored, so that only the same message id may be
// sent again, and the purchase's age counts.
type Published struct {
	Sequence  uint64
	Duplicate bool
	Refused   bool // beside Err: the stream is full or missing, or the client sent nothing
	Err       error
}

var (
	// ErrStillQueued answers a publication whose subject still has a message in the stream: it is queued,
	// delayed or being worked on, and nothing was stored.
	ErrStillQueued = errors.New("the purchase is still queued")
	// ErrStreamFull answers a publication when the stream has reached its size.
	ErrStreamFull = errors.New("the stream is full: let its consumers drain it, or (PURCHASES) raise NATS_MAX_BYTES")
)

// Queued is one message as a consumer got it.
type Queued struct {
	Subject        string
	MsgID          string
	Data           []byte
	FirstPublished time.Time // the header's, else the time the stream took it
	Sequence       uint64    // its place in the stream; 0: unknown
	Taken          time.Time // when the stream took it; zero: unknown
	NumDelivered   int       // counts from 1; a hint: a killed server forgets some
	Returned       bool      // its last delivery was handed back, as far as is known; else whoever had it died
	Settler
}

// Settler ends one delivery of a message. Its methods may be called from any goroutine, InProgress any number
// of times, exactly one of the others once; Ack, and a DoubleAck that failed, may be repeated.
type Settler interface {
	// Ack removes the message, without waiting for the server: what becomes of it is known from a later DoubleAck's answer.
	Ack() error
	// DoubleAck removes the message and waits for the server to say so.
	DoubleAck(ctx context.Context) error
	// NakWithDelay has it delivered again after the delay, which survives a restart of the server.
	NakWithDelay(delay time.Duration) error
	// TermWithReason removes the message as undeliverable.
	TermWithReason(reason string) error
	// Leave says nothing: the server delivers the message again when the time limit is over, and then it counts as returned.
	Leave()
	// InProgress starts the acknowledgement's time limit anew.
	InProgress() error
}
