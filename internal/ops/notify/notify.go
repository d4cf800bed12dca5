// Package notify sends messages about the problems of package report, for shops without Alertmanager.
//
// It sends one message when a problem has lasted for its kind's patience, and one when it is resolved, and at
// most one firing message per kind in ten minutes, across all replicas. A failing receiver affects nothing
// else.
//
//	none ──problem──▶ due ──sent──▶ firing ──worse──▶ due
//	                   │              └──resolved──▶ sent ──▶ none
//	                   └──resolved──▶ none
//
// Messages are not recorded. A restarted replica, or one that takes over, delays messages about older
// problems by ten minutes; it sends resolved messages immediately. While Postgres is down no replica can take
// over: the last leader notifies of that alone.
package notify

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/ops/report"
)

const (
	pollInterval = 5 * time.Second
	pollTimeout  = 10 * time.Second
	// groupWait delays a firing message, so that it lists more than the first purchase.
	groupWait = 10 * time.Second
	// repeatInterval is the minimum time between two firing messages of one kind.
	repeatInterval = 10 * time.Minute
)

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

// Config configures a Notifier.
type Config struct {
	Lead     Lead
	Problems func(ctx context.Context) report.Problems
	// SilenceCause asks Stripe why no webhook came since a time. nil: unknown. remedy "": the usual one.
	SilenceCause func(ctx context.Context, since time.Time) (what, remedy string, err error)
	Now          func() time.Time
}

// Notifier polls for problems and sends messages.
type Notifier struct {
	Config
	receiver Receiver
	log      *zap.Logger
	messages *prometheus.CounterVec
	silence  silence
}

// New returns a Notifier. receiver is nil without NOTIFY_URL.
func New(c Config, receiver Receiver, log *zap.Logger, reg prometheus.Registerer) *Notifier {
	n := &Notifier{
		Config: c, receiver: receiver, log: log,
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
	defer n.Lead.Release()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	var s *schedule // nil: another process sends
	var failures logsafe.Changes
	for {
		lead, err := n.Lead.Hold(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && failures.Failed(err):
			n.log.Warn("Notifications reduced, ledger unreadable", zap.Error(err),
				zap.String("effect", "only that Postgres is down is notified of"))
		case err == nil && failures.Recovered():
			n.log.Info("Notifications resumed")
		}
		if lead && s == nil {
			s = newSchedule(n.Now())
		}
		if s != nil {
			problems := n.current(ctx)
			if lead {
				n.silence.explain(ctx, n.SilenceCause, problems.List, n.Now())
			} else {
				problems = problems.Only(guide.ProblemPostgres)
			}
			n.notify(ctx, s, problems)
		}
		if err == nil && !lead {
			s = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (n *Notifier) current(ctx context.Context) report.Problems {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	return n.Problems(ctx)
}

// notify sends the messages that are due.
func (n *Notifier) notify(ctx context.Context, s *schedule, problems report.Problems) {
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
