package queue

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/logsafe"
)

const (
	// ProvisionInterval is how often a running ingest checks the streams: they may be deleted or changed.
	ProvisionInterval = 15 * time.Second
	// ProvisionTimeout bounds one check or repair.
	ProvisionTimeout = 30 * time.Second

	provisionRetry = 2 * time.Second
)

// Provisioner keeps the streams and consumers as they should be. Where its user may not create or change
// them, it only checks that they exist: then `ingest provision` creates them, as another user.
type Provisioner struct {
	conn   *Conn
	config StreamConfig
	every  time.Duration // between two checks
	done   func()        // called after each successful check
	log    *zap.Logger
	woken  chan struct{}

	checkOnly bool     // the user may not create or change anything
	logged    []string // the last differences that were logged

	first sync.Once
	ready chan struct{}
}

// NewProvisioner returns a Provisioner; Run makes it work.
func NewProvisioner(c *Conn, s StreamConfig, every time.Duration, done func(), log *zap.Logger) *Provisioner {
	p := &Provisioner{
		conn: c, config: s, every: every, done: done, log: log,
		woken: make(chan struct{}, 1), ready: make(chan struct{}),
	}
	c.OnConnect(p.wake)
	return p
}

// Ready is closed after the first successful check.
func (p *Provisioner) Ready() <-chan struct{} { return p.ready }

// wake makes the next check immediate: the server of a new connection may be empty, or its users' rights
// changed.
func (p *Provisioner) wake() {
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

// Run checks the streams until ctx ends.
func (p *Provisioner) Run(ctx context.Context) error {
	var failures logsafe.Changes
	for {
		next := p.every
		if p.conn.Connected() {
			err := p.once(ctx)
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				next = min(provisionRetry, p.every)
				if failures.Failed(err) {
					p.log.Error("The streams are not as they should be; purchases wait on the ledger",
						zap.Error(err), zap.String("remedy", p.remedy()))
				}
			default:
				recovered := failures.Recovered()
				p.first.Do(func() { recovered = true; close(p.ready) })
				if recovered {
					p.log.Info("The streams are ready")
				}
				p.done()
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.woken:
			p.checkOnly = false
		case <-time.After(next):
		}
	}
}

// once creates and repairs the streams and consumers, or checks them.
func (p *Provisioner) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ProvisionTimeout)
	defer cancel()
	if !p.checkOnly {
		err := p.conn.Provision(ctx, p.config)
		if !errors.Is(err, ErrNotPermitted) {
			return err
		}
		p.checkOnly = true
	}
	differences, err := p.conn.Inspect(ctx, p.config)
	if err == nil && len(differences) > 0 && !slices.Equal(differences, p.logged) {
		p.log.Warn("Streams have other settings",
			zap.Strings("differences", differences), zap.String("remedy", p.remedy()))
	}
	p.logged = differences
	return err
}

func (p *Provisioner) remedy() string {
	if p.checkOnly {
		return "run `ingest provision` with NATS_URL naming a user that may create and change them"
	}
	return "often NATS_MAX_BYTES is more than the server offers"
}
