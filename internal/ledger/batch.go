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

// A commit takes a few milliseconds; after slowAfter it waits for a lock or has lost its connection.
const (
	maxWriters   = 4
	maxBatch     = 128
	maxQueued    = 4096
	slowAfter    = 30 * time.Millisecond
	writeTimeout = 5 * time.Second
)

var errQueueFull = errors.New("write queue is full")

// recordBatcher writes concurrent receipts together (group commit). Receipts that arrive during a write form
// the next batch; a lone receipt is written immediately. A single writer makes the largest and cheapest
// batches: one of 64 costs a fifth less per webhook than two of 32. Another writer starts only while a full
// batch waits or every running write is slow, so that a hung write delays no other batch.
type recordBatcher struct {
	maxWriters, maxBatch, maxQueued int

	slowAfter time.Duration // until a write counts as slow
	timeout   time.Duration // per write
	write     func(ctx context.Context, batch []purchase.Receipt) ([]purchase.Recorded, error)

	mu      sync.Mutex
	queue   []*queuedReceipt
	writers int // running
	slow    int // running writers whose write is slow
	running sync.WaitGroup
}

type queuedReceipt struct {
	ctx     context.Context //nolint:containedctx // the caller's: once cancelled, the receipt is not written
	receipt purchase.Receipt
	done    chan recordResult // capacity 1
}

type recordResult struct {
	recorded purchase.Recorded
	err      error
}

// record writes a receipt and returns the result. If ctx ends first, the receipt may still be written.
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

func (b *recordBatcher) writeQueue() {
	for batch := b.nextBatch(); batch != nil; batch = b.nextBatch() {
		stop := b.trackSlow()
		b.writeBatch(batch)
		stop()
	}
}

// nextBatch takes a batch from the queue. It returns nil, and counts the writer as ended, if there is none.
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

// trackSlow counts the writer as slow from slowAfter until stop is called.
func (b *recordBatcher) trackSlow() (stop func()) {
	slow, stopped := false, false
	timer := time.AfterFunc(b.slowAfter, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !stopped {
			slow = true
			b.slow++
			b.startWriter()
		}
	})
	return func() {
		timer.Stop()
		b.mu.Lock()
		defer b.mu.Unlock()
		if stopped = true; slow {
			b.slow--
		}
	}
}

// writeBatch writes a batch and delivers the results. If the server rejects the batch for its content, each
// receipt is written alone: only the bad one fails.
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
		if p := recover(); p != nil { // p itself may contain personal data
			err = fmt.Errorf("%w: panic: %T\n%s", errContent, p, debug.Stack())
		}
	}()
	receipts := make([]purchase.Receipt, len(batch))
	limit := time.Now().Add(b.timeout)
	var deadline time.Time // the callers' latest, up to limit
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
	// A cancelled caller must not fail the receipts of the others.
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	return b.write(ctx, receipts)
}

func (b *recordBatcher) close() { b.running.Wait() }

// errContent marks an error that a single receipt of a batch caused in this process.
var errContent = errors.New("unusable content")

// transient reports whether a retry may succeed immediately: class 40 is a serialisation failure or deadlock,
// 23503 a profile that another process created in the meantime.
func transient(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (strings.HasPrefix(pgErr.Code, "40") || pgErr.Code == "23503")
}

// contentError reports whether a smaller batch may succeed: the server rejected this one for its content or
// its locks, not for the server's state (classes 08, 53, 57, 58: connection, resources, shutdown, system).
func contentError(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		var unreadable pgx.ScanArgError // a row that was read for one of the receipts
		return errors.Is(err, errContent) || errors.As(err, &unreadable)
	}
	for _, class := range []string{"08", "53", "57", "58"} {
		if strings.HasPrefix(pgErr.Code, class) {
			return false
		}
	}
	return true
}
