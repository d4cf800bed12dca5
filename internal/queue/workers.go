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
	// workerFresh is how long a worker counts after its last word: three of its intervals.
	workerFresh = 15 * time.Second
	// workersMost bounds what is remembered, whoever may publish on the subject.
	workersMost = 1000
)

// PublishState publishes a worker's state on workers.<instance> immediately and at every interval until ctx
// ends. It uses core NATS: states are lost while disconnected or without a subscriber.
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

// Worker is one worker as it told about itself.
type Worker struct {
	Instance string `json:"instance"`
	message.WorkerState
	Seen time.Time `json:"seen"`
}

// Workers knows the workers heard of lately.
type Workers struct {
	mu   sync.Mutex
	seen map[string]Worker
}

// WatchWorkers listens to the workers' states for as long as the connection lives.
func (c *Conn) WatchWorkers() (*Workers, error) {
	w := &Workers{seen: make(map[string]Worker)}
	_, err := c.nc.Subscribe(message.SubjectWorkers+"*", func(msg *nats.Msg) {
		w.hear(strings.TrimPrefix(msg.Subject, message.SubjectWorkers), msg.Data, time.Now())
	})
	if err != nil {
		return nil, fmt.Errorf("listen to the workers: %w", err)
	}
	return w, nil
}

func (w *Workers) hear(instance string, data []byte, now time.Time) {
	s, err := message.DecodeWorkerState(instance, data, now)
	if err != nil {
		return // anybody with the right to publish there can send anything
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.seen, func(_ string, old Worker) bool { return now.Sub(old.Seen) > workerFresh })
	if _, known := w.seen[instance]; known || len(w.seen) < workersMost {
		w.seen[instance] = Worker{Instance: instance, WorkerState: s, Seen: now.UTC()}
	}
}

// List returns the workers heard of in the last 15 seconds, by name; never nil.
func (w *Workers) List() []Worker {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := []Worker{}
	for _, name := range slices.Sorted(maps.Keys(w.seen)) {
		if s := w.seen[name]; time.Since(s.Seen) <= workerFresh {
			list = append(list, s)
		}
	}
	return list
}
