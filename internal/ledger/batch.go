package ledger

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"purchase-relay/internal/purchase"
)

// The limits of a DB's batcher. Of 64 concurrent webhooks, one writer writes 64 together where two would
// write 32 each: a fifth less of Postgres' time per webhook. A commit takes a few milliseconds; one that
// takes slowAfter waits for a lock or has lost its connection.
const (
	maxWriters   = 4
	maxBatch     = 128
	maxQueued    = 4096
	slowAfter    = 30 * time.Millisecond
	writeTimeout = 5 * time.Second
)

// errQueueFull is returned while maxQueued receipts wait: Postgres is slower than the webhooks.
var errQueueFull = errors.New("write queue is full")

// recordBatcher writes concurrent receipts together (group commit). Receipts that arrive during a write form
// the next batch; a lone receipt is written immediately. One writer at a time makes the largest batches,
// which cost least. Another one starts only while a full batch waits or every running write is slow: a hung
// write delays no other batch. A writer ends when the queue is empty.
type recordBatcher struct {
	maxWriters, maxBatch, maxQueued int

	slowAfter time.Duration // another writer may start then
	timeout   time.Duration // of one write
	write     func(ctx context.Context, batch []purchase.Receipt) ([]purchase.Recorded, error)

	mu      sync.Mutex
	queue   []*queuedReceipt
	writers int // running
	slow    int // of them, those in a slow write
	running sync.WaitGroup
}

type queuedReceipt struct {
	ctx     context.Context //nolint:containedctx // the caller's: a cancelled receipt leaves the queue unwritten
	receipt purchase.Receipt
	done    chan recordResult // of capacity 1
}

type recordResult struct {
	recorded purchase.Recorded
	err      error
}

// record writes a receipt and returns its result. If ctx ends first, the receipt may be written nevertheless.
func (b *recordBatcher) record(ctx context.Context, r purchase.Receipt) (purchase.Recorded, error) {
	q := &queuedReceipt{ctx: ctx, receipt: r, done: make(chan recordResult, 1)}
	if !b.enqueue(q) {
		return purchase.Recorded{}, errQueueFull
	}
	select {
	case result := <-q.done:
		return result.recorded, result.err
	case <-ctx.Done():
		return purchase.Recorded{}, ctx.Err()
	}
}

func (b *recordBatcher) enqueue(q *queuedReceipt) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) >= b.maxQueued {
		return false
	}
	b.queue = append(b.queue, q)
	b.startWriter()
	return true
}

// startWriter starts a writer if one is needed and allowed. The caller holds the lock.
func (b *recordBatcher) startWriter() {
	if len(b.queue) > 0 && b.writers < b.maxWriters && (b.writers == b.slow || len(b.queue) >= b.maxBatch) {
		b.writers++
		b.running.Go(b.writeQueue)
	}
}

// writeQueue writes batches until the queue is empty.
func (b *recordBatcher) writeQueue() {
	for batch := b.nextBatch(); batch != nil; batch = b.nextBatch() {
		done := b.watch()
		b.writeBatch(batch)
		done()
	}
}

// nextBatch takes a batch from the queue; nil ends the writer.
func (b *recordBatcher) nextBatch() (batch []*queuedReceipt) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for ; n < len(b.queue) && len(batch) < b.maxBatch; n++ {
		if q := b.queue[n]; q.ctx.Err() == nil {
			batch = append(batch, q)
		}
	}
	clear(b.queue[:n])
	if b.queue = b.queue[n:]; len(b.queue) == 0 {
		b.queue = nil
	}
	if batch == nil {
		b.writers--
	}
	return batch
}

// watch counts a write as slow from slowAfter on, until done is called.
func (b *recordBatcher) watch() (done func()) {
	slow, over := false, false
	timer := time.AfterFunc(b.slowAfter, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !over {
			slow = true
			b.slow++
			b.startWriter()
		}
	})
	return func() {
		timer.Stop()
		b.mu.Lock()
		defer b.mu.Unlock()
		if over = true; slow {
			b.slow--
		}
	}
}

// writeBatch writes a batch and delivers the results. A batch that is refused for its content is written
// receipt by receipt, so that a bad one fails alone.
func (b *recordBatcher) writeBatch(batch []*queuedReceipt) {
	recorded, err := b.writeOnce(batch)
	if err != nil && len(batch) == 1 && transient(err) {
		recorded, err = b.writeOnce(batch)
	}
	if err != nil && len(batch) > 1 && contentError(err) {
		for i := range batch {
			b.writeBatch(batch[i : i+1])
		}
		return
	}
	for i, q := range batch {
		if err != nil {
			q.done <- recordResult{err: err}
			continue
		}
		q.done <- recordResult{recorded: recorded[i]}
	}
}

func (b *recordBatcher) writeOnce(batch []*queuedReceipt) (recorded []purchase.Recorded, err error) {
	defer func() {
		if p := recover(); p != nil { // its value stays out: it may hold personal data
			err = fmt.Errorf("%w: panic: %T\n%s", errContent, p, debug.Stack())
		}
	}()
	receipts := make([]purchase.Receipt, len(batch))
	limit := time.Now().Add(b.timeout)
	var deadline time.Time // the latest of the callers', at most limit
	for i, q := range batch {
		receipts[i] = q.receipt
		end, ok := q.ctx.Deadline()
		if !ok || end.After(limit) {
			end = limit
		}
		if end.After(deadline) {
			deadline = end
		}
	}
	// One caller's cancellation must not fail the others' receipts.
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	return b.write(ctx, receipts)
}

// close waits until every queued receipt is written.
func (b *recordBatcher) close() { b.running.Wait() }

// errContent marks an error that one receipt of a batch caused on our side.
var errContent = errors.New("unusable content")

// transient reports whether the same write may succeed immediately: its conflict is over (class 40,
// serialisation and deadlock; 23503, a profile that another process created meanwhile).
func transient(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && (strings.HasPrefix(refused.Code, "40") || refused.Code == "23503")
}

// contentError reports whether a smaller batch may succeed: the server refused this one for its content or
// its locks, not for its own state (classes 08, 53, 57 and 58: connection, resources, shutdown, system).
func contentError(err error) bool {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) {
		var unreadable pgx.ScanArgError // of a row that was read for one of the receipts
		return errors.Is(err, errContent) || errors.As(err, &unreadable)
	}
	for _, class := range []string{"08", "53", "57", "58"} {
		if strings.HasPrefix(refused.Code, class) {
			return false
		}
	}
	return true
}
