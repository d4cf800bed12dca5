package backfill

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/purchase"
)

// The origins, each with its own place in the list.
const (
	OriginCommand = "command"
	OriginCheck   = "check"
)

// Bounds of the check.
const (
	firstLook   = 72 * time.Hour   // as long as Stripe itself tries to deliver
	settle      = 10 * time.Minute // younger events may have their webhook on the way
	overlap     = time.Hour
	reconcileIn = 24 * time.Hour // after the reconciliation before
)

// Lead says whether this process is the one that looks, among all that share the ledger.
type Lead interface {
	Hold(ctx context.Context) (bool, error)
	Release()
}

// CheckConfig is what a Check is made of.
type CheckConfig struct {
	Interval time.Duration
	List     List
	Intake   Intake
	Journal  Journal
	Lead     Lead
	Books    Books
	Rules    purchase.Rules
	Livemode bool
	Now      func() time.Time
}

// Check looks from time to time for what webhooks missed, and catches up with it; once a day it reconciles the last 30 days.
type Check struct {
	CheckConfig
	log        *zap.Logger
	events     *prometheus.CounterVec
	runs       *prometheus.CounterVec
	reconciled time.Time
	told       string
}

// NewCheck returns a check; where there is none, its metrics stand at 0.
func NewCheck(c CheckConfig, log *zap.Logger, reg prometheus.Registerer) *Check {
	k := &Check{
		CheckConfig: c, log: log,
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_backfill_events_total", Help: "Events of Stripe's list that ingest's own check went through, by result; new: no webhook had brought it.",
		}, []string{"result"}),
		runs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_backfill_runs_total", Help: "Checks of Stripe's list for what webhooks missed, by result.",
		}, []string{"result"}),
	}
	k.count(purchase.BackfillCounts{}, purchase.BackfillCounts{}) // from 0: an increase from nothing at all would not be seen
	for _, result := range []string{"done", "failed"} {
		k.runs.WithLabelValues(result)
	}
	reg.MustRegister(k.events, k.runs)
	return k
}

// Run looks until ctx ends.
func (k *Check) Run(ctx context.Context) error {
	defer k.Lead.Release()
	tick := time.NewTicker(k.Interval)
	defer tick.Stop()
	for {
		k.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look checks once, where that is this process' to do.
func (k *Check) look(ctx context.Context) {
	leads, err := k.Lead.Hold(ctx)
	if err == nil && leads {
		if err = k.catchUp(ctx); err == nil {
			err = k.reconcile(ctx)
		}
		result := "done"
		if err != nil {
			result = "failed"
		}
		k.runs.WithLabelValues(result).Inc()
	}
	if ctx.Err() != nil {
		return
	}
	said := ""
	if err != nil {
		said = err.Error()
		if said != k.told {
			k.log.Warn("What webhooks may have missed could not be looked for; it is tried again", zap.Error(err), zap.Duration("again_in", k.Interval))
		}
	}
	k.told = said
}

func (k *Check) catchUp(ctx context.Context) error {
	now := k.Now()
	saved, err := k.Journal.Backfill(ctx, OriginCheck)
	if err != nil {
		return err
	}
	since := lookFrom(saved, now)
	until := now.Add(-min(settle, k.Interval))
	if !until.After(since) {
		return nil
	}
	before := purchase.BackfillCounts{}
	run := Run{
		List: k.List, Intake: k.Intake, Journal: k.Journal, Now: k.Now,
		Left: func(purchase.Event, purchase.Disposition) {}, // the intake has told of it
		Progress: func(p Progress) {
			k.count(before, p.Now)
			before = p.Now
		},
	}
	counts, err := run.Do(ctx, OriginCheck, since, until)
	if n := counts.New + counts.Rejected; n > 0 {
		k.log.Warn("Events came by catch-up: their webhooks were missed", zap.Int("events", n), zap.Time("since", since),
			zap.String("remedy", "look at the endpoint's deliveries in Stripe: is it disabled, does it fail, does it send these types?"))
	}
	return err
}

// lookFrom says how far back to look: to where the last check began, or was broken off.
func lookFrom(saved purchase.Backfill, now time.Time) time.Time {
	since := now.Add(-firstLook)
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

func (k *Check) count(before, after purchase.BackfillCounts) {
	for result, n := range map[string]int{
		"known": after.Known - before.Known, "new": after.New - before.New, "ignored": after.Ignored - before.Ignored,
		"rejected": after.Rejected - before.Rejected, "malformed": after.Malformed - before.Malformed,
	} {
		k.events.WithLabelValues(result).Add(float64(n))
	}
}

// reconcile holds the books against each other, once a day.
func (k *Check) reconcile(ctx context.Context) error {
	now := k.Now()
	if now.Sub(k.reconciled) < reconcileIn {
		return nil
	}
	r := Reconciler{
		Rules:    k.Rules,
		List:     k.List,
		Books:    k.Books,
		Livemode: k.Livemode,
		Progress: func(Progress) {},
		Now:      k.Now,
	}
	report, err := r.Do(ctx, now.Add(-MaxAge))
	if err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	k.reconciled = now
	if n := report.Open(); n > 0 {
		k.log.Warn("Stripe, the ledger and TikTok differ", zap.Int("purchases", n), zap.Any("by", report.Counts()), zap.String("remedy", "see the dashboard's page Reconciliation"))
	}
	return nil
}
