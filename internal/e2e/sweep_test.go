package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// metric reads one line of a program's metrics; 0: it is not there.
func (s *stack) metric(admin, line string) (value float64) {
	s.t.Helper()
	code, text := get(admin + "/metrics")
	if code != http.StatusOK {
		s.t.Fatalf("metrics: %d", code)
	}
	for l := range strings.Lines(text) {
		if rest, found := strings.CutPrefix(l, line+" "); found {
			if _, err := fmt.Sscan(rest, &value); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	return value
}

// wipeNATS takes everything from the queue.
func (s *stack) wipeNATS() {
	s.t.Helper()
	if err := s.nats.Stop(); err != nil {
		s.t.Fatal(err)
	}
	s.natsDir = s.t.TempDir()
	s.startNATS()
}

// The queue's store is wiped with several batches of purchases waiting. Two ingests sweep together: each
// purchase is published again once, and all are delivered.
func TestSweeper_TwoReplicasPublishAgainOnce(t *testing.T) {
	t.Parallel()
	const n = 2500
	s := newStack(t, "SWEEP_INTERVAL=200ms", "SWEEP_GRACE=2s")
	s.worker.kill()
	first := s.admin
	s.startIngest("SWEEP_INTERVAL=200ms", "SWEEP_GRACE=2s")
	second := s.admin
	s.seed(n, func(int) bool { return false })
	s.await("all to be in the queue", func() bool { return query[int](s, `SELECT count(*) FROM purchases WHERE status = 'published'`) == n })
	s.wipeNATS()
	began := time.Now()
	s.await("all to be published again", func() bool { return query[int](s, `SELECT count(*) FROM purchases WHERE generation > 1`) == n })
	swept := time.Since(began)
	// They go on asking for what waits; the stream refuses what it holds.
	s.await("both to have asked again", func() bool {
		asked := func(admin string) float64 {
			return s.metric(admin, `purchase_relay_swept_total{result="still_queued"}`)
		}
		return asked(first) > 0 && asked(second) > 0
	})
	one, two := s.metric(first, `purchase_relay_swept_total{result="published"}`), s.metric(second, `purchase_relay_swept_total{result="published"}`)
	if one+two != n {
		t.Errorf("swept by the two: %v and %v", one, two)
	}
	if twice := query[int](s, `SELECT count(*) FROM purchases WHERE generation <> 2`); twice > 0 {
		t.Errorf("%d purchases were not swept once", twice)
	}
	s.startWorker()
	s.await("all to be delivered", func() bool { return query[int](s, `SELECT count(*) FROM purchases WHERE status = 'delivered'`) == n })
	// With a grace this short, a purchase may be asked for between its end and its outcome, and be sent once more.
	repeats := 0
	events := s.sim.Received()
	for _, e := range events {
		repeats += e.Copies - 1
		if e.Variants != 1 {
			t.Errorf("%s: %d copies in %d bodies", e.EventID, e.Copies, e.Variants)
		}
	}
	if len(events) != n {
		t.Errorf("TikTok has %d", len(events))
	}
	t.Logf("%d purchases, published again after %.1f s by two ingests (%v and %v), delivered in %d requests after %.1f s, %d repeats",
		n, swept.Seconds(), one, two, s.sim.Stats().Requests, time.Since(began).Seconds(), repeats)
}

// What is lost and too old to be sent again is given up on where everybody sees it: ledger, log, metric, summary. A replay gives it a
// new age.
func TestLostTooLongIsGivenUpOnLoudly(t *testing.T) {
	t.Parallel() // it waits, mostly
	s := newStack(t, "SWEEP_INTERVAL=100ms", "SWEEP_GRACE=1s", "RETRY_MAX_AGE=24h")
	s.worker.kill()
	s.seed(2, func(int) bool { return false })
	s.await("both to be in the queue", func() bool { return query[int](s, `SELECT count(*) FROM purchases WHERE status = 'published'`) == 2 })
	s.exec(`UPDATE purchases SET first_published_at = now() - interval '25 hours' WHERE checkout_session_id = 'cs_live_seed000000'`)
	s.wipeNATS()
	if r := s.awaitStatus("cs_live_seed000000", "dead"); r.Reason != "expired" {
		t.Errorf("row: %+v", r)
	}
	if n := s.metric(s.admin, `purchase_relay_dead_letters_total{reason="expired"}`); n != 1 {
		t.Errorf("the metric counts %v", n)
	}
	if n := s.ingest.said("Purchase expired"); n != 1 {
		t.Errorf("it was told %d times", n)
	}
	if _, summary := get(s.admin + "/api/v1/summary"); !strings.Contains(summary, `"attention":1`) {
		t.Errorf("summary: %s", summary)
	}
	s.startWorker()
	s.awaitStatus("cs_live_seed000001", "delivered")
	if code, out := s.command("replay", "--session", "cs_live_seed000000", "--yes"); code != 0 {
		t.Fatalf("replay: %d %s", code, out)
	}
	s.awaitStatus("cs_live_seed000000", "delivered")
	for _, e := range s.sim.Received() {
		if e.Copies != 1 {
			t.Errorf("%s: %d copies", e.EventID, e.Copies)
		}
	}
}

// Two ingests sweep an outage, again and again, with a grace so short that both always have something to ask: no purchase is published
// twice while the queue holds it, and no two questions about one purchase at the same time.
func TestTwoSweepersInAnOutage(t *testing.T) {
	t.Parallel() // it waits, mostly
	const n = 300
	s := newStack(t, "SWEEP_INTERVAL=50ms", "SWEEP_GRACE=50ms")
	s.worker.kill()
	first := s.admin
	s.startIngest("SWEEP_INTERVAL=50ms", "SWEEP_GRACE=50ms")
	s.seed(n, func(int) bool { return false })
	s.await("many questions of both", func() bool {
		asked := func(admin string) float64 {
			return s.metric(admin, `purchase_relay_swept_total{result="still_queued"}`)
		}
		return asked(first) > n && asked(s.admin) > n
	})
	for _, admin := range []string{first, s.admin} {
		if published := s.metric(admin, `purchase_relay_swept_total{result="published"}`); published > 0 {
			t.Errorf("%v were published although the queue held them", published)
		}
	}
	s.ledger(func(ctx context.Context, conn *pgx.Conn) error {
		var wrong int
		if err := conn.QueryRow(ctx, `SELECT count(*) FROM purchases WHERE generation <> 1 OR status <> 'published'`).Scan(&wrong); err != nil {
			return err
		}
		if wrong > 0 {
			t.Errorf("%d purchases were moved", wrong)
		}
		return nil
	})
}

// Postgres is away for longer than the grace while the workers deliver what is queued: their outcomes wait, and the sweeper takes
// none of those purchases for lost when Postgres is back.
func TestSweepingAfterPostgresWasAwayDoublesNothing(t *testing.T) {
	t.Parallel()
	const n = 3_000
	s, startPostgres := newStackWithPostgres(t, "SWEEP_INTERVAL=20ms", "SWEEP_GRACE=1s")
	s.worker.kill()
	s.seed(n, func(int) bool { return false })
	s.await("all to be in the queue", func() bool { return query[int](s, `SELECT count(*) FROM purchases WHERE status = 'published'`) == n })
	if err := s.postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	s.startWorker("TIKTOK_MAX_RPS=1000")
	s.await("all to be at TikTok for longer than the grace", func() bool {
		events := s.sim.Received()
		return len(events) == n && time.Since(events[n-1].FirstAt) > 2*time.Second
	})
	startPostgres()
	s.await("all to be recorded", func() bool { return query[int](s, `SELECT count(*) FROM purchases WHERE status = 'delivered'`) == n })
	repeats := 0
	for _, e := range s.sim.Received() {
		repeats += e.Copies - 1
	}
	if swept := s.metric(s.admin, `purchase_relay_swept_total{result="published"}`); repeats > 0 || swept > 0 {
		t.Errorf("%v were taken for lost, and %d sent again", swept, repeats)
	}
}
