package e2e

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
)

// dose is the size of a test: small in `make test` (-short), large in `make test-long`.
func dose(small, large int) int {
	if testing.Short() {
		return small
	}
	return large
}

// crashes is how often a test kills a process. CRASHES overrides it.
func crashes() int {
	if n, err := strconv.Atoi(os.Getenv("CRASHES")); err == nil {
		return n
	}
	return dose(4, 100)
}

// load is purchases as Stripe sends them: four concurrently, 125 a second, each again until it is taken.
type load struct {
	s     *stack
	group sync.WaitGroup
	stop  chan struct{}
	ids   chan string

	pace   *time.Ticker
	mu     sync.Mutex
	sender *stripegen.Sender // moves with each start of ingest
}

func (s *stack) load() *load {
	l := &load{s: s, stop: make(chan struct{}), ids: make(chan string, 1_000_000), sender: s.sender}
	l.pace = time.NewTicker(8 * time.Millisecond)
	s.t.Cleanup(l.pace.Stop)
	for range 4 {
		l.group.Go(l.buy)
	}
	return l
}

func (l *load) buy() {
	for {
		select {
		case <-l.stop:
			return
		case <-l.pace.C:
		}
		c := stripegen.NewCheckout().Live()
		for body := c.Event(); ; {
			l.mu.Lock()
			sender := l.sender
			l.mu.Unlock()
			answer, err := sender.Deliver(l.s.t.Context(), body, 1, time.Millisecond)
			if err == nil && answer.Status == 200 {
				break
			}
			if l.s.t.Context().Err() != nil {
				return
			}
		}
		l.ids <- c.SessionID
	}
}

// moved tells that ingest was started anew.
func (l *load) moved() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sender = l.s.sender
}

// sold stops the load and returns what was answered 200.
func (l *load) sold() map[string]bool {
	close(l.stop)
	l.group.Wait()
	close(l.ids)
	ids := make(map[string]bool)
	for id := range l.ids {
		ids[id] = true
	}
	return ids
}

// end stops the load and checks that each purchase was delivered, under one event_id with one body, and made one profile and
// one row.
func (l *load) end() {
	s := l.s
	s.t.Helper()
	ids := l.sold()
	n := len(ids)
	if n < 10 {
		s.t.Fatalf("only %d purchases were sent: the test shows nothing", n)
	}
	s.await("every purchase to be delivered", func() bool {
		return query[int](s, `SELECT count(*) FROM purchases WHERE status <> 'delivered'`) == 0
	})
	for _, table := range []string{"purchases", "profiles"} {
		if rows := query[int](s, `SELECT count(*) FROM `+table); rows != n {
			s.t.Errorf("%d rows in %s for %d purchases", rows, table, n)
		}
	}
	repeats := 0
	for _, e := range s.sim.Received() {
		if !ids[e.EventID] {
			s.t.Errorf("TikTok holds %s, which nobody bought", e.EventID)
		}
		delete(ids, e.EventID)
		repeats += e.Copies - 1
		if e.Variants != 1 {
			s.t.Errorf("%s was sent in %d bodies", e.EventID, e.Variants)
		}
	}
	if len(ids) > 0 {
		s.t.Errorf("%d purchases never reached TikTok", len(ids))
	}
	s.t.Logf("%d purchases, %d sent again under their own event_id", n, repeats)
}

// someTime is a random part of most.
func someTime(random *rand.Rand, most time.Duration) {
	moment := time.NewTimer(time.Duration(random.Int64N(int64(most))))
	<-moment.C
}

// Both binaries are killed (kill -9) at random moments while purchases come in. (The grace is longer than the 30 s after which
// the queue delivers again what a killed process held.)
func TestKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	s := newStack(t, "SWEEP_INTERVAL=500ms", "SWEEP_GRACE=40s")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	l := s.load()
	for range crashes() {
		someTime(random, 400*time.Millisecond)
		if random.IntN(2) == 0 {
			s.ingest.kill()
			s.startIngest("SWEEP_INTERVAL=500ms", "SWEEP_GRACE=40s")
			l.moved()
		} else {
			s.worker.kill()
			s.startWorker()
		}
	}
	l.end()
}

// Three workers share the work; they are killed (kill -9) in turn.
func TestWorkersKilledInTurn(t *testing.T) {
	t.Parallel()
	s := newStack(t, "SWEEP_INTERVAL=500ms", "SWEEP_GRACE=40s")
	workers := []*program{s.worker}
	for range 2 {
		s.startWorker()
		workers = append(workers, s.worker)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 2))
	l := s.load()
	for i := range crashes() {
		someTime(random, 500*time.Millisecond)
		workers[i%3].kill()
		s.startWorker()
		workers[i%3] = s.worker
	}
	l.end()
}
