package main

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/message"
	"purchase-relay/internal/testkit/load"
	"purchase-relay/internal/tiktok"
)

// neighbours measures what limits the pipeline from outside: context for the other figures.
func neighbours(ctx context.Context, b *bench) {
	sim, queue := b.startSimulator(ctx, 0), b.startBareQueue(ctx)
	var single, batched loadSeries
	b.turns(ctx,
		measurement{"NATS", func(ctx context.Context) { queue.run(ctx, int(10_000*b.duration.Seconds())) }},
		measurement{"TikTok, one event a request", func(ctx context.Context) { track(ctx, b, &single, sim, 1) }},
		measurement{"TikTok, 500 events a request", func(ctx context.Context) { track(ctx, b, &batched, sim, 500) }})
	var events series
	for _, requests := range batched.rate {
		events = append(events, 500*requests)
	}
	b.report.add("NATS: messages published and acknowledged", "/s", queue.published).
		note("with the product's stream settings and message size")
	b.report.add("NATS: messages fetched by 500 and acknowledged", "/s", queue.fetched)
	b.report.add("simulator: requests with one event", "/s", single.rate)
	b.report.add("simulator: events, 500 a request", "/s", events)
}

// bareQueue is a stream like the product's, used with the client library alone.
type bareQueue struct {
	js                 jetstream.JetStream
	consumer           jetstream.Consumer
	sent               int
	published, fetched series // messages a second
}

func (b *bench) startBareQueue(ctx context.Context) *bareQueue {
	conn := must(nats.Connect("nats://" + b.startNATS(ctx).addr))
	b.onEnd(func() error {
		conn.Close()
		return nil
	})
	js := must(jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(4000)))
	stream := must(js.CreateStream(ctx, jetstream.StreamConfig{
		Name: "CEILING", Subjects: []string{"ceiling.*"}, Retention: jetstream.WorkQueuePolicy,
		Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true,
		MaxMsgsPerSubject: 1, MaxBytes: 2 << 30, Duplicates: 2 * time.Minute,
	}))
	return &bareQueue{js: js, consumer: must(stream.CreateConsumer(ctx, jetstream.ConsumerConfig{
		Durable: "ceiling", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 200_000,
	}))}
}

// run publishes n messages and fetches them again.
func (q *bareQueue) run(ctx context.Context, n int) {
	data := sampleEnvelope(padded("cs_live_a1", 44))
	began := time.Now()
	for i := range n {
		q.sent++
		msg := nats.NewMsg(fmt.Sprintf("ceiling.%066d", q.sent))
		msg.Data = data
		must(q.js.PublishMsgAsync(msg, jetstream.WithMsgID(msg.Subject)))
		if (i+1)%1000 != 0 && i < n-1 {
			continue
		}
		select {
		case <-q.js.PublishAsyncComplete():
		case <-ctx.Done():
			check(ctx.Err())
		}
	}
	q.published = append(q.published, float64(n)/time.Since(began).Seconds())
	began = time.Now()
	for got := 0; got < n; {
		batch := must(q.consumer.Fetch(500, jetstream.FetchMaxWait(10*time.Second)))
		for msg := range batch.Messages() {
			check(msg.Ack())
			got++
		}
		check(batch.Error())
	}
	check(q.js.Conn().Flush())
	q.fetched = append(q.fetched, float64(n)/time.Since(began).Seconds())
}

// track posts requests with size events to the simulator, over as many connections as the worker has slots.
func track(ctx context.Context, b *bench, s *loadSeries, sim simulator, size int) {
	var batch []message.Envelope
	for i := range size {
		batch = append(batch, must(message.DecodeEnvelope(sampleEnvelope(fmt.Sprintf("cs_live_a1%s%044d", mark, i)))))
	}
	config := tiktok.Config{Payload: tiktok.PayloadEvents, EventName: "CompletePayment"}
	body := must(tiktok.Body(config, "LOCALPIXEL", "", batch))
	request := newRequest(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nAccess-Token: local-token\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", eventPath, sim.addr, len(body), body))
	prefix := fmt.Sprintf("%05x", size*1000+len(s.rate)) // no event is sent twice
	s.run(ctx, load.Plan{
		Addr: sim.addr, Conns: slots, Requests: 1 << 30, For: b.duration, Want: 200,
		Append: func(buffer []byte, i int) []byte {
			return request.append(buffer, prefix+fmt.Sprintf("%0*x", len(mark)-len(prefix), i))
		},
	})
	stats := sim.stats(ctx)
	if stats.Refused > 0 || stats.Duplicates > 0 {
		check(fmt.Errorf("the simulator rejected %d requests and had %d duplicates", stats.Refused, stats.Duplicates))
	}
}
