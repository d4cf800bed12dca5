package queue

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/natslocal"
	"purchase-relay/internal/testkit/wait"
)

func TestOffsetBetween(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	sent := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, tc := range map[string]struct {
		took   time.Duration
		server time.Time
		want   time.Duration
		ok     bool
	}{
		"equal clocks":   {10 * ms, sent.Add(5 * ms), 0, true},
		"server behind":  {10 * ms, sent.Add(5*ms - 20*time.Minute), -20 * time.Minute, true},
		"server ahead":   {time.Second, sent.Add(time.Hour + 500*ms), time.Hour, true},
		"slow response":  {3 * time.Second, sent.Add(time.Hour), 0, false},
		"clock set back": {-time.Second, sent, 0, false},
		"no timestamp":   {10 * ms, time.Time{}, 0, false},
	} {
		if got, ok := offsetBetween(sent, sent.Add(tc.took), tc.server); got != tc.want || ok != tc.ok {
			t.Errorf("%s: offset %s, %t; want %s, %t", name, got, ok, tc.want, tc.ok)
		}
	}
}

// The offset is known once the consumer is bound, before the first message, and follows a changed clock.
func TestConsumer_MeasuresClockOffset(t *testing.T) {
	t.Parallel()
	server, err := natslocal.Start(natslocal.Options{StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	config := Config{NATSURL: secret.String(server.URL())}
	conn, err := Connect(config, "ingest", zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	succeed := func(request func() error) { // a response may be late
		t.Helper()
		var err error
		if !wait.Until(t.Context(), 3*time.Minute, 5*time.Millisecond, func() bool {
			err = request()
			return err == nil
		}) {
			t.Fatal(err)
		}
	}
	succeed(func() error {
		return conn.Provision(t.Context(), StreamConfig{Replicas: 1, MaxBytes: 64 << 20})
	})
	consumer := conn.Consumer(message.StreamPurchases, message.ConsumerWorker)
	for id, shift := range map[string]time.Duration{
		"cs_ahead": 20 * time.Minute, "cs_behind": -30 * time.Minute, "cs_right": 0,
	} {
		consumer.clock.now = func() time.Time { return time.Now().Add(shift) }
		claim := relay.Claim{
			ID: id, Livemode: true, Generation: 1, FirstPublished: time.Now().Add(time.Hour), Envelope: []byte("{}"),
		}
		succeed(func() error { return conn.Publish(t.Context(), []relay.Claim{claim})[0].Err })
		for fetched := 0; ; {
			began := time.Now()
			messages, err := consumer.Fetch(t.Context(), 10)
			slow := time.Since(began) > clockTimeout
			for _, m := range messages {
				if m.FirstPublished.After(m.Taken) {
					t.Errorf("first published %s after the stream stored it, want before", m.FirstPublished.Sub(m.Taken))
				}
				if err := m.DoubleAck(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			fetched += len(messages)
			got := consumer.ClockOffset()
			if fetched == 1 && (got+shift).Abs() <= 2*time.Second {
				break
			}
			if !slow {
				t.Fatalf("%d messages, %v, offset = %s with this machine's clock %s ahead; want 1 and %s",
					fetched, err, got, shift, -shift)
			}
			consumer.clock.last.Store(0) // a late response is not compared: repeat it
		}
	}
}
