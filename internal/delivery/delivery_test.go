package delivery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// fakeQueue is a stream in memory. Like the real one it redelivers messages that were returned, or not
// acknowledged in time.
type fakeQueue struct {
	mu       sync.Mutex
	waiting  []*fakeMessage
	arrived  chan struct{}
	ackWait  time.Duration
	journal  []string        // all calls, in order
	naks     []time.Duration // requested delays
	added    int
	lostAcks int           // number of acknowledgements that still get lost
	latency  time.Duration // of a fetch
	failing  bool          // each fetch with a message returns an error too
}

type fakeMessage struct {
	q         *fakeQueue
	id        string
	subject   string
	data      []byte
	first     time.Time
	delivered int
	returned  bool
	deadline  *time.Timer
	done      bool
}

func newQueue() *fakeQueue {
	return &fakeQueue{arrived: make(chan struct{}, 20_000), ackWait: 30 * time.Second}
}

func (q *fakeQueue) record(format string, args ...any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.journal = append(q.journal, fmt.Sprintf(format, args...))
}

func (q *fakeQueue) entries() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.journal)
}

func (q *fakeQueue) delays() []time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.naks)
}

func (q *fakeQueue) put(m *fakeMessage) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, m)
	q.arrived <- struct{}{}
}

func (q *fakeQueue) add(id string, livemode bool, age time.Duration) {
	data, err := message.EncodeEnvelope(&purchase.Purchase{ID: id, Livemode: livemode, At: time.Now().Add(-age)})
	if err != nil {
		panic(err)
	}
	q.mu.Lock()
	q.added++
	q.mu.Unlock()
	first := time.Now().Add(-age)
	q.put(&fakeMessage{q: q, id: id, subject: message.Subject(id, livemode), data: data, first: first})
}

// Fetch implements Source.
func (q *fakeQueue) Fetch(ctx context.Context, limit int) (list []message.Received, err error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(5 * time.Second):
		return nil, nil
	case <-q.arrived:
		if q.latency > 0 {
			<-time.After(q.latency)
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 1
more:
	for n < min(limit, len(q.waiting)) {
		select {
		case <-q.arrived:
			n++
		default: // another fetch received it
			break more
		}
	}
	for _, m := range q.waiting[:n] {
		m.delivered++
		m.deadline = time.AfterFunc(q.ackWait, func() { q.put(m) })
		list = append(list, message.Received{
			Subject: m.subject, MsgID: message.MsgID(m.id, 3), Data: m.data, FirstPublished: m.first,
			NumDelivered: m.delivered, Returned: m.returned, Acker: m,
		})
		m.returned = false
	}
	q.waiting = q.waiting[n:]
	if q.failing {
		err = errors.New("connection lost")
	}
	return list, err
}

func (m *fakeMessage) settle(format string, args ...any) bool {
	m.q.record(format, args...)
	m.q.mu.Lock()
	defer m.q.mu.Unlock()
	if m.q.lostAcks > 0 {
		m.q.lostAcks--
		return false
	}
	m.deadline.Stop()
	return true
}

func (m *fakeMessage) Ack() error { return m.DoubleAck(context.Background()) }

func (m *fakeMessage) Leave() {
	m.q.mu.Lock()
	defer m.q.mu.Unlock()
	m.returned = true
}

func (m *fakeMessage) DoubleAck(context.Context) error {
	if !m.settle("ack %s", m.id) {
		return errors.New("connection lost")
	}
	m.done = true
	return nil
}

func (m *fakeMessage) NakWithDelay(d time.Duration) error {
	if d < 0 {
		panic("a negative delay")
	}
	m.q.mu.Lock()
	m.q.naks = append(m.q.naks, d)
	m.returned = true
	m.q.mu.Unlock()
	if m.settle("nak %s", m.id) {
		time.AfterFunc(d, func() { m.q.put(m) })
	}
	return nil
}

func (m *fakeMessage) TermWithReason(reason string) error {
	m.settle("term %s %s", m.id, reason)
	return nil
}

func (m *fakeMessage) InProgress() error {
	m.q.record("working %s", m.id)
	m.deadline.Reset(m.q.ackWait)
	return nil
}

// fakePixel answers each request by a function of its event IDs.
type fakePixel struct {
	name    string
	q       *fakeQueue
	respond func(ids []string) purchase.Answer
	mu      sync.Mutex
	sent    []time.Time
	sizes   []int
}

func (p *fakePixel) Send(_ context.Context, events []message.Envelope) purchase.Answer {
	ids := make([]string, len(events))
	for i, e := range events {
		ids[i] = e.EventID
	}
	p.mu.Lock()
	p.sent = append(p.sent, time.Now())
	p.sizes = append(p.sizes, len(ids))
	p.mu.Unlock()
	p.q.record("send %s %s", p.name, strings.Join(ids, " "))
	return p.respond(ids)
}

func (p *fakePixel) times() []time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.sent)
}

// requests returns how many events each request held.
func (p *fakePixel) requests() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.sizes)
}

func (p *fakePixel) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sent)
}

// fakeReporter records what was published, and fails as configured.
type fakeReporter struct {
	q        *fakeQueue
	mu       sync.Mutex
	failing  int
	counts   map[string]int
	rejected string // the purchase whose dead letter is never stored
	outcomes []message.Outcome
	dead     []message.DeadLetter
}

func (r *fakeReporter) fails() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failing--
	return r.failing >= 0
}

func (r *fakeReporter) count(call string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil {
		r.counts = make(map[string]int)
	}
	r.counts[call]++
}

func (r *fakeReporter) calls() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.counts)
}

func (r *fakeReporter) Outcomes(_ context.Context, list []message.Outcome) []error {
	r.count("outcomes")
	errs := make([]error, len(list))
	for i, o := range list {
		if r.fails() {
			errs[i] = errors.New("NATS is down")
			continue
		}
		if _, err := message.EncodeOutcome(o); err != nil {
			panic(err)
		}
		r.q.record("outcome %s %s", o.EventID, strings.TrimSpace(string(o.Result)+" "+string(o.Reason)))
		r.mu.Lock()
		r.outcomes = append(r.outcomes, o)
		r.mu.Unlock()
	}
	return errs
}

func (r *fakeReporter) DeadLetters(_ context.Context, list []message.DeadLetter) []error {
	r.count("letters")
	errs := make([]error, len(list))
	for i, d := range list {
		if r.fails() || d.EventID == r.rejected {
			errs[i] = errors.New("NATS is down")
			continue
		}
		r.q.record("dead letter %s %s", d.EventID, d.Reason)
		r.mu.Lock()
		r.dead = append(r.dead, d)
		r.mu.Unlock()
	}
	return errs
}

func (r *fakeReporter) published() []message.Outcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.outcomes)
}

func (r *fakeReporter) letters() []message.DeadLetter {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.dead)
}

// harness is a worker with fake neighbours.
type harness struct {
	*Worker
	q          *fakeQueue
	r          *fakeReporter
	live, test *fakePixel
	log        *observer.ObservedLogs
	reg        *prometheus.Registry
	stop       context.CancelFunc
	abort      context.CancelFunc
	ended      chan struct{}
}

func answer(class purchase.Class, code int) purchase.Answer {
	return purchase.Answer{Class: class, Code: &code, Known: true, Message: "m", RequestID: "req"}
}

func always(a purchase.Answer) func([]string) purchase.Answer {
	return func([]string) purchase.Answer { return a }
}

// failWhile returns failure while failing is true, and accepts events otherwise.
func failWhile(failing *atomic.Bool, failure purchase.Answer) func([]string) purchase.Answer {
	return func([]string) purchase.Answer {
		if failing.Load() {
			return failure
		}
		return answer(purchase.ClassDelivered, 0)
	}
}

// failFirst returns failure to the first request, and accepts later ones.
func failFirst(failure purchase.Answer) func([]string) purchase.Answer {
	var later atomic.Bool
	return func([]string) purchase.Answer {
		if later.CompareAndSwap(false, true) {
			return failure
		}
		return answer(purchase.ClassDelivered, 0)
	}
}

// after returns a after a delay.
func after(d time.Duration, a purchase.Answer) func([]string) purchase.Answer {
	return func([]string) purchase.Answer { <-time.After(d); return a }
}

// startWorker starts a worker in the synctest bubble, configured by change.
func startWorker(t *testing.T, change func(b *harness, c *Config)) *harness {
	t.Helper()
	q := newQueue()
	b := &harness{q: q, r: &fakeReporter{q: q}, reg: prometheus.NewRegistry(), ended: make(chan struct{})}
	delivered := always(answer(purchase.ClassDelivered, 0))
	b.live = &fakePixel{name: "live", q: q, respond: delivered}
	b.test = &fakePixel{name: "test", q: q, respond: delivered}
	c := Config{
		Live: b.live, Test: b.test, EventName: "CompletePayment", BatchSize: 1, Concurrency: 4, MaxRPS: 1000,
		RetryInitial: time.Second, RetryMax: 15 * time.Minute, RetryMaxAge: 47 * time.Hour,
		AckWait: q.ackWait, Instance: "w", Now: time.Now,
	}
	change(b, &c)
	core, log := observer.New(zapcore.DebugLevel)
	b.log = log
	b.Worker = New(c, q, b.r, zap.New(core), b.reg)
	var stop, abort context.Context
	stop, b.stop = context.WithCancel(t.Context())
	abort, b.abort = context.WithCancel(t.Context())
	go func() {
		defer close(b.ended)
		if err := b.Run(stop, abort); err != nil {
			t.Error(err)
		}
	}()
	return b
}

// add queues n purchases; the one at index bad is a bad one.
func (b *harness) add(n, bad int) {
	for i := range n {
		id := fmt.Sprintf("cs_%d", i)
		if i == bad {
			id = "cs_bad"
		}
		b.q.add(id, true, 0)
	}
}

// bubble runs a test in virtual time and ends the worker.
func bubble(t *testing.T, change func(b *harness, c *Config), test func(t *testing.T, b *harness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := startWorker(t, change)
		test(t, b)
		b.stop()
		<-b.ended
	})
}

func defaults(*harness, *Config) {}

func wait(d time.Duration) {
	<-time.After(d) // virtual time
	synctest.Wait()
}

func wantJournal(t *testing.T, b *harness, journal ...string) {
	t.Helper()
	if got := b.q.entries(); !slices.Equal(got, journal) {
		t.Errorf("journal:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(journal, "\n  "))
	}
}

func TestWorker_PublishesOutcomeBeforeAck(t *testing.T) {
	t.Parallel()
	bubble(t, defaults, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, time.Minute)
		wait(time.Second)
		wantJournal(t, b, "send live cs_1", "outcome cs_1 delivered", "ack cs_1")
		o := b.r.published()[0]
		if o.Generation != 3 || o.Attempt == nil || o.Attempt.RequestID != "req" || *o.Attempt.Code != 0 ||
			!purchase.ValidID(o.Attempt.ID) {
			t.Errorf("outcome: %+v %+v", o, o.Attempt)
		}
		for _, msg := range []string{"Sending CompletePayment event", "Purchase event sent successfully"} {
			if b.log.FilterMessage(msg).FilterField(zap.String("event_id", "cs_1")).Len() != 1 {
				t.Errorf("%q was not logged once", msg)
			}
		}
		if n := testutil.ToFloat64(b.metrics.attempts.WithLabelValues("delivered", "0")); n != 1 {
			t.Errorf("attempts_total = %v, want 1", n)
		}
	})
}

func TestWorker_RetriesFailedOutcome(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, _ *Config) { b.r.failing = 5 }, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, 0)
		wait(20 * time.Second)
		wantJournal(t, b, "send live cs_1", "outcome cs_1 delivered", "ack cs_1")
	})
}

func TestWorker_SendsAgainWithoutOutcome(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, _ *Config) { b.r.failing = 20 }, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, 0)
		wait(5 * time.Minute)
		journal := b.q.entries()
		if b.live.count() < 2 || journal[len(journal)-1] != "ack cs_1" || len(b.r.published()) != 1 {
			t.Errorf("journal: %v", journal)
		}
	})
}

// Acknowledgements were once sent a single time: a server that crashed with them redelivered the whole batch.
func TestWorker_RetriesFailedAck(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, _ *Config) { b.q.lostAcks = 3 }, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, 0)
		wait(2 * time.Minute)
		wantJournal(t, b, "send live cs_1", "outcome cs_1 delivered",
			"ack cs_1", "ack cs_1", "ack cs_1", "ack cs_1")
	})
}

// Acknowledgements are lost until the redelivery: each attempt has its own outcome.
func TestWorker_SendsAgainAfterLostAck(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, _ *Config) { b.q.lostAcks = 1 << 20 }, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, 0)
		wait(2 * b.q.ackWait)
		b.q.mu.Lock()
		b.q.lostAcks = 0
		b.q.mu.Unlock()
		wait(4 * b.q.ackWait)
		if outcomes := b.r.published(); len(outcomes) < 2 || outcomes[0].Attempt.ID == outcomes[1].Attempt.ID ||
			b.live.count() != len(outcomes) {
			t.Errorf("%d requests, outcomes %+v", b.live.count(), outcomes)
		}
		b.q.mu.Lock()
		defer b.q.mu.Unlock()
		if len(b.q.waiting) > 0 {
			t.Errorf("%d messages are still queued, want 0", len(b.q.waiting))
		}
	})
}

func TestWorker_DeliversAfterHourOfOutage(t *testing.T) {
	t.Parallel()
	var down atomic.Bool
	down.Store(true)
	bubble(t, func(b *harness, _ *Config) {
		b.live.respond = failWhile(&down, answer(purchase.ClassRetry, 503))
	}, func(t *testing.T, b *harness) {
		b.add(20, -1)
		wait(time.Hour)
		// 1 s, 2 s, 4 s … 5 min between the circuit's probes.
		if n := b.live.count(); n < 15 || n > 40 {
			t.Errorf("requests in an hour of outage = %d, want 15 to 40", n)
		}
		if s := b.State(); s.State != message.WorkerOpen || !strings.Contains(s.Reason, "503") || b.Ready() != nil {
			t.Errorf("state %+v, ready %v", s, b.Ready())
		}
		down.Store(false)
		wait(16 * time.Minute)
		for i := range 20 {
			if !slices.Contains(b.q.entries(), fmt.Sprintf("ack cs_%d", i)) {
				t.Errorf("cs_%d was not delivered within RETRY_MAX", i)
			}
		}
		if b.log.FilterMessage("TikTok tracking failed (non-critical)").Len() == 0 {
			t.Error("the failure was not logged")
		}
	})
}

func TestWorker_DeadLettersRejected(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, _ *Config) { b.live.respond = always(answer(purchase.ClassRefused, 40002)) },
		func(t *testing.T, b *harness) {
			b.q.add("cs_1", true, time.Minute)
			wait(time.Second)
			wantJournal(t, b, "send live cs_1", "dead letter cs_1 refused", "outcome cs_1 dead refused",
				"term cs_1 refused")
			d := b.r.letters()[0]
			if *d.Code != 40002 || d.Attempts != 1 || d.Message != "m" || d.RequestID != "req" || d.Generation != 3 ||
				len(d.Envelope) == 0 || d.DiedAt.Sub(d.FirstPublished) < time.Minute {
				t.Errorf("dead letter: %+v", d)
			}
		})
}

func TestWorker_RetriesUntilExpired(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.RetryMaxAge = 5 * time.Hour
		b.live.respond = always(answer(purchase.ClassRetry, 503))
	},
		func(t *testing.T, b *harness) {
			b.q.add("cs_1", true, 0)
			wait(5*time.Hour - time.Second)
			if len(b.r.letters()) > 0 {
				t.Errorf("dead letters before the age limit = %d, want 0", len(b.r.letters()))
			}
			wait(6 * time.Minute) // until the open circuit's next probe
			if len(b.r.letters()) != 1 || b.r.letters()[0].Reason != purchase.ReasonExpired {
				t.Errorf("dead letters = %+v, want one, expired", b.r.letters())
			}
		})
}

func TestWorker_PausesOnAccess(t *testing.T) {
	t.Parallel()
	var revoked atomic.Bool
	revoked.Store(true)
	bubble(t, func(b *harness, _ *Config) {
		b.live.respond = failWhile(&revoked, answer(purchase.ClassAccess, 40105))
	}, func(t *testing.T, b *harness) {
		for i := range 100 {
			b.q.add(fmt.Sprintf("cs_%d", i), true, 0)
			b.q.add(fmt.Sprintf("cs_test_%d", i), false, 0)
		}
		wait(2 * time.Hour)
		// 1 s, 2 s, 4 s … 5 min, and at most one more for each of the four requests that were in flight at first.
		if n := b.live.count(); n < 25 || n > 45 {
			t.Errorf("probes in two hours = %d, want 25 to 45", n)
		}
		for i, at := range b.live.sent[10:] {
			if gap := at.Sub(b.live.sent[9+i]); gap > 6*time.Minute {
				t.Errorf("time between two probes = %s, want at most 6m", gap)
			}
		}
		if b.Ready() == nil || b.State().State != message.WorkerPaused ||
			!strings.Contains(b.State().Reason, "40105") {
			t.Errorf("state: %+v", b.State())
		}
		if len(b.r.letters()) > 0 {
			t.Errorf("%d dead letters, want 0", len(b.r.letters()))
		}
		if b.test.count() != 100 {
			t.Errorf("%d test purchases were sent, want 100", b.test.count())
		}
		if n := b.log.FilterMessage("Delivery paused").
			FilterField(zap.String("cause", "TikTok denies access")).Len(); n != 1 {
			t.Errorf("the pause was logged %d times, want once", n)
		}
		revoked.Store(false)
		wait(15 * time.Minute)
		if b.Ready() != nil || b.State().State != message.WorkerRunning {
			t.Errorf("state: %+v", b.State())
		}
		if n := b.count("ack cs_") - b.count("ack cs_test_"); n != 100 {
			t.Errorf("%d purchases were delivered, want 100", n)
		}
	})
}

func TestWorker_OffSkips(t *testing.T) {
	t.Parallel()
	bubble(t, func(_ *harness, c *Config) { c.Live = nil }, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, 100*time.Hour)
		wait(time.Second)
		wantJournal(t, b, "outcome cs_1 skipped not_configured", "ack cs_1")
		if b.log.FilterMessage("TIKTOK_ACCESS_TOKEN not configured, skipping tracking").Len() != 1 ||
			b.State().State != message.WorkerOff || b.Ready() != nil {
			t.Errorf("state %+v, log %v", b.State(), b.log.All())
		}
	})
}

func TestWorker_SkipsTestPurchasesWithoutDestination(t *testing.T) {
	t.Parallel()
	bubble(t, func(_ *harness, c *Config) { c.Test = nil }, func(t *testing.T, b *harness) {
		b.q.add("cs_1", false, 0)
		wait(time.Second)
		wantJournal(t, b, "outcome cs_1 skipped test_purchase", "ack cs_1")
	})
}

func TestWorker_RemovesMalformedReturnsNewer(t *testing.T) {
	t.Parallel()
	bubble(t, defaults, func(t *testing.T, b *harness) {
		b.q.put(&fakeMessage{q: b.q, id: "malformed", subject: "s", data: []byte(`{"version":1,"event_id":"a b"}`)})
		wait(time.Second)
		b.q.put(&fakeMessage{q: b.q, id: "newer", subject: "s", data: []byte(`{"version":9}`)})
		wait(time.Second)
		wantJournal(t, b, "term malformed malformed purchase", "nak newer")
	})
}

// Shutdown finishes in-flight requests and fetches nothing new.
func TestWorker_ShutdownFinishesInFlight(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.Concurrency = 1
		b.live.respond = after(3*time.Second, answer(purchase.ClassDelivered, 0))
	}, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, 0)
		b.q.add("cs_2", true, 0)
		wait(time.Second)
		b.stop()
		<-b.ended
		wantJournal(t, b, "send live cs_1", "outcome cs_1 delivered", "ack cs_1")
	})
}

func TestWorker_ExtendsAckWait(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, _ *Config) {
		b.live.respond = after(100*time.Second, answer(purchase.ClassDelivered, 0))
	}, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, 0)
		wait(3 * time.Minute)
		if b.live.count() != 1 {
			t.Errorf("%d requests, want 1", b.live.count())
		}
	})
}

// Senders that were fetching when the rate limit began return what they get, also for the other pixel: the
// limit is the app's.
func TestWorker_RateLimitStopsAllRequests(t *testing.T) {
	t.Parallel()
	limited := answer(purchase.ClassRate, 40100)
	limited.RetryAfter = 2 * time.Minute
	bubble(t, func(b *harness, _ *Config) {
		b.live.respond = failFirst(limited)
	}, func(t *testing.T, b *harness) {
		wait(time.Second)
		b.q.add("cs_1", true, 0)
		wait(time.Second)
		b.q.add("cs_2", true, 0)
		b.q.add("cs_3", false, 0)
		wait(time.Minute)
		if n := b.live.count() + b.test.count(); n != 1 {
			t.Errorf("requests during the rate limit = %d, want 1", n)
		}
		if len(b.r.published()) != 1 {
			t.Errorf("outcomes = %+v, want one", b.r.published())
		}
		if err := b.Ready(); err != nil {
			t.Errorf("ready = %v during a rate limit, want nil", err)
		}
		wait(2 * time.Minute)
		if b.live.count() != 3 || b.test.count() != 1 {
			t.Errorf("%d live and %d test requests, want 3 and 1", b.live.count(), b.test.count())
		}
	})
}

// A backlog of skipped purchases once used up the rate tokens: live ones waited 100 s behind it.
func TestWorker_KeepsUnusedRateToken(t *testing.T) {
	t.Parallel()
	bubble(t, func(_ *harness, c *Config) { c.Test, c.MaxRPS, c.Concurrency = nil, 1, 1 },
		func(t *testing.T, b *harness) {
			for i := range 100 {
				b.q.add(fmt.Sprintf("cs_test_%d", i), false, 0)
			}
			b.q.add("cs_live", true, 0)
			wait(time.Second)
			if b.live.count() != 1 {
				t.Errorf("%d live requests, want 1", b.live.count())
			}
		})
}

func TestWorker_KeepsMaxRPS(t *testing.T) {
	t.Parallel()
	bubble(t, func(_ *harness, c *Config) { c.MaxRPS = 10 }, func(t *testing.T, b *harness) {
		b.add(100, -1)
		wait(5 * time.Second)
		if n := b.live.count(); n < 45 || n > 55 {
			t.Errorf("requests in five seconds at ten a second = %d, want 45 to 55", n)
		}
	})
}

// When a probe was due, every sender once fetched a message, and all but one returned it.
func TestWorker_FetchesOnlyTheProbe(t *testing.T) {
	t.Parallel()
	for _, both := range []bool{false, true} {
		bubble(t, func(b *harness, c *Config) {
			b.q.latency = 2 * time.Millisecond
			slow := after(100*time.Millisecond, answer(purchase.ClassAccess, 40105))
			b.live.respond, b.test.respond = slow, slow
			if !both {
				c.Test = nil
			}
		}, func(t *testing.T, b *harness) {
			b.add(50, -1)
			// between counts after a time, when no probe is in flight: its delivery would be counted twice.
			between := func(d time.Duration) (probes, events int) {
				wait(d)
				for {
					times := b.live.times()
					if time.Since(times[len(times)-1]) > 200*time.Millisecond {
						return len(times), len(b.q.entries())
					}
					wait(100 * time.Millisecond)
				}
			}
			before, events := between(time.Minute)
			after, _ := between(2 * time.Hour)
			probes := after - before
			if probes < 22 || probes > 42 {
				t.Errorf("probes in two hours = %d, want 22 to 42", probes)
			}
			naks := strings.Count(strings.Join(b.q.entries()[events:], "\n"), "nak")
			// All of the fifty have probed before: each probe fetches a few more to find another one.
			if limit := probes * (1 + replaceLimit); !both && naks > limit {
				t.Errorf("returned messages for %d probes = %d, want at most %d", probes, naks, limit)
			}
			times := b.live.times()[before:]
			for i := 1; i < len(times); i++ {
				if gap := times[i].Sub(times[i-1]); gap < 100*time.Millisecond {
					t.Errorf("time between two probes = %s, want at least 100ms", gap)
				}
			}
		})
	}
}

func TestWorker_ReturnsPausedWithoutOutcome(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, _ *Config) { b.test.respond = always(answer(purchase.ClassAccess, 40105)) },
		func(t *testing.T, b *harness) {
			for i := range 50 {
				b.q.add(fmt.Sprintf("cs_test_%d", i), false, 0)
			}
			wait(time.Hour)
			// The delays are spread: equal ones would make a burst at each probe.
			back := map[time.Duration]bool{}
			for _, d := range b.q.delays() {
				back[d] = true
			}
			if len(back) < 40 {
				t.Errorf("different delays of 50 purchases = %d, want at least 40", len(back))
			}
			if published, sent := len(b.r.published()), b.test.count(); published != sent || sent > 30 {
				t.Errorf("%d outcomes for %d attempts", published, sent)
			}
			for _, o := range b.r.published() {
				if o.Result != purchase.StatusRetrying || o.Attempt.Class != purchase.ClassAccess {
					t.Errorf("outcome: %+v", o)
				}
			}
		})
}

func TestWorker_DeliversMessagesBesideFetchError(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, _ *Config) { b.q.failing = true }, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, 0)
		wait(time.Second)
		wantJournal(t, b, "send live cs_1", "outcome cs_1 delivered", "ack cs_1")
		if n := b.log.FilterMessage("Fetch failed; retrying").Len(); n != 1 {
			t.Errorf("the failure was logged %d times, want once", n)
		}
	})
}

func TestWorker_RespectsRetryAfter(t *testing.T) {
	t.Parallel()
	busy := answer(purchase.ClassRetry, 503)
	busy.RetryAfter = 10 * time.Minute
	bubble(t, func(b *harness, _ *Config) { b.live.respond = always(busy) }, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, 0)
		wait(35 * time.Minute)
		times := b.live.times()
		if len(times) != 4 || times[1].Sub(times[0]) != 10*time.Minute {
			t.Errorf("sent at %v, want every 10 minutes", times)
		}
	})
}

func TestWorker_TriesShortlyBeforeAgeLimit(t *testing.T) {
	t.Parallel()
	busy := answer(purchase.ClassRetry, 503)
	busy.RetryAfter = time.Hour
	bubble(t, func(b *harness, _ *Config) { b.live.respond = always(busy) }, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, 47*time.Hour-30*time.Minute)
		wait(31 * time.Minute)
		times := b.live.times()
		if len(times) != 2 || times[1].Sub(times[0]) != 29*time.Minute || len(b.r.letters()) != 1 {
			t.Errorf("sent at %v, %d dead letters", times, len(b.r.letters()))
		}
	})
}

func TestWorker_DeadLettersOnceWhenNATSReturns(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, _ *Config) {
		b.r.failing = 30
		b.live.respond = always(answer(purchase.ClassRefused, 40002))
	}, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, 0)
		wait(10 * time.Minute)
		journal := b.q.entries()
		if tail := journal[len(journal)-3:]; !slices.Equal(tail,
			[]string{"dead letter cs_1 refused", "outcome cs_1 dead refused", "term cs_1 refused"}) {
			t.Errorf("journal: %v", journal)
		}
		if n := testutil.ToFloat64(b.metrics.dead.WithLabelValues("refused")); n != 1 {
			t.Errorf("dead_letters_total = %v, want 1", n)
		}
	})
}

// Five hundred expired purchases cost one call for their letters and one for their outcomes.
func TestWorker_PublishesDeadLettersTogether(t *testing.T) {
	t.Parallel()
	const n = 500
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Concurrency = n, 1
		for i := range n {
			b.q.add(fmt.Sprintf("cs_%d", i), true, 48*time.Hour)
		}
	}, func(t *testing.T, b *harness) {
		wait(5 * time.Minute)
		if letters, outcomes := len(b.r.letters()), len(b.r.published()); letters != n || outcomes != n {
			t.Errorf("published %d letters and %d outcomes, want %d of each", letters, outcomes, n)
		}
		if calls := b.r.calls(); calls["letters"] != 1 || calls["outcomes"] != 1 {
			t.Errorf("calls = %v, want 1 of each", calls)
		}
	})
}

// A dead letter that is never stored keeps its own purchase in the queue; the rest of the batch is settled.
func TestWorker_FailedDeadLetterKeepsItsPurchaseAlone(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) { b.r.rejected, c.BatchSize, c.Concurrency = "cs_1", 3, 1 },
		func(t *testing.T, b *harness) {
			for i := range 3 {
				b.q.add(fmt.Sprintf("cs_%d", i), true, 48*time.Hour)
			}
			wait(5 * time.Minute)
			journal := b.q.entries()
			for _, id := range []string{"cs_0", "cs_2"} {
				letter := slices.Index(journal, "dead letter "+id+" expired")
				outcome := slices.Index(journal, "outcome "+id+" dead expired")
				term := slices.Index(journal, "term "+id+" expired")
				if letter < 0 || outcome < letter || term < outcome {
					t.Errorf("%s: letter at %d, outcome at %d, term at %d: %v", id, letter, outcome, term, journal)
				}
			}
			for _, entry := range journal {
				if strings.Contains(entry, "cs_1") && entry != "working cs_1" {
					t.Errorf("unexpected call for cs_1 without a dead letter: %s", entry)
				}
			}
		})
}

// Abort cuts off in-flight requests: their purchases are returned immediately, without an outcome.
func TestWorker_AbortReturnsInFlight(t *testing.T) {
	t.Parallel()
	bubble(t, func(_ *harness, c *Config) { c.Live = hung{} }, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, 0)
		wait(time.Second)
		b.stop()
		wait(5 * time.Second)
		b.abort()
		<-b.ended
		wantJournal(t, b, "nak cs_1")
		if delays := b.q.delays(); !slices.Equal(delays, []time.Duration{0}) {
			t.Errorf("delays = %v, want one of 0s", delays)
		}
	})
}

// hung responds only once its request is cut off.
type hung struct{}

func (hung) Send(ctx context.Context, _ []message.Envelope) purchase.Answer {
	<-ctx.Done()
	return purchase.Answer{Class: purchase.ClassRetry, Known: true, Message: "no answer"}
}

func TestWorker_State(t *testing.T) {
	t.Parallel()
	var revoked atomic.Bool
	revoked.Store(true)
	incorrect := answer(purchase.ClassAccess, 40105)
	incorrect.Message = "Access token is incorrect"
	bubble(t, func(b *harness, _ *Config) {
		b.live.respond = failWhile(&revoked, incorrect)
	}, func(t *testing.T, b *harness) {
		started := b.State().Since
		wait(time.Minute)
		b.q.add("cs_1", true, 0)
		wait(time.Minute)
		paused := b.State()
		if paused.State != message.WorkerPaused || paused.Reason != "live: 40105 Access token is incorrect" ||
			paused.Since.Sub(started) != time.Minute {
			t.Errorf("state: %+v", paused)
		}
		const gauge = `# HELP purchase_relay_paused 1 while delivery is paused, by reason.
# TYPE purchase_relay_paused gauge
purchase_relay_paused{reason="access"} 1
purchase_relay_paused{reason="rate"} 0
purchase_relay_paused{reason="test_access"} 0
`
		if err := testutil.GatherAndCompare(b.reg, strings.NewReader(gauge), "purchase_relay_paused"); err != nil {
			t.Error(err)
		}
		revoked.Store(false)
		wait(10 * time.Minute)
		if s := b.State(); s.State != message.WorkerRunning || s.Reason != "" || !s.Since.After(paused.Since) {
			t.Errorf("state: %+v", s)
		}
	})
}

func TestMetrics_CodeLabelIsBounded(t *testing.T) {
	t.Parallel()
	m := metrics{codes: map[int]bool{}}
	labels := map[string]bool{}
	for c := range 4000 {
		labels[m.code(new(50000+c), true)] = true
	}
	labels[m.code(nil, true)] = true
	if len(labels) != maxCodes+2 || m.code(new(50000), true) != "50000" || m.code(new(77777), false) != "other" {
		t.Errorf("%d labels, want %d", len(labels), maxCodes+2)
	}
}

func TestAttemptPrefix_IsValidAndUnique(t *testing.T) {
	t.Parallel()
	for _, instance := range []string{"w-1", "", "host.example.com", "größe", strings.Repeat("x", 400)} {
		a, b := attemptPrefix(instance)+"1", attemptPrefix(instance)+"1"
		if !purchase.ValidID(a) || a == b {
			t.Errorf("IDs of instance %q = %q and %q, want valid and different ones", instance, a, b)
		}
	}
}
