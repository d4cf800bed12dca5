// Package notify sends messages about dead purchases, paused workers and missing webhooks, for shops without
// Alertmanager.
//
// It sends one message when a problem starts and one when it is resolved, and at most one firing message per
// reason in ten minutes, across all replicas. A failing receiver affects nothing else.
//
//	none ──problem──▶ due ──sent──▶ firing ──worse──▶ due
//	                   │              └──resolved──▶ sent ──▶ none
//	                   └──resolved──▶ none
//
// Messages are not recorded. A restarted replica, or one that takes over, delays messages about older
// problems by ten minutes; it sends resolved messages immediately.
package notify

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/report"
)

const (
	pollInterval = 5 * time.Second
	pollTimeout  = 10 * time.Second
	// groupWait delays a firing message, so that it lists more than the first purchase.
	groupWait = 10 * time.Second
	// repeatInterval is the minimum time between two firing messages of one reason.
	repeatInterval = 10 * time.Minute
	// deathWindow is how long a dead purchase counts as a problem.
	deathWindow = time.Hour
)

// Ledger lists the purchases that died since a time and are still dead, one entry per reason.
type Ledger interface {
	DeadLetters(ctx context.Context, since time.Time) ([]report.DeadLetters, error)
}

// Lead elects the replica that sends. Hold reports whether this process leads; it does for at most one
// process per ledger, which keeps the lead until Release or the loss of its connection.
type Lead interface {
	Hold(ctx context.Context) (bool, error)
	Release()
}

// Receiver delivers a message. Its error is a *SendError.
type Receiver interface {
	Send(ctx context.Context, m Message) error
}

// Sources are the inputs of a Notifier.
type Sources struct {
	Ledger      Ledger
	Lead        Lead
	Workers     func() []message.WorkerState // that reported lately
	LastWebhook func(ctx context.Context) (time.Time, error)
	// SilenceCause asks Stripe why no webhook came since a time. nil: unknown. remedy "": the usual one.
	SilenceCause func(ctx context.Context, since time.Time) (what, remedy string, err error)
}

// Config configures a Notifier.
type Config struct {
	Silence time.Duration // time without webhooks that is a problem; 0: never
	Now     func() time.Time
}

// Notifier polls for problems and sends messages.
type Notifier struct {
	Config
	sources  Sources
	receiver Receiver
	log      *zap.Logger
	messages *prometheus.CounterVec
	silence  silence
}

// New returns a Notifier. receiver is nil without NOTIFY_URL.
func New(c Config, s Sources, receiver Receiver, log *zap.Logger, reg prometheus.Registerer) *Notifier {
	n := &Notifier{
		Config: c, sources: s, receiver: receiver, log: log,
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_notifications_total", Help: "Messages to the receiver at NOTIFY_URL, by result.",
		}, []string{"result"}),
	}
	for _, result := range []string{"sent", "failed"} {
		n.messages.WithLabelValues(result) // from 0, or the first increase would be invisible
	}
	reg.MustRegister(n.messages)
	return n
}

// Run polls until ctx ends.
func (n *Notifier) Run(ctx context.Context) error {
	if n.receiver == nil {
		return nil
	}
	defer n.sources.Lead.Release()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	var s *schedule // nil: another process sends
	var failures logsafe.Changes
	for {
		problems, lead, err := n.read(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil: // s stays as it is
			if failures.Failed(err) {
				n.log.Warn("Notifications paused, ledger unreadable", zap.Error(err))
			}
		case !lead:
			s = nil
		default:
			if s == nil {
				s = newSchedule(n.Now())
			}
			n.notify(ctx, s, problems)
		}
		if err == nil && failures.Recovered() {
			n.log.Info("Notifications resumed")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// read returns the current problems if this process leads.
func (n *Notifier) read(ctx context.Context) (list []Problem, lead bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	if lead, err = n.sources.Lead.Hold(ctx); err != nil || !lead {
		return nil, false, err
	}
	now := n.Now()
	deaths, err := n.sources.Ledger.DeadLetters(ctx, now.Add(-deathWindow))
	if err != nil {
		return nil, false, err
	}
	last, err := n.sources.LastWebhook(ctx)
	if err != nil {
		return nil, false, err
	}
	list = problems(deaths, n.sources.Workers(), last, n.Silence, now)
	n.silence.explain(ctx, n.sources.SilenceCause, list, last, now)
	return list, true, nil
}

// notify sends the messages that are due.
func (n *Notifier) notify(ctx context.Context, s *schedule, problems []Problem) {
	for _, m := range s.due(problems, n.Now()) {
		err := n.send(ctx, m)
		if ctx.Err() != nil {
			return
		}
		s.record(m, err, n.Now())
		log := n.log.With(zap.String("reason", m.Reason), zap.String("state", m.State))
		if err != nil {
			n.messages.WithLabelValues("failed").Inc()
			log.Error("Notification failed; retrying", zap.Error(err),
				zap.String("remedy", "check the receiver at NOTIFY_URL"))
			continue
		}
		n.messages.WithLabelValues("sent").Inc()
		log.Info("Notification sent", zap.Int("count", m.Count))
	}
}

// send retries while the receiver certainly did not accept the message.
func (n *Notifier) send(ctx context.Context, m Message) (err error) {
	for try, wait := 1, time.Second; ; try, wait = try+1, 2*wait {
		if err = n.receiver.Send(ctx, m); !retryable(err) || try == sendTries {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
