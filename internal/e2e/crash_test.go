package e2e

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"purchase-relay/internal/dev/stripegen"
)

// crashes is how often a binary is killed: CRASHES=100 for a long run.
func crashes(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("CRASHES"))
	if err != nil {
		return 6
	}
	return n
}

// Both binaries are killed (kill -9) at random moments while purchases come in as Stripe sends them, again until they are
// taken. (The grace is longer than the 30 s after which the queue delivers again what a killed process held.) At the end every one was delivered, was sent under one event_id with one body, and made one profile and one row.
func TestKilledAtRandomMoments(t *testing.T) {
	s := newStack(t, "SWEEP_INTERVAL=500ms", "SWEEP_GRACE=40s")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	var group sync.WaitGroup
	stop := make(chan struct{})
	sent := make(chan string, 100_000)
	// The address moves with each start of ingest: Stripe's side asks for the present one.
	var mu sync.Mutex
	sender := s.sender
	current := func() *stripegen.Sender {
		mu.Lock()
		defer mu.Unlock()
		return sender
	}
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c := stripegen.NewCheckout().Live()
				for body := c.Event(); ; {
					answer, err := current().Deliver(t.Context(), body, 1, time.Millisecond)
					if err == nil && answer.Status == 200 {
						break
					}
					if t.Context().Err() != nil {
						return
					}
				}
				sent <- c.SessionID
			}
		})
	}
	for range crashes(t) {
		moment := time.NewTimer(time.Duration(random.IntN(400)) * time.Millisecond)
		<-moment.C
		if random.IntN(2) == 0 {
			s.ingest.kill()
			s.startIngest("SWEEP_INTERVAL=500ms", "SWEEP_GRACE=40s")
			mu.Lock()
			sender = s.sender
			mu.Unlock()
		} else {
			s.worker.kill()
			s.startWorker()
		}
	}
	close(stop)
	group.Wait()
	close(sent)
	ids := make(map[string]bool)
	for id := range sent {
		ids[id] = true
	}
	if len(ids) < 10 {
		t.Fatalf("only %d purchases were sent: the test shows nothing", len(ids))
	}
	s.await("every purchase to be delivered", func() bool {
		return query[int](s, `SELECT count(*) FROM purchases WHERE status <> 'delivered'`) == 0
	})
	if n := query[int](s, `SELECT count(*) FROM purchases`); n != len(ids) {
		t.Errorf("%d rows for %d purchases", n, len(ids))
	}
	if n := query[int](s, `SELECT count(*) FROM profiles`); n != len(ids) {
		t.Errorf("%d profiles for %d customers", n, len(ids))
	}
	repeats := 0
	for _, e := range s.sim.Received() {
		if !ids[e.EventID] {
			t.Errorf("TikTok holds %s, which nobody bought", e.EventID)
		}
		delete(ids, e.EventID)
		repeats += e.Copies - 1
		if e.Variants != 1 {
			t.Errorf("%s was sent in %d bodies", e.EventID, e.Variants)
		}
	}
	if len(ids) > 0 {
		t.Errorf("%d purchases never reached TikTok", len(ids))
	}
	t.Logf("%d purchases, %d sent again under their own event_id", query[int](s, `SELECT count(*) FROM purchases`), repeats)
}
