package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/tiktoksim"
)

const (
	slots = 4 // requests in flight

	// drainLatency is short: the longer TikTok takes, the more a batch saves.
	drainLatency = 5 * time.Millisecond
)

// drained is what draining a backlog took.
type drained struct{ perSecond, requests, peak, processor series }

// drain measures the real worker on a backlog, in batches and with one event a request.
func drain(ctx context.Context, b *bench) error {
	var alone, together drained
	err := b.turns(ctx,
		contender{"one a request", func(ctx context.Context) error { return b.drain(ctx, &alone, b.single, 1) }},
		contender{"batches of 500", func(ctx context.Context) error { return b.drain(ctx, &together, b.backlog, 500) }},
	)
	if err != nil {
		return err
	}
	text := func(d *drained, n int) func(*row) {
		return note(fmt.Sprintf("%d purchases, %.0f requests, %.0f MiB at most, %.0f µs of processor each", n, d.requests.median(), d.peak.median(),
			d.processor.median()*1e6/float64(n)))
	}
	b.report.add("backlog, one event a request", "/s", alone.perSecond, text(&alone, b.single))
	b.report.add("backlog, up to 500 a request", "/s", together.perSecond, against("one a request", together.perSecond, alone.perSecond), atLeast(10),
		text(&together, b.backlog))
	return nil
}

// drain fills a queue of its own with purchases and measures how long the real worker takes to deliver them.
func (b *bench) drain(ctx context.Context, d *drained, n, batch int) (err error) {
	addrs, err := freeport.Addrs(1)
	if err != nil {
		return err
	}
	nats, err := b.startNATS(ctx, addrs[0], "drain")
	if err != nil {
		return err
	}
	defer func() { nats.stop(); err = errors.Join(err, os.RemoveAll(filepath.Join(b.dir, "drain"))) }()
	js, err := queue.Connect(queue.Config{NATSURL: secret.Text("nats://" + addrs[0])}, "ingest", zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, js.Close(context.WithoutCancel(ctx))) }()
	if err := js.Provision(ctx, queue.StreamConfig{Replicas: 1, MaxBytes: 2 << 30}); err != nil {
		return err
	}
	if err := fill(ctx, js, n); err != nil {
		return err
	}
	tiktok, err := b.startSimulator(ctx, drainLatency)
	if err != nil {
		return err
	}
	defer tiktok.stop()
	began := time.Now()
	worker, err := b.startWorker(addrs[0], tiktok, unlimited, "WORKER_CONCURRENCY="+strconv.Itoa(slots), "BATCH_SIZE="+strconv.Itoa(batch))
	if err != nil {
		return err
	}
	defer worker.stop()
	consumer := js.Consumer(message.StreamPurchases, message.ConsumerWorker)
	err = worker.await(ctx, "the backlog to be delivered", func() bool {
		waiting, unacknowledged, err := consumer.Pending(ctx)
		return err == nil && waiting == 0 && unacknowledged == 0
	})
	if err != nil {
		return err
	}
	took := time.Since(began)
	stats, err := tiktok.stats(ctx)
	if err != nil {
		return err
	}
	if stats.Accepted != n {
		return fmt.Errorf("of %d purchases TikTok accepted %d", n, stats.Accepted)
	}
	_, peak := memory(worker.PID())
	d.perSecond, d.requests = append(d.perSecond, float64(n)/took.Seconds()), append(d.requests, float64(stats.Requests))
	d.peak, d.processor = append(d.peak, peak), append(d.processor, processor(worker.PID()))
	return nil
}

// stats asks the simulator what it got.
func (s *simulator) stats(ctx context.Context) (stats tiktoksim.Stats, err error) {
	status, body, err := ask(ctx, http.MethodGet, "http://"+s.addr+"/stats", "")
	if err != nil {
		return stats, err
	}
	if status != http.StatusOK {
		return stats, fmt.Errorf("the simulator answers %d: %s", status, body)
	}
	return stats, json.Unmarshal(body, &stats)
}

// fill publishes purchases as the relay does.
func fill(ctx context.Context, js *queue.Conn, n int) error {
	const at = 1000
	for done := 0; done < n; done += at {
		var batch []relay.Claim
		for i := done; i < min(n, done+at); i++ {
			id := fmt.Sprintf("cs_live_bench%053d", i)
			data, err := sampleEnvelope(id)
			if err != nil {
				return err
			}
			batch = append(batch, relay.Claim{ID: id, Livemode: true, Generation: 1, FirstPublished: time.Now(), Envelope: data})
		}
		for _, p := range js.Publish(ctx, batch) {
			if p.Err != nil {
				return p.Err
			}
		}
	}
	return nil
}
