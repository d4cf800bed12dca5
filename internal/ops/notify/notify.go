// Package notify tells people what needs them: purchases that died, a worker that stopped and waits, silence at Stripe's end. It is
// for those who run no Alertmanager.
//
// Its promise: one message for each trouble and one when it is over; never two beginnings of the same reason within ten minutes,
// whichever replica tells; nothing that the receiver does or does not do disturbs anything else.
//
//	      ┌──────────── look: the ledger, the workers, the last webhook ───────────┐
//	quiet ──trouble──▶ due ──told──▶ standing ──more of it, ten minutes later──▶ told again
//	                    │                └──over──▶ told ──▶ quiet
//	                    └──over before it was told──▶ quiet
//
// What was told is known to the process that told it alone. Another that takes over, or the same after a restart, holds back what
// stood before its time for ten minutes: then it tells what stands still, or at once that it is over.
package notify

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/ops/report"
)

const (
	lookEvery   = 5 * time.Second
	lookTimeout = 10 * time.Second
	// gather is how long a trouble is watched before it is told, so that the first message names more than the first purchase.
	gather = 10 * time.Second
	// quiet lies between two messages that something of the same reason began, or got worse.
	quiet = 10 * time.Minute
	// deathsAge is how long a dead purchase is a trouble: replayed before that, or not, it is over then.
	deathsAge = time.Hour
)

// Ledger is what is asked of the ledger. Deaths returns what died since a time and is dead still, one entry a reason.
type Ledger interface {
	Deaths(ctx context.Context, since time.Time) ([]report.Deaths, error)
}

// Lead owes: at any time Hold says true to one process at most of all that share a ledger, and to that one again and again
// until it is released or its connection is lost.
type Lead interface {
	Hold(ctx context.Context) (bool, error)
	Release()
}

// Receiver takes a message. Its error is a *Refusal.
type Receiver interface {
	Send(ctx context.Context, m Message) error
}

// Worker is one worker as it told about itself lately.
type Worker struct {
	Instance string
	Paused   bool   // it stops and waits for live purchases
	Reason   string // TikTok's words
	Since    time.Time
}

// Sources are what an Alarm looks at.
type Sources struct {
	Ledger      Ledger
	Lead        Lead
	Workers     func() []Worker
	LastWebhook func(ctx context.Context) (time.Time, error)
}

// Config is what an operator chooses.
type Config struct {
	Silence time.Duration // without a webhook for so long, it is told; 0: never
	Now     func() time.Time
}

// Alarm looks and tells.
type Alarm struct {
	Config
	from     Sources
	to       Receiver
	log      *zap.Logger
	messages *prometheus.CounterVec
}

// New returns an Alarm; Run makes it work. to is nil where nobody is to be told.
func New(c Config, from Sources, to Receiver, log *zap.Logger, reg prometheus.Registerer) *Alarm {
	a := &Alarm{
		Config: c, from: from, to: to, log: log,
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_notifications_total", Help: "Messages to the receiver at NOTIFY_URL, by result.",
		}, []string{"result"}),
	}
	for _, result := range []string{"sent", "failed"} {
		a.messages.WithLabelValues(result) // from 0: an increase from nothing at all would not be seen
	}
	reg.MustRegister(a.messages)
	return a
}

// Run looks every five seconds until ctx ends.
func (a *Alarm) Run(ctx context.Context) error {
	if a.to == nil {
		return nil
	}
	defer a.from.Lead.Release()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var b *book // nil: another process tells
	blind := false
	for {
		standing, lead, err := a.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !blind:
			a.log.Warn("Nobody is told of troubles while the ledger cannot be read", zap.Error(err))
		case err == nil && blind:
			a.log.Info("Troubles are told again")
		}
		blind = err != nil
		switch {
		case err != nil: // what stood stands
		case !lead:
			b = nil
		default:
			if b == nil {
				b = newBook(a.Now())
			}
			a.tell(ctx, b, standing)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look returns what troubles there are now, where it is this process that tells.
func (a *Alarm) look(ctx context.Context) (standing []Trouble, lead bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if lead, err = a.from.Lead.Hold(ctx); err != nil || !lead {
		return nil, false, err
	}
	now := a.Now()
	deaths, err := a.from.Ledger.Deaths(ctx, now.Add(-deathsAge))
	if err != nil {
		return nil, false, err
	}
	last, err := a.from.LastWebhook(ctx)
	if err != nil {
		return nil, false, err
	}
	return troubles(deaths, a.from.Workers(), last, a.Silence, now), true, nil
}

// tell sends what is due, one message after the other.
func (a *Alarm) tell(ctx context.Context, b *book, standing []Trouble) {
	for _, m := range b.due(standing, a.Now()) {
		err := a.send(ctx, m)
		if ctx.Err() != nil {
			return
		}
		b.done(m, err, a.Now())
		if err != nil {
			a.messages.WithLabelValues("failed").Inc()
			a.log.Error("Nobody could be told of a trouble; it is tried again while it stands", zap.String("reason", m.Reason),
				zap.String("state", m.State), zap.Error(err), zap.String("remedy", "see what NOTIFY_URL's receiver answers"))
			continue
		}
		a.messages.WithLabelValues("sent").Inc()
		a.log.Info("Told", zap.String("reason", m.Reason), zap.String("state", m.State), zap.Int("count", m.Count))
	}
}

// send tries a few times where it is sure that the receiver did not take the message.
func (a *Alarm) send(ctx context.Context, m Message) (err error) {
	for try, wait := 1, time.Second; ; try, wait = try+1, 2*wait {
		if err = a.to.Send(ctx, m); !again(err) || try == sendTries {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
