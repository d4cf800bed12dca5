// Package relay is step 2: pending purchases on the ledger are published to the queue, in batches, and marked
// published once the stream has acknowledged them. The ledger is the outbox: while NATS is down rows wait, and
// nothing is lost or delayed for the customer.
package relay

import (
	"context"
	"errors"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/contract"
)

// Outbox is the ledger's side. Implementations owe: a claim is this caller's alone for contract.ClaimFor, on every
// replica; marks are idempotent and never take back what an outcome has said since.
type Outbox interface {
	// Claim takes up to most pending purchases, oldest first.
	Claim(ctx context.Context, most int) ([]contract.Claim, error)
	// Published marks claims as published, Released gives others back at once.
	Published(ctx context.Context, marks []contract.Mark) error
	Released(ctx context.Context, ids []string) error
}

// Queue is the streams' side, and how far the ledger is behind what the workers told. Publish returns one result per publication, in
// their order, after the stream's answers or its own time limit. OldestOutcome returns when the oldest outcome that is not on the ledger
// yet was told; zero: none waits.
type Queue interface {
	Publish(ctx context.Context, batch []contract.Publication) []contract.Published
	Connected() bool
	OldestOutcome(ctx context.Context) (time.Time, error)
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
	// markAfter is how long the mark of a published purchase waits for its outcome to make it needless.
	markAfter = 250 * time.Millisecond
	// offeredMost bounds what waits in memory: over it, purchases wait on the ledger.
	offeredMost = 5000
	// unmarkedMost bounds the marks that are kept while the ledger does not take them.
	unmarkedMost = 50_000
	// doubtFor is how long the outcome of a message that the stream says to have taken before is waited for: what was told before then
	// is on the ledger, where no outcome waits that is older than this.
	doubtFor = 5 * time.Second
	// mostLag bounds how old an outcome may become that puts a purchase off, or the sweep: one that can never be recorded must not end
	// them.
	mostLag = 6 * time.Hour
)

// doubt is a purchase whose message id the stream knew: an earlier publish was stored and nobody heard so, or, after a
// restored backup or an emptied ledger, it was another life's. Only the first is in the queue, or has an outcome on its way.
type doubt struct {
	generation int       // the highest one that was published
	until      time.Time // then the claim is given back, or once released, was
	released   bool
}

// Relay publishes pending purchases.
type Relay struct {
	outbox Outbox
	queue  Queue
	log    *zap.Logger
	wake   chan struct{} // something may wait on the ledger
	more   chan struct{} // something was offered

	mu      sync.Mutex
	offered []contract.Claim
	running bool

	// Of Run's goroutine alone.
	doubts   map[string]doubt // by session
	unmarked []contract.Mark  // in the order of their times

	publishes *prometheus.CounterVec
}

// New returns a Relay; Run makes it work.
func New(o Outbox, q Queue, log *zap.Logger, reg prometheus.Registerer) *Relay {
	r := &Relay{
		outbox: o, queue: q, log: log, wake: make(chan struct{}, 1), more: make(chan struct{}, 1), doubts: make(map[string]doubt),
		publishes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_publishes_total", Help: "Purchases handed to the queue, by result.",
		}, []string{"result"}),
	}
	for _, result := range []string{"ok", "still_queued", "duplicate", "failed"} {
		r.publishes.WithLabelValues(result) // from 0: an increase from nothing at all would not be seen
	}
	reg.MustRegister(r.publishes)
	return r
}

// Wake says that something may wait on the ledger: after a replay, or when the connection is back. It never
// blocks and may be called from anywhere.
func (r *Relay) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Ready says whether what is offered now will be published at once.
func (r *Relay) Ready() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.running && len(r.offered) < offeredMost && r.queue.Connected()
}

// Offer hands a purchase over that was claimed where it was recorded, after the commit: the ledger need not be asked for it. It never
// blocks. What is offered and not published (a crash) stays claimed for contract.ClaimFor, and is then found on the ledger.
func (r *Relay) Offer(c contract.Claim) {
	r.mu.Lock()
	r.offered = append(r.offered, c)
	r.mu.Unlock()
	select {
	case r.more <- struct{}{}:
	default:
	}
}

func (r *Relay) take() []contract.Claim {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(batchSize, len(r.offered))
	taken := r.offered[:n:n]
	if r.offered = r.offered[n:]; len(r.offered) == 0 {
		r.offered = nil
	}
	return taken
}

func (r *Relay) run(running bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = running
}

// Run publishes until ctx ends, then finishes what is under way. The first failure of a row of them is logged, and
// the end of it.
func (r *Relay) Run(ctx context.Context) error {
	r.run(true)
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	marks := time.NewTicker(markAfter)
	defer marks.Stop()
	failing, look := false, true
	for {
		again, err := r.once(ctx, look)
		switch {
		case ctx.Err() != nil:
			return r.finish(context.WithoutCancel(ctx))
		case err != nil && !failing:
			failing = true
			r.log.Warn("Publishing is delayed, the purchases wait on the ledger", zap.Error(err))
		case err == nil && failing && look:
			failing = false
			r.log.Info("Purchases are published again")
		}
		if err != nil && !wait(ctx, pauseAfterFailure) {
			return r.finish(context.WithoutCancel(ctx))
		}
		if look = again || err != nil; again && err == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return r.finish(context.WithoutCancel(ctx))
		case <-r.more:
		case <-marks.C:
		case <-r.wake:
			look = true
		case <-poll.C:
			look = true
		}
	}
}

// finish publishes what was offered before the listener closed, and marks what was published.
func (r *Relay) finish(ctx context.Context) error {
	r.run(false)
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	var err error
	for claims := r.take(); len(claims) > 0 && err == nil; claims = r.take() {
		err = r.publish(ctx, claims)
	}
	if err = errors.Join(err, r.mark(ctx, time.Time{})); err != nil {
		r.log.Warn("Stopping before everything was published or marked; the next start makes up for it", zap.Error(err))
	}
	return nil
}

// once publishes what was offered and, where look says so, a batch of what waits on the ledger; again says that this one was full.
// What is under way is finished although ctx ends.
func (r *Relay) once(ctx context.Context, look bool) (again bool, err error) {
	if err := r.mark(ctx, time.Now().Add(-markAfter)); err != nil {
		return false, err
	}
	for claims := r.take(); len(claims) > 0; claims = r.take() {
		if err := r.publish(ctx, claims); err != nil {
			return false, err
		}
		if err := r.mark(ctx, time.Now().Add(-markAfter)); err != nil {
			return false, err
		}
	}
	if !look || !r.queue.Connected() {
		return false, nil // the connection's return wakes us; its absence has been logged
	}
	doubtful := r.releaseDoubts(ctx) // whatever becomes of them, the others are published
	claims, err := within(ctx, func(ctx context.Context) ([]contract.Claim, error) { return r.outbox.Claim(ctx, batchSize) })
	if err != nil || len(claims) == 0 {
		return false, errors.Join(doubtful, err)
	}
	return len(claims) == batchSize, errors.Join(doubtful, r.publish(ctx, claims))
}

// publish publishes claims, and gives those back that the stream did not take.
func (r *Relay) publish(ctx context.Context, claims []contract.Claim) error {
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
	r.unmarked = append(r.unmarked, marks...)
	if len(released) > 0 {
		return errors.Join(failed, r.outbox.Released(ctx, released))
	}
	return nil
}

// mark writes down what the stream has had since before a time (zero: all), so late that most purchases have had their outcome by
// then, which says the same: a row is written once less. A mark that cannot be written is tried again; one that is lost with this
// process is made up for when the claim has run out, because the stream knows the message id.
func (r *Relay) mark(ctx context.Context, before time.Time) error {
	n := len(r.unmarked)
	if !before.IsZero() {
		n = sort.Search(n, func(i int) bool { return r.unmarked[i].At.After(before) })
	}
	for n > 0 {
		some := min(n, batchSize)
		ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
		err := r.outbox.Published(ctx, slices.Clone(r.unmarked[:some]))
		cancel()
		if err != nil {
			r.unmarked = r.unmarked[max(0, len(r.unmarked)-unmarkedMost):]
			return err
		}
		r.unmarked = r.unmarked[some:]
		n -= some
	}
	return nil
}

// offer is the generation to publish a claim under. Where its message id was known to the stream and no outcome has come since,
// it is a new one: while the stream still holds the purchase, it refuses that. A claim that ran out before is in doubt as it was.
func (r *Relay) offer(c contract.Claim) int {
	d := r.doubts[c.ID]
	if d.released {
		delete(r.doubts, c.ID)
		d.generation++
	}
	return max(c.Generation, d.generation)
}

// releaseDoubts gives claims back that wait no longer for an outcome: those that got one are not claimed again. While the ledger is
// behind what the workers told (Postgres was away, or the queue), a purchase's own outcome may be among those that wait.
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
	if lag, err := lagOf(ctx, r.queue, time.Now); err != nil || lag > doubtFor {
		return err
	}
	if _, err := within(ctx, func(ctx context.Context) ([]contract.Claim, error) { return nil, r.outbox.Released(ctx, due) }); err != nil {
		return err
	}
	for _, id := range due {
		d := r.doubts[id]
		d.released, d.until = true, now
		r.doubts[id] = d
	}
	return nil
}

// lagOf is how far the ledger is behind what the workers told: the age of the oldest outcome that waits, 0 without one, or where it is
// one that can never be recorded.
func lagOf(ctx context.Context, q Queue, now func() time.Time) (time.Duration, error) {
	oldest, err := q.OldestOutcome(ctx)
	if err != nil || oldest.IsZero() {
		return 0, err
	}
	if lag := now().Sub(oldest); lag <= mostLag {
		return max(0, lag), nil
	}
	return 0, nil
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
	now := time.Now()
	for i, c := range claims {
		res := results[i]
		switch {
		case res.Err == nil && res.Duplicate:
			r.publishes.WithLabelValues("duplicate").Inc()
			if r.doubts[c.ID].generation != offers[i] {
				r.doubts[c.ID] = doubt{generation: offers[i], until: now.Add(doubtFor)}
			}
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
		delete(r.doubts, c.ID)
		marks = append(marks, contract.Mark{ID: c.ID, Generation: c.Generation, Sequence: res.Sequence, At: now, First: c.FirstPublished})
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
