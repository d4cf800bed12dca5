package queue_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/delivery"
	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/faultproxy"
	"purchase-relay/internal/testkit/wait"
)

// connectVia connects through a proxy.
func (s *testNATS) connectVia(p *faultproxy.Proxy) *queue.Conn {
	s.t.Helper()
	config := queue.Config{NATSURL: secret.String("nats://" + p.Addr())}
	c, err := queue.Connect(config, "worker", zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close(context.Background()) })
	s.await("the connection", c.Connected)
	return c
}

func (s *testNATS) stored(stream string) uint64 {
	s.t.Helper()
	found, err := s.raw.Stream(s.t.Context(), stream)
	if err != nil {
		s.t.Fatal(err)
	}
	return found.CachedInfo().State.Msgs
}

// The server stores all dead letters before the client receives any acknowledgement: one round trip for all.
func TestDeadLetters_AwaitAcksTogether(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	proxy := faultproxy.ForTest(t, s.server.Addr())
	worker := s.connectVia(proxy)
	const n = 500
	letters := make([]message.DeadLetter, n)
	for generation, together := 1, false; !together; generation++ {
		for i := range letters {
			letters[i] = deadLetter(fmt.Sprintf("cs_%d", i), generation)
		}
		all := uint64(generation * n)
		proxy.HoldAnswersAfter([]byte("PUB purchases.dead."))
		done := make(chan error, 1)
		go func() { done <- errors.Join(worker.DeadLetters(t.Context(), letters)...) }()
		s.await("the dead letters", func() bool {
			together = s.stored(message.StreamPurchasesDead) == all && len(done) == 0
			return together || len(done) > 0
		})
		proxy.Set(faultproxy.Fault{})
		// The server may need longer than the client waits, but not each time.
		if err := <-done; err != nil && !isTimeout(err) || !together && generation == 5 {
			t.Fatalf("returned %v, stored together = %t; want nil, true", err, together)
		}
		if _, err := repeat(t, func() error { // stores none again
			return errors.Join(worker.DeadLetters(t.Context(), letters)...)
		}); err != nil {
			t.Fatal(err)
		}
		if got := s.stored(message.StreamPurchasesDead); got != all {
			t.Fatalf("%d dead letters are stored, want %d", got, all)
		}
	}
}

func TestDeadLetters_ReportsEachError(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	letters := make([]message.DeadLetter, 3)
	for i, envelope := range []string{`{}`, `not JSON`, `{}`} {
		letters[i] = deadLetter(fmt.Sprintf("cs_%d", i+1), 1)
		letters[i].Envelope = []byte(envelope)
	}
	var errs []error
	_, _ = repeat(t, func() error {
		errs = s.DeadLetters(t.Context(), letters)
		return errors.Join(errs...)
	})
	if len(errs) != 3 || errs[0] != nil || errs[1] == nil || errs[2] != nil {
		t.Errorf("errors = %v, want the second alone", errs)
	}
	if got := s.stored(message.StreamPurchasesDead); got != 2 {
		t.Errorf("%d dead letters are stored, want 2", got)
	}
}

// countingReporter counts publish calls, each a round trip, and their messages. The worker repeats the failed
// ones: an acknowledgement may take longer than the client waits.
type countingReporter struct {
	*queue.Conn
	mu                        sync.Mutex
	calls, failedCalls        int
	letters, outcomes, failed int
}

func (c *countingReporter) DeadLetters(ctx context.Context, list []message.DeadLetter) []error {
	errs := c.Conn.DeadLetters(ctx, list)
	c.count(&c.letters, errs)
	return errs
}

func (c *countingReporter) Outcomes(ctx context.Context, list []message.Outcome) []error {
	errs := c.Conn.Outcomes(ctx, list)
	c.count(&c.outcomes, errs)
	return errs
}

func (c *countingReporter) count(messages *int, errs []error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls, *messages = c.calls+1, *messages+len(errs)
	before := c.failed
	for _, err := range errs {
		if err != nil {
			c.failed++
		}
	}
	if c.failed > before {
		c.failedCalls++
	}
}

// countingSource counts redelivered messages: the worker handles each alone. A fetch that a busy machine
// answers after a second is lost, and its messages are redelivered.
type countingSource struct {
	*queue.Consumer
	redelivered int
}

func (c *countingSource) Fetch(ctx context.Context, limit int) ([]message.Received, error) {
	messages, err := c.Consumer.Fetch(ctx, limit)
	for _, m := range messages {
		if m.NumDelivered > 1 {
			c.redelivered++
		}
	}
	return messages, err
}

type noDestination struct{}

func (noDestination) Send(context.Context, []message.Envelope) purchase.Answer {
	panic("an expired purchase was sent")
}

// With 70 ms to NATS, one round trip per purchase would take minutes.
func TestWorker_ExpiresBacklogInFewRoundTrips(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	const n = 2000
	old := time.Now().Add(-48 * time.Hour)
	batch := make([]relay.Claim, n)
	for i := range batch {
		id := fmt.Sprintf("cs_%d", i)
		data, err := message.EncodeEnvelope(&purchase.Purchase{ID: id, Livemode: true, At: old})
		if err != nil {
			t.Fatal(err)
		}
		batch[i] = relay.Claim{ID: id, Livemode: true, Generation: 1, FirstPublished: old, Envelope: data}
	}
	s.store(batch)
	proxy := faultproxy.ForTest(t, s.server.Addr())
	reporter := &countingReporter{Conn: s.connectVia(proxy)}
	proxy.Set(faultproxy.Fault{Delay: 70 * time.Millisecond})
	purchases := &countingSource{Consumer: reporter.Consumer(message.StreamPurchases, message.ConsumerWorker)}
	worker := delivery.New(delivery.Config{
		Live: noDestination{}, EventName: "CompletePayment", BatchSize: 500, Concurrency: 1, MaxRPS: 1000,
		RetryInitial: time.Second, RetryMax: time.Minute, RetryMaxAge: 47 * time.Hour,
		AckWait: queue.AckWait, Instance: "w", Now: time.Now,
	}, purchases, reporter, zap.NewNop(), prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- worker.Run(ctx, context.WithoutCancel(ctx)) }()
	if !wait.Until(ctx, 5*time.Minute, 100*time.Millisecond, func() bool {
		return s.stored(message.StreamPurchases) == 0
	}) {
		t.Error("timeout waiting for the purchases to expire")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	letters, outcomes, stored := reporter.letters, reporter.outcomes, s.stored(message.StreamPurchasesDead)
	t.Logf("%d round trips for %d dead letters and %d outcomes", reporter.calls, letters, outcomes)
	again := purchases.redelivered + reporter.failed
	if letters < n || letters > n+again || outcomes < n || outcomes > n+again || stored != n {
		t.Errorf("published %d dead letters and %d outcomes, %d dead letters stored; want %d, up to %d again",
			letters, outcomes, stored, n, again)
	}
	if limit := 20 + 2*(purchases.redelivered+reporter.failedCalls); reporter.calls > limit {
		t.Errorf("%d round trips, want at most %d", reporter.calls, limit)
	}
}
