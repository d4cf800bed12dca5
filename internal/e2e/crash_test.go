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

// scale returns a test's size: small in `make test` (-short), large in `make test-long`.
func scale(small, large int) int {
	if testing.Short() {
		return small
	}
	return large
}

// crashes returns how often a test kills a process. CRASHES overrides it.
func crashes() int {
	if n, err := strconv.Atoi(os.Getenv("CRASHES")); err == nil {
		return n
	}
	return scale(3, 100)
}

// load sends purchases as Stripe does: four concurrently, 60 requests per second, each until it is answered
// 200.
type load struct {
	s     *stack
	group sync.WaitGroup
	done  chan struct{}
	ids   chan string

	pace   *time.Ticker
	mu     sync.Mutex
	sender *stripegen.Sender // to the latest ingest
}

func (s *stack) startLoad() *load {
	l := &load{s: s, done: make(chan struct{}), ids: make(chan string, 1_000_000), sender: s.sender}
	l.pace = time.NewTicker(time.Second / 60)
	s.t.Cleanup(l.pace.Stop)
	for range 4 {
		l.group.Go(l.buy)
	}
	return l
}

func (l *load) buy() {
	for {
		select {
		case <-l.done:
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
			select {
			case <-l.s.t.Context().Done():
				return
			case <-l.pace.C:
			}
		}
		l.ids <- c.SessionID
	}
}

// followIngest sends to the latest ingest from now on.
func (l *load) followIngest() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sender = l.s.sender
}

// stop stops the load, once ten purchases were answered 200, and returns the ids of all that were.
func (l *load) stop() map[string]bool {
	l.s.t.Helper()
	l.s.await("ten purchases to be answered 200", func() bool { return len(l.ids) >= 10 })
	close(l.done)
	l.group.Wait()
	close(l.ids)
	ids := make(map[string]bool)
	for id := range l.ids {
		ids[id] = true
	}
	return ids
}

// finish stops the load and checks that each purchase is one row and one profile, and was delivered in one
// body.
func (l *load) finish() {
	s := l.s
	s.t.Helper()
	ids := l.stop()
	n := len(ids)
	s.awaitNone(`purchases WHERE status <> 'delivered'`)
	for _, table := range []string{"purchases", "profiles"} {
		if rows := s.rows(table); rows != n {
			s.t.Errorf("%s has %d rows, want %d", table, rows, n)
		}
	}
	repeats := 0
	for _, e := range s.sim.Received() {
		if !ids[e.EventID] {
			s.t.Errorf("TikTok has the unknown event %s", e.EventID)
		}
		delete(ids, e.EventID)
		repeats += e.Copies - 1
		if e.Variants != 1 {
			s.t.Errorf("%s was sent in %d bodies, want 1", e.EventID, e.Variants)
		}
	}
	if len(ids) > 0 {
		s.t.Errorf("TikTok lacks %d purchases", len(ids))
	}
	s.t.Logf("%d purchases, %d sent again with the same event_id", n, repeats)
}

// newRandom logs the seed of the random numbers. SEED overrides it.
func newRandom(t *testing.T) *rand.Rand {
	t.Helper()
	seed, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func randomSleep(random *rand.Rand, limit time.Duration) {
	<-time.After(time.Duration(random.Int64N(int64(limit))))
}

// Both binaries are killed (kill -9) at random moments under load. SWEEP_GRACE is above the 30 s after which
// NATS redelivers what a killed worker held.
func TestCrash_RandomKillsLoseNothing(t *testing.T) {
	t.Parallel()
	s := newStack(t, "SWEEP_INTERVAL=500ms", "SWEEP_GRACE=40s")
	random := newRandom(t)
	l := s.startLoad()
	for range crashes() {
		randomSleep(random, 400*time.Millisecond)
		if random.IntN(2) == 0 {
			s.ingest.Kill()
			s.startIngest("SWEEP_INTERVAL=500ms", "SWEEP_GRACE=40s")
			l.followIngest()
		} else {
			s.worker.Kill()
			s.startWorker()
		}
	}
	l.finish()
}
