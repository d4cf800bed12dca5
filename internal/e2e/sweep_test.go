package e2e

import (
	"strings"
	"testing"
	"time"
)

// swept returns how often the sweeper of an ingest had a result.
func (s *stack) swept(admin, result string) float64 {
	s.t.Helper()
	return s.metric(admin, `purchase_relay_swept_total{result="`+result+`"}`)
}

// wipeNATS restarts NATS with an empty store.
func (s *stack) wipeNATS() {
	s.t.Helper()
	s.stopNATS()
	s.natsDir = s.t.TempDir()
	s.startNATS()
}

// The queue's store is wiped with several batches in it. Two ingests sweep together: each purchase is
// published again once, and all are delivered.
func TestSweeper_TwoReplicasPublishAgainOnce(t *testing.T) {
	t.Parallel()
	n := scale(1100, 2500) // several batches of the sweeper
	s := newStack(t, "SWEEP_INTERVAL=200ms", "SWEEP_GRACE=2s")
	s.worker.Kill()
	first := s.admin
	s.startIngest("SWEEP_INTERVAL=200ms", "SWEEP_GRACE=2s")
	second := s.admin
	s.seed(n, nil)
	s.awaitCount("published", n)
	s.wipeNATS()
	began := time.Now()
	s.awaitNone(`purchases WHERE generation = 1`)
	sweep := time.Since(began)
	// Both continue to publish overdue purchases, and the stream rejects what it holds.
	s.await("further sweeps of both", func() bool {
		return s.swept(first, "still_queued") > 0 && s.swept(second, "still_queued") > 0
	})
	one, two := s.swept(first, "published"), s.swept(second, "published")
	if one+two != float64(n) {
		t.Errorf("published again by the two = %v and %v, want %d in total", one, two, n)
	}
	if twice := s.rows(`purchases WHERE generation <> 2`); twice > 0 {
		t.Errorf("%d purchases were not published again once", twice)
	}
	s.startWorker()
	s.awaitCount("delivered", n)
	// With a grace this short, a sweep between a delivery and its outcome may send a purchase once more.
	repeats := 0
	events := s.sim.Received()
	for _, e := range events {
		repeats += e.Copies - 1
		if e.Variants != 1 {
			t.Errorf("%s was sent in %d bodies, want 1", e.EventID, e.Variants)
		}
	}
	if len(events) != n {
		t.Errorf("TikTok has %d events, want %d", len(events), n)
	}
	t.Logf("%v and %v purchases published again in %s, delivered after %s in %d requests, %d repeats",
		one, two, sweep, time.Since(began), s.sim.Stats().Requests, repeats)
}

// A lost purchase that is too old to be sent again is dead in ledger, log, metric and summary, until a replay
// renews its age. A recent one is published again.
func TestSweeper_ExpiresOldLostPurchases(t *testing.T) {
	t.Parallel()
	s := newStack(t, "SWEEP_INTERVAL=100ms", "SWEEP_GRACE=1s", "RETRY_MAX_AGE=24h")
	s.worker.Kill()
	s.seed(2, nil)
	s.awaitCount("published", 2)
	old, recent := seedID(0), seedID(1)
	s.exec(`UPDATE purchases SET first_published_at = now() - interval '25 hours'
		WHERE checkout_session_id = $1`, old)
	s.wipeNATS()
	s.awaitStatus(old, "dead")
	s.checkPurchase(old, "dead", "expired")
	s.await("the metric to be 1", func() bool {
		return s.metric(s.admin, `purchase_relay_dead_letters_total{reason="expired"}`) == 1
	})
	s.checkLogged(s.ingest, "Purchase expired", 1)
	s.await("the summary to have attention 1", func() bool {
		_, summary := httpGet(s.admin + "/api/v1/summary")
		return strings.Contains(summary, `"attention":1`)
	})
	s.startWorker()
	s.awaitStatus(recent, "delivered")
	if code, out := s.command("replay", "--session", old, "--yes"); code != 0 {
		t.Fatalf("replay: exit code %d, want 0: %s", code, out)
	}
	s.awaitStatus(old, "delivered") // repeats of its event_id are possible with a grace this short
}

// Postgres is down for longer than the grace while the worker delivers: the outcomes wait in the queue, and
// the sweeper publishes none of those purchases again.
func TestSweeper_PostgresOutageDoublesNothing(t *testing.T) {
	t.Parallel()
	n := scale(800, 3000)
	s, restart := newStackWithPostgres(t, "SWEEP_INTERVAL=20ms", "SWEEP_GRACE=1s")
	s.worker.Kill()
	s.seed(n, nil)
	s.awaitCount("published", n)
	if err := s.postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	s.startWorker("TIKTOK_MAX_RPS=1000")
	s.await("all outcomes to be in the queue, for longer than the grace", func() bool {
		events := s.sim.Received()
		return len(events) == n && time.Since(events[n-1].FirstAt) > 2*time.Second &&
			s.worker.logged("Purchase event sent successfully") >= n
	})
	restart()
	s.awaitCount("delivered", n)
	repeats := 0
	for _, e := range s.sim.Received() {
		repeats += e.Copies - 1
	}
	if published := s.swept(s.admin, "published"); repeats > 0 || published != 0 {
		t.Errorf("published again = %v, sent again = %d, want none", published, repeats)
	}
}
