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
	// ProvisionInterval is the time between two checks of a running ingest: streams may be deleted or changed.
	ProvisionInterval = 15 * time.Second
	// ProvisionTimeout bounds one check or repair.
	ProvisionTimeout = 30 * time.Second

	provisionRetry = 2 * time.Second
)

// Provisioner creates and repairs the streams and consumers. If its user may not, it only checks that they
// exist: then `ingest provision` creates them, as another user.
type Provisioner struct {
	conn   *Conn
	config StreamConfig
	every  time.Duration // between two checks
	onPass func()        // called after each successful check
	log    *zap.Logger
	wakeup chan struct{}

	checkOnly bool     // the user may not create or change anything
	logged    []string // last logged differences

	first sync.Once
	ready chan struct{}
}

// NewProvisioner returns a Provisioner for Run.
func NewProvisioner(
	c *Conn, s StreamConfig, every time.Duration, onPass func(), log *zap.Logger,
) *Provisioner {
	p := &Provisioner{
		conn: c, config: s, every: every, onPass: onPass, log: log,
		wakeup: make(chan struct{}, 1), ready: make(chan struct{}),
	}
	c.OnConnect(p.wake)
	return p
}

// Ready is closed after the first successful check.
func (p *Provisioner) Ready() <-chan struct{} { return p.ready }

// wake makes the next check immediate: the server of a new connection may be empty, or its users' permissions
// may have changed.
func (p *Provisioner) wake() {
	select {
	case p.wakeup <- struct{}{}:
	default:
	}
}

// Run checks the streams until ctx ends.
func (p *Provisioner) Run(ctx context.Context) error {
	var failures logsafe.Changes
	for {
		next := p.every
		if p.conn.Connected() {
			err := p.check(ctx)
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				next = min(provisionRetry, p.every)
				if failures.Failed(err) {
					p.log.Error("Streams not ready; purchases wait in the ledger",
						zap.Error(err), zap.String("remedy", p.remedy()))
				}
			default:
				recovered := failures.Recovered()
				p.first.Do(func() { recovered = true; close(p.ready) })
				if recovered {
					p.log.Info("Streams ready")
				}
				p.onPass()
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.wakeup:
			p.checkOnly = false
		case <-time.After(next):
		}
	}
}

// check creates and repairs the streams and consumers, or only inspects them.
func (p *Provisioner) check(ctx context.Context) error {
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
		p.log.Warn("Stream settings differ",
			zap.Strings("differences", differences), zap.String("remedy", p.remedy()))
	}
	p.logged = differences
	return err
}

func (p *Provisioner) remedy() string {
	if p.checkOnly {
		return "run `ingest provision` with NATS_URL naming a user that may create streams"
	}
	return "if storage is insufficient, lower NATS_MAX_BYTES (the other streams take 1 GiB each) " +
		"or raise the server's max_file_store"
}
