package delivery

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	"purchase-relay/internal/purchase"
)

// queue is a stream in memory. Like the real one it redelivers what was returned, or not acknowledged in
// time.
type queue struct {
	mu       sync.Mutex
	waiting  []*fakeMessage
	arrived  chan struct{}
	ackWait  time.Duration
	journal  []string        // everything that happened, in order
	naks     []time.Duration // the delays asked for
	added    int
	lostAcks int           // so many acknowledgements get lost
	latency  time.Duration // of a fetch
	erring   bool          // a fetch that brings a message brings an error too
}

type fakeMessage struct {
	q         *queue
	id        string
	subject   string
	data      []byte
	first     time.Time
	delivered int
	returned  bool
	deadline  *time.Timer
	done      bool
}

func newQueue() *queue {
	return &queue{arrived: make(chan struct{}, 20_000), ackWait: 30 * time.Second}
}

func (q *queue) note(format string, args ...any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.journal = append(q.journal, fmt.Sprintf(format, args...))
}

func (q *queue) events() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.journal)
}

func (q *queue) delays() []time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.naks)
}

func (q *queue) put(m *fakeMessage) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, m)
	q.arrived <- struct{}{}
}

func (q *queue) add(id string, livemode bool, age time.Duration) {
	data, err := message.EncodeEnvelope(&purchase.Purchase{ID: id, Livemode: livemode, At: time.Now().Add(-age)})
	if err != nil {
		panic(err)
	}
	q.mu.Lock()
	q.added++
	q.mu.Unlock()
	q.put(&fakeMessage{
		q: q, id: id, subject: message.Subject(id, livemode), data: data,
		first: time.Now().Add(-age),
	})
}

// Fetch implements Source.
func (q *queue) Fetch(ctx context.Context, most int) (list []message.Received, err error) {
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
	for n < min(most, len(q.waiting)) {
		select {
		case <-q.arrived:
			n++
		default: // another fetch has its word
			break more
		}
	}
	for _, m := range q.waiting[:n] {
		m.delivered++
		m.deadline = time.AfterFunc(q.ackWait, func() { q.put(m) })
		list = append(list, message.Received{
			Subject: m.subject, MsgID: message.MsgID(m.id,
				3), Data: m.data, FirstPublished: m.first, NumDelivered: m.delivered, Returned: m.returned, Acker: m,
		})
		m.returned = false
	}
	q.waiting = q.waiting[n:]
	if q.erring {
		err = errors.New("connection lost")
	}
	return list, err
}

func (m *fakeMessage) settle(format string, args ...any) bool {
	m.q.note(format, args...)
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
	m.q.note("working %s", m.id)
	m.deadline.Reset(m.q.ackWait)
	return nil
}

// pixel answers by a function: of the first event of a request, or of all.
type pixel struct {
	name   string
	q      *queue
	say    func(id string) purchase.Answer
	sayAll func(ids []string) purchase.Answer
	mu     sync.Mutex
	sent   []time.Time
	sizes  []int
}

func (p *pixel) Send(_ context.Context, events []message.Envelope) purchase.Answer {
	ids := make([]string, len(events))
	for i, e := range events {
		ids[i] = e.EventID
	}
	p.mu.Lock()
	p.sent = append(p.sent, time.Now())
	p.sizes = append(p.sizes, len(ids))
	p.mu.Unlock()
	p.q.note("send %s %s", p.name, strings.Join(ids, " "))
	if p.sayAll != nil {
		return p.sayAll(ids)
	}
	return p.say(ids[0])
}

func (p *pixel) times() []time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.sent)
}

// requests returns how many events each request held.
func (p *pixel) requests() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.sizes)
}

func (p *pixel) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sent)
}

// reporter records what was published, and fails as configured.
type reporter struct {
	q        *queue
	mu       sync.Mutex
	failing  int
	counts   map[string]int
	refused  string // the purchase whose dead letter is never stored
	outcomes []message.Outcome
	dead     []message.DeadLetter
}

func (r *reporter) fails() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failing--
	return r.failing >= 0
}

func (r *reporter) count(call string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil {
		r.counts = make(map[string]int)
	}
	r.counts[call]++
}

func (r *reporter) calls() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.counts)
}

func (r *reporter) Outcomes(_ context.Context, list []message.Outcome) []error {
	r.count("outcomes")
	errs := make([]error, len(list))
	for i, o := range list {
		if r.fails() {
			errs[i] = errors.New("NATS is away")
			continue
		}
		if _, err := message.EncodeOutcome(o); err != nil {
			panic(err)
		}
		r.q.note("outcome %s %s", o.EventID, strings.TrimSpace(string(o.Result)+" "+string(o.Reason)))
		r.mu.Lock()
		r.outcomes = append(r.outcomes, o)
		r.mu.Unlock()
	}
	return errs
}

func (r *reporter) DeadLetters(_ context.Context, list []message.DeadLetter) []error {
	r.count("letters")
	errs := make([]error, len(list))
	for i, d := range list {
		if r.fails() || r.refuses(d.EventID) {
			errs[i] = errors.New("NATS is away")
			continue
		}
		r.q.note("dead letter %s %s", d.EventID, d.Reason)
		r.mu.Lock()
		r.dead = append(r.dead, d)
		r.mu.Unlock()
	}
	return errs
}

// refuses reports whether the letter of a purchase is never stored.
func (r *reporter) refuses(id string) bool { return r.refused != "" && id == r.refused }

func (r *reporter) published() []message.Outcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.outcomes)
}

func (r *reporter) letters() []message.DeadLetter {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.dead)
}

// bench is a worker with fakes around it.
type bench struct {
	*Worker
	q          *queue
	r          *reporter
	live, test *pixel
	log        *observer.ObservedLogs
	reg        *prometheus.Registry
	stop       context.CancelFunc
	ended      chan struct{}
}

func answer(class purchase.Class, code int) purchase.Answer {
	return purchase.Answer{Class: class, Code: &code, Known: true, Message: "m", RequestID: "req"}
}

func always(a purchase.Answer) func(string) purchase.Answer {
	return func(string) purchase.Answer { return a }
}

// run starts a worker in the bubble; change may set it up before.
func run(t *testing.T, change func(b *bench, c *Config)) *bench {
	t.Helper()
	q := newQueue()
	b := &bench{q: q, r: &reporter{q: q}, reg: prometheus.NewRegistry(), ended: make(chan struct{})}
	delivered := always(answer(purchase.ClassDelivered, 0))
	b.live, b.test = &pixel{name: "live", q: q, say: delivered}, &pixel{name: "test", q: q, say: delivered}
	c := Config{
		Live: b.live, Test: b.test, EventName: "CompletePayment", BatchSize: 1, Concurrency: 4, MaxRPS: 1000, RetryInitial: time.Second,
		RetryMax: 15 * time.Minute, RetryMaxAge: 47 * time.Hour, AckWait: q.ackWait, Instance: "w", Now: time.Now,
	}
	change(b, &c)
	core, log := observer.New(zapcore.DebugLevel)
	b.log = log
	b.Worker = New(c, q, b.r, zap.New(core), b.reg)
	ctx, cancel := context.WithCancel(t.Context())
	b.stop = cancel
	go func() {
		defer close(b.ended)
		if err := b.Run(ctx, context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	return b
}

// bubble runs a test in virtual time and ends the worker.
func bubble(t *testing.T, change func(b *bench, c *Config), test func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := run(t, change)
		test(t, b)
		b.stop()
		<-b.ended
	})
}

func nothing(*bench, *Config) {}

func wait(d time.Duration) {
	<-time.After(d) // virtual time
	synctest.Wait()
}

func want(t *testing.T, b *bench, journal ...string) {
	t.Helper()
	if got := b.q.events(); !slices.Equal(got, journal) {
		t.Errorf("journal:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(journal, "\n  "))
	}
}

func TestWorker_PublishesOutcomeBeforeAck(t *testing.T) {
	t.Parallel()
	bubble(t, nothing, func(t *testing.T, b *bench) {
		b.q.add("cs_1", true, time.Minute)
		wait(time.Second)
		want(t, b, "send live cs_1", "outcome cs_1 delivered", "ack cs_1")
		o := b.r.published()[0]
		if o.Generation != 3 || o.Attempt == nil || o.Attempt.RequestID != "req" || *o.Attempt.Code != 0 ||
			!purchase.ValidID(o.Attempt.ID) {
			t.Errorf("outcome: %+v %+v", o, o.Attempt)
		}
		for _, msg := range []string{"Sending CompletePayment event", "Purchase event sent successfully"} {
			if b.log.FilterMessage(msg).FilterField(zap.String("event_id", "cs_1")).Len() != 1 {
				t.Errorf("the log lacks %q", msg)
			}
		}
		if n := testutil.ToFloat64(b.metrics.attempts.WithLabelValues("delivered", "0")); n != 1 {
			t.Errorf("%v attempts counted", n)
		}
	})
}

// The purchase is not acknowledged before its outcome is published.
func TestWorker_RetriesFailedOutcome(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *bench, _ *Config) { b.r.failing = 5 }, func(t *testing.T, b *bench) {
		b.q.add("cs_1", true, 0)
		wait(20 * time.Second)
		want(t, b, "send live cs_1", "outcome cs_1 delivered", "ack cs_1")
	})
}

// Without its outcome, a purchase is redelivered, and the same event is sent again.
func TestWorker_LeavesMessageWithoutOutcome(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *bench, _ *Config) { b.r.failing = 20 }, func(t *testing.T, b *bench) {
		b.q.add("cs_1", true, 0)
		wait(5 * time.Minute)
		journal := b.q.events()
		if b.live.count() < 2 || journal[len(journal)-1] != "ack cs_1" || len(b.r.published()) != 1 {
			t.Errorf("journal: %v", journal)
		}
	})
}

// A lost acknowledgement is repeated. It was sent once before: a server that crashed with it redelivered the
// whole batch.
func TestWorker_RetriesFailedAck(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *bench, _ *Config) { b.q.lostAcks = 3 }, func(t *testing.T, b *bench) {
		b.q.add("cs_1", true, 0)
		wait(2 * time.Minute)
		want(t, b, "send live cs_1", "outcome cs_1 delivered", "ack cs_1", "ack cs_1", "ack cs_1", "ack cs_1")
	})
}

// Acknowledgements are lost until the redelivery: two outcomes, each attempt once.
func TestWorker_SendsAgainAfterLostAck(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *bench, _ *Config) { b.q.lostAcks = 1 << 20 }, func(t *testing.T, b *bench) {
		b.q.add("cs_1", true, 0)
		wait(2 * b.q.ackWait)
		b.q.mu.Lock()
		b.q.lostAcks = 0
		b.q.mu.Unlock()
		wait(4 * b.q.ackWait)
		if told := b.r.published(); len(told) < 2 || told[0].Attempt.ID == told[1].Attempt.ID ||
			b.live.count() != len(told) {
			t.Errorf("%d requests, told %+v", b.live.count(), told)
		}
		b.q.mu.Lock()
		defer b.q.mu.Unlock()
		if len(b.q.waiting) > 0 {
			t.Error("it is still queued")
		}
	})
}

func TestWorker_DeliversAfterHourOfOutage(t *testing.T) {
	t.Parallel()
	down := true
	var mu sync.Mutex
	bubble(t, func(b *bench, _ *Config) {
		b.live.say = func(string) purchase.Answer {
			mu.Lock()
			defer mu.Unlock()
			if down {
				return answer(purchase.ClassRetry, 503)
			}
			return answer(purchase.ClassDelivered, 0)
		}
	}, func(t *testing.T, b *bench) {
		for i := range 20 {
			b.q.add(fmt.Sprintf("cs_%d", i), true, 0)
		}
		wait(time.Hour)
		// 1 s, 2 s, 4 s … 5 min between the circuit's probes.
		if n := b.live.count(); n < 15 || n > 40 {
			t.Errorf("%d requests in an hour of outage", n)
		}
		if s := b.State(); s.State != message.WorkerOpen || !strings.Contains(s.Reason, "503") || b.Ready() != nil {
			t.Errorf("state %+v, ready %v", s, b.Ready())
		}
		mu.Lock()
		down = false
		mu.Unlock()
		wait(16 * time.Minute)
		for i := range 20 {
			if !slices.Contains(b.q.events(), fmt.Sprintf("ack cs_%d", i)) {
				t.Errorf("cs_%d was not delivered within RETRY_MAX", i)
			}
		}
		if b.log.FilterMessage("TikTok tracking failed (non-critical)").Len() == 0 {
			t.Error("nothing was said")
		}
	})
}

func TestWorker_DeadLettersRejected(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *bench, _ *Config) { b.live.say = always(answer(purchase.ClassRefused, 40002)) },
		func(t *testing.T, b *bench) {
			b.q.add("cs_1", true, time.Minute)
			wait(time.Second)
			want(t, b, "send live cs_1", "dead letter cs_1 refused", "outcome cs_1 dead refused", "term cs_1 refused")
			d := b.r.letters()[0]
			if *d.Code != 40002 || d.Attempts != 1 || d.Message != "m" || d.RequestID != "req" || d.Generation != 3 ||
				len(d.Envelope) == 0 || d.DiedAt.Sub(d.FirstPublished) < time.Minute {
				t.Errorf("dead letter: %+v", d)
			}
		})
}

func TestWorker_DeadLettersExpiredUnsent(t *testing.T) {
	t.Parallel()
	bubble(t, nothing, func(t *testing.T, b *bench) {
		b.q.add("cs_old", true, 47*time.Hour)
		b.q.add("cs_young", true, 47*time.Hour-time.Minute)
		wait(time.Second)
		if journal := b.q.events(); !slices.Contains(journal, "outcome cs_old dead expired") ||
			slices.Contains(journal, "send live cs_old") ||
			!slices.Contains(journal, "ack cs_young") {
			t.Errorf("journal: %v", journal)
		}
	})
}

// A purchase is tried up to its age limit and is then dead.
func TestWorker_RetriesUntilExpired(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *bench, c *Config) {
		c.RetryMaxAge = 5 * time.Hour
		b.live.say = always(answer(purchase.ClassRetry, 503))
	},
		func(t *testing.T, b *bench) {
			b.q.add("cs_1", true, 0)
			wait(5*time.Hour - time.Second)
			if len(b.r.letters()) > 0 {
				t.Error("it died before its time")
			}
			wait(6 * time.Minute) // it is looked at with the open circuit's next probe
			if len(b.r.letters()) != 1 || b.r.letters()[0].Reason != purchase.ReasonExpired {
				t.Errorf("dead letters: %+v", b.r.letters())
			}
		})
}

func TestWorker_PausesOnAccess(t *testing.T) {
	t.Parallel()
	revoked := true
	var mu sync.Mutex
	bubble(t, func(b *bench, _ *Config) {
		b.live.say = func(string) purchase.Answer {
			mu.Lock()
			defer mu.Unlock()
			if revoked {
				return answer(purchase.ClassAccess, 40105)
			}
			return answer(purchase.ClassDelivered, 0)
		}
	}, func(t *testing.T, b *bench) {
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
				t.Errorf("%s between two probes", gap)
			}
		}
		if b.Ready() == nil || b.State().State != message.WorkerPaused ||
			!strings.Contains(b.State().Reason, "40105") {
			t.Errorf("state: %+v", b.State())
		}
		if len(b.r.letters()) > 0 {
			t.Errorf("%d purchases died for the token", len(b.r.letters()))
		}
		if b.test.count() != 100 {
			t.Errorf("%d of 100 test purchases were sent meanwhile", b.test.count())
		}
		if n := b.log.FilterMessage("TikTok refuses access; delivery paused").Len(); n != 1 {
			t.Errorf("the pause was told %d times", n)
		}
		mu.Lock()
		revoked = false
		mu.Unlock()
		wait(15 * time.Minute)
		if b.Ready() != nil || b.State().State != message.WorkerRunning {
			t.Errorf("state: %+v", b.State())
		}
		acked := 0
		for _, e := range b.q.events() {
			if strings.HasPrefix(e, "ack cs_") && !strings.HasPrefix(e, "ack cs_test_") {
				acked++
			}
		}
		if acked != 100 {
			t.Errorf("%d of 100 were delivered", acked)
		}
	})
}

// A revoked test token never stops live purchases, nor readiness.
func TestWorker_RevokedTestTokenLeavesLiveAlone(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *bench, _ *Config) { b.test.say = always(answer(purchase.ClassAccess, 40105)) },
		func(t *testing.T, b *bench) {
			for i := range 50 {
				b.q.add(fmt.Sprintf("cs_test_%d", i), false, 0)
			}
			wait(time.Second)
			for i := range 50 {
				b.q.add(fmt.Sprintf("cs_%d", i), true, 0)
			}
			wait(10 * time.Second)
			if b.live.count() != 50 || b.Ready() != nil || b.State().State != message.WorkerRunning ||
				!strings.Contains(b.State().Reason, "test purchases wait") {
				t.Errorf("%d live, state %+v", b.live.count(), b.State())
			}
		})
}

// With nothing else to send, a paused worker fetches nothing: no deliveries are spent.
func TestWorker_PausedFetchesNothing(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *bench, c *Config) {
		c.Test = nil
		b.live.say = always(answer(purchase.ClassAccess, 40001))
	}, func(t *testing.T, b *bench) {
		b.q.add("cs_0", true, 0)
		wait(10 * time.Minute)
		for i := 1; i < 50; i++ {
			b.q.add(fmt.Sprintf("cs_%d", i), true, 0)
		}
		before := len(b.q.events())
		wait(time.Hour)
		if n := len(b.q.events()) - before; n > 200 { // about 13 probes, a few words each
			t.Errorf("%d words with the queue in an hour of pause", n)
		}
	})
}

func TestWorker_RateLimitStopsAllRequests(t *testing.T) {
	t.Parallel()
	limited := answer(purchase.ClassRate, 40100)
	limited.RetryAfter = 2 * time.Minute
	first := true
	var mu sync.Mutex
	bubble(t, func(b *bench, c *Config) {
		c.Concurrency = 1
		b.live.say = func(string) purchase.Answer {
			mu.Lock()
			defer mu.Unlock()
			if first {
				first = false
				return limited
			}
			return answer(purchase.ClassDelivered, 0)
		}
	}, func(t *testing.T, b *bench) {
		b.q.add("cs_1", true, 0)
		wait(time.Second)
		b.q.add("cs_2", false, 0) // another pixel, the same app
		wait(118 * time.Second)
		if n := b.live.count() + b.test.count(); n != 1 {
			t.Errorf("%d requests while TikTok wants none", n)
		}
		if b.Ready() != nil {
			t.Error("a slow-down is no pause")
		}
		wait(10 * time.Second)
		if b.live.count() != 2 || b.test.count() != 1 {
			t.Errorf("afterwards %d live, %d test", b.live.count(), b.test.count())
		}
	})
}

func TestWorker_OffSkips(t *testing.T) {
	t.Parallel()
	bubble(t, func(_ *bench, c *Config) { c.Live = nil }, func(t *testing.T, b *bench) {
		b.q.add("cs_1", true, 100*time.Hour)
		wait(time.Second)
		want(t, b, "outcome cs_1 skipped not_configured", "ack cs_1")
		if b.log.FilterMessage("TIKTOK_ACCESS_TOKEN not configured, skipping tracking").Len() != 1 ||
			b.State().State != message.WorkerOff || b.Ready() != nil {
			t.Errorf("state %+v, log %v", b.State(), b.log.All())
		}
	})
}

func TestWorker_SkipsTestPurchasesWithoutDestination(t *testing.T) {
	t.Parallel()
	bubble(t, func(_ *bench, c *Config) { c.Test = nil }, func(t *testing.T, b *bench) {
		b.q.add("cs_1", false, 0)
		wait(time.Second)
		want(t, b, "outcome cs_1 skipped test_purchase", "ack cs_1")
	})
}

func TestWorker_RemovesMalformedLeavesNewer(t *testing.T) {
	t.Parallel()
	bubble(t, nothing, func(t *testing.T, b *bench) {
		b.q.put(&fakeMessage{q: b.q, id: "junk", subject: "s", data: []byte(`{"version":1,"event_id":"a b"}`)})
		wait(time.Second)
		b.q.put(&fakeMessage{q: b.q, id: "newer", subject: "s", data: []byte(`{"version":9}`)})
		wait(time.Second)
		want(t, b, "term junk malformed purchase", "nak newer")
	})
}

// Shutdown finishes in-flight requests and fetches nothing new.
func TestWorker_ShutdownFinishesInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := run(t, func(b *bench, c *Config) {
			c.Concurrency = 1
			b.live.say = func(string) purchase.Answer {
				wait := time.NewTimer(3 * time.Second)
				<-wait.C
				return answer(purchase.ClassDelivered, 0)
			}
		})
		b.q.add("cs_1", true, 0)
		b.q.add("cs_2", true, 0)
		wait(time.Second)
		b.stop()
		<-b.ended
		want(t, b, "send live cs_1", "outcome cs_1 delivered", "ack cs_1")
	})
}

// A long request does not exceed AckWait.
func TestWorker_ExtendsAckWait(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *bench, _ *Config) {
		b.live.say = func(string) purchase.Answer {
			wait := time.NewTimer(100 * time.Second)
			<-wait.C
			return answer(purchase.ClassDelivered, 0)
		}
	}, func(t *testing.T, b *bench) {
		b.q.add("cs_1", true, 0)
		wait(3 * time.Minute)
		if b.live.count() != 1 {
			t.Errorf("sent %d times", b.live.count())
		}
	})
}

// A sender that was fetching when the rate limit began sends nothing: its messages are returned.
func TestWorker_RateLimitReturnsFetched(t *testing.T) {
	t.Parallel()
	limited := answer(purchase.ClassRate, 40100)
	limited.RetryAfter = 2 * time.Minute
	first := true
	var mu sync.Mutex
	bubble(t, func(b *bench, _ *Config) {
		b.live.say = func(string) purchase.Answer {
			mu.Lock()
			defer mu.Unlock()
			if first {
				first = false
				return limited
			}
			return answer(purchase.ClassDelivered, 0)
		}
	}, func(t *testing.T, b *bench) {
		wait(time.Second)
		b.q.add("cs_1", true, 0)
		wait(time.Second)
		b.q.add("cs_2", true, 0)
		b.q.add("cs_3", false, 0)
		wait(time.Minute)
		if n := b.live.count() + b.test.count(); n != 1 {
			t.Errorf("%d requests while TikTok wants none", n)
		}
		if len(b.r.published()) != 1 {
			t.Errorf("outcomes without an attempt: %+v", b.r.published())
		}
		wait(2 * time.Minute)
		if b.live.count() != 3 || b.test.count() != 1 {
			t.Errorf("afterwards %d live, %d test", b.live.count(), b.test.count())
		}
	})
}

// A backlog of skipped purchases once used up the rate tokens: live ones waited 100 s behind it.
func TestWorker_KeepsUnusedRateToken(t *testing.T) {
	t.Parallel()
	bubble(t, func(_ *bench, c *Config) { c.Test, c.MaxRPS, c.Concurrency = nil, 1, 1 },
		func(t *testing.T, b *bench) {
			for i := range 100 {
				b.q.add(fmt.Sprintf("cs_test_%d", i), false, 0)
			}
			b.q.add("cs_live", true, 0)
			wait(time.Second)
			if b.live.count() != 1 {
				t.Errorf("sent %d", b.live.count())
			}
		})
}

func TestWorker_KeepsMaxRPS(t *testing.T) {
	t.Parallel()
	bubble(t, func(_ *bench, c *Config) { c.MaxRPS = 10 }, func(t *testing.T, b *bench) {
		for i := range 100 {
			b.q.add(fmt.Sprintf("cs_%d", i), true, 0)
		}
		wait(5 * time.Second)
		if n := b.live.count(); n < 45 || n > 55 {
			t.Errorf("%d requests in five seconds at ten a second", n)
		}
	})
}

// When a probe was due, every sender once fetched a message, and all but one returned it: wasted deliveries.
func TestWorker_FetchesOnlyTheProbe(t *testing.T) {
	t.Parallel()
	for _, both := range []bool{false, true} {
		bubble(t, func(b *bench, c *Config) {
			b.q.latency = 2 * time.Millisecond
			slow := func(string) purchase.Answer {
				<-time.After(100 * time.Millisecond)
				return answer(purchase.ClassAccess, 40105)
			}
			b.live.say, b.test.say = slow, slow
			if !both {
				c.Test = nil
			}
		}, func(t *testing.T, b *bench) {
			for i := range 50 {
				b.q.add(fmt.Sprintf("cs_%d", i), true, 0)
			}
			// between asks after a time, when no probe is under way: its delivery would be counted on the other side.
			between := func(d time.Duration) (probes, events int) {
				wait(d)
				for {
					times := b.live.times()
					if time.Since(times[len(times)-1]) > 200*time.Millisecond {
						return len(times), len(b.q.events())
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
			naks := 0
			for _, e := range b.q.events()[events:] {
				if strings.HasPrefix(e, "nak") {
					naks++
				}
			}
			// All of the fifty have probed before: each time a few more are looked through for another one.
			if !both && naks > probes*(1+replaceSize) {
				t.Errorf("%d deliveries spent for %d probes", naks, probes)
			}
			times := b.live.times()[before:]
			for i := 1; i < len(times); i++ {
				if gap := times[i].Sub(times[i-1]); gap < 100*time.Millisecond {
					t.Errorf("two probes %s apart", gap)
				}
			}
		})
	}
}

// While one of two destinations is paused, its purchases are returned without an outcome.
func TestWorker_ReturnsPausedWithoutOutcome(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *bench, _ *Config) { b.test.say = always(answer(purchase.ClassAccess, 40105)) },
		func(t *testing.T, b *bench) {
			for i := range 50 {
				b.q.add(fmt.Sprintf("cs_test_%d", i), false, 0)
			}
			wait(time.Hour)
			// They do not come back in one moment, or the pause's every end would be a burst.
			back := map[time.Duration]bool{}
			for _, d := range b.q.delays() {
				back[d] = true
			}
			if len(back) < 40 {
				t.Errorf("%d different delays for 50 purchases", len(back))
			}
			if told, sent := len(b.r.published()), b.test.count(); told != sent || sent > 30 {
				t.Errorf("%d outcomes for %d attempts", told, sent)
			}
			for _, o := range b.r.published() {
				if o.Result != purchase.StatusRetrying || o.Attempt.Class != purchase.ClassAccess {
					t.Errorf("outcome: %+v", o)
				}
			}
		})
}

// Messages beside an error are delivered, not left until AckWait.
func TestWorker_DeliversMessagesBesideFetchError(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *bench, _ *Config) { b.q.erring = true }, func(t *testing.T, b *bench) {
		b.q.add("cs_1", true, 0)
		wait(time.Second)
		want(t, b, "send live cs_1", "outcome cs_1 delivered", "ack cs_1")
		if b.log.FilterMessage("Waiting for the queue").Len() != 1 {
			t.Error("nothing was said")
		}
	})
}

func TestWorker_RespectsRetryAfter(t *testing.T) {
	t.Parallel()
	busy := answer(purchase.ClassRetry, 503)
	busy.RetryAfter = 10 * time.Minute
	bubble(t, func(b *bench, _ *Config) { b.live.say = always(busy) }, func(t *testing.T, b *bench) {
		b.q.add("cs_1", true, 0)
		wait(35 * time.Minute)
		times := b.live.times()
		if len(times) != 4 || times[1].Sub(times[0]) != 10*time.Minute {
			t.Errorf("sent at %v", times)
		}
	})
}

// A Retry-After past the age limit does not prevent the last try.
func TestWorker_TriesShortlyBeforeAgeLimit(t *testing.T) {
	t.Parallel()
	busy := answer(purchase.ClassRetry, 503)
	busy.RetryAfter = time.Hour
	bubble(t, func(b *bench, _ *Config) { b.live.say = always(busy) }, func(t *testing.T, b *bench) {
		b.q.add("cs_1", true, 47*time.Hour-30*time.Minute)
		wait(31 * time.Minute)
		times := b.live.times()
		if len(times) != 2 || times[1].Sub(times[0]) != 29*time.Minute || len(b.r.letters()) != 1 {
			t.Errorf("sent at %v, %d dead letters", times, len(b.r.letters()))
		}
	})
}

// A failed dead letter is repeated before its outcome; both count once.
func TestWorker_DeadLettersOnceWhenNATSReturns(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *bench, _ *Config) {
		b.r.failing = 30
		b.live.say = always(answer(purchase.ClassRefused, 40002))
	}, func(t *testing.T, b *bench) {
		b.q.add("cs_1", true, 0)
		wait(10 * time.Minute)
		journal := b.q.events()
		if tail := journal[len(journal)-3:]; !slices.Equal(tail,
			[]string{"dead letter cs_1 refused", "outcome cs_1 dead refused", "term cs_1 refused"}) {
			t.Errorf("journal: %v", journal)
		}
		if n := testutil.ToFloat64(b.metrics.dead.WithLabelValues("refused")); n != 1 {
			t.Errorf("counted %v times", n)
		}
	})
}

// Five hundred expired purchases cost one call for their letters and one for their outcomes.
func TestWorker_PublishesDeadLettersTogether(t *testing.T) {
	t.Parallel()
	const n = 500
	bubble(t, func(b *bench, c *Config) {
		c.BatchSize, c.Concurrency = n, 1
		for i := range n {
			b.q.add(fmt.Sprintf("cs_%d", i), true, 48*time.Hour)
		}
	}, func(t *testing.T, b *bench) {
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
	bubble(t, func(b *bench, c *Config) { b.r.refused, c.BatchSize, c.Concurrency = "cs_1", 3, 1 },
		func(t *testing.T, b *bench) {
			for i := range 3 {
				b.q.add(fmt.Sprintf("cs_%d", i), true, 48*time.Hour)
			}
			wait(5 * time.Minute)
			journal := b.q.events()
			for _, id := range []string{"cs_0", "cs_2"} {
				letter := slices.Index(journal, "dead letter "+id+" expired")
				outcome, term := slices.Index(journal, "outcome "+id+" dead expired"), slices.Index(journal,
					"term "+id+" expired")
				if letter < 0 || outcome < letter || term < outcome {
					t.Errorf("%s: letter at %d, outcome at %d, term at %d: %v", id, letter, outcome, term, journal)
				}
			}
			for _, entry := range journal {
				if strings.Contains(entry, "cs_1") && entry != "working cs_1" {
					t.Errorf("cs_1 has no letter, and yet: %s", entry)
				}
			}
		})
}

// Abort cuts off in-flight requests: their purchases are returned immediately, without an outcome.
func TestWorker_AbortReturnsInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		r := &reporter{q: q}
		w := New(Config{
			Live: hung{}, EventName: "CompletePayment", BatchSize: 1, Concurrency: 1, MaxRPS: 10, RetryInitial: time.Second, RetryMax: time.Minute,
			RetryMaxAge: time.Hour, AckWait: q.ackWait, Instance: "w", Now: time.Now,
		}, q, r, zap.NewNop(), prometheus.NewRegistry())
		ctx, cancel := context.WithCancel(t.Context())
		hard, abort := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if err := w.Run(ctx, hard); err != nil {
				t.Error(err)
			}
		}()
		q.add("cs_1", true, 0)
		wait(time.Second)
		cancel()
		wait(5 * time.Second)
		abort()
		<-ended
		if journal := q.events(); !slices.Equal(journal, []string{"nak cs_1"}) || q.delays()[0] != 0 {
			t.Errorf("journal: %v", journal)
		}
	})
}

// hung answers when its request is cut off.
type hung struct{}

func (hung) Send(ctx context.Context, _ []message.Envelope) purchase.Answer {
	<-ctx.Done()
	return purchase.Answer{Class: purchase.ClassRetry, Known: true, Message: "no answer"}
}

func TestWorker_State(t *testing.T) {
	t.Parallel()
	revoked := true
	var mu sync.Mutex
	bubble(t, func(b *bench, _ *Config) {
		b.live.say = func(string) purchase.Answer {
			mu.Lock()
			defer mu.Unlock()
			if revoked {
				return purchase.Answer{
					Class: purchase.ClassAccess, Code: new(40105), Known: true,
					Message: "Access token is incorrect",
				}
			}
			return answer(purchase.ClassDelivered, 0)
		}
	}, func(t *testing.T, b *bench) {
		started := b.State().Since
		wait(time.Minute)
		b.q.add("cs_1", true, 0)
		wait(time.Minute)
		paused := b.State()
		if paused.State != message.WorkerPaused || paused.Reason != "live: 40105 Access token is incorrect" ||
			paused.Since.Sub(started) != time.Minute {
			t.Errorf("state: %+v", paused)
		}
		const gauge = "# HELP purchase_relay_paused 1 while the worker stops and waits.\n# TYPE purchase_relay_paused gauge\n" +
			"purchase_relay_paused{reason=\"access\"} 1\npurchase_relay_paused{reason=\"rate\"} 0\npurchase_relay_paused{reason=\"test_access\"} 0\n"
		if err := testutil.GatherAndCompare(b.reg, strings.NewReader(gauge), "purchase_relay_paused"); err != nil {
			t.Error(err)
		}
		mu.Lock()
		revoked = false
		mu.Unlock()
		wait(10 * time.Minute)
		if s := b.State(); s.State != message.WorkerRunning || s.Reason != "" || !s.Since.After(paused.Since) {
			t.Errorf("state: %+v", s)
		}
	})
}

// The code label is bounded for any answers.
func TestMetrics_CodeLabelIsBounded(t *testing.T) {
	t.Parallel()
	m := metrics{codes: map[int]bool{}}
	labels := map[string]bool{}
	for c := range 4000 {
		labels[m.code(new(50000+c), true)] = true
	}
	labels[m.code(nil, true)] = true
	if len(labels) != maxCodes+2 || m.code(new(50000), true) != "50000" || m.code(new(77777), false) != "other" {
		t.Errorf("%d labels", len(labels))
	}
}

func TestWorker_AttemptIDs(t *testing.T) {
	t.Parallel()
	for _, instance := range []string{"w-1", "", "host.example.com", "größe", strings.Repeat("x", 400)} {
		a, b := attemptPrefix(instance)+"1", attemptPrefix(instance)+"1"
		if !purchase.ValidID(a) || a == b {
			t.Errorf("%q: %q and, after a restart, %q", instance, a, b)
		}
	}
}
