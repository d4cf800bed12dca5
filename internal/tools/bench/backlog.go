package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/load"
	"purchase-relay/internal/testkit/try"
	"purchase-relay/internal/tiktok"
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
		against("one a request", single.rate).atLeast(30).note("%s", batched.costs())
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
	config := queue.Config{NATSURL: secret.String("nats://" + nats.addr)}
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

// neighbours measures what limits the pipeline from outside: context for the other figures.
func neighbours(ctx context.Context, b *bench) {
	sim := b.startSimulator(ctx, 0)
	conn := try.Must(nats.Connect("nats://" + b.startNATS(ctx).addr))
	defer conn.Close()
	js := try.Must(jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(4000)))
	stream := try.Must(js.CreateStream(ctx, jetstream.StreamConfig{
		Name: "CEILING", Subjects: []string{"ceiling.*"}, Retention: jetstream.WorkQueuePolicy,
		Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true,
		MaxMsgsPerSubject: 1, MaxBytes: 2 << 30, Duplicates: 2 * time.Minute,
	}))
	consumer := try.Must(stream.CreateConsumer(ctx, jetstream.ConsumerConfig{
		Durable: "ceiling", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 200_000,
	}))
	messages, sent := max(1, int(10_000*b.duration.Seconds())), 0
	var published, fetched series // messages a second
	var single, batched loadSeries
	b.turns(ctx,
		measurement{"NATS", func(ctx context.Context) {
			data := sampleEnvelope(padded("cs_live_a1", 44))
			began := time.Now()
			for range messages {
				sent++
				msg := nats.NewMsg(fmt.Sprintf("ceiling.%066d", sent))
				msg.Data = data
				// It waits while 4,000 are unacknowledged.
				options := []jetstream.PublishOpt{jetstream.WithMsgID(msg.Subject), jetstream.WithStallWait(waitLimit)}
				try.Must(js.PublishMsgAsync(msg, options...))
			}
			select {
			case <-js.PublishAsyncComplete():
			case <-ctx.Done():
				try.Check(ctx.Err())
			}
			published = append(published, float64(messages)/time.Since(began).Seconds())
			began = time.Now()
			for got := 0; got < messages; {
				batch := try.Must(consumer.Fetch(500, jetstream.FetchMaxWait(10*time.Second)))
				for msg := range batch.Messages() {
					try.Check(msg.Ack())
					got++
				}
				try.Check(batch.Error())
			}
			try.Check(conn.Flush())
			fetched = append(fetched, float64(messages)/time.Since(began).Seconds())
		}},
		measurement{"one event a request", func(ctx context.Context) { track(ctx, b, &single, sim, 1) }},
		measurement{"500 events a request", func(ctx context.Context) { track(ctx, b, &batched, sim, 500) }})
	var events series
	for _, requests := range batched.rate {
		events = append(events, 500*requests)
	}
	b.report.add("NATS: messages published and acknowledged", "/s", published).
		note("with the product's stream settings and message size")
	b.report.add("NATS: messages fetched by 500 and acknowledged", "/s", fetched)
	b.report.add("simulator: requests with one event", "/s", single.rate)
	b.report.add("simulator: events, 500 a request", "/s", events)
}

// track posts requests with size events to the simulator, over as many connections as the worker has slots.
func track(ctx context.Context, b *bench, s *loadSeries, sim simulator, size int) {
	var batch []message.Envelope
	for i := range size {
		envelope := sampleEnvelope(fmt.Sprintf("cs_live_a1%s%044d", mark, i))
		batch = append(batch, try.Must(message.DecodeEnvelope(envelope)))
	}
	config := tiktok.Config{Payload: tiktok.PayloadEvents, EventName: "CompletePayment"}
	body := try.Must(tiktok.Body(config, "LOCALPIXEL", "", batch))
	request := newRequest(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nAccess-Token: local-token\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		launch.EventPath, sim.addr, len(body), body))
	prefix := fmt.Sprintf("%05x", size*1000+len(s.rate)) // no event is sent twice
	s.run(ctx, load.Plan{
		Addr: sim.addr, Conns: slots, Requests: 1 << 30, For: b.duration, Want: 200,
		Append: func(buffer []byte, i int) []byte {
			return request.append(buffer, prefix+fmt.Sprintf("%0*x", len(mark)-len(prefix), i))
		},
	})
	if stats := sim.stats(ctx); stats.Refused > 0 || stats.Duplicates > 0 {
		try.Check(fmt.Errorf("simulator: %d requests rejected, %d duplicates", stats.Refused, stats.Duplicates))
	}
}
