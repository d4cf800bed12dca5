package queue

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	clockInterval = time.Minute     // between two comparisons
	clockPatience = 2 * time.Second // an answer that took longer says too little about the time
)

// clock compares this machine's clock with the server's, by the time that each answer about a consumer
// carries. It is safe for concurrent use.
type clock struct {
	now    func() time.Time
	offset atomic.Int64 // nanoseconds that the server's is ahead
	asked  atomic.Int64 // Unix nanoseconds
}

// read takes in an answer's time. The server read its clock somewhere between the question and the answer.
func (c *clock) read(before time.Time, info *jetstream.ConsumerInfo) {
	after := c.now()
	if offset, ok := apart(before, after, info.TimeStamp); ok {
		c.offset.Store(int64(offset))
	}
	c.asked.Store(after.UnixNano())
}

// due reports, to one caller, whether it is time for a comparison.
func (c *clock) due() bool {
	asked, now := c.asked.Load(), c.now().UnixNano()
	return time.Duration(now-asked).Abs() >= clockInterval && c.asked.CompareAndSwap(asked, now)
}

// apart returns how far the server's clock is ahead; ok is false where the answer says too little.
func apart(before, after, server time.Time) (offset time.Duration, ok bool) {
	took := after.Sub(before)
	if server.IsZero() || took < 0 || took > clockPatience {
		return 0, false
	}
	return server.Sub(before.Add(took / 2)).Round(time.Millisecond), true
}

// ClockOffset is how far the server's clock is ahead of this machine's, as of at most a minute ago while
// messages are fetched; 0: it is not known yet.
func (c *Consumer) ClockOffset() time.Duration { return time.Duration(c.clock.offset.Load()) }

// compareClocks asks for the time, now and then. It fails silently: the next fetch meets the same trouble.
func (c *Consumer) compareClocks(ctx context.Context, bound jetstream.Consumer) {
	if !c.clock.due() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, clockPatience)
	defer cancel()
	before := c.clock.now()
	if info, err := bound.Info(ctx); err == nil {
		c.clock.read(before, info)
	}
}
