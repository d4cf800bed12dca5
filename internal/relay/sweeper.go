package relay

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/message"
)

// Ledger is what the sweeper asks of the ledger. Implementations owe: an overdue purchase is this caller's alone for
// contract.ClaimFor, on every replica; nothing here takes back what an outcome has said since.
type Ledger interface {
	// Overdue takes up to most purchases that are in the queue, as far as we know, and of which there was no word for
	// the grace.
	Overdue(ctx context.Context, grace time.Duration, most int) ([]message.Claim, error)
	// Swept records what the queue said: published again under a new generation, still queued, or no answer.
	Swept(ctx context.Context, published []message.Mark, queued, unanswered []string) error
	// Expire ends as dead (expired) those that are at least maxAge old by the ledger's clock and still of the
	// mark's generation, and returns their ids.
	Expire(ctx context.Context, marks []message.Mark, maxAge time.Duration) (expired []string, err error)
}

// SweeperConfig is what an operator chooses.
type SweeperConfig struct {
	Interval time.Duration // between two sweeps
	Grace    time.Duration // without a word, before the queue is asked
	MaxAge   time.Duration // counted from the first publish
}

// Sweeper finds purchases that the queue has lost (a wiped store, a power cut) and publishes them again. It
// doubles nothing: the stream refuses a purchase that it still holds, whether it waits, is delayed or is
// being worked on; and while outcomes have waited long to be recorded (Postgres was down), the sweep is put
// off. A purchase that is too old to be sent again ends dead (expired).
type Sweeper struct {
	SweeperConfig
	ledger Ledger
	queue  Queue
	now    func() time.Time
	log    *zap.Logger
	swept  *prometheus.CounterVec
	dead   prometheus.Counter
	putOff time.Time // since when outcomes put the sweep off; zero: they do not
}

// NewSweeper returns a Sweeper; Run makes it work.
func NewSweeper(c SweeperConfig, l Ledger, q Queue, now func() time.Time, log *zap.Logger, reg prometheus.Registerer) *Sweeper {
	s := &Sweeper{
		SweeperConfig: c, ledger: l, queue: q, now: now, log: log,
		swept: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_swept_total", Help: "Purchases without a word that the queue was asked for, by what came of it.",
		}, []string{"result"}),
	}
	for _, result := range []string{"published", "still_queued", "expired", "failed"} {
		s.swept.WithLabelValues(result) // from 0: an increase from nothing at all would not be seen
	}
	s.dead = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "purchase_relay_dead_letters_total", Help: "Purchases given up on, by reason.", ConstLabels: prometheus.Labels{"reason": "expired"},
	})
	reg.MustRegister(s.swept, s.dead)
	return s
}

// Run sweeps at every interval until ctx ends.
func (s *Sweeper) Run(ctx context.Context) error {
	tick := time.NewTicker(s.Interval)
	defer tick.Stop()
	failing := false
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
		case err != nil && !failing:
			s.log.Warn("The sweep is put off", zap.Error(err))
		case err == nil && failing:
			s.log.Info("Sweeping again")
		}
		failing = err != nil
	}
}

// Sweep publishes again everything that is overdue now.
func (s *Sweeper) Sweep(ctx context.Context) error {
	asked := false
	defer func() {
		// Once in putOffMax, also where Postgres is down and the outcomes wait for it.
		if asked && !s.putOff.IsZero() {
			s.putOff = s.now()
		}
	}()
	for s.queue.Connected() {
		grace, err := s.grace(ctx)
		if err != nil {
			return err
		}
		asked = true
		claims, err := within(ctx, func(ctx context.Context) ([]message.Claim, error) {
			return s.ledger.Overdue(ctx, grace, batchSize)
		})
		if err != nil || len(claims) == 0 {
			return err
		}
		if err := s.batch(context.WithoutCancel(ctx), claims); err != nil || len(claims) < batchSize {
			return err
		}
	}
	return nil // disconnected, which has been logged
}

// grace returns how long a purchase must have been without a message from a worker. Outcomes that wait to be
// recorded make it longer. Where they have waited for long, a purchase that looks lost may have one, and the
// sweep is put off for up to putOffMax.
func (s *Sweeper) grace(ctx context.Context) (time.Duration, error) {
	lag, err := s.queue.OutcomeLag(ctx)
	switch {
	case err != nil:
		return 0, err
	case lag <= s.Grace/2:
		s.putOff = time.Time{}
		return s.Grace + lag, nil
	case s.putOff.IsZero():
		s.putOff = s.now()
	case s.now().Sub(s.putOff) >= putOffMax:
		return s.Grace, nil
	}
	return 0, errors.New("outcomes wait to be recorded: Postgres is slow, or an ingest is older than its workers")
}

func (s *Sweeper) batch(ctx context.Context, claims []message.Claim) error {
	ctx, cancel := context.WithTimeout(ctx, message.ClaimFor/2)
	defer cancel()
	marks := make([]message.Mark, len(claims))
	for i, c := range claims {
		marks[i] = message.Mark{ID: c.ID, Generation: c.Generation}
	}
	expired, err := s.ledger.Expire(ctx, marks, s.MaxAge)
	if err != nil {
		return err
	}
	for _, id := range expired {
		s.swept.WithLabelValues("expired").Inc()
		s.dead.Inc() // as a worker counts its own
		s.log.Error("Purchase expired", zap.String("checkout_session_id", id), zap.String("reason", "expired"),
			zap.Duration("max_age", s.MaxAge), zap.String("remedy", "replay it if it must be sent"))
	}
	return s.publish(ctx, slices.DeleteFunc(claims, func(c message.Claim) bool {
		return slices.Contains(expired, c.ID)
	}))
}

// publish offers purchases to the stream under their next generation.
func (s *Sweeper) publish(ctx context.Context, claims []message.Claim) error {
	if len(claims) == 0 {
		return nil
	}
	batch := make([]message.Publication, len(claims))
	for i := range claims {
		claims[i].Generation++
		batch[i] = publication(claims[i])
	}
	var published []message.Mark
	var queued, unanswered []string
	var failed error
	for i, res := range s.queue.Publish(ctx, batch) {
		c := claims[i]
		switch {
		case res.Err == nil:
			s.swept.WithLabelValues("published").Inc()
			s.log.Warn("The queue had lost a purchase; it is published again", zap.String("checkout_session_id", c.ID), zap.Int("generation", c.Generation))
			published = append(published, message.Mark{ID: c.ID, Generation: c.Generation, Sequence: res.Sequence})
		case errors.Is(res.Err, message.ErrStillQueued):
			s.swept.WithLabelValues("still_queued").Inc()
			queued = append(queued, c.ID)
		default:
			s.swept.WithLabelValues("failed").Inc()
			unanswered, failed = append(unanswered, c.ID), res.Err
		}
	}
	return errors.Join(failed, s.ledger.Swept(ctx, published, queued, unanswered))
}
