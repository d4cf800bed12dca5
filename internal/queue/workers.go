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

	"purchase-relay/internal/message"
)

const (
	// workerFresh is how long a worker is listed after its last report: three of its intervals.
	workerFresh = 15 * time.Second
	// maxWorkers bounds the list: any client with the right may publish on the subject.
	maxWorkers = 1000
)

// ReportState publishes a worker's state on workers.<instance> immediately and at each interval until ctx ends;
// without a connection it is left out. It is plain NATS: no subscriber is needed.
func (c *Conn) ReportState(
	ctx context.Context, instance string, every time.Duration, state func() message.WorkerState,
) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		data, err := message.EncodeWorkerState(state())
		if err != nil {
			return err
		}
		if c.Connected() {
			if err := c.nc.Publish(message.SubjectWorkers+instance, data); err != nil && ctx.Err() == nil {
				c.log.Debug("Worker state not published")
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Workers holds the latest report of each connected worker.
type Workers struct {
	mu   sync.Mutex
	seen map[string]message.WorkerState
}

// WatchWorkers subscribes to the workers' reports until the connection is closed.
func (c *Conn) WatchWorkers() (*Workers, error) {
	w := &Workers{seen: make(map[string]message.WorkerState)}
	_, err := c.nc.Subscribe(message.SubjectWorkers+"*", func(msg *nats.Msg) {
		w.record(strings.TrimPrefix(msg.Subject, message.SubjectWorkers), msg.Data, time.Now())
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to the workers' reports: %w", err)
	}
	return w, nil
}

func (w *Workers) record(instance string, data []byte, now time.Time) {
	s, err := message.DecodeWorkerState(instance, data, now)
	if err != nil {
		return // any client with the right may publish anything on the subject
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.seen, func(_ string, old message.WorkerState) bool {
		return now.Sub(old.Seen) > workerFresh
	})
	if _, known := w.seen[instance]; known || len(w.seen) < maxWorkers {
		w.seen[instance] = s
	}
}

// List returns the workers that reported in the last 15 seconds, by name; never nil.
func (w *Workers) List() []message.WorkerState {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := []message.WorkerState{}
	for _, name := range slices.Sorted(maps.Keys(w.seen)) {
		if s := w.seen[name]; time.Since(s.Seen) <= workerFresh {
			list = append(list, s)
		}
	}
	return list
}
