package stats

import (
	"context"
	"errors"
	"slices"
	"strings"
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

// fake is TikTok, the queue and the lease.
type fake struct {
	mu        sync.Mutex
	answer    purchase.Answer
	asked     []string // days
	at        []time.Time
	published []message.Stats
	queueErr  error
	held      bool
	leaseErr  error
}

func (f *fake) Day(_ context.Context, day time.Time) ([]message.Count, purchase.Answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked, f.at = append(f.asked, day.Format(time.DateOnly)), append(f.at, time.Now())
	if f.answer.Class != purchase.ClassDelivered {
		return nil, f.answer
	}
	return []message.Count{{Event: "SHOPPING", Server: 1}}, f.answer
}

func (f *fake) Stats(_ context.Context, s message.Stats) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.queueErr == nil {
		f.published = append(f.published, s)
	}
	return f.queueErr
}

func (f *fake) Hold(context.Context) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held, f.leaseErr
}

// started runs a Poller in a synctest bubble, which begins at midnight UTC of 2000-01-01.
func started(t *testing.T, f *fake) (*Poller, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	p := New(Config{PixelID: "C4", Interval: time.Hour, Now: time.Now}, f, f, f, zap.New(core),
		prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return p, logs
}

// pass lets time pass. The lock orders what the test did before what the Poller does next.
func (f *fake) pass(d time.Duration) {
	f.mu.Lock()
	f.mu.Unlock() //nolint:staticcheck // see above
	<-time.After(d)
	synctest.Wait()
}

func TestPoller_AsksForTodayAndSevenDays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{held: true, answer: purchase.Answer{Class: purchase.ClassDelivered}}
		p, logs := started(t, f)
		f.pass(time.Minute)
		want := []string{
			"2000-01-01", "1999-12-31", "1999-12-30", "1999-12-29", "1999-12-28", "1999-12-27", "1999-12-26",
			"1999-12-25",
		}
		if !slices.Equal(f.asked, want) {
			t.Errorf("asked for %q, want %q", f.asked, want)
		}
		if gap := f.at[1].Sub(f.at[0]); gap < time.Second {
			t.Errorf("second request after %s, want 1s at least", gap)
		}
		if len(f.published) != 8 || f.published[7].Day != "1999-12-25" || f.published[7].PixelID != "C4" ||
			f.published[7].AskedAt.IsZero() {
			t.Errorf("published = %+v, want 8 days", f.published)
		}
		if f.pass(58 * time.Minute); len(f.asked) != 8 {
			t.Errorf("%d requests before the hour, want 8", len(f.asked))
		}
		if f.pass(2 * time.Minute); len(f.asked) != 16 {
			t.Errorf("%d requests after an hour, want 16", len(f.asked))
		}
		if p.Problem() != nil || logs.Len() > 0 {
			t.Errorf("problem = %+v, log = %v, want none", p.Problem(), logs.All())
		}
	})
}

func TestPoller_ReportsRefusals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{held: true, answer: purchase.Answer{
			Class: purchase.ClassAccess, Code: new(40001), Message: "no scope", RequestID: "r1",
		}}
		p, logs := started(t, f)
		f.pass(time.Second)
		got := p.Problem()
		if got == nil || got.Kind != "access" || got.Reason != "40001 no scope" || got.Since.IsZero() {
			t.Errorf("problem = %+v, want access", got)
		}
		f.pass(40 * time.Minute)
		if len(f.asked) != 3 {
			t.Errorf("%d requests in 40 minutes, want 3: one every 15", len(f.asked))
		}
		line := logs.All()[0]
		remedy, _ := line.ContextMap()["remedy"].(string)
		if logs.Len() != 1 || !strings.Contains(remedy, "measurement scope") ||
			line.ContextMap()["request_id"] != "r1" {
			t.Errorf("log = %+v, want one line with the remedy", logs.All())
		}
		f.answer = purchase.Answer{Class: purchase.ClassDelivered}
		p.PollNow() // another token
		if f.pass(time.Minute); p.Problem() != nil || len(f.published) != 8 || logs.Len() != 2 {
			t.Errorf("with another token: problem = %+v, %d days, log = %v", p.Problem(), len(f.published), logs.All())
		}
	})
}

// While another worker holds the lease, nothing is asked. The new holder asks immediately.
func TestPoller_AsksWithTheLeaseOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: purchase.Answer{Class: purchase.ClassDelivered}}
		p, _ := started(t, f)
		if f.pass(3 * time.Hour); len(f.asked) != 0 {
			t.Errorf("%d requests without the lease", len(f.asked))
		}
		f.held = true
		if f.pass(20 * time.Second); len(f.asked) != 8 {
			t.Errorf("%d requests with the lease, want 8", len(f.asked))
		}
		f.held, f.leaseErr = false, errors.New("no responders")
		if f.pass(time.Minute); len(f.asked) != 8 || p.Problem() == nil || p.Problem().Kind != message.StatsQueue {
			t.Errorf("queue wiped: %d requests, problem = %+v", len(f.asked), p.Problem())
		}
		f.held, f.leaseErr = true, nil
		if f.pass(20 * time.Second); len(f.asked) != 16 || p.Problem() != nil {
			t.Errorf("queue back: %d requests, problem = %+v, want 16 and none", len(f.asked), p.Problem())
		}
	})
}

// A worker that loses the lease in the middle of a round stops asking.
func TestPoller_EndsTheRoundWithoutTheLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{held: true, answer: purchase.Answer{Class: purchase.ClassDelivered}}
		started(t, f)
		f.pass(1500 * time.Millisecond)
		f.held = false
		if f.pass(time.Minute); len(f.asked) != 2 {
			t.Errorf("%d requests, want 2", len(f.asked))
		}
	})
}

func TestPoller_RetriesPublish(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{
			held: true, queueErr: errors.New("stream is full"),
			answer: purchase.Answer{Class: purchase.ClassDelivered},
		}
		p, _ := started(t, f)
		f.pass(30 * time.Second)
		if len(f.asked) != 1 || p.Problem() == nil || p.Problem().Kind != message.StatsQueue {
			t.Errorf("%d requests, problem = %+v, want 1 and queue", len(f.asked), p.Problem())
		}
		f.queueErr = nil
		if f.pass(time.Minute); len(f.published) != 8 || p.Problem() != nil {
			t.Errorf("%d days published, problem = %+v, want 8 and none", len(f.published), p.Problem())
		}
	})
}

func TestRetryIn(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		class      purchase.Class
		failures   int
		interval   time.Duration
		retryAfter time.Duration
		want       time.Duration
	}{
		"first":              {purchase.ClassRetry, 1, time.Hour, 0, time.Minute},
		"third":              {purchase.ClassRetry, 3, time.Hour, 0, 4 * time.Minute},
		"hundredth":          {purchase.ClassRetry, 100, time.Hour, 0, time.Hour},
		"access":             {purchase.ClassAccess, 1, time.Hour, 0, 15 * time.Minute},
		"rate":               {purchase.ClassRate, 1, time.Hour, 10 * time.Minute, 10 * time.Minute},
		"rate, long":         {purchase.ClassRate, 1, time.Minute, time.Hour, time.Hour},
		"short interval":     {purchase.ClassAccess, 1, 10 * time.Second, 0, 10 * time.Second},
		"firewall":           {purchase.ClassBlocked, 2, time.Hour, 0, 15 * time.Minute},
		"refused, a day off": {purchase.ClassRefused, 7, 24 * time.Hour, 0, 64 * time.Minute},
	} {
		got := retryIn(purchase.Answer{Class: tc.class, RetryAfter: tc.retryAfter}, tc.failures, tc.interval)
		if got != tc.want {
			t.Errorf("%s: wait = %s, want %s", name, got, tc.want)
		}
	}
}
