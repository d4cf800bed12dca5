package backfill

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.uber.org/zap"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/purchase"
)

// The origins of backfills, each with its own progress.
const (
	OriginCommand = "command"
	OriginCheck   = "check"
)

const (
	firstAge          = 72 * time.Hour   // Stripe retries webhooks for that long
	webhookDelay      = 10 * time.Minute // a younger event's webhook may still arrive
	overlap           = time.Hour
	reconcileInterval = 24 * time.Hour
)

// Lead elects one process among those that share the ledger.
type Lead interface {
	Hold(ctx context.Context) (bool, error) // reports whether this process leads
	Release()
}

// CheckConfig configures a Check.
type CheckConfig struct {
	Interval time.Duration
	List     List
	Intake   Intake
	Journal  Journal
	Lead     Lead
	Ledger   Ledger
	Rules    purchase.Rules
	Livemode bool
	Now      func() time.Time
}

// Check backfills periodically and reconciles the last 30 days once a day.
type Check struct {
	CheckConfig
	log        *zap.Logger
	events     *prometheus.CounterVec
	runs       *prometheus.CounterVec
	reconciled time.Time
	failures   logsafe.Changes
}

// NewCheck returns a Check and registers its metrics.
func NewCheck(c CheckConfig, log *zap.Logger, reg prometheus.Registerer) *Check {
	metrics := promauto.With(reg)
	k := &Check{
		CheckConfig: c, log: log,
		events: metrics.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_backfill_events_total",
			Help: "Events read by the periodic backfill, by result; new: its webhook was missed.",
		}, []string{"result"}),
		runs: metrics.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_backfill_runs_total",
			Help: "Periodic backfills, by result.",
		}, []string{"result"}),
	}
	// Start each series at 0: Prometheus sees no increase of a series that appears.
	k.count(Counts{}, Counts{})
	for _, result := range []string{"done", "failed"} {
		k.runs.WithLabelValues(result)
	}
	return k
}

// Run runs the check periodically until ctx ends.
func (k *Check) Run(ctx context.Context) error {
	defer k.Lead.Release()
	tick := time.NewTicker(k.Interval)
	defer tick.Stop()
	for {
		k.check(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// check backfills and reconciles if this process leads. A repeated error is logged once.
func (k *Check) check(ctx context.Context) {
	leads, err := k.Lead.Hold(ctx)
	if err == nil && leads {
		if err = k.backfill(ctx); err == nil {
			err = k.reconcile(ctx)
		}
	}
	if leads || err != nil {
		result := "done"
		if err != nil {
			result = "failed"
		}
		k.runs.WithLabelValues(result).Inc()
	}
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		k.failures.Recovered()
	} else if k.failures.Failed(err) {
		k.log.Warn("Backfill check failed; retrying", zap.Error(err), zap.Duration("again_in", k.Interval))
	}
}

func (k *Check) backfill(ctx context.Context) error {
	now := k.Now()
	saved, err := k.Journal.Backfill(ctx, OriginCheck)
	if err != nil {
		return err
	}
	since := startOf(saved, now)
	until := now.Add(-min(webhookDelay, k.Interval))
	if !until.After(since) {
		return nil
	}
	counted := Counts{}
	run := Run{
		List: k.List, Intake: k.Intake, Journal: k.Journal, Now: k.Now,
		Left: func(purchase.Event, purchase.Disposition) {}, // logged by the intake
		Progress: func(p Progress) {
			k.count(counted, p.Now)
			counted = p.Now
		},
	}
	counts, err := run.Do(ctx, OriginCheck, since, until)
	if n := counts.New + counts.Rejected; n > 0 {
		k.log.Warn("Missed webhooks backfilled", zap.Int("events", n), zap.Time("since", since),
			zap.String("remedy", "check the endpoint's status, deliveries and event types in Stripe"))
	}
	return err
}

// startOf returns where to start: at the end of the last run, or at the start of an unfinished one.
func startOf(saved State, now time.Time) time.Time {
	since := now.Add(-firstAge)
	switch {
	case saved.Until.IsZero():
	case saved.Finished.IsZero():
		since = saved.Since
	default:
		since = saved.Until.Add(-overlap)
	}
	if oldest := now.Add(-MaxAge); since.Before(oldest) {
		return oldest
	}
	return since
}

func (k *Check) count(before, after Counts) {
	for result, n := range map[string]int{
		"known": after.Known - before.Known, "new": after.New - before.New,
		"ignored": after.Ignored - before.Ignored, "rejected": after.Rejected - before.Rejected,
		"malformed": after.Malformed - before.Malformed,
	} {
		k.events.WithLabelValues(result).Add(float64(n))
	}
}

// reconcile reconciles once per reconcileInterval.
func (k *Check) reconcile(ctx context.Context) error {
	now := k.Now()
	if now.Sub(k.reconciled) < reconcileInterval {
		return nil
	}
	r := Reconciler{
		Rules: k.Rules, List: k.List, Ledger: k.Ledger, Livemode: k.Livemode, Now: k.Now,
		Progress: func(Progress) {},
	}
	report, err := r.Do(ctx, now.Add(-MaxAge))
	if err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	k.reconciled = now
	if n := report.ToReview(); n > 0 {
		k.log.Warn("Stripe, the ledger and TikTok differ", zap.Int("purchases", n),
			zap.Any("by", report.Counts()), zap.String("remedy", "see Reconciliation on the dashboard"))
	}
	return nil
}
