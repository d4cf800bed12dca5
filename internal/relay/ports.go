package relay

import (
	"context"
	"errors"
	"time"
)

// ClaimTimeout is how long a claim lasts, far longer than a publish may take (5 s).
const ClaimTimeout = 30 * time.Second

// Claim is one purchase of the ledger that its holder alone may publish.
type Claim struct {
	ID             string
	Livemode       bool
	Generation     int
	FirstPublished time.Time // kept over repeats, so that the age limit holds
	Envelope       []byte
}

// Mark is what the ledger records of a claim: the stream holds its message.
type Mark struct {
	ID         string
	Generation int
	Sequence   uint64        // stream sequence; 0: stored by an earlier publish
	Age        time.Duration // since the stream's acknowledgement
	// FirstPublished is the claim's. A row with another one was recreated after the claim (restored or
	// emptied database) and is left alone. Zero: not compared.
	FirstPublished time.Time
}

// Outbox is the relay's side of the ledger. Implementations guarantee: a claim belongs to one caller for
// ClaimTimeout, on every replica; marks are idempotent and never overwrite a later outcome.
type Outbox interface {
	// Claim claims up to limit pending purchases, oldest first.
	Claim(ctx context.Context, limit int) ([]Claim, error)
	// MarkPublished marks claims as published.
	MarkPublished(ctx context.Context, marks []Mark) error
	// Release ends claims whose message may have been stored.
	Release(ctx context.Context, ids []string) error
	// ReleaseUnsent ends claims whose message was not stored. A purchase that no earlier publish may have
	// stored has no age yet.
	ReleaseUnsent(ctx context.Context, ids []string) error
}

// SweepLedger is the sweeper's side of the ledger. Implementations guarantee: an overdue purchase belongs to
// one caller for ClaimTimeout, on every replica; nothing here overwrites an outcome that was recorded since.
type SweepLedger interface {
	// Overdue claims up to limit purchases that should be in the queue and had no outcome for the grace.
	Overdue(ctx context.Context, grace time.Duration, limit int) ([]Claim, error)
	// RecordSweep records the queue's answers: published again under a new generation, still queued, unknown.
	RecordSweep(ctx context.Context, published []Mark, queued, unknown []string) error
	// Expire ends as dead (expired) those that are at least maxAge old by the ledger's clock and still of the
	// mark's generation, and returns their IDs.
	Expire(ctx context.Context, marks []Mark, maxAge time.Duration) (expired []string, err error)
}

// Queue is the streams' side.
type Queue interface {
	// Publish publishes claims under their generations. It returns one result per claim, in their order, after
	// the stream's acknowledgements or its own timeout.
	Publish(ctx context.Context, claims []Claim) []PublishResult
	Connected() bool
	// OutcomeLag returns the age of the oldest unrecorded outcome, by the server's clock; 0 without one.
	OutcomeLag(ctx context.Context) (time.Duration, error)
}

// PublishResult is the result of one publish. Without an error the stream holds the message under Sequence
// or, with Duplicate, stored one with the same message ID before: that one may still be queued, or settled.
// An error other than ErrStillQueued is ambiguous unless NotStored is set: the message may have been stored.
// Then only the same message ID may be published again, and the purchase's age counts.
type PublishResult struct {
	Sequence  uint64
	Duplicate bool
	NotStored bool // the stream is full or missing, or the client wrote nothing
	Err       error
}

var (
	// ErrStillQueued is returned when the stream still holds a message of the purchase: queued, delayed or
	// being delivered. Nothing was stored.
	ErrStillQueued = errors.New("purchase is still queued")
	// ErrStreamFull is returned when the stream has reached its size limit.
	ErrStreamFull = errors.New("stream is full: let its consumers drain it, or (PURCHASES) raise NATS_MAX_BYTES")
)
