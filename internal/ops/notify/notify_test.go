package notify_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

// fixture is a Notifier's sources and receiver, in virtual time.
type fixture struct {
	t  *testing.T
	mu sync.Mutex

	deaths    []death
	workers   []message.WorkerState
	webhook   time.Time
	ledgerErr error
	waiting   int
	nats      report.Condition

	ledgerDown time.Time
	cause      func(ctx context.Context, since time.Time) (what, remedy string, err error)
	leader     any
	send       func(ctx context.Context, m notify.Message) error

	attempts int
	sent     []sentMessage
	reg      *prometheus.Registry
	log      *observer.ObservedLogs
}

type death struct {
	id     string
	reason purchase.Reason
	at     time.Time
}

type sentMessage struct {
	notify.Message
	at time.Duration // since the start
}

func runTest(t *testing.T, test func(f *fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fixture{t: t, reg: prometheus.NewRegistry()}
		f.send = func(context.Context, notify.Message) error { return nil }
		test(f)
	})
}

// lead implements notify.Lead for one process.
type lead struct{ f *fixture }

func (l *lead) Hold(context.Context) (bool, error) {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	if l.f.ledgerErr != nil {
		return false, l.f.ledgerErr
	}
	if l.f.leader == nil {
		l.f.leader = l
	}
	return l.f.leader == l, nil
}

func (l *lead) Release() {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	if l.f.leader == l {
		l.f.leader = nil
	}
}

// problems makes the list of problems as ingest does.
func (f *fixture) problems(silence time.Duration) report.Problems {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := report.Observed{
		NATS: f.nats, Workers: slices.Clone(f.workers), LastWebhook: f.webhook, Silence: silence,
		Postgres: report.Condition{Checked: true, Failed: f.ledgerErr != nil, Since: f.ledgerDown},
	}
	if f.ledgerErr == nil {
		o.Ledger = &report.LedgerProblems{Live: f.waiting}
		by := map[purchase.Reason]*report.FailedGroup{}
		for _, d := range f.deaths {
			g := by[d.reason]
			if g == nil {
				g = &report.FailedGroup{First: d.at}
				g.Status, g.Reason = purchase.StatusDead, d.reason
				by[d.reason] = g
			}
			g.Count++
			g.Latest = d.at
			g.IDs = slices.Insert(g.IDs, 0, d.id)
			g.IDs = g.IDs[:min(len(g.IDs), 5)]
		}
		for _, g := range by {
			o.Ledger.Failed = append(o.Ledger.Failed, *g)
		}
	}
	return report.NewProblems(o, time.Now())
}

// Send implements notify.Receiver.
func (f *fixture) Send(ctx context.Context, m notify.Message) error {
	f.mu.Lock()
	f.attempts++
	send := f.send
	f.mu.Unlock()
	err := send(ctx, m)
	if err == nil {
		f.set(func() { f.sent = append(f.sent, sentMessage{m, time.Since(start)}) })
	}
	return err
}

// start is the start of synctest's clock.
var start = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // never written

// run starts a Notifier. stop waits until it has ended.
func (f *fixture) run(silence time.Duration) (stop func()) {
	core, log := observer.New(zapcore.DebugLevel)
	if f.log == nil {
		f.log = log
	}
	ctx, cancel := context.WithCancel(f.t.Context())
	n := notify.New(notify.Config{
		Lead: &lead{f}, SilenceCause: f.cause, Now: time.Now,
		Problems: func(context.Context) report.Problems { return f.problems(silence) },
	}, f, zap.New(core), f.reg)
	f.reg = prometheus.NewRegistry()
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			f.t.Error(err)
		}
	})
}

// wait lets time pass.
func (f *fixture) wait(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// set changes or reads the fixture under its lock.
func (f *fixture) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fixture) die(reason purchase.Reason, ids ...string) {
	f.set(func() {
		for _, id := range ids {
			f.deaths = append(f.deaths, death{id, reason, time.Now()})
		}
	})
}

func (f *fixture) replayAll() { f.set(func() { f.deaths = nil }) }

// setWorker replaces all workers by one in a state.
func (f *fixture) setWorker(state string) {
	f.set(func() { f.workers = []message.WorkerState{{Instance: "w1", State: state, Since: time.Now()}} })
}

func (f *fixture) expectAttempts(least, most int) {
	f.t.Helper()
	f.set(func() {
		if f.attempts < least || f.attempts > most {
			f.t.Errorf("after %s: attempts = %d, want %d to %d", time.Since(start), f.attempts, least, most)
		}
	})
}

func (f *fixture) expectLogged(message string, least, most int) {
	f.t.Helper()
	if n := f.log.FilterMessage(message).Len(); n < least || n > most {
		f.t.Errorf("logged %q %d times, want %d to %d", message, n, least, most)
	}
}

// messages returns the messages that were sent.
func (f *fixture) messages() (list []sentMessage) {
	f.set(func() { list = slices.Clone(f.sent) })
	return list
}

// expect compares the messages that were sent: "reason state count".
func (f *fixture) expect(want ...string) {
	f.t.Helper()
	f.expectInterval()
	var got []string
	for _, m := range f.messages() {
		got = append(got, fmt.Sprintf("%s %s %d", m.Reason, m.State, m.Count))
	}
	if !slices.Equal(got, want) {
		f.t.Errorf("after %s: sent = %q, want %q", time.Since(start), got, want)
	}
}

// expectInterval expects at most one firing message per reason in ten minutes.
func (f *fixture) expectInterval() {
	f.t.Helper()
	last := map[string]time.Duration{}
	for _, m := range f.messages() {
		if m.State != notify.StateFiring {
			continue
		}
		if before, ok := last[m.Reason]; ok && m.at-before < 10*time.Minute {
			f.t.Errorf("%s: firing messages %s apart, want at least 10m", m.Reason, m.at-before)
		}
		last[m.Reason] = m.at
	}
}

func TestNotifier_GroupsDeaths(t *testing.T) {
	t.Parallel()
	runTest(t, func(f *fixture) {
		defer f.run(0)()
		f.wait(time.Minute)
		f.expect()
		f.die(purchase.ReasonRefused, "cs_1", "cs_2")
		f.die(purchase.ReasonCrash, "cs_4")
		f.wait(6 * time.Second) // for a poll
		f.die(purchase.ReasonRefused, "cs_3")
		f.wait(20 * time.Second)
		want := []string{"dead:crash firing 1", "dead:refused firing 3"}
		f.expect(want...)
		m, ids := f.messages()[1], []string{"cs_3", "cs_2", "cs_1"}
		if !slices.Equal(m.IDs, ids) || *m.Purchases != 3 || !strings.Contains(m.What, "are dead (refused)") ||
			!strings.Contains(m.Remedy, "ingest replay --status dead --reason refused") {
			t.Errorf("message = %+v, want 3 purchases with ids and a replay", m)
		}
		for i := range 50 { // one every ten seconds
			f.die(purchase.ReasonRefused, fmt.Sprintf("cs_1%d", i))
			f.wait(10 * time.Second)
		}
		f.expect(want...)
		f.wait(2 * time.Minute)
		want = append(want, "dead:refused firing 53")
		f.expect(want...)
		f.replayAll()
		f.wait(5 * time.Second)
		want = append(want, "dead:crash resolved 1", "dead:refused resolved 53")
		f.expect(want...)
		f.wait(24 * time.Hour)
		f.expect(want...)
	})
}

// Dead purchases are a problem until they are replayed. A process that starts later than an hour after the
// last one is silent about them, or an operator who leaves them would get a message at each restart.
func TestNotifier_RemembersOldDeaths(t *testing.T) {
	t.Parallel()
	runTest(t, func(f *fixture) {
		stop := f.run(0)
		f.wait(time.Second)
		f.die(purchase.ReasonExpired, "cs_1")
		f.wait(2 * time.Hour)
		f.expect("dead:expired firing 1")
		stop()
		defer f.run(0)()
		f.wait(24 * time.Hour)
		f.expect("dead:expired firing 1")
		f.die(purchase.ReasonExpired, "cs_2")
		f.wait(time.Minute)
		f.expect("dead:expired firing 1", "dead:expired firing 2")
		f.replayAll()
		f.wait(time.Minute)
		f.expect("dead:expired firing 1", "dead:expired firing 2", "dead:expired resolved 2")
	})
}

// What a restart ends is no reason for a message; a resolved one never comes without a firing one.
func TestNotifier_WaitsForPatience(t *testing.T) {
	t.Parallel()
	runTest(t, func(f *fixture) {
		defer f.run(0)()
		f.wait(time.Minute)
		setNATS := func(failed bool) {
			f.set(func() { f.nats = report.Condition{Checked: true, Failed: failed, Since: time.Now()} })
		}
		setNATS(true)
		f.wait(time.Minute)
		f.expect()
		setNATS(false)
		f.wait(20 * time.Minute)
		f.expect()
		setNATS(true)
		f.wait(3 * time.Minute)
		f.expect("nats firing 1")
		setNATS(false)
		f.wait(time.Minute)
		f.expect("nats firing 1", "nats resolved 1")
		f.setWorker(message.WorkerOpen)
		f.wait(9 * time.Minute)
		f.setWorker(message.WorkerRunning)
		f.wait(20 * time.Minute)
		f.expect("nats firing 1", "nats resolved 1")
		f.setWorker(message.WorkerOpen)
		f.wait(11 * time.Minute)
		f.expect("nats firing 1", "nats resolved 1", "circuit_open firing 1")
	})
}

func TestNotifier_ReportsPausedWorkers(t *testing.T) {
	t.Parallel()
	runTest(t, func(f *fixture) {
		defer f.run(0)()
		f.wait(time.Minute)
		paused := message.WorkerState{
			Instance: "w1", State: message.WorkerPaused, Since: time.Now(),
			Reason: "live: 40105 Access token\nis incorrect",
		}
		f.set(func() { f.workers = []message.WorkerState{paused, {Instance: "w2"}} })
		f.wait(time.Minute)
		f.expect("paused firing 1")
		const what = "Worker w1 is paused: TikTok accepts nothing (live: 40105 Access token is incorrect)"
		if m := f.messages()[0]; !strings.HasPrefix(m.What, what) || m.IDs[0] != "w1" {
			t.Errorf("message = %+v, want %q", m, what)
		}
		f.set(func() { f.workers = nil }) // restarted, or NATS is down: unknown
		f.wait(time.Minute)
		f.expect("paused firing 1")
		f.setWorker(message.WorkerRunning)
		f.wait(5 * time.Second)
		f.expect("paused firing 1", "paused resolved 1")
		if got, want := f.messages()[1].What, "No worker is paused."; got != want {
			t.Errorf("resolved = %q, want %q", got, want)
		}
		for i := range 30 { // alternating every minute
			state := message.WorkerRunning
			if i%2 == 0 {
				state = message.WorkerPaused
			}
			f.setWorker(state)
			f.wait(time.Minute)
		}
		if n := len(f.messages()); n < 4 || n > 10 {
			t.Errorf("messages = %d, want 4 to 10", n)
		}
		f.expectInterval()
	})
}

func TestNotifier_IgnoresShortProblems(t *testing.T) {
	t.Parallel()
	runTest(t, func(f *fixture) {
		defer f.run(0)()
		f.wait(time.Minute)
		f.setWorker(message.WorkerPaused)
		f.wait(6 * time.Second)
		f.setWorker(message.WorkerRunning)
		f.wait(time.Hour)
		f.expect()
	})
}

func TestNotifier_ReportsSilence(t *testing.T) {
	t.Parallel()
	runTest(t, func(f *fixture) {
		defer f.run(2 * time.Hour)()
		f.wait(4 * time.Hour)
		f.expect() // no webhook ever: the endpoint is being set up
		f.set(func() { f.webhook = time.Now() })
		f.wait(2*time.Hour - time.Second)
		f.expect()
		f.wait(time.Minute)
		f.expect("silence firing 1")
		f.wait(4 * time.Hour)
		f.expect("silence firing 1")
		f.set(func() { f.webhook = time.Now() })
		f.wait(time.Minute)
		f.expect("silence firing 1", "silence resolved 1")
	})
}

// A new leader delays messages about older problems by ten minutes, but not that they are resolved.
func TestNotifier_NewLeaderDelaysOlderProblems(t *testing.T) {
	t.Parallel()
	runTest(t, func(f *fixture) {
		stop := f.run(0)
		f.wait(time.Minute)
		f.die(purchase.ReasonRefused, "cs_1")
		f.setWorker(message.WorkerPaused)
		f.wait(time.Minute)
		want := []string{"dead:refused firing 1", "paused firing 1"}
		f.expect(want...)
		defer f.run(0)() // a second replica
		f.wait(time.Minute)
		stop()
		f.wait(9 * time.Minute)
		f.expect(want...)
		f.setWorker(message.WorkerRunning)
		f.wait(5 * time.Second)
		want = append(want, "paused resolved 1")
		f.expect(want...)
		f.wait(2 * time.Minute)
		f.expect(append(want, "dead:refused firing 1")...)
	})
}

// A process that regains the lead does not know what was sent meanwhile.
func TestNotifier_RegainedLeadDelaysOlderProblems(t *testing.T) {
	t.Parallel()
	runTest(t, func(f *fixture) {
		defer f.run(0)()
		f.wait(time.Minute)
		own := f.leader
		f.set(func() { f.leader = "another" })
		f.wait(time.Minute)
		f.die(purchase.ReasonRefused, "cs_1") // reported by the other process
		f.wait(time.Minute)
		f.set(func() { f.leader = own })
		f.wait(9 * time.Minute)
		f.expect()
		f.wait(2 * time.Minute)
		f.expect("dead:refused firing 1")
	})
}

func TestNotifier_RetriesWhileReceiverFails(t *testing.T) {
	t.Parallel()
	runTest(t, func(f *fixture) {
		failure := &notify.SendError{Cause: errors.New("receiver returned 503"), Retryable: true}
		f.send = func(context.Context, notify.Message) error { return failure }
		reg := f.reg
		defer f.run(0)()
		f.wait(time.Second)
		f.die(purchase.ReasonRefused, "cs_1")
		f.wait(30 * time.Minute)
		f.expectAttempts(30, 120)
		f.expectLogged("Notification failed; retrying", 1, 31)
		f.set(func() { f.send = func(context.Context, notify.Message) error { return nil } })
		f.wait(2 * time.Minute)
		f.expect("dead:refused firing 1")
		if n := testutil.CollectAndCount(reg, "purchase_relay_notifications_total"); n != 2 {
			t.Errorf("series = %d, want 2", n)
		}
	})
}

// A receiver that times out may have accepted the message: the next one follows after ten minutes.
func TestNotifier_DelaysRetryAfterTimeout(t *testing.T) {
	t.Parallel()
	runTest(t, func(f *fixture) {
		f.send = func(context.Context, notify.Message) error {
			<-time.After(10 * time.Second)
			return &notify.SendError{Cause: errors.New("receiver timed out")}
		}
		defer f.run(0)()
		f.wait(time.Second)
		f.die(purchase.ReasonRefused, "cs_1")
		f.wait(9 * time.Minute)
		f.expectAttempts(1, 1)
		f.wait(2 * time.Minute)
		f.expectAttempts(2, 2)
		f.set(func() { f.send = func(context.Context, notify.Message) error { return nil } })
		f.replayAll()
		f.wait(time.Minute)
		f.expect("dead:refused resolved 1")
	})
}

func TestNotifier_StopsWhileReceiverHangs(t *testing.T) {
	t.Parallel()
	runTest(t, func(f *fixture) {
		f.send = func(ctx context.Context, _ notify.Message) error {
			<-ctx.Done()
			return &notify.SendError{Cause: ctx.Err()}
		}
		stop := f.run(0)
		f.wait(time.Second)
		f.die(purchase.ReasonRefused, "cs_1")
		f.wait(time.Minute)
		f.expectAttempts(1, 1)
		began := time.Now()
		stop()
		if took := time.Since(began); took > 0 {
			t.Errorf("stop took %s, want it at once", took)
		}
	})
}

// While Postgres is down the last leader notifies of that alone. Others are silent, and whoever leads later
// need not know: the first process also sends the resolved message.
func TestNotifier_ReportsThatPostgresIsDown(t *testing.T) {
	t.Parallel()
	for name, another := range map[string]bool{"leads again": false, "another leads": true} {
		t.Run(name, func(t *testing.T) {
			runTest(t, func(f *fixture) {
				defer f.run(0)()
				f.wait(time.Second)
				defer f.run(0)() // never leads
				f.die(purchase.ReasonRefused, "cs_1")
				f.wait(time.Minute)
				f.expect("dead:refused firing 1")
				f.set(func() { f.ledgerErr, f.ledgerDown = errors.New("connection refused"), time.Now() })
				f.wait(30 * time.Second)
				f.expect("dead:refused firing 1")
				f.setWorker(message.WorkerPaused)
				f.wait(5 * time.Minute)
				f.expect("dead:refused firing 1", "postgres firing 1")
				f.set(func() {
					f.ledgerErr, f.workers = nil, nil
					if another {
						f.leader = "another"
					}
				})
				f.wait(5 * time.Second)
				f.expect("dead:refused firing 1", "postgres firing 1", "postgres resolved 1")
				f.replayAll()
				f.wait(time.Minute)
				want := []string{"dead:refused firing 1", "postgres firing 1", "postgres resolved 1"}
				if !another {
					want = append(want, "dead:refused resolved 1")
				}
				f.expect(want...)
				f.expectLogged("Notifications reduced, ledger unreadable", 1, 1)
			})
		})
	}
}

// Random events never cause two firing messages of one reason within ten minutes.
func TestNotifier_LimitsFiringMessages(t *testing.T) {
	t.Parallel()
	seeds := 8
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		runTest(t, func(f *fixture) {
			defer f.run(time.Hour)()
			random := rand.New(rand.NewPCG(uint64(seed), 0))
			for range 150 {
				switch random.IntN(6) {
				case 0:
					f.die(purchase.ReasonRefused, "cs_1")
				case 1:
					f.replayAll()
				case 2:
					f.setWorker(message.WorkerPaused)
				case 3:
					f.setWorker(message.WorkerRunning)
				case 4:
					f.set(func() { f.webhook = time.Now() })
				}
				f.wait(time.Duration(random.IntN(600)) * time.Second)
			}
			if len(f.messages()) < 5 {
				t.Errorf("messages = %d, want at least 5", len(f.messages()))
			}
			f.expectInterval()
		})
	}
}
