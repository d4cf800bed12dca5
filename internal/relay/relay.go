// Package relay is step 2: it publishes the ledger's pending purchases to the queue in batches, and marks
// them published once the stream has acknowledged them. The ledger is the outbox: while NATS is down,
// purchases wait there and webhooks continue.
//
//	Enqueue (this process) ─┐
//	                        ├─▶ publish ──▶ stored, still queued: mark published
//	Claim (the ledger) ─────┘           ──▶ duplicate: ambiguous, see ambiguous.go
//	                                    ──▶ failed: release the claim
package relay

import (
	"context"
	"errors"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/purchase"
)

const (
	batchSize = 500
	// pollInterval bounds the wait for purchases of other or crashed processes. Own commits wake the relay.
	pollInterval = 2 * time.Second
	// ledgerTimeout bounds each query: the connection may be half-open.
	ledgerTimeout = 10 * time.Second
	// retryInitial is the pause after a failure. It doubles up to retryMax while a full or missing stream
	// stores nothing, because each attempt costs the ledger a claim and a release per purchase.
	retryInitial = 500 * time.Millisecond
	retryMax     = 30 * time.Second
	// markDelay is how long a mark waits for the purchase's outcome, which would make the mark unnecessary.
	markDelay = 250 * time.Millisecond
	// maxEnqueued bounds the purchases in memory; the others wait on the ledger.
	maxEnqueued = 5000
	// maxUnmarked bounds the marks in memory while the ledger is unavailable.
	maxUnmarked = 50_000
	// enqueuedTimeout bounds the wait of an enqueued purchase in memory. Wait and publish together must end
	// within ClaimTimeout: later, another replica may publish the purchase, or the customer's data be deleted.
	enqueuedTimeout = ClaimTimeout / 3
)

// Relay publishes pending purchases.
type Relay struct {
	outbox Outbox
	queue  Queue
	log    *zap.Logger
	now    func() time.Time
	wake   chan struct{} // purchases may wait on the ledger
	more   chan struct{} // a purchase was enqueued
	retry  chan struct{} // the streams were repaired

	mu       sync.Mutex
	enqueued []queuedClaim
	running  bool
	blocked  bool // the stream stored nothing from the last batch

	// Owned by Run's goroutine.
	ambiguous ambiguousPublishes
	unmarked  []pendingMark // ordered by time
	failures  int           // consecutive batches from which the stream stored nothing

	publishes *prometheus.CounterVec
}

type queuedClaim struct {
	Claim

	at time.Time
}

type pendingMark struct {
	Mark

	at time.Time // when the stream acknowledged the message
}

// New returns a Relay that publishes while Run runs.
func New(o Outbox, q Queue, now func() time.Time, log *zap.Logger, reg prometheus.Registerer) *Relay {
	r := &Relay{
		outbox: o, queue: q, log: log, now: now, ambiguous: make(ambiguousPublishes),
		wake: make(chan struct{}, 1), more: make(chan struct{}, 1), retry: make(chan struct{}, 1),
		publishes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_publishes_total", Help: "Purchases published to the queue, by result.",
		}, []string{"result"}),
	}
	for _, result := range []string{"ok", "still_queued", "duplicate", "failed"} {
		r.publishes.WithLabelValues(result) // increase() needs the series to start at 0
	}
	reg.MustRegister(r.publishes)
	return r
}

// Ready reports whether an enqueued purchase would be published immediately.
func (r *Relay) Ready() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.running && !r.blocked && len(r.enqueued) < maxEnqueued && r.queue.Connected()
}

// Enqueue publishes a purchase that was claimed by the transaction that recorded it, so that no query is
// needed. It is called after the commit and never blocks. If the purchase is not published in time, its claim
// expires and a poll finds it.
func (r *Relay) Enqueue(p purchase.Purchase, recorded purchase.Recorded) {
	c := Claim{ // p.ID is a part of the webhook's body, which the queue must not keep in memory
		ID: strings.Clone(p.ID), Livemode: p.Livemode, Generation: 1, FirstPublished: recorded.Claimed,
		Envelope: recorded.Message,
	}
	r.mu.Lock()
	r.enqueued = append(r.enqueued, queuedClaim{c, r.now()})
	r.mu.Unlock()
	notify(r.more)
}

// Wake claims pending purchases without waiting for the next poll, for example after a replay. It never
// blocks and is safe for concurrent use.
func (r *Relay) Wake() { notify(r.wake) }

// Retry ends the pause after failures, once the streams are created or repaired. It never blocks and is safe
// for concurrent use.
func (r *Relay) Retry() { notify(r.retry) }

func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run publishes until ctx ends, then finishes the in-flight work. It logs the first of consecutive failures
// and the recovery.
func (r *Relay) Run(ctx context.Context) error {
	r.setRunning(true)
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	marks := time.NewTicker(markDelay)
	defer marks.Stop()
	var failures logsafe.Changes
	claim := true
	for {
		full, err := r.Pass(ctx, claim)
		switch {
		case ctx.Err() != nil:
			return r.finish(context.WithoutCancel(ctx))
		case err != nil && failures.Failed(err):
			r.log.Warn("Publishing is delayed", zap.Error(err), remedy(err))
		case err == nil && claim && failures.Recovered():
			r.log.Info("Publishing resumed")
		}
		if err != nil && !r.pause(ctx) {
			return r.finish(context.WithoutCancel(ctx))
		}
		if claim = full || err != nil; full && err == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return r.finish(context.WithoutCancel(ctx))
		case <-r.more:
		case <-marks.C:
		case <-r.wake:
			claim = true
		case <-r.retry:
			claim = true
		case <-poll.C:
			claim = true
		}
	}
}

// remedy returns a log field for an error that the operator can fix.
func remedy(err error) zap.Field {
	if errors.Is(err, ErrStreamFull) {
		return zap.String("remedy", "let the workers drain PURCHASES, or raise NATS_MAX_BYTES")
	}
	return zap.Skip()
}

// Pass is one iteration of Run: it writes due marks, publishes enqueued purchases and, with claim, one batch
// of pending purchases. full reports whether that batch was full. A publish that has begun is finished even
// if ctx ends.
func (r *Relay) Pass(ctx context.Context, claim bool) (full bool, err error) {
	if err := r.writeMarks(ctx, r.now().Add(-markDelay)); err != nil {
		return false, err
	}
	if err := r.publishEnqueued(ctx); err != nil {
		return false, err
	}
	if !claim || !r.queue.Connected() {
		return false, nil // the queue logs the lost connection and wakes the relay after the next one
	}
	ambiguousErr := r.releaseAmbiguous(ctx) // a failure must not block the other purchases
	claims, err := r.claimPending(ctx)
	if err != nil || len(claims) == 0 {
		return false, errors.Join(ambiguousErr, err)
	}
	return len(claims) == batchSize, errors.Join(ambiguousErr, r.publish(ctx, claims))
}

// publishEnqueued publishes the enqueued purchases in batches. It releases those that waited too long, so
// that they can be claimed again. It returns before the last one if others keep arriving: pending purchases
// must not wait for a lull.
func (r *Relay) publishEnqueued(ctx context.Context) error {
	for range 2 * maxEnqueued / batchSize {
		claims, expired := r.dequeue()
		if len(expired) > 0 {
			if err := r.releaseUnsent(ctx, expired); err != nil {
				return err
			}
		}
		if len(claims) == 0 {
			return nil
		}
		if err := r.publish(ctx, claims); err != nil {
			return err
		}
		if err := r.writeMarks(ctx, r.now().Add(-markDelay)); err != nil {
			return err
		}
	}
	notify(r.more)
	return nil
}

// dequeue returns the next batch and the IDs before it that waited too long.
func (r *Relay) dequeue() (claims []Claim, expired []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	oldest, n := r.now().Add(-enqueuedTimeout), 0
	for ; n < len(r.enqueued) && len(claims) < batchSize; n++ {
		if e := r.enqueued[n]; e.at.Before(oldest) {
			expired = append(expired, e.ID)
		} else {
			claims = append(claims, e.Claim)
		}
	}
	if r.enqueued = r.enqueued[n:]; len(r.enqueued) == 0 {
		r.enqueued = nil
	}
	return claims, expired
}

func (r *Relay) releaseUnsent(ctx context.Context, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	return r.outbox.ReleaseUnsent(ctx, ids)
}

// claimPending claims a batch. If the response is lost, the claims expire.
func (r *Relay) claimPending(ctx context.Context) ([]Claim, error) {
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	return r.outbox.Claim(ctx, batchSize)
}

// publish publishes claims, keeps marks of those that the stream holds and releases the others.
func (r *Relay) publish(ctx context.Context, claims []Claim) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ClaimTimeout/2)
	defer cancel()
	batch := slices.Clone(claims)
	for i := range batch {
		batch[i].Generation = r.ambiguous.generation(batch[i])
	}
	results := r.queue.Publish(ctx, batch)
	now := r.now()
	var unknown, unsent []string
	var failed error
	for i, result := range results {
		id, generation := batch[i].ID, batch[i].Generation
		switch {
		case result.Err == nil && result.Duplicate:
			r.publishes.WithLabelValues("duplicate").Inc()
			r.ambiguous.add(id, generation, now)
			continue
		case result.Err == nil:
			r.publishes.WithLabelValues("ok").Inc()
		case errors.Is(result.Err, ErrStillQueued):
			// An earlier publish under the claim's generation was stored, but its acknowledgement was lost.
			r.publishes.WithLabelValues("still_queued").Inc()
			generation = claims[i].Generation
		case result.NotStored:
			r.publishes.WithLabelValues("failed").Inc()
			unsent, failed = append(unsent, id), result.Err
			continue
		default:
			r.publishes.WithLabelValues("failed").Inc()
			unknown, failed = append(unknown, id), result.Err
			continue
		}
		r.ambiguous.remove(id)
		r.unmarked = append(r.unmarked, pendingMark{at: now, Mark: Mark{
			ID: id, Generation: generation, Sequence: result.Sequence, FirstPublished: batch[i].FirstPublished,
		}})
	}
	r.countFailure(len(unknown)+len(unsent) == len(claims))
	if len(unknown) > 0 {
		failed = errors.Join(failed, r.outbox.Release(ctx, unknown))
	}
	if len(unsent) > 0 {
		failed = errors.Join(failed, r.outbox.ReleaseUnsent(ctx, unsent))
	}
	return failed
}

func (r *Relay) countFailure(failed bool) {
	if failed {
		r.failures++
	} else {
		r.failures = 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blocked = failed
}

// writeMarks writes the marks of messages that were acknowledged before a time; zero: all. Most purchases
// have an outcome by then, which saves one update of the row. A mark that cannot be written is kept. If the
// process crashes first, the claim expires, the purchase is published again and the stream reports a
// duplicate.
func (r *Relay) writeMarks(ctx context.Context, before time.Time) error {
	n := len(r.unmarked)
	if !before.IsZero() {
		n = sort.Search(n, func(i int) bool { return r.unmarked[i].at.After(before) })
	}
	for n > 0 {
		marks := make([]Mark, min(n, batchSize))
		for i := range marks {
			marks[i] = r.unmarked[i].Mark
			marks[i].Age = r.now().Sub(r.unmarked[i].at)
		}
		ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
		err := r.outbox.MarkPublished(ctx, marks)
		cancel()
		if err != nil {
			r.unmarked = r.unmarked[max(0, len(r.unmarked)-maxUnmarked):]
			return err
		}
		r.unmarked = r.unmarked[len(marks):]
		n -= len(marks)
	}
	return nil
}

// pause waits after a failure, longer with each batch from which the stream stored nothing. Retry and a lost
// connection end the pause. It returns false if ctx ended first.
func (r *Relay) pause(ctx context.Context) bool {
	delay := retryMax
	if r.failures < 7 {
		delay = min(retryMax, retryInitial<<max(0, r.failures-1))
	}
	if delay > markDelay {
		// Their claims could expire during the pause. The next pass returns the error again.
		_ = r.writeMarks(ctx, time.Time{})
	}
	end := time.NewTimer(delay)
	defer end.Stop()
	poll := time.NewTicker(retryInitial)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-end.C:
			return true
		case <-r.retry:
			return true
		case <-poll.C:
			if !r.queue.Connected() {
				r.failures = 0
				return true
			}
		}
	}
}

func (r *Relay) finish(ctx context.Context) error {
	r.setRunning(false)
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	if err := errors.Join(r.publishEnqueued(ctx), r.writeMarks(ctx, time.Time{})); err != nil {
		r.log.Warn("Shutdown with unpublished purchases", zap.Error(err),
			zap.String("remedy", "none: the next start publishes them"))
	}
	return nil
}

func (r *Relay) setRunning(running bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = running
}
