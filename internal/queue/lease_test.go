package queue_test

import (
	"sync"
	"testing"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/queue"
)

func dayCounts(day string) message.Stats {
	return message.Stats{
		PixelID: "C4", Day: day, AskedAt: time.Unix(1, 0), Counts: []message.Count{{Event: "SHOPPING", Server: 1}},
	}
}

// checkHeld checks whether a holder gets or keeps its lease. After a timeout its own message may block it
// until that expires.
func checkHeld(t *testing.T, l *queue.Lease, want bool) {
	t.Helper()
	var got, late bool
	var err error
	await(t, "the lease", func() bool {
		if got, err = l.Hold(t.Context()); isTimeout(err) {
			late = true
			return false
		}
		return err != nil || got == want || !late
	})
	if got != want || err != nil {
		t.Errorf("held = %t, %v, want %t", got, err, want)
	}
}

// The holder renews its lease; another worker gets it when the holder is gone for the stream's MaxAge.
func TestLease_OneHolder(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	stream, err := s.raw.Stream(t.Context(), message.StreamLeases)
	if err != nil {
		t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	if config.MaxAge != queue.LeaseTTL {
		t.Errorf("the lease lasts %s, want %s", config.MaxAge, queue.LeaseTTL)
	}
	setAge := func(age time.Duration) {
		t.Helper()
		config.MaxAge, config.Duplicates = age, time.Second
		if _, err := s.raw.UpdateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
	}

	first, second := s.Lease("stats", "w-1"), s.connect("worker").Lease("stats", "w-2")
	checkHeld(t, first, true)
	for range 3 {
		checkHeld(t, second, false)
		checkHeld(t, first, true)
	}
	checkHeld(t, s.Lease("other", "w-1"), true)
	awaitSecond := func() {
		t.Helper()
		await(t, "the second worker's lease", func() bool {
			held, err := second.Hold(t.Context())
			return held && err == nil
		})
	}
	setAge(time.Second) // the test does not wait for half a minute
	awaitSecond()
	setAge(queue.LeaseTTL)
	awaitSecond() // its lease may have ended before
	checkHeld(t, first, false)
	checkHeld(t, second, true)

	var group sync.WaitGroup // a renewal and several attempts at the same time
	var mu sync.Mutex
	holders, timeouts := 0, 0
	for range 8 {
		l := s.Lease("contended", "w")
		group.Go(func() {
			held, err := l.Hold(t.Context())
			mu.Lock()
			defer mu.Unlock()
			if isTimeout(err) {
				timeouts++
			} else if held && err == nil {
				holders++
			}
		})
	}
	if group.Wait(); holders > 1 || holders == 0 && timeouts == 0 {
		t.Errorf("%d workers hold the lease, want 1", holders)
	}
}

// A wiped queue, a lost stream and a server that is down end the lease, with an error.
func TestLease_LostWithItsStream(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	l := s.Lease("stats", "w-1")
	checkHeld(t, l, true)
	if err := s.raw.DeleteStream(t.Context(), message.StreamLeases); err != nil {
		t.Fatal(err)
	}
	if held, err := l.Hold(t.Context()); held || err == nil {
		t.Errorf("without the stream: held = %t, %v, want an error", held, err)
	}
	s.provision(streamConfig)
	checkHeld(t, l, true)
	s.stop()
	if held, err := l.Hold(t.Context()); held || err == nil {
		t.Errorf("without the server: held = %t, %v, want an error", held, err)
	}
}

// TikTok's counts reach the recorder beside the outcomes.
func TestConn_StatsReachTheRecorder(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	timeouts, err := repeat(t, func() error { return s.Stats(t.Context(), dayCounts("2026-01-01")) })
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stats(t.Context(), dayCounts("yesterday")); err == nil {
		t.Error("published counts of a malformed day")
	}
	got := s.fetch(s.Consumer(message.StreamOutcomes, message.ConsumerRecorder), 10)
	if len(got) > 1+timeouts || got[0].Subject != message.SubjectStats {
		t.Fatalf("fetched %v, want one message on %s", got, message.SubjectStats)
	}
	stored := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if counts, err := message.DecodeStats(got[0].Data, stored); err != nil || counts.Day != "2026-01-01" {
		t.Errorf("decoded counts of %q, %v; want 2026-01-01", counts.Day, err)
	}
	if err := got[0].DoubleAck(t.Context()); err != nil {
		t.Error(err)
	}
}
