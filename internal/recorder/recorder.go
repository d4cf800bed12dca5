// Package recorder is step 4: the worker's outcomes are written to the ledger, in batches, in any order and any
// number of times, and acknowledged after the commit.
package recorder

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/flood"
	"purchase-relay/internal/message"
)

// Source is the consumer of the outcomes. Fetch blocks for a bounded time for the first message and returns what
// is there, or nothing; its errors are temporary.
type Source interface {
	Fetch(ctx context.Context, most int) ([]message.Received, error)
}

// Ledger owes: Settle is one transaction and idempotent; unknown lists the ids that the ledger does not hold.
type Ledger interface {
	Settle(ctx context.Context, outcomes []message.Outcome) (unknown []string, err error)
}

const (
	// fetchSize is how many messages are taken at a time: each has up to as many outcomes as fit in a request to TikTok.
	fetchSize = 64
	batchSize = 1000 // outcomes in one transaction
	// settleTimeout is well under the consumer's AckWait (30 s), so that a batch is not delivered twice for a
	// slow ledger alone.
	settleTimeout = 10 * time.Second
	ackTimeout    = 5 * time.Second
	pause         = time.Second
	// newerDelay leaves a message to a newer ingest during a rolling upgrade.
	newerDelay = time.Minute
)

// Recorder writes outcomes to the ledger.
type Recorder struct {
	source Source
	ledger Ledger
	log    *zap.Logger
	junk   *zap.Logger // limited: anybody with the right to publish can multiply its lines
}

// New returns a Recorder; Run makes it work.
func New(s Source, l Ledger, log *zap.Logger) *Recorder {
	return &Recorder{source: s, ledger: l, log: log, junk: log.WithOptions(flood.Limit(log))}
}

// Run records until ctx ends, then finishes the batch under way. A neighbour that is away is waited for; the
// first failure of a row of them is logged, and the end of it.
func (r *Recorder) Run(ctx context.Context) error {
	failing := false
	for ctx.Err() == nil {
		err := r.once(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			failing = true
			r.log.Warn("Outcomes wait in the queue and are recorded later", zap.Error(err))
		case err == nil && failing:
			failing = false
			r.log.Info("Outcomes are recorded again")
		}
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}
	return nil
}

func (r *Recorder) once(ctx context.Context) error {
	messages, err := r.source.Fetch(ctx, fetchSize)
	if err != nil || len(messages) == 0 {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	var outcomes []message.Outcome
	good := make([]message.Received, 0, len(messages))
	for _, m := range messages {
		list, err := message.DecodeOutcomes(m.Data)
		for i, o := range list {
			list[i] = o.Dated(takenOf(m))
		}
		if len(list) > 0 {
			outcomes, good = append(outcomes, list...), append(good, m)
		}
		r.refuse(m, err, len(list) == 0)
	}
	if len(outcomes) == 0 {
		return nil
	}
	for batch := range slices.Chunk(outcomes, batchSize) {
		if err := r.settle(ctx, batch); err != nil {
			for _, m := range good {
				if nakErr := m.NakWithDelay(pause); nakErr != nil {
					return errors.Join(err, nakErr) // the server delivers it again by itself after AckWait
				}
			}
			return err
		}
	}
	return r.acknowledge(ctx, good)
}

// takenOf returns when the stream took a message.
func takenOf(m message.Received) time.Time {
	if m.Taken.IsZero() {
		return time.Now()
	}
	return m.Taken
}

// refuse says what of a message could not be read, and gives back or removes a message of which nothing could.
func (r *Recorder) refuse(m message.Received, err error, whole bool) {
	switch {
	case errors.Is(err, message.ErrNewer):
		r.log.Warn("An outcome waits for a newer ingest", zap.Error(err))
		err = m.NakWithDelay(newerDelay)
	case err != nil:
		r.junk.Error("What is no outcome was removed: who else may publish on "+message.SubjectOutcomes+"?", zap.Error(err))
		if err = nil; whole {
			err = m.TermWithReason("no outcome")
		}
	}
	if err != nil {
		r.log.Debug("The message will come again", zap.Error(err))
	}
}

func (r *Recorder) settle(ctx context.Context, outcomes []message.Outcome) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	unknown, err := r.ledger.Settle(ctx, outcomes)
	for _, id := range unknown {
		r.log.Error("An outcome of a purchase that the ledger does not know: was the ledger restored from a backup?", zap.String("checkout_session_id", id))
	}
	return err
}

// acknowledge removes what was recorded. One connection keeps the order: the server's answer to the last word stands for those before
// it, and a far queue costs one way there and back instead of one for each message.
func (r *Recorder) acknowledge(ctx context.Context, messages []message.Received) error {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	last := len(messages) - 1
	for _, m := range messages[:last] {
		if err := m.Ack(); err != nil {
			return err // recorded; it comes again and changes nothing
		}
	}
	return messages[last].DoubleAck(ctx)
}
