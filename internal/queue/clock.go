package queue

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/doctor"
)

const (
	clockInterval = time.Minute     // between two comparisons
	clockTimeout  = 2 * time.Second // a slower response is too imprecise
)

// clock compares this machine's clock with the server's, by the timestamp of each consumer info response. It
// is safe for concurrent use.
type clock struct {
	now    func() time.Time
	offset atomic.Int64 // how far the server's is ahead, nanoseconds
	last   atomic.Int64 // time of the last comparison, Unix nanoseconds
}

// compare takes a response to a request that was sent at a time: the server read its clock in between.
func (c *clock) compare(before time.Time, info *jetstream.ConsumerInfo) {
	after := c.now()
	if offset, ok := offsetBetween(before, after, info.TimeStamp); ok {
		c.offset.Store(int64(offset))
	}
	c.last.Store(after.UnixNano())
}

// due reports whether it is time for a comparison, to one of concurrent callers.
func (c *clock) due() bool {
	last, now := c.last.Load(), c.now().UnixNano()
	return time.Duration(now-last).Abs() >= clockInterval && c.last.CompareAndSwap(last, now)
}

// offsetBetween returns how far the server's clock is ahead; ok is false where the response took too long.
func offsetBetween(before, after, server time.Time) (offset time.Duration, ok bool) {
	took := after.Sub(before)
	if server.IsZero() || took < 0 || took > clockTimeout {
		return 0, false
	}
	return server.Sub(before.Add(took / 2)).Round(time.Millisecond), true
}

// ClockOffset returns how far the server's clock is ahead of this machine's, at most a minute old while
// messages are fetched; 0: unknown.
func (c *Consumer) ClockOffset() time.Duration { return time.Duration(c.clock.offset.Load()) }

// compareClocks compares the clocks when due. It fails silently: the next fetch fails for the same cause.
func (c *Consumer) compareClocks(ctx context.Context, bound jetstream.Consumer) {
	if !c.clock.due() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, clockTimeout)
	defer cancel()
	before := c.clock.now()
	if info, err := bound.Info(ctx); err == nil {
		c.clock.compare(before, info)
	}
}

// clock checks this machine's clock against the server's.
func (e *examiner) clock(ctx context.Context) []doctor.Check {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	if e.silent("$JS.API.CONSUMER.INFO." + message.StreamPurchases + "." + message.ConsumerWorker) {
		return nil
	}
	before := time.Now()
	bound, err := e.js.Consumer(ctx, message.StreamPurchases, message.ConsumerWorker)
	if err != nil {
		return nil // the check of the consumer reports it
	}
	offset, ok := offsetBetween(before, time.Now(), bound.CachedInfo().TimeStamp)
	if !ok {
		return nil
	}
	return []doctor.Check{judgeClock(offset)}
}

// judgeClock tolerates small differences, because the worker counts ages by the server's clock.
func judgeClock(offset time.Duration) doctor.Check {
	const what, remedy = "NATS: clock", "let both machines follow a time server (timedatectl, chrony)"
	found := fmt.Sprintf("differs from this machine's by %s", offset.Abs().Round(time.Second))
	switch {
	case offset.Abs() > 10*time.Minute:
		return doctor.Failed(what, found, remedy)
	case offset.Abs() > 10*time.Second:
		return doctor.Warned(what, found+"; ages are counted by the server's", remedy)
	}
	return doctor.Passed(what, "agrees with this machine's")
}
