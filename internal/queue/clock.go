package queue

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	clockInterval = time.Minute     // between two comparisons
	clockTimeout  = 2 * time.Second // a slower response is too imprecise
)

// clock compares this machine's clock with the server's, by the timestamp of consumer info responses. It is
// safe for concurrent use.
type clock struct {
	now    func() time.Time
	offset atomic.Int64 // how far the server's is ahead, nanoseconds
	last   atomic.Int64 // time of the last comparison, Unix nanoseconds
}

// compare records the response to a request that was sent at before.
func (c *clock) compare(before time.Time, info *jetstream.ConsumerInfo) {
	after := c.now()
	if offset, ok := offsetBetween(before, after, info.TimeStamp); ok {
		c.offset.Store(int64(offset))
	}
	c.last.Store(after.UnixNano())
}

// due reports whether a comparison is due, to one of several concurrent callers.
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

// compareClocks compares the clocks when due. It ignores errors: the next fetch fails for the same cause.
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
