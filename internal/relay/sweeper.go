package relay

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/logsafe"
)

// SweeperConfig is the operator's configuration.
type SweeperConfig struct {
	Interval time.Duration // between sweeps
	Grace    time.Duration // without an outcome, until a purchase is overdue
	MaxAge   time.Duration // since the first publish
}

// Sweeper finds purchases that the queue has lost (a wiped store, a power cut) and publishes them again. The
// stream rejects a purchase that it still holds, whether queued, delayed or being delivered, so nothing is
// published twice. Old unrecorded outcomes (Postgres was down) postpone the sweep. A purchase that is too old
// to be sent again becomes dead (expired).
type Sweeper struct {
	config         SweeperConfig
	ledger         SweepLedger
	queue          Queue
	now            func() time.Time
	log            *zap.Logger
	swept          *prometheus.CounterVec
	dead           prometheus.Counter
	postponedSince time.Time // zero: not postponed
}

// NewSweeper returns a Sweeper that sweeps while Run runs.
func NewSweeper(
	c SweeperConfig, l SweepLedger, q Queue, now func() time.Time, log *zap.Logger, reg prometheus.Registerer,
) *Sweeper {
	s := &Sweeper{
		config: c, ledger: l, queue: q, now: now, log: log,
		swept: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_swept_total", Help: "Overdue purchases, by the result of the sweep.",
		}, []string{"result"}),
	}
	for _, result := range []string{"published", "still_queued", "expired", "failed"} {
		s.swept.WithLabelValues(result) // increase() needs the series to start at 0
	}
	s.dead = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "purchase_relay_dead_letters_total", Help: "Purchases that ended dead, by reason.",
		ConstLabels: prometheus.Labels{"reason": "expired"},
	})
	reg.MustRegister(s.swept, s.dead)
	return s
}

// Run sweeps once per interval until ctx ends.
func (s *Sweeper) Run(ctx context.Context) error {
	tick := time.NewTicker(s.config.Interval)
	defer tick.Stop()
	var failures logsafe.Changes
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := s.Sweep(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && failures.Failed(err):
			s.log.Warn("Sweep postponed", zap.Error(err), remedy(err))
		case err == nil && failures.Recovered():
			s.log.Info("Sweep resumed")
		}
	}
}

// Sweep publishes all overdue purchases again.
func (s *Sweeper) Sweep(ctx context.Context) error {
	swept := false
	defer func() {
		// One sweep per postponeMax, even if it failed because Postgres is still down.
		if swept && !s.postponedSince.IsZero() {
			s.postponedSince = s.now()
		}
	}()
	for s.queue.Connected() {
		grace, err := s.grace(ctx)
		if err != nil {
			return err
		}
		swept = true
		claims, err := s.claimOverdue(ctx, grace)
		if err != nil || len(claims) == 0 {
			return err
		}
		if err := s.sweepBatch(context.WithoutCancel(ctx), claims); err != nil || len(claims) < batchSize {
			return err
		}
	}
	return nil // the queue has logged the lost connection
}

// grace returns how long a purchase must have had no outcome. The lag of unrecorded outcomes extends it. With
// a long lag a purchase that looks lost may have an outcome, and the sweep is postponed for up to
// postponeMax.
func (s *Sweeper) grace(ctx context.Context) (time.Duration, error) {
	lag, err := s.queue.OutcomeLag(ctx)
	switch {
	case err != nil:
		return 0, err
	case lag <= s.config.Grace/2:
		s.postponedSince = time.Time{}
		return s.config.Grace + lag, nil
	case s.postponedSince.IsZero():
		s.postponedSince = s.now()
	case s.now().Sub(s.postponedSince) >= postponeMax:
		return s.config.Grace, nil
	}
	return 0, errOutcomeLag
}

// errOutcomeLag has two usual causes: Postgres is slow, or this ingest is older than its workers.
var errOutcomeLag = errors.New("outcome lag exceeds half of SWEEP_GRACE")

func (s *Sweeper) claimOverdue(ctx context.Context, grace time.Duration) ([]Claim, error) {
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	return s.ledger.Overdue(ctx, grace, batchSize)
}

func (s *Sweeper) sweepBatch(ctx context.Context, claims []Claim) error {
	ctx, cancel := context.WithTimeout(ctx, ClaimTimeout/2)
	defer cancel()
	marks := make([]Mark, len(claims))
	for i, c := range claims {
		marks[i] = Mark{ID: c.ID, Generation: c.Generation}
	}
	expired, err := s.ledger.Expire(ctx, marks, s.config.MaxAge)
	if err != nil {
		return err
	}
	for _, id := range expired {
		s.swept.WithLabelValues("expired").Inc()
		s.dead.Inc()
		s.log.Error("Purchase expired", zap.String("checkout_session_id", id), zap.String("reason", "expired"),
			zap.Duration("max_age", s.config.MaxAge), zap.String("remedy", "replay it if it must be sent"))
	}
	return s.publish(ctx, slices.DeleteFunc(claims, func(c Claim) bool {
		return slices.Contains(expired, c.ID)
	}))
}

// publish publishes purchases under their next generation. The stream rejects those that it still holds.
func (s *Sweeper) publish(ctx context.Context, claims []Claim) error {
	if len(claims) == 0 {
		return nil
	}
	for i := range claims {
		claims[i].Generation++
	}
	var published []Mark
	var queued, unknown []string
	var failed error
	for i, result := range s.queue.Publish(ctx, claims) {
		c := claims[i]
		switch {
		case result.Err == nil:
			s.swept.WithLabelValues("published").Inc()
			s.log.Warn("Lost purchase published again",
				zap.String("checkout_session_id", c.ID), zap.Int("generation", c.Generation))
			published = append(published, Mark{ID: c.ID, Generation: c.Generation, Sequence: result.Sequence})
		case errors.Is(result.Err, ErrStillQueued):
			s.swept.WithLabelValues("still_queued").Inc()
			queued = append(queued, c.ID)
		default:
			s.swept.WithLabelValues("failed").Inc()
			unknown, failed = append(unknown, c.ID), result.Err
		}
	}
	return errors.Join(failed, s.ledger.RecordSweep(ctx, published, queued, unknown))
}
