// Package recorder is step 5: it writes the workers' outcomes to the ledger in batches and acknowledges them
// after the commit. Outcomes may arrive repeatedly and in any order. The same consumer brings TikTok's
// counts, which never hold up an outcome.
package recorder

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/flood"
	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/message"
)

// Source is the consumer of outcomes. Fetch waits a bounded time for a first message and returns up to limit
// messages, or none. Its errors are temporary.
type Source interface {
	Fetch(ctx context.Context, limit int) ([]message.Received, error)
}

// Ledger stores outcomes. Settle is idempotent and one transaction; unknown lists the IDs without a purchase.
type Ledger interface {
	Settle(ctx context.Context, outcomes []message.Outcome) (unknown []string, err error)
	// RecordStats records a day's counts unless a later answer is recorded.
	RecordStats(ctx context.Context, s message.Stats) error
}

const (
	// fetchSize is the number of messages per fetch. Each has the outcomes of up to one request to TikTok.
	fetchSize = 64
	batchSize = 1000 // outcomes per transaction
	// settleTimeout bounds a transaction. It is shorter than the consumer's AckWait (30 s), which begins again
	// with each: a slow ledger causes no redelivery.
	settleTimeout = 10 * time.Second
	ackTimeout    = 5 * time.Second
	retryDelay    = time.Second
	// newerDelay leaves a message of a newer version to a newer ingest during a rolling upgrade.
	newerDelay = time.Minute
	// maxStatsDeliveries bounds the attempts to record a day's counts. The next round brings them again, and
	// an unrecorded message would postpone the sweeper.
	maxStatsDeliveries = 10
	statsDelay         = 10 * time.Second
	statsTimeout       = 5 * time.Second // of all counts in a batch
)

// Recorder writes outcomes to the ledger.
type Recorder struct {
	source  Source
	ledger  Ledger
	log     *zap.Logger
	limited *zap.Logger // for malformed messages, of which a publisher can send any number
}

// New returns a Recorder that records while Run runs.
func New(s Source, l Ledger, log *zap.Logger) *Recorder {
	return &Recorder{source: s, ledger: l, log: log, limited: log.WithOptions(flood.Limit(log))}
}

// Run records until ctx ends, then finishes the in-flight batch. It logs the first of consecutive failures
// and the recovery.
func (r *Recorder) Run(ctx context.Context) error {
	var failures logsafe.Changes
	for ctx.Err() == nil {
		err := r.recordBatch(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && failures.Failed(err):
			r.log.Warn("Outcomes wait in the queue", zap.Error(err))
		case err == nil && failures.Recovered():
			r.log.Info("Recording resumed")
		}
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(retryDelay):
			}
		}
	}
	return nil
}

// recordBatch fetches messages, settles their outcomes and acknowledges them.
func (r *Recorder) recordBatch(ctx context.Context) error {
	messages, err := r.source.Fetch(ctx, fetchSize)
	if err != nil || len(messages) == 0 {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	var outcomes []message.Outcome
	var counts []message.Received
	defer func() { r.recordStats(ctx, counts) }() // behind the outcomes
	usable := make([]message.Received, 0, len(messages))
	for _, m := range messages {
		if m.Subject == message.SubjectStats {
			counts = append(counts, m)
			continue
		}
		if list := r.decode(m); len(list) > 0 {
			outcomes, usable = append(outcomes, list...), append(usable, m)
		}
	}
	if len(outcomes) == 0 {
		return nil
	}
	first := true
	for batch := range slices.Chunk(outcomes, batchSize) {
		if !first {
			for _, m := range usable {
				_ = m.InProgress() // a lost one only risks a redelivery
			}
		}
		first = false
		if err := r.settle(ctx, batch); err != nil {
			return errors.Join(err, nak(usable))
		}
	}
	// A message whose acknowledgement is lost is recorded again without effect.
	bounded, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	return message.Acknowledge(bounded, usable)
}

// decode returns the valid outcomes of a message, with times bounded by the queue's clock. It rejects a
// message without a valid outcome.
func (r *Recorder) decode(m message.Received) []message.Outcome {
	list, err := message.DecodeOutcomes(m.Data)
	stored := m.Taken
	if stored.IsZero() {
		stored = time.Now()
	}
	for i, o := range list {
		list[i] = o.WithValidTimes(stored)
	}
	var ackErr error
	switch {
	case errors.Is(err, message.ErrNewer):
		r.log.Warn("Outcome left to a newer ingest", zap.Error(err))
		ackErr = m.NakWithDelay(newerDelay)
	case err != nil:
		r.limited.Error("Malformed outcome removed", zap.Error(err),
			zap.String("remedy", "check who else may publish on "+message.SubjectOutcomes))
		if len(list) == 0 {
			ackErr = m.TermWithReason("malformed outcome")
		}
	}
	if ackErr != nil {
		r.log.Debug("Ack failed; message will be redelivered", zap.Error(ackErr))
	}
	return list
}

// recordStats records TikTok's counts and removes their messages, after some attempts without them. The first
// failure ends the batch's attempts, so that the next outcomes wait for one timeout at most.
func (r *Recorder) recordStats(ctx context.Context, messages []message.Received) {
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	var err error
	for _, m := range messages {
		stored := m.Taken
		if stored.IsZero() {
			stored = time.Now()
		}
		s, invalid := message.DecodeStats(m.Data, stored)
		if invalid == nil && err == nil {
			err = r.ledger.RecordStats(ctx, s)
		}
		var ackErr error
		switch {
		case invalid != nil: // a newer ingest gets the next ones
			r.limited.Error("Malformed counts removed", zap.Error(invalid),
				zap.String("remedy", "update ingest, or check who else may publish on "+message.SubjectStats))
			ackErr = m.TermWithReason("malformed counts")
		case err == nil:
			ackErr = m.Ack()
		case m.NumDelivered < maxStatsDeliveries:
			ackErr = m.NakWithDelay(statsDelay)
		default:
			r.limited.Warn("Counts not recorded; the next answer replaces them", zap.Error(err),
				zap.String("day", s.Day), zap.String("remedy", "check Postgres"))
			ackErr = m.TermWithReason("counts not recorded")
		}
		if ackErr != nil {
			r.log.Debug("Ack failed; message will be redelivered", zap.Error(ackErr))
		}
	}
}

func (r *Recorder) settle(ctx context.Context, outcomes []message.Outcome) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	unknown, err := r.ledger.Settle(ctx, outcomes)
	for _, id := range unknown {
		r.log.Error("Outcome for unknown purchase", zap.String("checkout_session_id", id),
			zap.String("remedy", "check whether the ledger was restored from a backup"))
	}
	return err
}

// nak returns messages to the queue. After a failure, the remaining messages are redelivered after AckWait.
func nak(messages []message.Received) error {
	for _, m := range messages {
		if err := m.NakWithDelay(retryDelay); err != nil {
			return err
		}
	}
	return nil
}
