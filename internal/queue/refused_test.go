package queue_test

import (
	"context"
	"errors"
	"testing"

	"purchase-relay/internal/message"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/testkit/faultproxy"
)

// Refused means that nothing was stored: a purchase that was never sent must not grow old.
func TestPublish_ReportsWhatWasNotStored(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(t *testing.T, s *site) relay.Claim{
		"full stream": func(t *testing.T, s *site) relay.Claim {
			t.Helper()
			if err := s.Provision(t.Context(), queue.StreamConfig{Replicas: 1, MaxBytes: 2000}); err != nil {
				t.Fatal(err)
			}
			p := claim("cs_1", 1)
			p.Envelope = make([]byte, 4000)
			return p
		},
		"missing stream": func(t *testing.T, s *site) relay.Claim {
			t.Helper()
			if err := s.raw.DeleteStream(t.Context(), message.StreamPurchases); err != nil {
				t.Fatal(err)
			}
			return claim("cs_1", 1)
		},
		"server away": func(_ *testing.T, s *site) relay.Claim {
			s.stop()
			s.await("the lost connection", func() bool { return !s.Connected() })
			return claim("cs_1", 1)
		},
		"over the server's limit": func(*testing.T, *site) relay.Claim {
			p := claim("cs_1", 1)
			p.Envelope = make([]byte, 2<<20)
			return p
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			p := prepare(t, s)
			if got := s.publish(p)[0]; got.Err == nil || !got.NotStored {
				t.Errorf("publish = %+v, want an error, refused", got)
			}
		})
	}
}

// An answer that is lost, and a purchase that the stream still holds, are no refusals.
func TestPublish_AmbiguousIsNotRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	proxy := faultproxy.ForTest(t, s.server.Addr())
	far := s.through(proxy)
	held := proxy.HoldAnswersAfter([]byte("cs_1:1"))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-held
		s.await("the message", func() bool { return s.stored(message.StreamPurchases) == 1 })
		cancel()
	}()
	if got := far.Publish(ctx, []relay.Claim{claim("cs_1", 1)})[0]; got.Err == nil ||
		got.NotStored {
		t.Errorf("lost answer = %+v, want an error, not refused", got)
	}
	if got := s.publish(claim("cs_1", 2))[0]; !errors.Is(got.Err, relay.ErrStillQueued) ||
		got.NotStored {
		t.Errorf("still queued = %+v, want ErrStillQueued, not refused", got)
	}
}
