package queue

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// deliveryID identifies one delivery of a message: stream sequence and delivery number.
type deliveryID struct{ sequence, number uint64 }

// returnSet is the set of deliveries that a worker returned. A message that is redelivered without an entry
// crashed its worker, or the entry was evicted: the set is bounded and drops its older half.
type returnSet struct {
	mu           sync.Mutex
	newer, older map[deliveryID]struct{}
}

// returnedHalf bounds each half: together they hold every message that may be delayed.
const returnedHalf = maxAckPending / 2

func (r *returnSet) add(d deliveryID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.newer == nil || len(r.newer) >= returnedHalf {
		r.older, r.newer = r.newer, make(map[deliveryID]struct{})
	}
	r.newer[d] = struct{}{}
}

func (r *returnSet) has(d deliveryID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.newer[d]; ok {
		delete(r.newer, d) // it is looked up once
		return true
	}
	_, ok := r.older[d]
	delete(r.older, d)
	return ok
}

// advisoryNak is the prefix of the server's NAK advisories, before the names of stream and consumer.
const advisoryNak = "$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED."

// WatchReturns subscribes to the NAKs of all workers until the connection is closed. Without the permission,
// a message that another process returned looks like one that crashed its worker.
func (c *Consumer) WatchReturns() error {
	_, err := c.conn.nc.Subscribe(advisoryNak+c.stream+"."+c.durable, func(msg *nats.Msg) {
		var advisory struct {
			Sequence   uint64 `json:"stream_seq"`
			Deliveries uint64 `json:"deliveries"`
		}
		if json.Unmarshal(msg.Data, &advisory) == nil {
			c.returned.add(deliveryID{sequence: advisory.Sequence, number: advisory.Deliveries})
		}
	})
	if err != nil {
		return fmt.Errorf("subscribe to NAK advisories: %w", err)
	}
	return nil
}

// acker settles one delivery and records its return. It bypasses the library, which allows one
// acknowledgement per message: a crashing server may lose it. Source of the texts: NATS, ADR-15.
type acker struct {
	reply    string // the message's reply subject
	consumer *Consumer
	delivery deliveryID
}

func (a acker) send(acknowledgement string) error {
	if err := a.consumer.conn.nc.Publish(a.reply, []byte(acknowledgement)); err != nil {
		return fmt.Errorf("acknowledge: %w", err)
	}
	return nil
}

// Ack implements message.Acker.
func (a acker) Ack() error { return a.send("+ACK") }

// DoubleAck implements message.Acker.
func (a acker) DoubleAck(ctx context.Context) error {
	if _, err := a.consumer.conn.nc.RequestWithContext(ctx, a.reply, []byte("+ACK")); err != nil {
		return fmt.Errorf("acknowledge: %w", err)
	}
	return nil
}

// NakWithDelay implements message.Acker.
func (a acker) NakWithDelay(delay time.Duration) error {
	a.consumer.returned.add(a.delivery)
	if delay <= 0 {
		return a.send("-NAK")
	}
	return a.send(fmt.Sprintf(`-NAK {"delay": %d}`, delay.Nanoseconds()))
}

// TermWithReason implements message.Acker.
func (a acker) TermWithReason(reason string) error { return a.send("+TERM " + reason) }

// InProgress implements message.Acker.
func (a acker) InProgress() error { return a.send("+WPI") }

// Leave implements message.Acker.
func (a acker) Leave() { a.consumer.returned.add(a.delivery) }
