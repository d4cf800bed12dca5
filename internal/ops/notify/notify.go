// Package notify sends messages about what needs a person: purchases that died, paused workers, missing
// webhooks. It is for shops without Alertmanager.
//
// Its promise: one message when a trouble begins and one when it ends; never two beginnings of one reason
// within ten minutes, whichever replica sends; nothing that the receiver does disturbs anything else.
//
//	quiet ──trouble──▶ due ──sent──▶ open ──worse, 10 minutes later──▶ sent again
//	                    │              └──over──▶ sent ──▶ quiet
//	                    └──over before the first message──▶ quiet
//
// Only the sending process knows what it sent. A replica that takes over, or a restarted one, holds back for
// ten minutes what began before its time; its end is sent immediately.
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
	lookEvery   = 5 * time.Second
	lookTimeout = 10 * time.Second
	// gather delays the first message, so that it names more than the first purchase.
	gather = 10 * time.Second
	// quiet lies between two messages that one reason began, or got worse.
	quiet = 10 * time.Minute
	// deathsAge is how long a dead purchase is a trouble, replayed or not.
	deathsAge = time.Hour
)

// Ledger lists what died since a time and is still dead, one entry per reason.
type Ledger interface {
	DeadLetters(ctx context.Context, since time.Time) ([]report.DeadLetters, error)
}

// Lead elects the replica that sends. Hold returns true to at most one process of all that share a ledger,
// and repeatedly to that one until Release or the loss of its connection.
type Lead interface {
	Hold(ctx context.Context) (bool, error)
	Release()
}

// Receiver delivers a message. Its error is a *Refusal.
type Receiver interface {
	Send(ctx context.Context, m Message) error
}

// Sources are what a Notifier reads.
type Sources struct {
	Ledger      Ledger
	Lead        Lead
	Workers     func() []message.WorkerState // those that reported lately
	LastWebhook func(ctx context.Context) (time.Time, error)
}

// Config is what an operator chooses.
type Config struct {
	Silence time.Duration // without a webhook for so long, a message is due; 0: never
	Now     func() time.Time
}

// Notifier reads the troubles and sends the messages.
type Notifier struct {
	Config
	from     Sources
	to       Receiver
	log      *zap.Logger
	messages *prometheus.CounterVec
}

// New returns a Notifier; Run makes it work. to is nil without NOTIFY_URL.
func New(c Config, from Sources, to Receiver, log *zap.Logger, reg prometheus.Registerer) *Notifier {
	n := &Notifier{
		Config: c, from: from, to: to, log: log,
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

// Run reads the troubles every five seconds until ctx ends.
func (n *Notifier) Run(ctx context.Context) error {
	if n.to == nil {
		return nil
	}
	defer n.from.Lead.Release()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var s *schedule // nil: another process sends
	var failures logsafe.Changes
	for {
		present, lead, err := n.read(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil: // the troubles are as before
			if failures.Failed(err) {
				n.log.Warn("Notifications paused, ledger unreadable", zap.Error(err))
			}
		case !lead:
			s = nil
		default:
			if s == nil {
				s = newSchedule(n.Now())
			}
			n.notify(ctx, s, present)
		}
		if err == nil && failures.Recovered() {
			n.log.Info("Notifications resumed")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// read returns the present troubles, where this process sends.
func (n *Notifier) read(ctx context.Context) (present []Trouble, lead bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if lead, err = n.from.Lead.Hold(ctx); err != nil || !lead {
		return nil, false, err
	}
	now := n.Now()
	deaths, err := n.from.Ledger.DeadLetters(ctx, now.Add(-deathsAge))
	if err != nil {
		return nil, false, err
	}
	last, err := n.from.LastWebhook(ctx)
	if err != nil {
		return nil, false, err
	}
	return troubles(deaths, n.from.Workers(), last, n.Silence, now), true, nil
}

// notify sends the messages that are due, one after the other.
func (n *Notifier) notify(ctx context.Context, s *schedule, present []Trouble) {
	for _, m := range s.due(present, n.Now()) {
		err := n.send(ctx, m)
		if ctx.Err() != nil {
			return
		}
		s.record(m, err, n.Now())
		log := n.log.With(zap.String("reason", m.Reason), zap.String("state", m.State))
		if err != nil {
			n.messages.WithLabelValues("failed").Inc()
			log.Error("Notification failed; retrying", zap.Error(err),
				zap.String("remedy", "see what NOTIFY_URL's receiver answers"))
			continue
		}
		n.messages.WithLabelValues("sent").Inc()
		log.Info("Notification sent", zap.Int("count", m.Count))
	}
}

// send retries where the receiver certainly did not take the message.
func (n *Notifier) send(ctx context.Context, m Message) (err error) {
	for try, wait := 1, time.Second; ; try, wait = try+1, 2*wait {
		if err = n.to.Send(ctx, m); !again(err) || try == sendTries {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
