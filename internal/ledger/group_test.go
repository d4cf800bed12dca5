package ledger

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// pen is a slow writer that keeps what it was given.
type pen struct {
	mu      sync.Mutex
	batches [][]int
	busy    int
	most    int // writes at a time
	fail    func(batch []int) error
}

func (p *pen) write(ctx context.Context, batch []int) ([]string, error) {
	p.mu.Lock()
	p.batches = append(p.batches, slices.Clone(batch))
	p.busy++
	p.most = max(p.most, p.busy)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.busy--
		p.mu.Unlock()
	}()
	select {
	case <-time.After(time.Millisecond):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if p.fail != nil {
		if err := p.fail(batch); err != nil {
			return nil, err
		}
	}
	outs := make([]string, len(batch))
	for i, n := range batch {
		outs[i] = fmt.Sprint(n)
	}
	return outs, nil
}

func (p *pen) group() *group[int, string] {
	return &group[int, string]{flushers: 2, most: 10, room: 100, long: 20 * time.Millisecond, timeout: 5 * time.Second, write: p.write}
}

// What arrives while a write is under way goes together in the next one; a lone arrival does not wait for company.
func TestGroupWritesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pen{}
		g := p.group()
		var all sync.WaitGroup
		began := time.Now()
		for i := range 25 {
			all.Go(func() {
				if out, err := g.do(t.Context(), i); err != nil || out != fmt.Sprint(i) {
					t.Errorf("%d: %q, %v", i, out, err)
				}
			})
		}
		all.Wait()
		g.close()
		if took := time.Since(began); took > 3*time.Millisecond || p.most != 2 || len(p.batches) > 5 {
			t.Errorf("%d batches, %d at a time, in %s", len(p.batches), p.most, took)
		}
		p.batches, p.most = nil, 0
		for i := range 9 { // less than a batch
			all.Go(func() { _, _ = g.do(t.Context(), i) })
		}
		all.Wait()
		g.close()
		if p.most != 1 || len(p.batches) > 2 {
			t.Errorf("%d batches, %d at a time, of less than one", len(p.batches), p.most)
		}
		began = time.Now()
		if _, err := g.do(t.Context(), 99); err != nil || time.Since(began) != time.Millisecond {
			t.Errorf("a lone one took %s: %v", time.Since(began), err)
		}
		if g.close(); g.flushing != 0 || g.waiting != nil {
			t.Errorf("%d flushers are left, %d wait", g.flushing, len(g.waiting))
		}
	})
}

// A bad one harms only itself: a batch that is refused for its content is written one by one.
func TestGroupIsolatesTheBadOne(t *testing.T) {
	for _, tc := range []struct {
		name string
		fail func(batch []int) error
		most int // writes
	}{
		{"refused by the server", func(batch []int) error {
			if slices.Contains(batch, 7) {
				return &pgconn.PgError{Code: "23514"}
			}
			return nil
		}, 30},
		{"a panic", func(batch []int) error {
			if slices.Contains(batch, 7) {
				panic("7")
			}
			return nil
		}, 30},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pen{fail: tc.fail}
				g := p.group()
				var all sync.WaitGroup
				for i := range 20 {
					all.Go(func() {
						switch _, err := g.do(t.Context(), i); {
						case (err != nil) != (i == 7):
							t.Errorf("%d: %v", i, err)
						case err != nil && strings.Contains(err.Error(), "panic: 7"):
							t.Errorf("what it was panicked with: %v", err)
						}
					})
				}
				all.Wait()
				if len(p.batches) > tc.most {
					t.Errorf("%d writes", len(p.batches))
				}
			})
		})
	}
}

// A server that is away, full or shutting down is not asked again for each.
func TestGroupAsksAnAbsentServerOnce(t *testing.T) {
	for _, away := range []error{errors.New("connection refused"), &pgconn.PgError{Code: "53100"}, &pgconn.PgError{Code: "57P01"}, context.DeadlineExceeded} {
		synctest.Test(t, func(t *testing.T) {
			p := &pen{fail: func([]int) error { return away }}
			g := p.group()
			var all sync.WaitGroup
			for i := range 12 {
				all.Go(func() {
					if _, err := g.do(t.Context(), i); !errors.Is(err, away) {
						t.Errorf("%d: %v", i, err)
					}
				})
			}
			all.Wait()
			if len(p.batches) > 4 {
				t.Errorf("%v: %d writes", away, len(p.batches))
			}
		})
	}
}

// A write that hangs holds up nobody else, neither who waits already nor who comes afterwards.
func TestGroupGoesOnBesideALateWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pen{}
		g := p.group()
		hang := make(chan struct{})
		g.write = func(ctx context.Context, batch []int) ([]string, error) {
			if slices.Contains(batch, 0) {
				<-hang
			}
			return p.write(ctx, batch)
		}
		var first sync.WaitGroup
		began := time.Now()
		first.Go(func() { _, _ = g.do(t.Context(), 0) })
		synctest.Wait()
		for i, want := range []time.Duration{21 * time.Millisecond, 22 * time.Millisecond, 23 * time.Millisecond} {
			if _, err := g.do(t.Context(), i+1); err != nil || time.Since(began) != want {
				t.Errorf("%d is written after %s, %v", i+1, time.Since(began), err)
			}
		}
		close(hang)
		first.Wait()
		g.close()
		if g.late != 0 || g.flushing != 0 {
			t.Errorf("%d late, %d flushing at the end", g.late, g.flushing)
		}
	})
}

// One who goes away harms no other, and is not written for where it still waited; a server that hangs answers everybody in
// time; there is an end to how many may wait.
func TestGroupIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		p := &pen{}
		g := p.group()
		g.write = func(ctx context.Context, batch []int) ([]string, error) {
			select {
			case <-hang:
				return p.write(ctx, batch)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		results := make(chan error, 200)
		gone, leave := context.WithCancel(t.Context())
		for i := range 111 { // one and a batch are being written
			ctx := t.Context()
			if i >= 50 && i < 60 {
				ctx = gone
			}
			go func() {
				_, err := g.do(ctx, i)
				results <- err
			}()
			synctest.Wait()
		}
		if _, err := g.do(t.Context(), 999); !errors.Is(err, errBusy) {
			t.Errorf("one too many: %v", err)
		}
		leave()
		synctest.Wait()
		for range 10 {
			if err := <-results; !errors.Is(err, context.Canceled) {
				t.Errorf("one who went away: %v", err)
			}
		}
		close(hang)
		for range 101 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		for _, n := range slices.Concat(p.batches...) {
			if n >= 50 && n < 60 {
				t.Errorf("%d had gone and was written", n)
			}
		}
		// Nobody's own time is longer than the write's.
		hang = make(chan struct{})
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if _, err := g.do(short, 1); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		if g.close(); time.Since(began) != time.Second {
			t.Errorf("it went on writing until %s", time.Since(began))
		}
		if _, err := g.do(t.Context(), 1); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 6*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		g.close()
	})
}

// A profile's id is of version 7: later ones are greater, and those of one moment differ.
func TestIDsComeInTheOrderOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
		seen, last := make(map[string]bool), ""
		for range 1000 {
			id, twin := newUUID(), newUUID()
			if !form.MatchString(id) || id <= last || seen[id] || id == twin {
				t.Fatalf("%s, beside %s, after %s", id, twin, last)
			}
			seen[id], last = true, max(id, twin)
			time.Sleep(time.Millisecond) //nolint:forbidigo // virtual time
		}
	})
}
