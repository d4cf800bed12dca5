package relay

import (
	"context"
	"errors"
	"time"
)

// ClaimTimeout is the lifetime of a claim, far longer than a publish may take (5 s).
const ClaimTimeout = 30 * time.Second

// Claim is a purchase that only its holder may publish.
type Claim struct {
	ID             string
	Livemode       bool
	Generation     int
	FirstPublished time.Time // kept on repeated publishes, for the age limit
	Envelope       []byte
}

// Mark records that the stream holds the message of a claim.
type Mark struct {
	ID         string
	Generation int
	Sequence   uint64        // stream sequence; 0: stored by an earlier publish
	Age        time.Duration // since the stream's acknowledgement
	// FirstPublished is copied from the claim. A row with another value was recreated after the claim
	// (restored or emptied database) and is not marked. Zero: not compared.
	FirstPublished time.Time
}

// Outbox is the relay's view of the ledger. Implementations guarantee that only one caller on all replicas
// holds a claim for ClaimTimeout, and that marks are idempotent and never overwrite an outcome.
type Outbox interface {
	// Claim claims up to limit pending purchases, oldest first.
	Claim(ctx context.Context, limit int) ([]Claim, error)
	// MarkPublished marks claims as published.
	MarkPublished(ctx context.Context, marks []Mark) error
	// Release ends claims whose message may have been stored.
	Release(ctx context.Context, ids []string) error
	// ReleaseUnsent ends claims whose message was not stored. It resets the age of purchases that no earlier
	// publish may have stored.
	ReleaseUnsent(ctx context.Context, ids []string) error
}

// SweepLedger is the sweeper's view of the ledger. Implementations guarantee that only one caller on all
// replicas holds an overdue purchase for ClaimTimeout, and that no outcome recorded since is overwritten.
type SweepLedger interface {
	// Overdue claims up to limit in-flight purchases that had no outcome for the grace period.
	Overdue(ctx context.Context, grace time.Duration, limit int) ([]Claim, error)
	// RecordSweep records the results: published under a new generation, still queued, or unknown.
	RecordSweep(ctx context.Context, published []Mark, queued, unknown []string) error
	// Expire makes purchases dead (expired) that are at least maxAge old by the ledger's clock and still have
	// the mark's generation. It returns their IDs.
	Expire(ctx context.Context, marks []Mark, maxAge time.Duration) (expired []string, err error)
}

// Queue publishes to the streams.
type Queue interface {
	// Publish publishes claims under their generations. It returns one result per claim, in order, after the
	// acknowledgements or its own timeout.
	Publish(ctx context.Context, claims []Claim) []PublishResult
	Connected() bool
	// OutcomeLag returns the age of the oldest unrecorded outcome, by the server's clock; 0 without one.
	OutcomeLag(ctx context.Context) (time.Duration, error)
}

// PublishResult is the result of one publish. Without an error the stream stored the message under Sequence
// or, with Duplicate, stored one with the same message ID earlier, which may still be queued or already
// settled. An error other than ErrStillQueued is ambiguous unless NotStored is set: the message may have been
// stored. The purchase then has an age and may only be published under the same message ID.
type PublishResult struct {
	Sequence  uint64
	Duplicate bool
	NotStored bool // the stream is full or missing, or the client sent nothing
	Err       error
}

var (
	// ErrStillQueued is returned if the stream still holds a message of the purchase, whether queued, delayed
	// or being delivered. Nothing was stored.
	ErrStillQueued = errors.New("purchase is still queued")
	// ErrStreamFull is returned if the stream has reached its size limit.
	ErrStreamFull = errors.New("stream is full")
)
