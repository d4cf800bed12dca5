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
)

// through returns a connection by way of a proxy.
func (s *site) through(p *faultproxy.Proxy) *queue.Conn {
	s.t.Helper()
	c, err := queue.Connect(
		queue.Config{NATSURL: secret.String("nats://" + p.Addr())},
		"worker",
		zap.NewNop(),
		prometheus.NewRegistry(),
	)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close(context.Background()) })
	s.await("the connection", c.Connected)
	return c
}

func (s *site) stored(stream string) uint64 {
	s.t.Helper()
	found, err := s.raw.Stream(s.t.Context(), stream)
	if err != nil {
		s.t.Fatal(err)
	}
	return found.CachedInfo().State.Msgs
}

// The server stores a whole window although none of its answers has come through: one round trip for all of
// them.
func TestDeadLetters_AwaitAnswersTogether(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	proxy := faultproxy.ForTest(t, s.server.Addr())
	worker := s.through(proxy)
	const n = 500
	letters := make([]message.DeadLetter, n)
	for i := range letters {
		letters[i] = message.DeadLetter{
			EventID:    fmt.Sprintf("cs_%d", i),
			Generation: 1,
			Reason:     purchase.ReasonExpired,
			DiedAt:     time.Now(),
			Envelope:   []byte(`{}`),
		}
	}
	proxy.HoldAnswersAfter([]byte("PUB purchases.dead."))
	done := make(chan error)
	go func() { done <- errors.Join(worker.DeadLetters(t.Context(), letters)...) }()
	s.await("every letter to be stored", func() bool { return s.stored(message.StreamPurchasesDead) == n })
	select {
	case err := <-done:
		t.Errorf("returned without an answer: %v", err)
	default:
	}
	proxy.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := errors.Join(worker.DeadLetters(t.Context(), letters)...); err != nil { // repeated
		t.Error(err)
	}
	if got := s.stored(message.StreamPurchasesDead); got != n {
		t.Errorf("%d letters are stored, want %d", got, n)
	}
}

// A letter that cannot be published is the only one with an error.
func TestDeadLetters_ReportsEachError(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	letters := make([]message.DeadLetter, 3)
	for i, envelope := range []string{`{}`, `not JSON`, `{}`} {
		letters[i] = message.DeadLetter{
			EventID: fmt.Sprintf("cs_%d", i+1), Generation: 1, Reason: purchase.ReasonRefused, DiedAt: time.Now(),
			Envelope: []byte(envelope),
		}
	}
	errs := s.DeadLetters(t.Context(), letters)
	if len(errs) != 3 || errs[0] != nil || errs[1] == nil || errs[2] != nil {
		t.Errorf("errors = %v, want one, the second", errs)
	}
	if got := s.stored(message.StreamPurchasesDead); got != 2 {
		t.Errorf("%d letters are stored, want 2", got)
	}
}

// counted counts the calls that a worker makes to publish, each a round trip, and what it publishes.
type counted struct {
	*queue.Conn
	mu             sync.Mutex
	calls, letters int
	outcomes       int
}

func (c *counted) DeadLetters(ctx context.Context, list []message.DeadLetter) []error {
	c.mu.Lock()
	c.calls, c.letters = c.calls+1, c.letters+len(list)
	c.mu.Unlock()
	return c.Conn.DeadLetters(ctx, list)
}

func (c *counted) Outcomes(ctx context.Context, list []message.Outcome) []error {
	c.mu.Lock()
	c.calls, c.outcomes = c.calls+1, c.outcomes+len(list)
	c.mu.Unlock()
	return c.Conn.Outcomes(ctx, list)
}

type nowhere struct{}

func (nowhere) Send(context.Context, []message.Envelope) purchase.Answer {
	panic("an expired purchase was sent")
}

// Two thousand expired purchases, 70 ms each way from NATS: each letter and each outcome is published once,
// in a handful of round trips.
func TestWorker_ExpiresBacklogFarFromNATS(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const n = 2000
	batch := make([]relay.Claim, n)
	for i := range batch {
		id := fmt.Sprintf("cs_%d", i)
		data, err := message.EncodeEnvelope(
			&purchase.Purchase{ID: id, Livemode: true, At: time.Now().Add(-48 * time.Hour)},
		)
		if err != nil {
			t.Fatal(err)
		}
		batch[i] = relay.Claim{
			ID: id, Livemode: true, Generation: 1, FirstPublished: time.Now().Add(-48 * time.Hour), Envelope: data,
		}
	}
	for _, p := range s.publish(batch...) {
		if p.Err != nil {
			t.Fatal(p.Err)
		}
	}
	proxy := faultproxy.ForTest(t, s.server.Addr())
	reporter := &counted{Conn: s.through(proxy)}
	proxy.Delay(70 * time.Millisecond)
	worker := delivery.New(delivery.Config{
		Live: nowhere{}, EventName: "CompletePayment", BatchSize: 500, Concurrency: 1, MaxRPS: 1000, RetryInitial: time.Second, RetryMax: time.Minute,
		RetryMaxAge: 47 * time.Hour, AckWait: queue.AckWait, Instance: "w", Now: time.Now,
	}, reporter.Consumer(message.StreamPurchases, message.ConsumerWorker), reporter, zap.NewNop(), prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- worker.Run(ctx, context.WithoutCancel(ctx)) }()
	s.await("every purchase to be dead", func() bool { return s.stored(message.StreamPurchases) == 0 })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	t.Logf(
		"%d round trips for %d letters and %d outcomes",
		reporter.calls,
		reporter.letters,
		reporter.outcomes,
	)
	if reporter.letters != n || reporter.outcomes != n || s.stored(message.StreamPurchasesDead) != n {
		t.Errorf(
			"published %d letters and %d outcomes, %d letters stored, want %d of each",
			reporter.letters,
			reporter.outcomes,
			s.stored(message.StreamPurchasesDead),
			n,
		)
	}
	if reporter.calls > 20 {
		t.Errorf("%d round trips, want at most 20", reporter.calls)
	}
}
