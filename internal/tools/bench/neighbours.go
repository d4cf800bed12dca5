package main

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/message"
	"purchase-relay/internal/testkit/load"
	"purchase-relay/internal/testkit/try"
	"purchase-relay/internal/tiktok"
)

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
				try.Must(js.PublishMsgAsync(msg, jetstream.WithMsgID(msg.Subject), jetstream.WithStallWait(waitLimit)))
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
		measurement{"TikTok, one event a request", func(ctx context.Context) { track(ctx, b, &single, sim, 1) }},
		measurement{"TikTok, 500 events a request", func(ctx context.Context) { track(ctx, b, &batched, sim, 500) }})
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
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", eventPath, sim.addr, len(body), body))
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
