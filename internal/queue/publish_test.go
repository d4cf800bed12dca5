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

// A purchase that was provably not stored does not age.
func TestPublish_ReportsNotStored(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(t *testing.T, s *testNATS) relay.Claim{
		"full stream": func(t *testing.T, s *testNATS) relay.Claim {
			t.Helper()
			s.provision(queue.StreamConfig{Replicas: 1, MaxBytes: 2000})
			p := claim("cs_1", 1)
			p.Envelope = make([]byte, 4000)
			return p
		},
		"missing stream": func(t *testing.T, s *testNATS) relay.Claim {
			t.Helper()
			if err := s.raw.DeleteStream(t.Context(), message.StreamPurchases); err != nil {
				t.Fatal(err)
			}
			return claim("cs_1", 1)
		},
		"server down": func(_ *testing.T, s *testNATS) relay.Claim {
			s.stop()
			return claim("cs_1", 1)
		},
		"over the server's limit": func(*testing.T, *testNATS) relay.Claim {
			p := claim("cs_1", 1)
			p.Envelope = make([]byte, 2<<20)
			return p
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newNATS(t)
			p := prepare(t, s)
			got := s.publish(p)[0]
			if got.Err == nil || !got.NotStored {
				t.Errorf("publish = %+v, want an error, not stored", got)
			}
			if full := name == "full stream"; errors.Is(got.Err, relay.ErrStreamFull) != full {
				t.Errorf("error = %v, want ErrStreamFull: %t", got.Err, full)
			}
		})
	}
}

// A lost acknowledgement, and a purchase that is still queued, do not prove that nothing was stored.
func TestPublish_AmbiguousIsNotReportedAsNotStored(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	proxy := faultproxy.ForTest(t, s.server.Addr())
	proxied := s.connectVia(proxy)
	held := proxy.HoldAnswersAfter([]byte("cs_1:1"))
	ctx, cancel := context.WithCancel(t.Context())
	stored := make(chan struct{})
	go func() {
		defer close(stored)
		defer cancel()
		<-held
		s.await("the message", func() bool { return s.stored(message.StreamPurchases) == 1 })
	}()
	if got := proxied.Publish(ctx, []relay.Claim{claim("cs_1", 1)})[0]; got.Err == nil || got.NotStored {
		t.Errorf("publish = %+v with a lost acknowledgement, want an ambiguous error", got)
	}
	<-stored // also if the publish timed out before
	if got := s.publish(claim("cs_1", 2))[0]; !errors.Is(got.Err, relay.ErrStillQueued) || got.NotStored {
		t.Errorf("publish = %+v while queued, want ErrStillQueued, ambiguous", got)
	}
}
