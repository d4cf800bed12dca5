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

	"purchase-relay/internal/message"
)

// Outbox is the ledger's side. Implementations guarantee: a claim belongs to one caller for
// contract.ClaimFor, on every replica; marks are idempotent and never overwrite a later outcome.
type Outbox interface {
	// Claim claims up to limit pending purchases, oldest first.
	Claim(ctx context.Context, limit int) ([]message.Claim, error)
	// Published marks claims as published.
	Published(ctx context.Context, marks []message.Mark) error
	// Released ends claims whose publication may have been stored.
	Released(ctx context.Context, ids []string) error
	// Unsent ends claims whose publication was not stored: where no earlier one may have been, the purchase
	// has no age yet.
	Unsent(ctx context.Context, ids []string) error
}

// Queue is the streams' side. Publish returns one result per publication, in their order, after the stream's
// answers or its own time limit. OutcomeLag returns the age of the oldest outcome that is not recorded yet,
// by the server's clock; 0 without one.
type Queue interface {
	Publish(ctx context.Context, batch []message.Publication) []message.Published
	Connected() bool
	OutcomeLag(ctx context.Context) (time.Duration, error)
}

const (
	// batchSize is how many purchases are claimed and published at a time.
	batchSize = 500
	// pollEvery looks for what another process or a crash left behind; commits wake the relay by themselves.
	pollEvery = 2 * time.Second
	// ledgerTimeout bounds a question to the ledger: a connection may be dead, and nobody said so.
	ledgerTimeout = 10 * time.Second
	// retryInitial is the pause after a failure. It doubles up to retryMax while a stream that is full or
	// missing stores nothing of a batch, which costs the ledger a claim and a release of each purchase.
	retryInitial = 500 * time.Millisecond
	retryMax     = 30 * time.Second
	// markAfter is how long the mark of a published purchase waits for its outcome to make it needless.
	markAfter = 250 * time.Millisecond
	// offeredMost bounds what waits in memory: over it, purchases wait on the ledger.
	offeredMost = 5000
	// unmarkedMost bounds the marks that are kept while the ledger does not take them.
	unmarkedMost = 50_000
	// doubtFor is how long the outcome of a message that the stream says to have taken before is waited for: what was told before then
	// is on the ledger, where no outcome waits that is older than this.
	doubtFor = 5 * time.Second
	// putOffMax bounds how long unrecorded outcomes put off the sweep, and a purchase whose message id the
	// stream knew. An outcome that no present ingest can record must not end either; a sweep too early sends
	// once more under the same event_id.
	putOffMax = time.Hour
	// offerMax is how long an offered purchase may wait in memory. With the publish after it, it is less than
	// contract.ClaimFor: a later publish could come after another replica's, or after the customer was
	// forgotten.
	offerMax = message.ClaimFor / 3
)

// doubt is a purchase whose message id the stream knew: an earlier publish was stored and nobody heard so, or, after a
// restored backup or an emptied ledger, it was another life's. Only the first is in the queue, or has an outcome on its way.
type doubt struct {
	generation int       // the highest one that was published
	until      time.Time // then the claim is given back, or once released, was
	released   bool
}

// offered is a claim that waits to be published.
type offered struct {
	message.Claim

	at time.Time
}

// stored is a mark to be written.
type stored struct {
	message.Mark

	at time.Time
}

// Relay publishes pending purchases.
type Relay struct {
	outbox Outbox
	queue  Queue
	log    *zap.Logger
	now    func() time.Time
	wake   chan struct{} // something may wait on the ledger
	more   chan struct{} // something was offered
	retry  chan struct{} // the stream may store again

	mu      sync.Mutex
	offered []offered
	running bool
	paused  bool // the stream stored nothing of the last batch

	// Of Run's goroutine alone.
	doubts   map[string]doubt // by session
	unmarked []stored         // in the order of their times
	failures int              // batches in a row of which the stream stored nothing

	publishes *prometheus.CounterVec
}

// New returns a Relay; Run makes it work.
func New(o Outbox, q Queue, now func() time.Time, log *zap.Logger, reg prometheus.Registerer) *Relay {
	r := &Relay{
		outbox: o, queue: q, log: log, now: now, doubts: make(map[string]doubt),
		wake: make(chan struct{}, 1), more: make(chan struct{}, 1), retry: make(chan struct{}, 1),
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

// Retry ends a pause after failures: the streams were created or repaired. It never blocks and may be called
// from anywhere.
func (r *Relay) Retry() {
	select {
	case r.retry <- struct{}{}:
	default:
	}
}

// Ready reports whether an offer would be published immediately.
func (r *Relay) Ready() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.running && !r.paused && len(r.offered) < offeredMost && r.queue.Connected()
}

// Offer enqueues a purchase that was claimed in the transaction that recorded it, after the commit: the
// ledger need not be queried for it. It never blocks. An offer that is not published in time stays claimed
// for contract.ClaimFor and is then found on the ledger.
func (r *Relay) Offer(c message.Claim) {
	r.mu.Lock()
	r.offered = append(r.offered, offered{c, r.now()})
	r.mu.Unlock()
	select {
	case r.more <- struct{}{}:
	default:
	}
}

// take returns the next offers, and the ids of those before them that have waited too long.
func (r *Relay) take() (claims []message.Claim, stale []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	oldest, n := r.now().Add(-offerMax), 0
	for ; n < len(r.offered) && len(claims) < batchSize; n++ {
		if o := r.offered[n]; o.at.Before(oldest) {
			stale = append(stale, o.ID)
		} else {
			claims = append(claims, o.Claim)
		}
	}
	if r.offered = r.offered[n:]; len(r.offered) == 0 {
		r.offered = nil
	}
	return claims, stale
}

// publishOffered publishes what was offered, batch by batch. Stale offers are claimed again like everything
// that waits on the ledger.
func (r *Relay) publishOffered(ctx context.Context) error {
	for {
		claims, stale := r.take()
		if len(stale) > 0 {
			if err := r.unsent(ctx, stale); err != nil {
				return err
			}
		}
		if len(claims) == 0 {
			return nil
		}
		if err := r.publish(ctx, claims); err != nil {
			return err
		}
		if err := r.mark(ctx, r.now().Add(-markAfter)); err != nil {
			return err
		}
	}
}

func (r *Relay) unsent(ctx context.Context, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	return r.outbox.Unsent(ctx, ids)
}

func (r *Relay) run(running bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = running
}

// Run publishes until ctx ends, then finishes the batch in flight. The first failure of a row is logged, and
// its end.
func (r *Relay) Run(ctx context.Context) error {
	r.run(true)
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	marks := time.NewTicker(markAfter)
	defer marks.Stop()
	failing, look := false, true
	for {
		again, err := r.Pass(ctx, look)
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
		if err != nil && !r.pause(ctx) {
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
		case <-r.retry:
			look = true
		case <-poll.C:
			look = true
		}
	}
}

// pause waits after a failure, longer after each batch of which the stream stored nothing. Retry and a lost
// connection end it; false: ctx ended first.
func (r *Relay) pause(ctx context.Context) bool {
	delay := retryMax
	if r.failures < 7 {
		delay = min(retryMax, retryInitial<<max(0, r.failures-1))
	}
	if delay > markAfter {
		_ = r.mark(ctx, time.Time{}) // their claims would run out meanwhile; a failure is met again after the pause
	}
	end := time.NewTimer(delay)
	defer end.Stop()
	look := time.NewTicker(retryInitial)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-end.C:
			return true
		case <-r.retry:
			return true
		case <-look.C:
			if !r.queue.Connected() {
				r.failures = 0
				return true
			}
		}
	}
}

func (r *Relay) setPaused(paused bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paused = paused
}

// finish publishes what was offered before the listener closed, and marks what was published.
func (r *Relay) finish(ctx context.Context) error {
	r.run(false)
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	if err := errors.Join(r.publishOffered(ctx), r.mark(ctx, time.Time{})); err != nil {
		r.log.Warn("Shutdown with unpublished purchases", zap.Error(err),
			zap.String("remedy", "none: the next start publishes them"))
	}
	return nil
}

// Pass is one round of Run: it writes the marks that are due and publishes what was offered and, where look
// is set, a batch of what waits on the ledger. again reports whether that batch was full. In-flight work is
// finished although ctx ends.
func (r *Relay) Pass(ctx context.Context, look bool) (again bool, err error) {
	if err := r.mark(ctx, r.now().Add(-markAfter)); err != nil {
		return false, err
	}
	if err := r.publishOffered(ctx); err != nil {
		return false, err
	}
	if !look || !r.queue.Connected() {
		return false, nil // the connection's return wakes us; its absence has been logged
	}
	doubtful := r.releaseDoubts(ctx) // whatever becomes of them, the others are published
	claims, err := within(ctx, func(ctx context.Context) ([]message.Claim, error) { return r.outbox.Claim(ctx, batchSize) })
	if err != nil || len(claims) == 0 {
		return false, errors.Join(doubtful, err)
	}
	return len(claims) == batchSize, errors.Join(doubtful, r.publish(ctx, claims))
}

// publish publishes claims and releases those that the stream does not hold afterwards.
func (r *Relay) publish(ctx context.Context, claims []message.Claim) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), message.ClaimFor/2)
	defer cancel()
	batch := make([]message.Publication, len(claims))
	offers := make([]int, len(claims)) // the generations that are published
	for i, c := range claims {
		offers[i] = r.offer(c)
		c.Generation = offers[i]
		batch[i] = publication(c)
	}
	answered := r.sort(claims, offers, r.queue.Publish(ctx, batch))
	r.unmarked = append(r.unmarked, answered.marks...)
	if len(answered.released)+len(answered.unsent) == len(claims) {
		r.failures++
	} else {
		r.failures = 0
	}
	r.setPaused(r.failures > 0)
	failed := answered.failed
	if len(answered.released) > 0 {
		failed = errors.Join(failed, r.outbox.Released(ctx, answered.released))
	}
	if len(answered.unsent) > 0 {
		failed = errors.Join(failed, r.outbox.Unsent(ctx, answered.unsent))
	}
	return failed
}

// mark writes the marks of what the stream stored before a time; zero: all. It waits long enough for most
// purchases to have their outcome, which makes the mark needless: a row is written once less. A mark that
// cannot be written is kept; one that is lost with the process is replaced when the claim has run out,
// because the stream knows the message id.
func (r *Relay) mark(ctx context.Context, before time.Time) error {
	n := len(r.unmarked)
	if !before.IsZero() {
		n = sort.Search(n, func(i int) bool { return r.unmarked[i].at.After(before) })
	}
	for n > 0 {
		marks := make([]message.Mark, min(n, batchSize))
		for i := range marks {
			marks[i] = r.unmarked[i].Mark
			marks[i].Age = r.now().Sub(r.unmarked[i].at)
		}
		ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
		err := r.outbox.Published(ctx, marks)
		cancel()
		if err != nil {
			r.unmarked = r.unmarked[max(0, len(r.unmarked)-unmarkedMost):]
			return err
		}
		r.unmarked = r.unmarked[len(marks):]
		n -= len(marks)
	}
	return nil
}

// offer is the generation to publish a claim under. Where its message id was known to the stream and no outcome has come since,
// it is a new one: while the stream still holds the purchase, it refuses that. A claim that ran out before is in doubt as it was.
func (r *Relay) offer(c message.Claim) int {
	d := r.doubts[c.ID]
	if d.released {
		delete(r.doubts, c.ID)
		d.generation++
	}
	return max(c.Generation, d.generation)
}

// releaseDoubts releases the claims that waited long enough for an outcome: those that got one are not
// claimed again. While outcomes wait to be recorded (Postgres or the queue was down), a purchase's own may be
// among them, for at most putOffMax.
func (r *Relay) releaseDoubts(ctx context.Context) error {
	var due []string
	now := r.now()
	for id, d := range r.doubts {
		switch {
		case !d.released && !now.Before(d.until):
			due = append(due, id)
		case d.released && now.After(d.until.Add(message.ClaimFor)):
			delete(r.doubts, id) // its outcome came
		}
	}
	if len(due) == 0 {
		return nil
	}
	lag, err := r.queue.OutcomeLag(ctx)
	if err != nil {
		return err
	}
	if lag > doubtFor {
		due = slices.DeleteFunc(due, func(id string) bool {
			return now.Before(r.doubts[id].until.Add(putOffMax))
		})
	}
	if len(due) == 0 {
		return nil
	}
	if _, err := within(ctx, func(ctx context.Context) ([]message.Claim, error) { return nil, r.outbox.Released(ctx, due) }); err != nil {
		return err
	}
	for _, id := range due {
		d := r.doubts[id]
		d.released, d.until = true, now
		r.doubts[id] = d
	}
	return nil
}

// within asks the ledger for claims, for a bounded time. Those of an answer that comes too late run out by themselves.
func within(ctx context.Context, ask func(ctx context.Context) ([]message.Claim, error)) ([]message.Claim, error) {
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	return ask(ctx)
}

func publication(c message.Claim) message.Publication {
	return message.Publication{
		Subject: message.Subject(c.ID, c.Livemode), MsgID: message.MsgID(c.ID, c.Generation), FirstPublished: c.FirstPublished, Data: c.Envelope,
	}
}

// answers are the stream's answers to a batch.
type answers struct {
	marks            []stored
	released, unsent []string // purchases that may have been stored, and that were not
	failed           error    // one of the reasons
}

// sort splits a batch by what the stream answered.
func (r *Relay) sort(claims []message.Claim, offers []int, results []message.Published) (a answers) {
	now := r.now()
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
		case errors.Is(res.Err, message.ErrStillQueued):
			// An earlier publish was stored and its acknowledgement lost: it is where it should be, under its own generation.
			r.publishes.WithLabelValues("still_queued").Inc()
		case res.Refused:
			r.publishes.WithLabelValues("failed").Inc()
			a.unsent, a.failed = append(a.unsent, c.ID), res.Err
			continue
		default:
			r.publishes.WithLabelValues("failed").Inc()
			a.released, a.failed = append(a.released, c.ID), res.Err
			continue
		}
		delete(r.doubts, c.ID)
		a.marks = append(a.marks, stored{at: now, Mark: message.Mark{
			ID: c.ID, Generation: c.Generation, Sequence: res.Sequence, First: c.FirstPublished,
		}})
	}
	return a
}
