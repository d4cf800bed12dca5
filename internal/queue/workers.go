package queue

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"purchase-relay/internal/message"
)

const (
	// WorkerTTL is how long a worker is listed after its last state: three intervals.
	WorkerTTL = 15 * time.Second
	// maxWorkers bounds the list: any permitted client may publish on the subject.
	maxWorkers = 1000
)

// PublishState publishes a worker's state on workers.<instance>, immediately and at every interval, until ctx
// ends. States are lost while disconnected or without a subscriber.
func (c *Conn) PublishState(
	ctx context.Context, instance string, interval time.Duration, state func() message.WorkerState,
) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		data, err := message.EncodeWorkerState(state())
		if err != nil {
			return err
		}
		if c.Connected() {
			if err := c.nc.Publish(message.SubjectWorkers+instance, data); err != nil && ctx.Err() == nil {
				c.log.Debug("Publish worker state failed", zap.Error(err))
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Workers holds the latest state of each connected worker.
type Workers struct {
	mu       sync.Mutex
	seen     map[string]message.WorkerState
	lastSeen time.Time
}

// WatchWorkers subscribes to the workers' states until the connection is closed.
func (c *Conn) WatchWorkers() (*Workers, error) {
	w := &Workers{seen: make(map[string]message.WorkerState)}
	_, err := c.nc.Subscribe(message.SubjectWorkers+"*", func(msg *nats.Msg) {
		w.record(strings.TrimPrefix(msg.Subject, message.SubjectWorkers), msg.Data, time.Now())
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to worker states: %w", err)
	}
	return w, nil
}

func (w *Workers) record(instance string, data []byte, now time.Time) {
	s, err := message.DecodeWorkerState(instance, data, now)
	if err != nil {
		return // any permitted client may publish on the subject
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lastSeen = now
	if _, known := w.seen[instance]; !known && len(w.seen) >= maxWorkers {
		maps.DeleteFunc(w.seen, func(_ string, old message.WorkerState) bool {
			return now.Sub(old.Seen) > WorkerTTL
		})
		if len(w.seen) >= maxWorkers {
			return
		}
	}
	w.seen[instance] = s
}

// List returns the workers of the last 15 seconds, by name; never nil.
func (w *Workers) List() []message.WorkerState {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := []message.WorkerState{}
	for _, name := range slices.Sorted(maps.Keys(w.seen)) {
		if s := w.seen[name]; time.Since(s.Seen) <= WorkerTTL {
			list = append(list, s)
		}
	}
	return list
}

// LastSeen returns when the last state of any worker was received; zero: never.
func (w *Workers) LastSeen() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lastSeen
}
