package natslocal_test

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/testkit/natslocal"
)

// A restart on the same address and folder has the same streams.
func TestRestartKeepsStreams(t *testing.T) {
	dir := t.TempDir()
	s, err := natslocal.Start(natslocal.Options{StoreDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	addr := s.Addr()
	if _, err := natslocal.Start(natslocal.Options{Addr: addr}); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("a busy address: %v", err)
	}
	for start := range 2 {
		nc, err := nats.Connect(s.URL())
		if err != nil {
			t.Fatal(err)
		}
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		if start == 0 {
			if _, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
				t.Fatal(err)
			}
			_, err = js.Publish(t.Context(), "s", []byte("kept"))
		} else {
			var stream jetstream.Stream
			if stream, err = js.Stream(t.Context(), "S"); err == nil && stream.CachedInfo().State.Msgs != 1 {
				t.Errorf("%d messages", stream.CachedInfo().State.Msgs)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		if start == 0 {
			if s, err = natslocal.Start(natslocal.Options{Addr: addr, StoreDir: dir}); err != nil {
				t.Fatal(err)
			}
		}
	}
}
