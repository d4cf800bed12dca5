package queue

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// delivery is one delivery of a message: its place in the stream, and the how-manieth delivery it was.
type delivery struct{ sequence, number uint64 }

// returned remembers which deliveries were handed back: a message that comes again without one was in the hands of a process
// that died. It is a hint, bounded in memory, and the oldest half is forgotten first.
type returned struct {
	mu          sync.Mutex
	newer, past map[delivery]struct{}
}

// returnedMost bounds each half; together they cover every message that may be delayed at a time.
const returnedMost = maxAckPending / 2

func (r *returned) add(d delivery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.newer == nil || len(r.newer) >= returnedMost {
		r.past, r.newer = r.newer, make(map[delivery]struct{})
	}
	r.newer[d] = struct{}{}
}

func (r *returned) has(d delivery) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.newer[d]; ok {
		delete(r.newer, d) // it is asked for once
		return true
	}
	_, ok := r.past[d]
	delete(r.past, d)
	return ok
}

// advisoryNak is where the server tells what was handed back, before the names of stream and consumer.
const advisoryNak = "$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED."

// WatchReturns listens to what all workers hand back, as the server tells it, for as long as the connection lives. Without
// the right to, a message that another process handed back looks like one whose worker died.
func (c *Consumer) WatchReturns() error {
	_, err := c.conn.nc.Subscribe(advisoryNak+c.stream+"."+c.durable, func(msg *nats.Msg) {
		var advisory struct {
			Sequence   uint64 `json:"stream_seq"`
			Deliveries uint64 `json:"deliveries"`
		}
		if json.Unmarshal(msg.Data, &advisory) == nil {
			c.returned.add(delivery{sequence: advisory.Sequence, number: advisory.Deliveries})
		}
	})
	if err != nil {
		return fmt.Errorf("listen to what is handed back: %w", err)
	}
	return nil
}

// settler ends one delivery, and remembers that it was handed back.
type settler struct {
	jetstream.Msg
	consumer *Consumer
	delivery delivery
}

// Ack implements contract.Settler. The library takes one acknowledgement a message, and a server may die with it.
func (s settler) Ack() error {
	if err := s.consumer.conn.nc.Publish(s.Reply(), []byte("+ACK")); err != nil {
		return fmt.Errorf("acknowledge: %w", err)
	}
	return nil
}

// NakWithDelay implements contract.Settler.
func (s settler) NakWithDelay(delay time.Duration) error {
	s.consumer.returned.add(s.delivery)
	return s.Msg.NakWithDelay(delay)
}

// Leave implements contract.Settler.
func (s settler) Leave() { s.consumer.returned.add(s.delivery) }
