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
)

// errContent marks a fault of what was to be written, found on our side.
var errContent = errors.New("it cannot be written")

// errBusy refuses what the group has no room for.
var errBusy = errors.New("too many webhooks wait for the ledger already: it is slower than they come")

// group is a group commit: what arrives while a write is under way is written together by the next one. It never lingers, so
// that a lone arrival is written at once. One write at a time makes the largest batches, which cost least; another goes beside it only
// where a whole batch waits, or where the one under way takes long, so that nobody waits for what hangs. Its goroutines live only
// while something waits; close waits for them.
//
//	do ──▶ waiting ──▶ up to flushers at a time take up to most each ──▶ write ──▶ everybody its own answer
type group[In, Out any] struct {
	flushers, most, room int
	long                 time.Duration // a write that takes longer holds nobody up
	timeout              time.Duration // of one write
	write                func(ctx context.Context, batch []In) ([]Out, error)

	mu       sync.Mutex
	waiting  []*entry[In, Out]
	flushing int // flushers
	late     int // of them, those whose write takes long
	running  sync.WaitGroup
}

type entry[In, Out any] struct {
	ctx  context.Context //nolint:containedctx // of the one who waits: whoever has gone is not written for
	in   In
	done chan answer[Out] // of room for one
}

type answer[Out any] struct {
	out Out
	err error
}

// do has in written and returns its own result. When ctx ends first, it may be written all the same.
func (g *group[In, Out]) do(ctx context.Context, in In) (out Out, err error) {
	e := &entry[In, Out]{ctx: ctx, in: in, done: make(chan answer[Out], 1)}
	if !g.enter(e) {
		return out, errBusy
	}
	select {
	case a := <-e.done:
		return a.out, a.err
	case <-ctx.Done():
		return out, ctx.Err()
	}
}

func (g *group[In, Out]) enter(e *entry[In, Out]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) >= g.room {
		return false
	}
	g.waiting = append(g.waiting, e)
	g.start()
	return true
}

// start adds a flusher where one is needed and allowed. The caller holds the lock.
func (g *group[In, Out]) start() {
	if len(g.waiting) > 0 && g.flushing < g.flushers && (g.flushing == g.late || len(g.waiting) >= g.most) {
		g.flushing++
		g.running.Go(g.flush)
	}
}

// flush writes until nobody waits.
func (g *group[In, Out]) flush() {
	for batch := g.take(); batch != nil; batch = g.take() {
		inTime := g.watch()
		g.writeAll(batch)
		inTime()
	}
}

// watch counts a write as late once it takes long, until the function that it returns is called.
func (g *group[In, Out]) watch() (done func()) {
	late, over := false, false
	timer := time.AfterFunc(g.long, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if !over {
			late = true
			g.late++
			g.start()
		}
	})
	return func() {
		timer.Stop()
		g.mu.Lock()
		defer g.mu.Unlock()
		if over = true; late {
			g.late--
		}
	}
}

// take returns who waits; nil ends the flusher.
func (g *group[In, Out]) take() []*entry[In, Out] {
	g.mu.Lock()
	defer g.mu.Unlock()
	var batch []*entry[In, Out]
	n := 0
	for ; n < len(g.waiting) && len(batch) < g.most; n++ {
		if e := g.waiting[n]; e.ctx.Err() == nil {
			batch = append(batch, e)
		}
	}
	clear(g.waiting[:n])
	if g.waiting = g.waiting[n:]; len(g.waiting) == 0 {
		g.waiting = nil
	}
	if batch == nil {
		g.flushing--
	}
	return batch
}

// writeAll writes a batch. Where the batch is refused for what is in it, each is written alone, so that a bad one harms only
// itself.
func (g *group[In, Out]) writeAll(batch []*entry[In, Out]) {
	outs, err := g.writeSome(batch)
	if err != nil && len(batch) == 1 && passing(err) {
		outs, err = g.writeSome(batch)
	}
	if err != nil && len(batch) > 1 && separable(err) {
		for i := range batch {
			g.writeAll(batch[i : i+1])
		}
		return
	}
	for i, e := range batch {
		if err != nil {
			e.done <- answer[Out]{err: err}
			continue
		}
		e.done <- answer[Out]{out: outs[i]}
	}
}

func (g *group[In, Out]) writeSome(batch []*entry[In, Out]) (outs []Out, err error) {
	defer func() {
		if p := recover(); p != nil { // what it was panicked with stays out: it may hold a buyer's data
			err = fmt.Errorf("%w: panic: %T\n%s", errContent, p, debug.Stack())
		}
	}()
	ins := make([]In, len(batch))
	limit := time.Now().Add(g.timeout)
	var until time.Time // nobody waits for longer
	for i, e := range batch {
		ins[i] = e.in
		end, bounded := e.ctx.Deadline()
		if !bounded || end.After(limit) {
			end = limit
		}
		if end.After(until) {
			until = end
		}
	}
	ctx, cancel := context.WithDeadline(context.Background(), until) // one who goes away earlier does not end it for the others
	defer cancel()
	return g.write(ctx, ins)
}

// close waits until everything that was entered is written.
func (g *group[In, Out]) close() { g.running.Wait() }

// passing says that the same may succeed when it is tried again at once: what it collided with is over (class 40, serialisation
// and deadlock; 23503, a row that was chosen a moment ago).
func passing(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && (strings.HasPrefix(refused.Code, "40") || refused.Code == "23503")
}

// separable says whether another, smaller batch may succeed: the server refused this one for its content or its locks, not
// for its own state (classes 08, 53, 57 and 58: connection, resources, shutdown, system).
func separable(err error) bool {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) {
		var unreadable pgx.ScanArgError // a row that one of the batch is about
		return errors.Is(err, errContent) || errors.As(err, &unreadable)
	}
	for _, state := range []string{"08", "53", "57", "58"} {
		if strings.HasPrefix(refused.Code, state) {
			return false
		}
	}
	return true
}
