package natslocal_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/testkit/natslocal"
)

func TestStart_RestartKeepsStreams(t *testing.T) {
	t.Parallel()
	options := natslocal.Options{StoreDir: t.TempDir()}
	for _, want := range []uint64{1, 2} {
		s, err := natslocal.Start(options)
		if err != nil {
			t.Fatal(err)
		}
		options.Addr = s.Addr()
		if _, err := natslocal.Start(options); err == nil || !strings.Contains(err.Error(), options.Addr) {
			t.Errorf("busy address: error = %v, want one with %s", err, options.Addr)
		}
		nc, err := nats.Connect(s.URL(), nats.Timeout(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		config := jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}
		if _, err := js.CreateOrUpdateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		if ack, err := js.Publish(t.Context(), "s", nil); err != nil || ack.Sequence != want {
			t.Errorf("publish = %+v, %v, want sequence %d", ack, err, want)
		}
		nc.Close()
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}
