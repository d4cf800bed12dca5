// Package stats asks TikTok how many events it counts for the pixel, and publishes the counts for the ledger.
// One worker of many does, the holder of a lease. Nothing here affects deliveries: a Poller has a client, a
// rate and a goroutine of its own, and its failures are only reported.
package stats

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/purchase"
)

// Source is TikTok. Day returns a UTC day's counts with ClassDelivered, else the cause. It is bounded in
// time.
type Source interface {
	Day(ctx context.Context, day time.Time) ([]message.Count, purchase.Answer)
}

// Publisher publishes a day's counts and returns once they are stored.
type Publisher interface {
	Stats(ctx context.Context, s message.Stats) error
}

// Lease elects one worker. Hold takes or renews it, and must be called every 10 seconds.
type Lease interface {
	Hold(ctx context.Context) (bool, error)
}

// Config configures a Poller.
type Config struct {
	PixelID  string
	Interval time.Duration // between two rounds
	Now      func() time.Time
}

const (
	daysBack  = 7                // besides today: counts settle for days
	heartbeat = 10 * time.Second // a third of the lease
	spacing   = time.Second      // between two requests of a round
	firstWait = time.Minute      // after a failure; doubles
	fixedWait = 15 * time.Minute // while the operator must fix something
)

// Poller asks for the counts of today and of the last seven UTC days, one day a request, every Interval.
type Poller struct {
	config   Config
	source   Source
	queue    Publisher
	lease    Lease
	log      *zap.Logger
	requests *prometheus.CounterVec
	wakeup   chan struct{}

	failures int             // consecutive failed rounds
	logged   logsafe.Changes // failures

	mu      sync.Mutex
	problem *message.StatsProblem // nil: none
}

// New returns a Poller for Run.
func New(
	c Config, source Source, queue Publisher, lease Lease, log *zap.Logger, reg prometheus.Registerer,
) *Poller {
	p := &Poller{
		config: c, source: source, queue: queue, lease: lease, log: log, wakeup: make(chan struct{}, 1),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_stats_requests_total", Help: "Requests for TikTok's counts, by the answer's class.",
		}, []string{"class"}),
	}
	for _, class := range []purchase.Class{
		purchase.ClassDelivered, purchase.ClassRetry, purchase.ClassRate, purchase.ClassRefused,
		purchase.ClassAccess, purchase.ClassBlocked,
	} {
		p.requests.WithLabelValues(string(class))
	}
	reg.MustRegister(p.requests, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "purchase_relay_stats_failing", Help: "1 while this worker cannot read or report TikTok's counts.",
	}, func() float64 {
		if p.Problem() != nil {
			return 1
		}
		return 0
	}))
	return p
}

// Problem returns why the counts cannot be read; nil: they can, or another worker asks for them.
func (p *Poller) Problem() *message.StatsProblem {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.problem
}

// PollNow makes the next round immediate, after a change of the token.
func (p *Poller) PollNow() {
	select {
	case p.wakeup <- struct{}{}:
	default:
	}
}

// Run polls until ctx ends.
func (p *Poller) Run(ctx context.Context) error {
	tick := time.NewTicker(min(heartbeat, p.config.Interval))
	defer tick.Stop()
	var next time.Time // zero: immediately
	for {
		held, err := p.lease.Hold(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			next = time.Time{} // the queue may have lost what was published
			p.failed(message.StatsQueue, err)
		case !held:
			next, p.failures = time.Time{}, 0
			p.clear() // another worker reports its own
		case !p.config.Now().Before(next):
			start := p.config.Now()
			wait := p.round(ctx, start)
			if ctx.Err() != nil {
				return nil
			}
			next = start.Add(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-p.wakeup:
			next = time.Time{}
		}
	}
}

// round asks for each day, newest first, and returns the wait until the next round. It ends at the first
// failure, or when another worker holds the lease.
func (p *Poller) round(ctx context.Context, now time.Time) time.Duration {
	for i, day := range days(now) {
		if i > 0 {
			if !sleep(ctx, min(spacing, p.config.Interval/(daysBack+1))) {
				return 0
			}
			if held, err := p.lease.Hold(ctx); err != nil || !held {
				return 0 // the next heartbeat reports it
			}
		}
		asked := p.config.Now()
		counts, answer := p.source.Day(ctx, day)
		if ctx.Err() != nil {
			return 0
		}
		p.requests.WithLabelValues(string(answer.Class)).Inc()
		if answer.Class != purchase.ClassDelivered {
			p.failures++
			p.failed(string(answer.Class), errors.New(describe(answer)), zap.String("request_id", answer.RequestID))
			return retryIn(answer, p.failures, p.config.Interval)
		}
		err := p.queue.Stats(ctx, message.Stats{
			PixelID: p.config.PixelID, Day: day.Format(time.DateOnly), AskedAt: asked, Counts: counts,
		})
		if err != nil {
			p.failures++
			p.failed(message.StatsQueue, err)
			return retryIn(purchase.Answer{Class: purchase.ClassRetry}, p.failures, p.config.Interval)
		}
	}
	p.failures = 0
	p.clear()
	return p.config.Interval
}

// days returns today and the seven days before, as UTC days, newest first.
func days(now time.Time) (list []time.Time) {
	today := now.UTC().Truncate(24 * time.Hour)
	for ago := range daysBack + 1 {
		list = append(list, today.AddDate(0, 0, -ago))
	}
	return list
}

// retryIn returns the wait after a number of failed rounds: at least Retry-After; longer where an operator
// must fix something; never longer than a good round's without a Retry-After.
func retryIn(a purchase.Answer, failures int, interval time.Duration) time.Duration {
	wait := firstWait << min(failures-1, 6)
	switch a.Class {
	case purchase.ClassAccess, purchase.ClassRefused, purchase.ClassBlocked:
		wait = max(wait, fixedWait)
	default: // TikTok or the queue recovers
	}
	return max(min(wait, interval), a.RetryAfter)
}

// describe returns an answer's code and message.
func describe(a purchase.Answer) string {
	var parts []string
	if a.Code != nil {
		parts = append(parts, fmt.Sprint(*a.Code))
	}
	if a.Message != "" {
		parts = append(parts, a.Message)
	}
	return strings.Join(parts, " ")
}

// failed reports a problem, and logs it if it is another than before.
func (p *Poller) failed(kind string, err error, fields ...zap.Field) {
	p.mu.Lock()
	since := p.config.Now()
	if p.problem != nil {
		since = p.problem.Since
	}
	p.problem = &message.StatsProblem{Kind: kind, Reason: err.Error(), Since: since}
	p.mu.Unlock()
	if p.logged.Failed(fmt.Errorf("%s: %w", kind, err)) {
		p.log.Warn("TikTok's counts not read; deliveries continue", append(fields, zap.String("kind", kind),
			zap.Error(err), zap.String("remedy", guide.Stats(kind).Remedy))...)
	}
}

func (p *Poller) clear() {
	p.mu.Lock()
	p.problem = nil
	p.mu.Unlock()
	if p.logged.Recovered() {
		p.log.Info("Reading TikTok's counts resumed")
	}
}

// sleep reports whether d passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
