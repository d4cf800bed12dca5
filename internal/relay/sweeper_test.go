package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// sweepLedger returns its overdue purchases once and keeps a journal of calls.
type sweepLedger struct {
	mu      sync.Mutex
	overdue []Claim
	first   map[string]time.Time // first publishes of claimed purchases
	journal []string
	err     error
	hangs   bool          // the next query gets no response
	lag     time.Duration // expected extension of the grace period
}

func (l *sweepLedger) Overdue(ctx context.Context, grace time.Duration, limit int) ([]Claim, error) {
	if l.hangs {
		l.hangs = false
		<-ctx.Done()
		return nil, ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if grace != 10*time.Minute+l.lag {
		l.journal = append(l.journal, "grace "+grace.String())
	}
	n := min(limit, len(l.overdue))
	claims := slices.Clone(l.overdue[:n])
	l.overdue = l.overdue[n:]
	for _, c := range claims {
		if l.first == nil {
			l.first = make(map[string]time.Time)
		}
		l.first[c.ID] = c.FirstPublished
	}
	return claims, l.err
}

func (l *sweepLedger) RecordSweep(_ context.Context, published []Mark, queued, unknown []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range published {
		l.journal = append(l.journal, fmt.Sprintf("published %s:%d at %d", m.ID, m.Generation, m.Sequence))
	}
	for _, id := range queued {
		l.journal = append(l.journal, "queued "+id)
	}
	for _, id := range unknown {
		l.journal = append(l.journal, "unknown "+id)
	}
	return nil
}

func (l *sweepLedger) Expire(
	_ context.Context, marks []Mark, maxAge time.Duration,
) (expired []string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range marks {
		if time.Since(l.first[m.ID]) >= maxAge {
			l.journal = append(l.journal, fmt.Sprintf("expired %s:%d", m.ID, m.Generation))
			expired = append(expired, m.ID)
		}
	}
	return expired, nil
}

// OutcomeLag implements Queue.
func (s *stream) OutcomeLag(context.Context) (time.Duration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.oldestOutcome.IsZero() {
		return 0, s.outcomeErr
	}
	return max(0, time.Since(s.oldestOutcome)), s.outcomeErr
}

func (l *sweepLedger) calls() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.journal)
}

// startSweeper starts a sweeper, which stops at the end of the synctest bubble.
func startSweeper(t *testing.T, l *sweepLedger, s *stream) (*observer.ObservedLogs, *prometheus.Registry) {
	t.Helper()
	core, log := observer.New(zapcore.DebugLevel)
	reg := prometheus.NewRegistry()
	config := SweeperConfig{Interval: time.Minute, Grace: 10 * time.Minute, MaxAge: 47 * time.Hour}
	sweeper := NewSweeper(config, l, s, time.Now, zap.New(core), reg)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- sweeper.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return log, reg
}

// overdue returns an overdue purchase.
func overdue(id string) Claim { return Claim{ID: id, Generation: 1, FirstPublished: time.Now()} }

func TestSweeper_RecordsEachResult(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &sweepLedger{overdue: []Claim{
			{ID: "cs_lost", Generation: 1, FirstPublished: time.Now().Add(-time.Hour)},
			{ID: "cs_queued", Generation: 3, FirstPublished: time.Now().Add(-time.Hour)},
			{ID: "cs_unknown", Generation: 1, FirstPublished: time.Now().Add(-time.Hour)},
			{ID: "cs_old", Generation: 5, FirstPublished: time.Now().Add(-47 * time.Hour)},
		}}
		s := &stream{ids: map[string]uint64{}, fail: func(p Claim) error {
			switch msgID(p) {
			case "cs_queued:4":
				return ErrStillQueued
			case "cs_unknown:2":
				return errors.New("timeout")
			}
			return nil
		}}
		log, reg := startSweeper(t, l, s)
		wait(time.Minute + time.Second)
		want := []string{"expired cs_old:5", "published cs_lost:2 at 1", "queued cs_queued", "unknown cs_unknown"}
		if got := l.calls(); !slices.Equal(got, want) {
			t.Errorf("calls = %v\nwant %v", got, want)
		}
		expired := log.FilterField(zap.String("checkout_session_id", "cs_old"))
		if expired.FilterLevelExact(zapcore.ErrorLevel).Len() != 1 {
			t.Errorf("log = %v, want an error about cs_old", log.All())
		}
		for _, name := range []string{"purchase_relay_dead_letters_total", "purchase_relay_swept_total"} {
			if n := counter(t, reg, name, "expired"); n != 1 {
				t.Errorf("%s{expired} = %v, want 1", name, n)
			}
		}
	})
}

func TestSweeper_SweepsAllBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &sweepLedger{}
		for i := range 1201 {
			l.overdue = append(l.overdue, overdue(fmt.Sprintf("cs_%d", i)))
		}
		s := &stream{ids: map[string]uint64{}}
		startSweeper(t, l, s)
		wait(time.Minute + time.Second)
		if len(l.calls()) != 1201 || !slices.Equal(s.batches, []int{500, 500, 201}) {
			t.Errorf("calls = %d, batches = %v; want 1201, and 500, 500, 201", len(l.calls()), s.batches)
		}
	})
}

func TestSweeper_WaitsForConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &sweepLedger{overdue: []Claim{overdue("cs_1")}}
		s := &stream{ids: map[string]uint64{}, disconnected: true}
		startSweeper(t, l, s)
		wait(time.Hour)
		if len(l.calls()) > 0 {
			t.Errorf("calls while disconnected = %v, want none", l.calls())
		}
		s.set(func() { s.disconnected = false })
		wait(time.Minute)
		if got := l.calls(); !slices.Equal(got, []string{"published cs_1:2 at 1"}) {
			t.Errorf("calls = %v, want cs_1 published", got)
		}
	})
}

// counter returns the value of a counter with one label, or -1.
func counter(t *testing.T, reg *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	return -1
}

// A half-open connection to the ledger does not block later sweeps.
func TestSweeper_BoundsLedgerQueries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &sweepLedger{hangs: true, overdue: []Claim{overdue("cs_1")}}
		log, _ := startSweeper(t, l, &stream{ids: map[string]uint64{}})
		wait(3 * time.Minute)
		got, postponed := l.calls(), log.FilterMessage("Sweep postponed").Len()
		if !slices.Equal(got, []string{"published cs_1:2 at 1"}) || postponed != 1 {
			t.Errorf("calls = %v, log = %v; want cs_1 published after one failure", got, log.All())
		}
	})
}

// An unrecorded outcome extends the grace period by its age; an old one postpones the sweep.
func TestSweeper_WaitsForUnrecordedOutcomes(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		age, lag time.Duration // of the oldest unrecorded outcome, and as it extends the grace period
		swept    bool
	}{
		{0, 0, true},
		{-time.Hour, 0, true},
		{3 * time.Minute, 3 * time.Minute, true},
		{5*time.Minute + time.Second, 0, false},
		{5 * time.Hour, 0, false},
		{50 * time.Hour, 0, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := &sweepLedger{lag: tc.lag, overdue: []Claim{overdue("cs_1")}}
			s := &stream{ids: map[string]uint64{}}
			if tc.age != 0 {
				s.oldestOutcome = time.Now().Add(time.Minute - tc.age)
			}
			log, _ := startSweeper(t, l, s)
			wait(time.Minute + time.Millisecond)
			var want []string
			if tc.swept {
				want = []string{"published cs_1:2 at 1"}
			}
			if got := l.calls(); !slices.Equal(got, want) {
				t.Errorf("outcome of age %s: calls = %v, want %v", tc.age, got, want)
			}
			if postponed := log.FilterMessage("Sweep postponed").Len() > 0; postponed == tc.swept {
				t.Errorf("outcome of age %s: postponed = %t, want %t", tc.age, postponed, !tc.swept)
			}
		})
	}
}

// An outcome that is never recorded postpones each sweep by postponeMax, neither forever nor only once. A
// sweep that is due covers all batches.
func TestSweeper_SweepsOncePerHourBesideStuckOutcome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &sweepLedger{}
		s := &stream{ids: map[string]uint64{}, oldestOutcome: time.Now().Add(-20 * time.Hour)}
		lose := func(n int) {
			l.mu.Lock()
			defer l.mu.Unlock()
			for range n {
				l.overdue = append(l.overdue, overdue(fmt.Sprintf("cs_%d", len(l.overdue)+len(l.journal))))
			}
		}
		startSweeper(t, l, s)
		lose(1201)
		for hour := range 30 {
			before := len(l.calls())
			wait(postponeMax - 2*time.Minute)
			if got := len(l.calls()); hour == 0 && got != before {
				t.Errorf("swept %d within an hour, want none", got-before)
			}
			wait(3 * time.Minute)
			if got, want := len(l.calls()), before+1201; hour == 0 && got != want {
				t.Errorf("swept %d after an hour, want %d", got, want)
			}
			if hour > 0 && len(l.calls()) == before {
				t.Errorf("hour %d: swept none, want some", hour)
			}
			lose(1)
		}
	})
}

// After an outage of Postgres for hours, the outcomes are recorded before the next sweep: postponeMax did not
// expire during the outage.
func TestSweeper_PostponesAfterLongLedgerOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &sweepLedger{err: errors.New("connection refused")}
		s := &stream{ids: map[string]uint64{}, oldestOutcome: time.Now()}
		startSweeper(t, l, s)
		wait(10*time.Hour + 30*time.Minute)
		l.mu.Lock()
		l.err, l.overdue = nil, []Claim{overdue("cs_1")}
		l.mu.Unlock()
		wait(5 * time.Minute)
		if got := l.calls(); slices.Contains(got, "published cs_1:2 at 1") {
			t.Errorf("calls before the outcomes are recorded = %v, want no publish", got)
		}
		s.set(func() { s.oldestOutcome = time.Time{} })
		wait(2 * time.Minute)
		if got := l.calls(); !slices.Contains(got, "published cs_1:2 at 1") {
			t.Errorf("calls after the outcomes are recorded = %v, want cs_1 published", got)
		}
	})
}

func TestSweeper_WaitsWhileLagIsUnknown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &sweepLedger{overdue: []Claim{overdue("cs_1")}}
		s := &stream{ids: map[string]uint64{}, outcomeErr: errors.New("no responders")}
		log, _ := startSweeper(t, l, s)
		wait(time.Hour)
		if got := l.calls(); len(got) > 0 || log.FilterMessage("Sweep postponed").Len() != 1 {
			t.Errorf("calls = %v, want none while the outcome lag is unknown; log %v", got, log.All())
		}
	})
}
