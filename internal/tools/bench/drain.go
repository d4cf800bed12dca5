package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/try"
)

const (
	slots        = 4                    // the worker's requests in flight
	drainLatency = 5 * time.Millisecond // short: with a slow TikTok a batch saves more
)

// drain measures how fast the worker delivers a backlog, in batches and with one event a request.
func drain(ctx context.Context, b *bench) {
	single, batched := backlog{size: b.single, batch: 1}, backlog{size: b.backlog, batch: 500}
	b.turns(ctx,
		measurement{"one a request", func(ctx context.Context) { single.drain(ctx, b) }},
		measurement{"batches of 500", func(ctx context.Context) { batched.drain(ctx, b) }})
	b.report.add("backlog, one event a request", "/s", single.rate).note("%s", single.costs())
	b.report.add("backlog, up to 500 a request", "/s", batched.rate).
		against("one a request", single.rate).atLeast(10).note("%s", batched.costs())
}

// backlog is a number of queued purchases, and how they were drained, round by round.
type backlog struct {
	size, batch                     int
	rate, requests, peak, processor series
}

func (l *backlog) costs() string {
	return fmt.Sprintf("%d purchases, %.0f requests, peak %.0f MiB, %.0f µs of processor each",
		l.size, l.requests.median(), l.peak.median(), l.processor.median())
}

// drain fills a new queue and measures the time from the worker's start until the queue is empty.
func (l *backlog) drain(ctx context.Context, b *bench) {
	nats, tiktok := b.startNATS(ctx), b.startSimulator(ctx, drainLatency)
	config := queue.Config{NATSURL: secret.Text("nats://" + nats.addr)}
	js := try.Must(queue.Connect(config, "ingest", zap.NewNop(), prometheus.NewRegistry()))
	b.OnEnd(func() error { return js.Close(context.WithoutCancel(ctx)) })
	try.Check(js.Provision(ctx, queue.StreamConfig{Replicas: 1, MaxBytes: 2 << 30}))
	publish(ctx, js, l.size)

	began := time.Now()
	worker := b.startWorker(ctx, nats, tiktok, unlimited,
		"WORKER_CONCURRENCY="+strconv.Itoa(slots), "BATCH_SIZE="+strconv.Itoa(l.batch))
	consumer := js.Consumer(message.StreamPurchases, message.ConsumerWorker)
	worker.await(ctx, "wait for the backlog to be delivered", func() bool {
		waiting, unacknowledged, err := consumer.Pending(ctx)
		return err == nil && waiting == 0 && unacknowledged == 0
	})
	took := time.Since(began)
	stats := tiktok.stats(ctx)
	if stats.Accepted != l.size {
		try.Check(fmt.Errorf("of %d purchases TikTok accepted %d", l.size, stats.Accepted))
	}
	_, peak := memory(worker.PID())
	l.rate = append(l.rate, float64(l.size)/took.Seconds())
	l.requests, l.peak = append(l.requests, float64(stats.Requests)), append(l.peak, peak)
	l.processor = append(l.processor, processorTime(worker.PID())*1e6/float64(l.size))
}

// publish publishes n purchases as the relay does.
func publish(ctx context.Context, js *queue.Conn, n int) {
	var claims []relay.Claim
	for i := range n {
		id := fmt.Sprintf("cs_live_bench%053d", i)
		claims = append(claims, relay.Claim{
			ID: id, Livemode: true, Generation: 1, FirstPublished: time.Now(), Envelope: sampleEnvelope(id),
		})
		if len(claims) < 1000 && i < n-1 {
			continue
		}
		for _, p := range js.Publish(ctx, claims) {
			try.Check(p.Err)
		}
		claims = nil
	}
}
