package queue_test

import (
	"errors"
	"fmt"
	"testing"

	"purchase-relay/internal/message"
	"purchase-relay/internal/testkit/faultproxy"
)

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
