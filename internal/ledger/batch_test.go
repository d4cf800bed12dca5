package ledger

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"purchase-relay/internal/purchase"
)

// slowWriter takes a millisecond per write and keeps the batches.
type slowWriter struct {
	mu         sync.Mutex
	batches    [][]string // of purchase ids
	concurrent int
	peak       int // of concurrent writes
	fail       func(batch []string) error
}

func (w *slowWriter) write(ctx context.Context, receipts []purchase.Receipt) ([]purchase.Recorded, error) {
	ids := make([]string, len(receipts))
	recorded := make([]purchase.Recorded, len(receipts))
	for i := range receipts {
		ids[i] = receipts[i].Purchase.ID
		recorded[i].ProfileID = "profile of " + ids[i]
	}
	w.mu.Lock()
	w.batches = append(w.batches, ids)
	w.concurrent++
	w.peak = max(w.peak, w.concurrent)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.concurrent--
		w.mu.Unlock()
	}()
	select {
	case <-time.After(time.Millisecond):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if w.fail != nil {
		if err := w.fail(ids); err != nil {
			return nil, err
		}
	}
	return recorded, nil
}

func (w *slowWriter) batcher() *recordBatcher {
	return &recordBatcher{
		maxWriters: 2, maxBatch: 10, maxQueued: 100, slowAfter: 20 * time.Millisecond, timeout: 5 * time.Second,
		write: w.write,
	}
}

// AllowSlowWrites lengthens the write timeout, which a busy machine may exceed, for tests of other things.
func (db *DB) AllowSlowWrites() { db.batcher.timeout = time.Minute }

// numbered returns a receipt whose purchase has the id n.
func numbered(n int) purchase.Receipt {
	return purchase.Receipt{Purchase: purchase.Purchase{ID: strconv.Itoa(n)}}
}

// Receipts that arrive during a write share the next one. A lone receipt is written immediately.
func TestRecordBatcher_WritesTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &slowWriter{}
		b := w.batcher()
		var all sync.WaitGroup
		began := time.Now()
		for i := range 25 {
			all.Go(func() {
				r, err := b.record(t.Context(), numbered(i))
				if want := "profile of " + strconv.Itoa(i); err != nil || r.ProfileID != want {
					t.Errorf("receipt %d: recorded %+v, %v, want %q", i, r, err, want)
				}
			})
		}
		all.Wait()
		b.close()
		if took := time.Since(began); took > 3*time.Millisecond || w.peak != 2 || len(w.batches) > 5 {
			t.Errorf("batches = %d, peak = %d in %s, want at most 5, 2 in 3ms", len(w.batches), w.peak, took)
		}
		w.batches, w.peak = nil, 0
		for i := range 9 { // less than a batch
			all.Go(func() { _, _ = b.record(t.Context(), numbered(i)) })
		}
		all.Wait()
		b.close()
		if w.peak != 1 || len(w.batches) > 2 {
			t.Errorf("less than a batch: batches = %d, peak = %d, want at most 2, 1", len(w.batches), w.peak)
		}
		began = time.Now()
		if _, err := b.record(t.Context(), numbered(99)); err != nil || time.Since(began) != time.Millisecond {
			t.Errorf("lone receipt took %s, %v, want 1ms", time.Since(began), err)
		}
		if b.close(); b.writers != 0 || b.queue != nil {
			t.Errorf("writers = %d, queued = %d, want none", b.writers, len(b.queue))
		}
	})
}

// If the server rejects a batch for its content, each receipt is written alone: only the bad one fails.
func TestRecordBatcher_IsolatesBadReceipt(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(batch []string) error{
		"rejected by the server": func(batch []string) error {
			if slices.Contains(batch, "7") {
				return &pgconn.PgError{Code: "23514"}
			}
			return nil
		},
		"panic": func(batch []string) error {
			if slices.Contains(batch, "7") {
				panic("7")
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &slowWriter{fail: fail}
				b := w.batcher()
				var all sync.WaitGroup
				for i := range 20 {
					all.Go(func() {
						switch _, err := b.record(t.Context(), numbered(i)); {
						case (err != nil) != (i == 7):
							t.Errorf("receipt %d: error = %v", i, err)
						case err != nil && strings.Contains(err.Error(), "panic: 7"):
							t.Errorf("error = %v, want none with the panic's value", err)
						}
					})
				}
				all.Wait()
				if len(w.batches) > 30 {
					t.Errorf("%d writes, want at most 30", len(w.batches))
				}
			})
		})
	}
}

// A batch is not retried receipt by receipt if the server is down, full or shutting down.
func TestRecordBatcher_TriesAbsentServerOnce(t *testing.T) {
	t.Parallel()
	for _, want := range []error{
		errors.New("connection refused"), &pgconn.PgError{Code: "53100"}, &pgconn.PgError{Code: "57P01"},
		context.DeadlineExceeded,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := &slowWriter{fail: func([]string) error { return want }}
			b := w.batcher()
			var all sync.WaitGroup
			for i := range 12 {
				all.Go(func() {
					if _, err := b.record(t.Context(), numbered(i)); !errors.Is(err, want) {
						t.Errorf("receipt %d: error = %v, want %v", i, err, want)
					}
				})
			}
			all.Wait()
			if len(w.batches) > 4 {
				t.Errorf("%v: %d writes, want at most 4", want, len(w.batches))
			}
		})
	}
}

// A hung write delays neither queued receipts nor later ones.
func TestRecordBatcher_SlowWriteDelaysNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &slowWriter{}
		b := w.batcher()
		hang := make(chan struct{})
		b.write = func(ctx context.Context, batch []purchase.Receipt) ([]purchase.Recorded, error) {
			if batch[0].Purchase.ID == "0" {
				<-hang
			}
			return w.write(ctx, batch)
		}
		var first sync.WaitGroup
		began := time.Now()
		first.Go(func() { _, _ = b.record(t.Context(), numbered(0)) })
		synctest.Wait()
		for i, want := range []time.Duration{21 * time.Millisecond, 22 * time.Millisecond, 23 * time.Millisecond} {
			if _, err := b.record(t.Context(), numbered(i+1)); err != nil || time.Since(began) != want {
				t.Errorf("receipt %d was written after %s, %v, want %s", i+1, time.Since(began), err, want)
			}
		}
		close(hang)
		first.Wait()
		b.close()
		if b.slow != 0 || b.writers != 0 {
			t.Errorf("%d slow writers of %d, want none", b.slow, b.writers)
		}
	})
}

// The queue and each write are bounded. A cancelled receipt does not affect others and, if still queued, is
// not written.
func TestRecordBatcher_IsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		w := &slowWriter{}
		b := w.batcher()
		b.write = func(ctx context.Context, batch []purchase.Receipt) ([]purchase.Recorded, error) {
			select {
			case <-hang:
				return w.write(ctx, batch)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		results := make(chan error, 200)
		cancelled, cancel := context.WithCancel(t.Context())
		for i := range 111 { // 11 of them in two writes
			ctx := t.Context()
			if i >= 50 && i < 60 {
				ctx = cancelled
			}
			go func() {
				_, err := b.record(ctx, numbered(i))
				results <- err
			}()
			synctest.Wait()
		}
		if _, err := b.record(t.Context(), numbered(999)); !errors.Is(err, errQueueFull) {
			t.Errorf("record with a full queue = %v, want %v", err, errQueueFull)
		}
		cancel()
		synctest.Wait()
		for range 10 {
			if err := <-results; !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled receipt: %v, want %v", err, context.Canceled)
			}
		}
		close(hang)
		for range 101 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		for _, id := range slices.Concat(w.batches...) {
			if n, _ := strconv.Atoi(id); n >= 50 && n < 60 {
				t.Errorf("receipt %d was cancelled and written", n)
			}
		}
		// A write ends with its caller's deadline, or with the batcher's timeout.
		hang = make(chan struct{})
		short, cancelShort := context.WithTimeout(t.Context(), time.Second)
		defer cancelShort()
		began := time.Now()
		if _, err := b.record(short, numbered(1)); !errors.Is(err, context.DeadlineExceeded) ||
			time.Since(began) != time.Second {
			t.Errorf("record = %v after %s, want a timeout after 1s", err, time.Since(began))
		}
		if b.close(); time.Since(began) != time.Second {
			t.Errorf("the write ended after %s, want 1s", time.Since(began))
		}
		if _, err := b.record(t.Context(), numbered(1)); !errors.Is(err, context.DeadlineExceeded) ||
			time.Since(began) != 6*time.Second {
			t.Errorf("record = %v after %s, want a timeout after 6s", err, time.Since(began))
		}
		b.close()
	})
}

// A profile's id is a version 7 UUID: later ids are greater, and ids of the same millisecond differ.
func TestNewUUID_IsOrderedByTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
		seen, last := make(map[string]bool), ""
		for range 1000 {
			id, twin := newUUID(), newUUID()
			if !form.MatchString(id) || id <= last || seen[id] || id == twin {
				t.Fatalf("ids %s and %s after %s", id, twin, last)
			}
			seen[id], last = true, max(id, twin)
			time.Sleep(time.Millisecond) //nolint:forbidigo // virtual time
		}
	})
}
