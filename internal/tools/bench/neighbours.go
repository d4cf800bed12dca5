package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/load"
)

// neighbours measures what bounds the whole way from outside: context for the other figures.
func neighbours(ctx context.Context, b *bench) (err error) {
	addrs, err := freeport.Addrs(1)
	if err != nil {
		return err
	}
	server, err := b.startNATS(ctx, addrs[0], "ceiling")
	if err != nil {
		return err
	}
	defer func() { server.stop(); _ = os.RemoveAll(filepath.Join(b.dir, "ceiling")) }()
	tiktok, err := b.startSimulator(ctx, 0)
	if err != nil {
		return err
	}
	defer tiktok.stop()
	queue, err := openQueue(ctx, addrs[0])
	if err != nil {
		return err
	}
	defer queue.close()

	var published, fetched series
	var one, many shot
	messages := int(10_000 * b.duration.Seconds())
	err = b.turns(ctx,
		contender{"NATS", func(ctx context.Context) error {
			in, out, err := queue.pass(ctx, messages)
			published, fetched = append(published, in), append(fetched, out)
			return err
		}},
		contender{"TikTok, one event a request", func(ctx context.Context) error { return b.track(ctx, &one, tiktok, 1) }},
		contender{"TikTok, 500 events a request", func(ctx context.Context) error { return b.track(ctx, &many, tiktok, 500) }},
	)
	if err != nil {
		return err
	}
	b.report.add("NATS: messages published and acknowledged", "/s", published, note("the stream's settings and a message's size as ours"))
	b.report.add("NATS: messages fetched by 500 and acknowledged", "/s", fetched)
	b.report.add("simulator: requests with one event", "/s", one.rate)
	b.report.add("simulator: events, 500 a request", "/s", many.rate.times(500))
	return nil
}

// bareQueue is a stream as the product's, used by the client library alone.
type bareQueue struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	consumer jetstream.Consumer
	message  []byte
	sent     int
}

func openQueue(ctx context.Context, addr string) (q *bareQueue, err error) {
	q = &bareQueue{}
	if q.message, err = sampleEnvelope("cs_live_a1" + mark + strings.Repeat("0", 44)); err != nil {
		return nil, err
	}
	if q.nc, err = nats.Connect("nats://" + addr); err != nil {
		return nil, err
	}
	if q.js, err = jetstream.New(q.nc, jetstream.WithPublishAsyncMaxPending(4000)); err != nil {
		q.close()
		return nil, err
	}
	stream, err := q.js.CreateStream(ctx, jetstream.StreamConfig{
		Name: "CEILING", Subjects: []string{"ceiling.*"}, Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew,
		DiscardNewPerSubject: true, MaxMsgsPerSubject: 1, MaxBytes: 2 << 30, Duplicates: 2 * time.Minute,
	})
	if err != nil {
		q.close()
		return nil, err
	}
	q.consumer, err = stream.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "ceiling", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 200_000})
	if err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

func (q *bareQueue) close() { q.nc.Close() }

// pass publishes messages and fetches them again; both in messages a second.
func (q *bareQueue) pass(ctx context.Context, n int) (in, out float64, err error) {
	const at = 1000
	began := time.Now()
	for done := 0; done < n; done += at {
		for range min(at, n-done) {
			q.sent++
			msg := nats.NewMsg(fmt.Sprintf("ceiling.%066d", q.sent))
			msg.Data = q.message
			if _, err := q.js.PublishMsgAsync(msg, jetstream.WithMsgID(msg.Subject)); err != nil {
				return 0, 0, err
			}
		}
		select {
		case <-q.js.PublishAsyncComplete():
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
	}
	in = float64(n) / time.Since(began).Seconds()
	began = time.Now()
	for got := 0; got < n; {
		batch, err := q.consumer.Fetch(500, jetstream.FetchMaxWait(10*time.Second))
		if err != nil {
			return 0, 0, err
		}
		for msg := range batch.Messages() {
			if err := msg.Ack(); err != nil {
				return 0, 0, err
			}
			got++
		}
		if err := batch.Error(); err != nil {
			return 0, 0, fmt.Errorf("fetch after %d of %d: %w", got, n, err)
		}
	}
	if err := q.nc.Flush(); err != nil {
		return 0, 0, err
	}
	return in, float64(n) / time.Since(began).Seconds(), nil
}

// event is what the worker sends of a purchase.
const event = `{"event":"CompletePayment","event_time":%d,"event_id":"cs_live_a1%s%044d","user":{"email":"%064d","phone":"%064d","external_id":"%064d",` +
	`"ttclid":"E.C.P.CvQBtqmX5aKjG8yWAg","ttp":"2Yg0kBqZSvyMxOvBWjTFhBLe1sR","ip":"203.0.113.7","user_agent":"Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X)"},` +
	`"properties":{"value":29.99,"currency":"USD","content_type":"product","order_id":"cs_live_a1%s"},"page":{"url":"https://shop.example/checkout"}}`

// track posts batches to the simulator as fast as it answers, over as many connections as the worker has slots.
func (b *bench) track(ctx context.Context, s *shot, tiktok *simulator, batch int) error {
	var data bytes.Buffer
	for i := range batch {
		if i > 0 {
			data.WriteByte(',')
		}
		fmt.Fprintf(&data, event, time.Now().Unix(), mark, i, 1, 2, 3, mark)
	}
	body := `{"event_source":"web","event_source_id":"LOCALPIXEL","data":[` + data.String() + `]}`
	request := fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nAccess-Token: local-token\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		eventPath, tiktok.addr, len(body), body)
	places, prefix := placesOf(request, mark), fmt.Sprintf("%05x", batch*1000+len(s.rate)) // no event twice
	_, err := s.take(ctx, load.Plan{Addr: tiktok.addr, Conns: slots, Requests: 1 << 30, For: b.duration, Want: 200, Append: func(buffer []byte, i int) []byte {
		buffer = append(buffer, request...)
		token := prefix + fmt.Sprintf("%0*x", len(mark)-len(prefix), i)
		for _, place := range places {
			copy(buffer[place:], token)
		}
		return buffer
	}})
	if err != nil {
		return err
	}
	stats, err := tiktok.stats(ctx)
	if err == nil && (stats.Refused > 0 || stats.Duplicates > 0) {
		err = fmt.Errorf("the simulator refused %d requests and knew %d events", stats.Refused, stats.Duplicates)
	}
	return err
}
