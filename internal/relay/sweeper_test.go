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

	"purchase-relay/internal/contract"
)

// sweepLedger hands out what is overdue once, and notes what it is told.
type sweepLedger struct {
	mu      sync.Mutex
	overdue []contract.Claim
	journal []string
	err     error
}

func (l *sweepLedger) Overdue(_ context.Context, grace time.Duration, most int) ([]contract.Claim, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if grace != 10*time.Minute {
		l.journal = append(l.journal, "grace "+grace.String())
	}
	n := min(most, len(l.overdue))
	taken := slices.Clone(l.overdue[:n])
	l.overdue = l.overdue[n:]
	return taken, l.err
}

func (l *sweepLedger) Swept(_ context.Context, published []contract.Mark, queued, unanswered []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range published {
		l.journal = append(l.journal, fmt.Sprintf("published %s:%d at %d", m.ID, m.Generation, m.Sequence))
	}
	for _, id := range queued {
		l.journal = append(l.journal, "queued "+id)
	}
	for _, id := range unanswered {
		l.journal = append(l.journal, "unanswered "+id)
	}
	return nil
}

func (l *sweepLedger) Expire(_ context.Context, ids []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		l.journal = append(l.journal, "expired "+id)
	}
	return nil
}

func (l *sweepLedger) told() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.journal)
}

func sweep(t *testing.T, l *sweepLedger, s *stream, test func(log *observer.ObservedLogs)) {
	t.Helper()
	core, log := observer.New(zapcore.DebugLevel)
	sweeper := NewSweeper(SweeperConfig{Interval: time.Minute, Grace: 10 * time.Minute, MaxAge: 47 * time.Hour}, l, s, time.Now, zap.New(core), prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- sweeper.Run(ctx) }()
	test(log)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestSweepAsksTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &sweepLedger{overdue: []contract.Claim{
			{ID: "cs_lost", Generation: 1, FirstPublished: time.Now().Add(-time.Hour)},
			{ID: "cs_queued", Generation: 3, FirstPublished: time.Now().Add(-time.Hour)},
			{ID: "cs_silent", Generation: 1, FirstPublished: time.Now().Add(-time.Hour)},
			{ID: "cs_old", Generation: 1, FirstPublished: time.Now().Add(-47 * time.Hour)},
		}}
		s := &stream{ids: map[string]uint64{}, fail: func(p contract.Publication) error {
			switch p.MsgID {
			case "cs_queued:4":
				return contract.ErrStillQueued
			case "cs_silent:2":
				return errors.New("timeout")
			}
			return nil
		}}
		sweep(t, l, s, func(log *observer.ObservedLogs) {
			time.Sleep(time.Minute + time.Second) //nolint:forbidigo // virtual time
			synctest.Wait()
			want := []string{"expired cs_old", "published cs_lost:2 at 1", "queued cs_queued", "unanswered cs_silent"}
			if got := l.told(); !slices.Equal(got, want) {
				t.Errorf("%v\nwant %v", got, want)
			}
			if log.FilterField(zap.String("checkout_session_id", "cs_old")).FilterLevelExact(zapcore.ErrorLevel).Len() != 1 {
				t.Errorf("the end of cs_old was not told: %v", log.All())
			}
		})
	})
}

func TestSweepGoesThroughEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &sweepLedger{}
		for i := range 1201 {
			l.overdue = append(l.overdue, contract.Claim{ID: fmt.Sprintf("cs_%d", i), Generation: 1, FirstPublished: time.Now()})
		}
		s := &stream{ids: map[string]uint64{}}
		sweep(t, l, s, func(*observer.ObservedLogs) {
			time.Sleep(time.Minute + time.Second) //nolint:forbidigo // virtual time
			synctest.Wait()
			if len(l.told()) != 1201 || !slices.Equal(s.batches, []int{500, 500, 201}) {
				t.Errorf("%d in batches of %v", len(l.told()), s.batches)
			}
		})
	})
}

func TestSweepWaitsForTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &sweepLedger{overdue: []contract.Claim{{ID: "cs_1", Generation: 1, FirstPublished: time.Now()}}}
		s := &stream{ids: map[string]uint64{}, away: true}
		sweep(t, l, s, func(*observer.ObservedLogs) {
			time.Sleep(time.Hour) //nolint:forbidigo // virtual time
			if len(l.told()) > 0 {
				t.Errorf("told %v without a queue", l.told())
			}
			s.mu.Lock()
			s.away = false
			s.mu.Unlock()
			time.Sleep(time.Minute) //nolint:forbidigo // virtual time
			synctest.Wait()
			if got := l.told(); !slices.Equal(got, []string{"published cs_1:2 at 1"}) {
				t.Errorf("%v", got)
			}
		})
	})
}
