package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// outbox is an Outbox in memory.
type outbox struct {
	mu        sync.Mutex
	pending   []Claim
	claimed   map[string]Claim
	published map[string]uint64 // sequences by id
	marks     map[string]int    // generations by id
	released  int
	unsent    int
	settled   map[string]bool // with an outcome
	claims    int
	failMarks int // number of calls to fail
	claimErr  error
	hangs     bool // the next claim gets no response
}

func (o *outbox) Claim(ctx context.Context, limit int) ([]Claim, error) {
	if o.hang() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.claims++
	n := min(limit, len(o.pending))
	claimed := slices.Clone(o.pending[:n])
	if o.claimErr != nil {
		return nil, o.claimErr
	}
	o.pending = o.pending[n:]
	for _, c := range claimed {
		o.claimed[c.ID] = c
	}
	return claimed, nil
}

func (o *outbox) hang() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	hangs := o.hangs
	o.hangs = false
	return hangs
}

func (o *outbox) MarkPublished(_ context.Context, marks []Mark) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failMarks > 0 {
		o.failMarks--
		for _, m := range marks { // the claims expire
			if c, ok := o.claimed[m.ID]; ok {
				o.pending = append(o.pending, c)
			}
		}
		return errors.New("connection refused")
	}
	for _, m := range marks {
		o.published[m.ID], o.marks[m.ID] = m.Sequence, m.Generation
	}
	return nil
}

func (o *outbox) Release(_ context.Context, ids []string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.released += len(ids)
	for _, id := range ids {
		if !o.settled[id] {
			o.pending = append(o.pending, o.claimed[id])
		}
	}
	return nil
}

func (o *outbox) ReleaseUnsent(_ context.Context, ids []string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.unsent += len(ids)
	for _, id := range ids {
		if c, ok := o.claimed[id]; ok {
			o.pending = append(o.pending, c)
		}
	}
	return nil
}

// counts returns the numbers of claimed batches and of released and unsent claims.
func (o *outbox) counts() (claims, released, unsent int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.claims, o.released, o.unsent
}

func (o *outbox) add(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range n {
		id := fmt.Sprintf("cs_%d", len(o.published)+len(o.pending))
		o.pending = append(o.pending, Claim{ID: id, Livemode: i%2 == 0, Generation: 1, FirstPublished: time.Now()})
	}
}

// marked returns the generation of a purchase's mark; 0 without one.
func (o *outbox) marked(id string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.marks[id]
}

func (o *outbox) done() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.published)
}

// stream is a Queue that, like the real one, remembers message IDs and holds one message per subject.
type stream struct {
	mu           sync.Mutex
	disconnected bool
	ids          map[string]uint64 // sequences by message ID
	held         map[string]bool   // by subject
	fail         func(p Claim) error
	notStored    bool          // of failures
	latency      time.Duration // of each publish
	batches      []int

	oldestOutcome time.Time // unrecorded
	outcomeErr    error
}

func (s *stream) Connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.disconnected
}

func (s *stream) hold(subject string) {
	if s.held == nil {
		s.held = map[string]bool{}
	}
	s.held[subject] = true
}

func (s *stream) Publish(_ context.Context, batch []Claim) []PublishResult {
	<-time.After(s.latency)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batches = append(s.batches, len(batch))
	results := make([]PublishResult, len(batch))
	for i, p := range batch {
		if s.fail != nil {
			if err := s.fail(p); err != nil {
				results[i].Err, results[i].NotStored = err, s.notStored
				continue
			}
		}
		results[i].Duplicate = s.ids[msgID(p)] != 0
		if s.held[message.Subject(p.ID, p.Livemode)] && !results[i].Duplicate {
			results[i].Err = ErrStillQueued
			continue
		}
		if !results[i].Duplicate {
			s.ids[msgID(p)] = uint64(len(s.ids) + 1)
			s.hold(message.Subject(p.ID, p.Livemode))
		}
		results[i].Sequence = s.ids[msgID(p)]
	}
	return results
}

func (o *outbox) set(change func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	change()
}

func (s *stream) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func wait(d time.Duration) {
	<-time.After(d) // virtual time
	synctest.Wait()
}

func msgID(c Claim) string { return message.MsgID(c.ID, c.Generation) }

func enqueue(r *Relay, id string) {
	r.Enqueue(purchase.Purchase{ID: id, Livemode: true}, purchase.Recorded{Claimed: time.Now()})
}

// withRelay calls test beside a running relay, in virtual time.
func withRelay(
	t *testing.T, test func(t *testing.T, r *Relay, o *outbox, s *stream, log *observer.ObservedLogs),
) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o := &outbox{
			claimed: map[string]Claim{}, published: map[string]uint64{}, marks: map[string]int{},
			settled: map[string]bool{},
		}
		s := &stream{ids: map[string]uint64{}}
		core, log := observer.New(zapcore.DebugLevel)
		r := New(o, s, time.Now, zap.New(core), prometheus.NewRegistry())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.Run(ctx) }()
		synctest.Wait()
		test(t, r, o, s, log)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestRelay_PublishesOnWake(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, s *stream, _ *observer.ObservedLogs) {
		o.add(1201)
		r.Wake()
		synctest.Wait() // virtual time has not advanced
		if !slices.Equal(s.batches, []int{500, 500, 201}) || o.done() != 0 {
			t.Errorf("batches = %v, marked = %d; want 500, 500, 201 and none", s.batches, o.done())
		}
		wait(2 * markDelay)
		if o.done() != 1201 {
			t.Errorf("marked = %d, want 1201", o.done())
		}
	})
}

func TestRelay_PollsTheLedger(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, _ *Relay, o *outbox, _ *stream, _ *observer.ObservedLogs) {
		o.add(1)
		wait(pollInterval + 2*markDelay)
		if o.done() != 1 {
			t.Errorf("marked = %d, want 1", o.done())
		}
	})
}

func TestRelay_ClaimsUnderSteadyLoad(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, s *stream, _ *observer.ObservedLogs) {
		s.set(func() { s.latency = 2 * time.Millisecond })
		before := 0
		for i := range 2000 { // others arrive during each publish
			enqueue(r, fmt.Sprintf("cs_load_%d", i))
			if i == 100 {
				before, _, _ = o.counts()
				r.Wake()
			}
			<-time.After(time.Millisecond)
		}
		if claims, _, _ := o.counts(); claims == before {
			t.Error("pending purchases were not claimed under load, want a claim after Wake")
		}
	})
}

func TestRelay_ClaimsNothingWhileDisconnected(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, s *stream, _ *observer.ObservedLogs) {
		s.set(func() { s.disconnected = true })
		claims := o.claims
		o.add(5)
		r.Wake()
		wait(time.Hour)
		if o.claims != claims {
			t.Errorf("claims while disconnected = %d, want 0", o.claims-claims)
		}
		s.set(func() { s.disconnected = false })
		r.Wake()
		wait(2 * markDelay)
		if o.done() != 5 {
			t.Errorf("marked = %d, want 5", o.done())
		}
	})
}

// Enqueued purchases are published without a query and marked after markDelay.
func TestRelay_EnqueueNeedsNoQuery(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, s *stream, _ *observer.ObservedLogs) {
		claims := o.claims
		if !r.Ready() {
			t.Error("Ready = false, want true")
		}
		for i := range 700 {
			enqueue(r, fmt.Sprintf("cs_%d", i))
		}
		synctest.Wait()
		if len(s.ids) != 700 || o.done() != 0 || o.claims != claims {
			t.Errorf("published = %d, marked = %d, claims = %d; want 700, 0, 0", len(s.ids), o.done(), o.claims-claims)
		}
		wait(2 * markDelay)
		if o.done() != 700 || o.claims != claims {
			t.Errorf("marked = %d, claims = %d; want 700, 0", o.done(), o.claims-claims)
		}
	})
}

func TestRelay_PublishesEnqueuedOnShutdown(t *testing.T) {
	t.Parallel()
	var o *outbox
	var s *stream
	withRelay(t, func(_ *testing.T, r *Relay, ledger *outbox, queue *stream, _ *observer.ObservedLogs) {
		o, s = ledger, queue
		for i := range 1200 {
			enqueue(r, fmt.Sprintf("cs_%d", i))
		}
	})
	if o.done() != 1200 || len(s.ids) != 1200 {
		t.Errorf("published = %d, marked = %d; want 1200, 1200", len(s.ids), o.done())
	}
}

// A failed publish releases its claim. Ready is false while nothing can be published or memory is full.
func TestRelay_ReleasesFailedPublishes(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, s *stream, _ *observer.ObservedLogs) {
		s.fail = func(Claim) error { return errors.New("timeout") }
		o.claimed["cs_0"] = Claim{ID: "cs_0", Generation: 1}
		enqueue(r, "cs_0")
		synctest.Wait()
		if o.released != 1 || len(o.pending) != 1 {
			t.Errorf("released = %d, pending = %d; want 1, 1", o.released, len(o.pending))
		}
		s.set(func() { s.fail, s.disconnected = nil, true })
		if r.Ready() {
			t.Error("Ready while disconnected = true, want false")
		}
		s.set(func() { s.disconnected = false })
		wait(time.Minute)
		if o.done() != 1 || !r.Ready() {
			t.Errorf("marked = %d, ready = %t; want 1, true", o.done(), r.Ready())
		}
	})
	r := New(nil, &stream{}, time.Now, zap.NewNop(), prometheus.NewRegistry())
	if r.Ready() {
		t.Error("Ready before Run = true, want false")
	}
	r.setRunning(true)
	for range maxEnqueued {
		enqueue(r, "")
	}
	if r.Ready() {
		t.Error("Ready with full memory = true, want false")
	}
}

// Marks are kept while the ledger rejects them.
func TestRelay_KeepsUnwrittenMarks(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, _ *stream, _ *observer.ObservedLogs) {
		o.failMarks = 3
		enqueue(r, "cs_0")
		wait(time.Minute)
		if o.done() != 1 || o.failMarks != 0 {
			t.Errorf("marked = %d, failures left = %d; want 1, 0", o.done(), o.failMarks)
		}
	})
}

// A failed publish is retried under the same message ID, stored or not. One that is still queued counts as
// published.
func TestRelay_RetriesUnderSameMessageID(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, s *stream, log *observer.ObservedLogs) {
		tries := map[string]int{}
		s.fail = func(p Claim) error {
			tries[msgID(p)]++
			switch {
			case msgID(p) == "cs_0:1" && tries[msgID(p)] < 3: // not stored
				return errors.New("timeout")
			case msgID(p) == "cs_1:1" && tries[msgID(p)] < 3: // stored, acknowledgement lost
				s.ids[msgID(p)] = 77
				s.hold(message.Subject(p.ID, p.Livemode))
				return errors.New("timeout")
			case msgID(p) == "cs_2:1":
				return ErrStillQueued
			}
			return nil
		}
		o.add(4)
		r.Wake()
		wait(time.Minute)
		if o.done() != 4 || o.marks["cs_1"] != 1 || o.published["cs_2"] != 0 || tries["cs_3:1"] != 1 {
			t.Errorf("published = %v after tries %v, want all four", o.published, tries)
		}
		delayed, resumed := log.FilterMessage("Publishing is delayed"), log.FilterMessage("Publishing resumed")
		if delayed.Len() != 1 || resumed.Len() != 1 {
			t.Errorf("log = %v, want one delay and one recovery", log.All())
		}
	})
}

// A duplicate without an outcome is published under the next generation. The stream rejects that while it
// holds the purchase (lost acknowledgement), and stores it where the row was recreated (emptied or restored
// database).
func TestRelay_RaisesGenerationOfAmbiguousPublish(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, s *stream, _ *observer.ObservedLogs) {
		s.ids["cs_0:1"] = 90 // still queued
		s.hold("purchases.live.cs_0")
		s.ids["cs_1:1"], s.ids["cs_1:2"] = 91, 92 // settled, twice
		s.ids["cs_2:1"] = 93                      // settled, its outcome not yet recorded
		o.add(3)
		r.Wake()
		synctest.Wait()
		if o.done() != 0 {
			t.Errorf("marks = %v, want none while ambiguous", o.marks)
		}
		o.set(func() { o.settled["cs_2"] = true })
		wait(time.Minute)
		if want := map[string]int{"cs_0": 1, "cs_1": 3}; !maps.Equal(o.marks, want) {
			t.Errorf("marked generations %v, want %v", o.marks, want)
		}
		if _, sent := s.ids["cs_2:2"]; sent || o.released != 4 || len(r.ambiguous) != 0 {
			t.Errorf("cs_2 published again = %t, released = %d, ambiguous = %v; want false, 4, none",
				sent, o.released, r.ambiguous)
		}
	})
}

// While older outcomes wait to be recorded, a purchase's own may be among them: no higher generation is
// published, even when the claim runs out. An outcome that can never be recorded blocks for postponeMax.
func TestRelay_AmbiguousPublishWaitsForOutcomes(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, s *stream, _ *observer.ObservedLogs) {
		began := time.Now()
		oldest := func(at time.Time) { s.set(func() { s.oldestOutcome = at }) }
		oldest(began.Add(-time.Second))
		s.ids["cs_0:1"], s.ids["cs_1:1"] = 90, 91 // settled
		o.add(2)
		r.Wake()
		wait(ClaimTimeout + time.Second)
		o.set(func() { o.pending = append(o.pending, o.claimed["cs_0"], o.claimed["cs_1"]) }) // expired
		wait(time.Minute)
		if len(s.ids) != 2 || o.released != 0 {
			t.Errorf("published = %v, released = %d; want nothing new, and 0", s.ids, o.released)
		}
		o.set(func() { o.settled["cs_0"] = true })
		oldest(time.Now()) // newer outcomes do not matter
		wait(pollInterval + 2*markDelay)
		if _, sent := s.ids["cs_0:2"]; sent || o.marked("cs_1") != 2 {
			t.Errorf("published = %v, mark of cs_1 = %d; want no cs_0:2, and 2", s.ids, o.marked("cs_1"))
		}

		oldest(began.Add(-time.Second)) // never recorded
		s.set(func() { s.ids["cs_2:1"] = 92 })
		o.set(func() { o.pending = append(o.pending, Claim{ID: "cs_2", Generation: 1}) })
		r.Wake()
		wait(postponeMax - time.Minute)
		if o.marked("cs_2") != 0 {
			t.Error("cs_2 was published again within postponeMax")
		}
		wait(2 * time.Minute)
		if o.marked("cs_2") != 2 || len(r.ambiguous) != 0 {
			t.Errorf("mark of cs_2 = %d, ambiguous = %v; want 2, none", o.marked("cs_2"), r.ambiguous)
		}
	})
}

// While the outcome lag is unknown, ambiguous publishes wait and others are published.
func TestRelay_AmbiguousPublishDoesNotBlockOthers(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, s *stream, _ *observer.ObservedLogs) {
		s.outcomeErr = errors.New("timeout")
		s.ids["cs_0:1"] = 90 // settled
		o.add(1)
		r.Wake()
		wait(time.Minute)
		o.set(func() { o.pending = append(o.pending, Claim{ID: "cs_1", Generation: 1}) })
		wait(time.Minute)
		if o.marked("cs_0") != 0 || o.marked("cs_1") != 1 {
			t.Errorf("marks = %v, want cs_1 alone", o.marks)
		}
		s.set(func() { s.outcomeErr = nil })
		wait(time.Minute)
		if o.marked("cs_0") != 2 {
			t.Errorf("marks = %v, want cs_0 under generation 2", o.marks)
		}
	})
}

// A lost mark is repeated: the claim expires, and the stream reports a duplicate.
func TestRelay_RepeatsLostMark(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, s *stream, _ *observer.ObservedLogs) {
		o.failMarks = 2
		o.add(3)
		r.Wake()
		wait(time.Minute)
		if o.done() != 3 || len(s.ids) != 3 || o.marks["cs_0"] != 1 {
			t.Errorf("marked = %d, messages = %d; want 3, 3", o.done(), len(s.ids))
		}
	})
}

func TestRelay_LogsLedgerFailureOnce(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, _ *stream, log *observer.ObservedLogs) {
		o.set(func() { o.claimErr = errors.New("connection refused") })
		r.Wake()
		wait(time.Hour)
		o.set(func() { o.claimErr = nil })
		o.add(1)
		wait(time.Minute)
		if o.done() != 1 || log.Len() != 2 {
			t.Errorf("marked = %d, log = %v; want 1 and two lines", o.done(), log.All())
		}
	})
}

// A half-open connection to the ledger does not block the relay.
func TestRelay_BoundsLedgerQueries(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, _ *stream, log *observer.ObservedLogs) {
		o.set(func() { o.hangs = true })
		o.add(3)
		r.Wake()
		wait(time.Minute)
		if o.done() != 3 || log.FilterMessage("Publishing is delayed").Len() != 1 {
			t.Errorf("marked = %d, log = %v; want 3 and one delay", o.done(), log.All())
		}
	})
}

// A purchase that was certainly not stored is released without an age; an ambiguous failure keeps the age.
func TestRelay_ReleasesUnstoredAsUnsent(t *testing.T) {
	t.Parallel()
	for notStored, want := range map[bool][2]int{true: {0, 3}, false: {3, 0}} {
		withRelay(t, func(t *testing.T, r *Relay, o *outbox, s *stream, _ *observer.ObservedLogs) {
			s.set(func() { s.fail, s.notStored = func(Claim) error { return ErrStreamFull }, notStored })
			o.add(3)
			r.Wake()
			synctest.Wait()
			_, released, unsent := o.counts()
			if got := [2]int{released, unsent}; got != want {
				t.Errorf("not stored = %t: released and unsent = %v, want %v", notStored, got, want)
			}
		})
	}
}

// A full stream costs few claims, Ready is false, and publishing resumes within retryMax.
func TestRelay_BacksOffWhileStreamIsFull(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, s *stream, log *observer.ObservedLogs) {
		s.set(func() { s.fail, s.notStored = func(Claim) error { return ErrStreamFull }, true })
		o.add(1200)
		r.Wake()
		for range 600 { // further webhooks
			wait(time.Second)
			r.Wake()
		}
		synctest.Wait()
		claims, _, unsent := o.counts()
		if claims > 30 {
			t.Errorf("claimed %d batches in 10 minutes (%d purchases), want at most 30", claims, unsent)
		}
		if r.Ready() {
			t.Error("Ready while the stream is full = true, want false")
		}
		s.set(func() { s.fail = nil })
		wait(retryMax + time.Second)
		if got := o.done(); got != 1200 || !r.Ready() {
			t.Errorf("marked = %d, ready = %t; want 1200, true", got, r.Ready())
		}
		delayed := log.FilterMessage("Publishing is delayed").FilterFieldKey("remedy")
		if delayed.Len() != 1 {
			t.Errorf("log = %v, want one delay with its remedy", log.All())
		}
	})
}

// One purchase that the stream always rejects does not delay the others.
func TestRelay_OneRejectedPurchaseDoesNotBackOff(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, s *stream, _ *observer.ObservedLogs) {
		s.set(func() {
			s.notStored = true
			s.fail = func(p Claim) error {
				if msgID(p) == "cs_0:1" {
					return errors.New("message size exceeds maximum allowed")
				}
				return nil
			}
		})
		o.add(700)
		r.Wake()
		wait(2 * time.Second)
		if got := o.done(); got != 699 {
			t.Errorf("marked = %d, want 699", got)
		}
	})
}

func TestRelay_RetryEndsPause(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, s *stream, _ *observer.ObservedLogs) {
		s.set(func() { s.fail = func(Claim) error { return errors.New("no response from stream") } })
		o.add(1)
		r.Wake()
		wait(5 * time.Minute)
		s.set(func() { s.fail = nil })
		r.Retry()
		wait(2 * markDelay)
		if o.done() != 1 {
			t.Errorf("marked = %d after Retry, want 1", o.done())
		}
	})
}

// An enqueued purchase that waited too long is not published: another replica may have published it, or the
// customer's data may have been deleted.
func TestRelay_ReleasesExpiredEnqueued(t *testing.T) {
	t.Parallel()
	withRelay(t, func(t *testing.T, r *Relay, o *outbox, s *stream, _ *observer.ObservedLogs) {
		s.latency = enqueuedTimeout + time.Second
		enqueue(r, "cs_first")
		synctest.Wait() // its publish is in flight
		enqueue(r, "cs_late")
		wait(time.Hour)
		if s.ids["cs_first:1"] == 0 || s.ids["cs_late:1"] != 0 {
			t.Errorf("published = %v, want cs_first alone", s.ids)
		}
		if _, _, unsent := o.counts(); unsent != 1 {
			t.Errorf("unsent = %d, want 1", unsent)
		}
	})
}
