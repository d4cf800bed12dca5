package notify_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/notify"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// world is everything around a Notifier, in virtual time.
type world struct {
	t  *testing.T
	mu sync.Mutex

	deaths    []death
	workers   []message.WorkerState
	webhook   time.Time
	ledgerErr error
	leader    any // who leads
	answer    func(m notify.Message) error
	asked     int

	told []told
	reg  *prometheus.Registry
	log  *observer.ObservedLogs
}

type death struct {
	id     string
	reason purchase.Reason
	at     time.Time
}

type told struct {
	notify.Message
	at time.Duration // since the start
}

// bubble runs a test in virtual time, with one Notifier running.
func bubble(t *testing.T, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, answer: func(notify.Message) error { return nil }, reg: prometheus.NewRegistry()}
		test(w)
	})
}

// seat is one process' view of the lead.
type seat struct{ w *world }

func (s *seat) Hold(context.Context) (bool, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.w.ledgerErr != nil {
		return false, s.w.ledgerErr
	}
	if s.w.leader == nil {
		s.w.leader = s
	}
	return s.w.leader == s, nil
}

func (s *seat) Release() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.w.leader == s {
		s.w.leader = nil
	}
}

// DeadLetters implements notify.Ledger.
func (w *world) DeadLetters(_ context.Context, since time.Time) ([]report.DeadLetters, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	by := map[purchase.Reason]*report.DeadLetters{}
	for _, d := range w.deaths {
		if d.at.Before(since) {
			continue
		}
		g := by[d.reason]
		if g == nil {
			g = &report.DeadLetters{Reason: d.reason, First: d.at}
			by[d.reason] = g
		}
		g.Count++
		g.Latest = d.at
		g.IDs = slices.Insert(g.IDs, 0, d.id)
		g.IDs = g.IDs[:min(len(g.IDs), 5)]
	}
	var list []report.DeadLetters
	for _, g := range by {
		list = append(list, *g)
	}
	return list, nil
}

// Send implements notify.Receiver.
func (w *world) Send(_ context.Context, m notify.Message) error {
	w.mu.Lock()
	w.asked++
	answer := w.answer
	w.mu.Unlock()
	err := answer(m)
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.told = append(w.told, told{m, time.Since(start)})
	}
	return err
}

// start is when each bubble begins.
var start = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // synctest's own beginning

// run starts a Notifier; stop ends it and waits.
func (w *world) run(silence time.Duration) (stop func()) {
	core, log := observer.New(zapcore.DebugLevel)
	if w.log == nil {
		w.log = log
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	a := notify.New(notify.Config{Silence: silence, Now: time.Now}, notify.Sources{
		Ledger: w, Lead: &seat{w},
		Workers:     func() []message.WorkerState { w.mu.Lock(); defer w.mu.Unlock(); return slices.Clone(w.workers) },
		LastWebhook: func(context.Context) (time.Time, error) { w.mu.Lock(); defer w.mu.Unlock(); return w.webhook, nil },
	}, w, zap.New(core), w.reg)
	w.reg = prometheus.NewRegistry()
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	})
}

// pass lets time go by.
func (w *world) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func (w *world) die(reason purchase.Reason, ids ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		w.deaths = append(w.deaths, death{id, reason, time.Now()})
	}
}

func (w *world) replay() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deaths = nil
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// count is how often the receiver was asked.
func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

// expect compares what was told until now: "reason state count".
func (w *world) expect(want ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var got []string
	for _, m := range w.told {
		got = append(got, fmt.Sprintf("%s %s %d", m.Reason, m.State, m.Count))
	}
	if !slices.Equal(got, want) {
		w.t.Errorf("after %s: told %q, want %q", time.Since(start), got, want)
	}
	last := map[string]time.Duration{}
	for _, m := range w.told {
		if m.State != notify.StateFiring {
			continue
		}
		if before, ok := last[m.Reason]; ok && m.at-before < 10*time.Minute {
			w.t.Errorf("%s was told twice within %s", m.Reason, m.at-before)
		}
		last[m.Reason] = m.at
	}
}

func TestDeathsAreGroupedAndTheirEndIsTold(t *testing.T) {
	t.Parallel()
	bubble(t, func(w *world) {
		defer w.run(0)()
		w.pass(time.Minute)
		w.expect()
		w.die(purchase.ReasonRefused, "cs_1", "cs_2")
		w.pass(time.Second)
		w.die(purchase.ReasonRefused, "cs_3")
		w.die(purchase.ReasonCrash, "cs_4")
		w.pass(20 * time.Second)
		w.expect("dead:crash firing 1", "dead:refused firing 3")
		m := w.told[1]
		if !slices.Equal(m.IDs, []string{"cs_3", "cs_2", "cs_1"}) || !strings.Contains(m.What, "3 purchases died") || !strings.Contains(m.Remedy, "ingest replay --status dead --reason refused") {
			t.Errorf("%+v", m)
		}
		for i := range 50 { // one every ten seconds
			w.die(purchase.ReasonRefused, fmt.Sprintf("cs_1%d", i))
			w.pass(10 * time.Second)
		}
		w.expect("dead:crash firing 1", "dead:refused firing 3")
		w.pass(2 * time.Minute)
		w.expect("dead:crash firing 1", "dead:refused firing 3", "dead:refused firing 53")
		w.replay()
		w.pass(5 * time.Second)
		w.expect("dead:crash firing 1", "dead:refused firing 3", "dead:refused firing 53", "dead:crash resolved 1", "dead:refused resolved 53")
		w.pass(24 * time.Hour)
		w.expect("dead:crash firing 1", "dead:refused firing 3", "dead:refused firing 53", "dead:crash resolved 1", "dead:refused resolved 53")
	})
}

// Dead purchases that nobody replays are told of once, and an hour later that no more died.
func TestDeathsThatStay(t *testing.T) {
	t.Parallel()
	bubble(t, func(w *world) {
		defer w.run(0)()
		w.pass(time.Second)
		w.die(purchase.ReasonExpired, "cs_1")
		w.pass(59 * time.Minute)
		w.expect("dead:expired firing 1")
		w.pass(2 * time.Minute)
		w.expect("dead:expired firing 1", "dead:expired resolved 1")
		w.pass(24 * time.Hour)
		w.expect("dead:expired firing 1", "dead:expired resolved 1")
	})
}

func TestPausedWorkers(t *testing.T) {
	t.Parallel()
	bubble(t, func(w *world) {
		defer w.run(0)()
		w.pass(time.Minute)
		paused := message.WorkerState{Instance: "w1", State: message.WorkerPaused, Reason: "live: 40105 Access token\nis incorrect", Since: time.Now()}
		w.set(func() { w.workers = []message.WorkerState{paused, {Instance: "w2"}} })
		w.pass(time.Minute)
		w.expect("paused firing 1")
		if m := w.told[0]; !strings.HasPrefix(m.What, "1 of 2 workers paused since 2000-01-01T00:01:00Z: TikTok accepts nothing (live: 40105 Access token is incorrect)") || m.IDs[0] != "w1" {
			t.Errorf("%+v", m)
		}
		w.set(func() { w.workers = nil }) // restarted, or NATS is away: nobody knows
		w.pass(time.Minute)
		w.expect("paused firing 1")
		w.set(func() { w.workers = []message.WorkerState{{Instance: "w3"}} })
		w.pass(5 * time.Second)
		w.expect("paused firing 1", "paused resolved 1")
		if m := w.told[1]; m.What != "No worker is paused any more; 1 running." {
			t.Errorf("%+v", m)
		}
		// Up and down every minute: one beginning in ten minutes, and the end of what was told.
		for i := range 30 {
			state := message.WorkerRunning
			if i%2 == 0 {
				state = message.WorkerPaused
			}
			w.set(func() { w.workers = []message.WorkerState{{Instance: "w3", State: state, Since: time.Now()}} })
			w.pass(time.Minute)
		}
		if n := len(w.told); n < 4 || n > 10 {
			t.Errorf("%d messages", n)
		}
		w.expect(w.saw()...)
	})
}

// saw is what was told, for an expect that checks the distances alone.
func (w *world) saw() (list []string) {
	for _, m := range w.told {
		list = append(list, fmt.Sprintf("%s %s %d", m.Reason, m.State, m.Count))
	}
	return list
}

// A trouble that is over before it was told is told by nobody.
func TestBlip(t *testing.T) {
	t.Parallel()
	bubble(t, func(w *world) {
		defer w.run(0)()
		w.pass(time.Minute)
		w.set(func() {
			w.workers = []message.WorkerState{{Instance: "w1", State: message.WorkerPaused, Since: time.Now()}}
		})
		w.pass(6 * time.Second)
		w.set(func() { w.workers = []message.WorkerState{{Instance: "w1"}} })
		w.pass(time.Hour)
		w.expect()
	})
}

func TestSilence(t *testing.T) {
	t.Parallel()
	bubble(t, func(w *world) {
		defer w.run(2 * time.Hour)()
		w.pass(4 * time.Hour)
		w.expect() // nothing was ever heard of: it is being set up
		w.set(func() { w.webhook = time.Now() })
		w.pass(2*time.Hour - time.Second)
		w.expect()
		w.pass(time.Minute)
		w.expect("silence firing 1")
		w.pass(4 * time.Hour)
		w.expect("silence firing 1")
		w.set(func() { w.webhook = time.Now() })
		w.pass(time.Minute)
		w.expect("silence firing 1", "silence resolved 1")
	})
}

// After a restart, or in the replica that takes over, what stood before is held back for ten minutes; that it is over is told.
func TestTakingOver(t *testing.T) {
	t.Parallel()
	bubble(t, func(w *world) {
		stop := w.run(0)
		w.pass(time.Minute)
		w.die(purchase.ReasonRefused, "cs_1")
		w.set(func() {
			w.workers = []message.WorkerState{{Instance: "w1", State: message.WorkerPaused, Since: time.Now()}}
		})
		w.pass(time.Minute)
		w.expect("dead:refused firing 1", "paused firing 1")
		defer w.run(0)() // the second replica sees the same and says nothing
		w.pass(time.Minute)
		stop()
		w.pass(9 * time.Minute)
		w.expect("dead:refused firing 1", "paused firing 1")
		w.set(func() { w.workers = []message.WorkerState{{Instance: "w1"}} })
		w.pass(5 * time.Second)
		w.expect("dead:refused firing 1", "paused firing 1", "paused resolved 1")
		w.pass(2 * time.Minute)
		w.expect("dead:refused firing 1", "paused firing 1", "paused resolved 1", "dead:refused firing 1")
	})
}

// Who loses the lead and gets it back does not know what was told meanwhile.
func TestLosingTheLead(t *testing.T) {
	t.Parallel()
	bubble(t, func(w *world) {
		defer w.run(0)()
		w.pass(time.Minute)
		mine := w.leader
		w.set(func() { w.leader = "another" })
		w.pass(time.Minute)
		w.die(purchase.ReasonRefused, "cs_1") // the other one tells
		w.pass(time.Minute)
		w.set(func() { w.leader = mine })
		w.pass(9 * time.Minute)
		w.expect()
		w.pass(2 * time.Minute)
		w.expect("dead:refused firing 1")
	})
}

func TestReceiverAway(t *testing.T) {
	t.Parallel()
	bubble(t, func(w *world) {
		away := &notify.Refusal{Cause: errors.New("the receiver answers 503"), Again: true}
		w.answer = func(notify.Message) error { return away }
		reg := w.reg
		defer w.run(0)()
		w.pass(time.Second)
		w.die(purchase.ReasonRefused, "cs_1")
		w.pass(30 * time.Minute)
		if n := w.count(); n < 30 || n > 120 {
			t.Errorf("a receiver that is away was asked %d times in half an hour", n)
		}
		if n := w.log.FilterMessage("Notification failed; retrying").Len(); n == 0 || n > 31 {
			t.Errorf("it was logged %d times", n)
		}
		w.set(func() { w.answer = func(notify.Message) error { return nil } })
		w.pass(2 * time.Minute)
		w.expect("dead:refused firing 1")
		if n := testutil.CollectAndCount(reg, "purchase_relay_notifications_total"); n != 2 {
			t.Errorf("%d series", n)
		}
	})
}

// A receiver that hangs may have taken the message: it is not offered again within ten minutes.
func TestReceiverHangs(t *testing.T) {
	t.Parallel()
	bubble(t, func(w *world) {
		w.answer = func(notify.Message) error {
			<-time.After(10 * time.Second)
			return &notify.Refusal{Cause: errors.New("the receiver does not answer in time")}
		}
		defer w.run(0)()
		w.pass(time.Second)
		w.die(purchase.ReasonRefused, "cs_1")
		w.pass(9 * time.Minute)
		if n := w.count(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		w.pass(2 * time.Minute)
		if n := w.count(); n != 2 {
			t.Errorf("asked %d times after ten minutes", n)
		}
		w.set(func() { w.answer = func(notify.Message) error { return nil } })
		w.replay()
		w.pass(time.Minute)
		w.expect("dead:refused resolved 1")
	})
}

// While the ledger is away nothing is known, and nothing is told; what stood stands.
func TestLedgerAway(t *testing.T) {
	t.Parallel()
	bubble(t, func(w *world) {
		defer w.run(0)()
		w.pass(time.Second)
		w.die(purchase.ReasonRefused, "cs_1")
		w.pass(time.Minute)
		w.expect("dead:refused firing 1")
		w.set(func() { w.ledgerErr = errors.New("connection refused") })
		w.pass(5 * time.Minute)
		w.set(func() { w.ledgerErr = nil })
		w.pass(5 * time.Minute)
		w.expect("dead:refused firing 1")
		w.replay()
		w.pass(time.Minute)
		w.expect("dead:refused firing 1", "dead:refused resolved 1")
		if n := w.log.FilterMessage("Notifications paused, ledger unreadable").Len(); n != 1 {
			t.Errorf("it was logged %d times", n)
		}
	})
}

// Whatever happens, no beginning is told twice within ten minutes.
func TestNeverTwiceInTenMinutes(t *testing.T) {
	t.Parallel()
	seeds := 8
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		bubble(t, func(w *world) {
			defer w.run(time.Hour)()
			state := uint32(seed)*2654435761 + 1
			for range 150 {
				state = state*1664525 + 1013904223
				switch (state >> 16) % 6 {
				case 0:
					w.die(purchase.ReasonRefused, "cs_1")
				case 1:
					w.replay()
				case 2:
					w.set(func() {
						w.workers = []message.WorkerState{{Instance: "w", State: message.WorkerPaused, Since: time.Now()}}
					})
				case 3:
					w.set(func() { w.workers = []message.WorkerState{{Instance: "w"}} })
				case 4:
					w.set(func() { w.webhook = time.Now() })
				}
				w.pass(time.Duration((state>>8)%600) * time.Second)
			}
			if len(w.told) < 5 {
				t.Errorf("only %d messages", len(w.told))
			}
			w.expect(w.saw()...)
		})
	}
}
