// Package relay is step 2: pending purchases on the ledger are published to the queue, in batches, and marked
// published once the stream has acknowledged them. The ledger is the outbox: while NATS is down rows wait, and
// nothing is lost or delayed for the customer.
package relay

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/contract"
)

// Outbox is the ledger's side. Implementations owe: a claim is this caller's alone for contract.ClaimFor, on every
// replica; Publish marks are idempotent and never take back what an outcome has said since.
type Outbox interface {
	// Claim takes up to most pending purchases, oldest first.
	Claim(ctx context.Context, most int) ([]contract.Claim, error)
	// Published marks claims as published, Released gives others back at once.
	Published(ctx context.Context, marks []contract.Mark) error
	Released(ctx context.Context, ids []string) error
}

// Queue is the stream's side. Publish returns one result per publication, in their order, after the stream's
// answers or its own time limit.
type Queue interface {
	Publish(ctx context.Context, batch []contract.Publication) []contract.Published
	Connected() bool
}

const (
	// batchSize is how many purchases are claimed and published at a time.
	batchSize = 500
	// pollEvery looks for what another process or a crash left behind; commits wake the relay by themselves.
	pollEvery = 2 * time.Second
	// ledgerTimeout bounds a question to the ledger: a connection may be dead, and nobody said so.
	ledgerTimeout = 10 * time.Second
	// pauseAfterFailure keeps a failing publish from becoming a hot loop.
	pauseAfterFailure = 500 * time.Millisecond
	// doubtFor is how long the outcome of a message that the stream says to have taken before is waited for.
	doubtFor = 5 * time.Second
)

// doubt is a purchase whose message id the stream knew: an earlier publish was stored and nobody heard so, or, after a
// restored backup or an emptied ledger, it was another life's. Only the first is in the queue, or has an outcome on its way.
type doubt struct {
	generation int       // the highest one that was published
	until      time.Time // then the claim is given back
	released   bool
}

// Relay publishes pending purchases.
type Relay struct {
	outbox Outbox
	queue  Queue
	log    *zap.Logger
	wake   chan struct{}
	doubts map[string]doubt // by session; of Run's goroutine alone

	publishes *prometheus.CounterVec
}

// New returns a Relay; Run makes it work.
func New(o Outbox, q Queue, log *zap.Logger, reg prometheus.Registerer) *Relay {
	r := &Relay{
		outbox: o, queue: q, log: log, wake: make(chan struct{}, 1), doubts: make(map[string]doubt),
		publishes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_publishes_total", Help: "Purchases handed to the queue, by result.",
		}, []string{"result"}),
	}
	for _, result := range []string{"ok", "still_queued", "failed"} {
		r.publishes.WithLabelValues(result) // from 0: an increase from nothing at all would not be seen
	}
	reg.MustRegister(r.publishes)
	return r
}

// Wake says that there may be something to publish: after a commit, or when the connection is back. It never
// blocks and may be called from anywhere.
func (r *Relay) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run publishes until ctx ends, then finishes the batch under way. The first failure of a row of them is logged, and
// the end of it.
func (r *Relay) Run(ctx context.Context) error {
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	failing := false
	for {
		more, err := r.once(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			failing = true
			r.log.Warn("Publishing is delayed, the purchases wait on the ledger", zap.Error(err))
		case err == nil && failing:
			failing = false
			r.log.Info("Purchases are published again")
		case more:
			continue
		}
		if err != nil && !wait(ctx, pauseAfterFailure) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-poll.C:
		}
	}
}

// once publishes one batch; more says that it was a full one. The batch is finished although ctx ends.
func (r *Relay) once(ctx context.Context) (more bool, err error) {
	if !r.queue.Connected() {
		return false, nil // the connection's return wakes us; its absence has been logged
	}
	if err := r.releaseDoubts(ctx); err != nil {
		return false, err
	}
	claims, err := within(ctx, func(ctx context.Context) ([]contract.Claim, error) { return r.outbox.Claim(ctx, batchSize) })
	if err != nil || len(claims) == 0 {
		return false, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), contract.ClaimFor/2)
	defer cancel()
	batch := make([]contract.Publication, len(claims))
	offers := make([]int, len(claims)) // the generations that are published
	for i, c := range claims {
		offers[i] = r.offer(c)
		c.Generation = offers[i]
		batch[i] = publication(c)
	}
	marks, released, failed := r.sort(claims, offers, r.queue.Publish(ctx, batch))
	if err := r.outbox.Published(ctx, marks); err != nil {
		// The claims run out and the same message ids are published again: the stream knows them.
		return false, err
	}
	if len(released) > 0 {
		return false, errors.Join(failed, r.outbox.Released(ctx, released))
	}
	return len(claims) == batchSize, nil
}

// offer is the generation to publish a claim under. Where its message id was known to the stream and no outcome has come since,
// it is a new one: while the stream still holds the purchase, it refuses that.
func (r *Relay) offer(c contract.Claim) int {
	if d, ok := r.doubts[c.ID]; ok {
		delete(r.doubts, c.ID)
		return max(c.Generation, d.generation+1)
	}
	return c.Generation
}

// releaseDoubts gives claims back that wait no longer for an outcome: those that got one are not claimed again.
func (r *Relay) releaseDoubts(ctx context.Context) error {
	var due []string
	now := time.Now()
	for id, d := range r.doubts {
		switch {
		case !d.released && !now.Before(d.until):
			due = append(due, id)
		case d.released && now.After(d.until.Add(contract.ClaimFor)):
			delete(r.doubts, id) // its outcome came
		}
	}
	if len(due) == 0 {
		return nil
	}
	if _, err := within(ctx, func(ctx context.Context) ([]contract.Claim, error) { return nil, r.outbox.Released(ctx, due) }); err != nil {
		return err
	}
	for _, id := range due {
		d := r.doubts[id]
		d.released = true
		r.doubts[id] = d
	}
	return nil
}

// within asks the ledger for claims, for a bounded time. Those of an answer that comes too late run out by themselves.
func within(ctx context.Context, ask func(ctx context.Context) ([]contract.Claim, error)) ([]contract.Claim, error) {
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	return ask(ctx)
}

func publication(c contract.Claim) contract.Publication {
	return contract.Publication{
		Subject: contract.Subject(c.ID, c.Livemode), MsgID: contract.MsgID(c.ID, c.Generation), FirstPublished: c.FirstPublished, Data: c.Envelope,
	}
}

// sort splits a batch into what the stream holds and what has to be tried again; failed is one of the reasons.
func (r *Relay) sort(claims []contract.Claim, offers []int, results []contract.Published) (marks []contract.Mark, released []string, failed error) {
	for i, c := range claims {
		res := results[i]
		switch {
		case res.Err == nil && res.Duplicate:
			r.publishes.WithLabelValues("duplicate").Inc()
			r.doubts[c.ID] = doubt{generation: offers[i], until: time.Now().Add(doubtFor)}
			continue
		case res.Err == nil:
			r.publishes.WithLabelValues("ok").Inc()
			c.Generation = offers[i]
		case errors.Is(res.Err, contract.ErrStillQueued):
			// An earlier publish was stored and its acknowledgement lost: it is where it should be, under its own generation.
			r.publishes.WithLabelValues("still_queued").Inc()
		default:
			r.publishes.WithLabelValues("failed").Inc()
			released, failed = append(released, c.ID), res.Err
			continue
		}
		marks = append(marks, contract.Mark{ID: c.ID, Generation: c.Generation, Sequence: res.Sequence})
	}
	return marks, released, failed
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
