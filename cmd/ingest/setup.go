package main

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/intake"
	"purchase-relay/internal/ledger"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/notify"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
)

// A neighbour that is away is asked again this often.
const (
	schemaRetry  = time.Second
	streamsRetry = 2 * time.Second
	streamsCheck = 15 * time.Second // also finds what was deleted or changed since
	setupTimeout = 30 * time.Second
)

// migrate brings the schema up to date once.
func migrate(ctx context.Context, c *config, log *zap.Logger) error {
	applied, err := upToDate(ctx, c)
	if err != nil {
		return err
	}
	log.Info("The ledger's schema is up to date", zap.Int("applied", applied))
	return nil
}

// upToDate migrates as the schema's owner and, where that is another role than the runtime's, grants the latter what it needs.
func upToDate(ctx context.Context, c *config) (applied int, err error) {
	if c.MigrateDatabaseURL == "" {
		return ledger.Migrate(ctx, c.DatabaseURL)
	}
	if applied, err = ledger.Migrate(ctx, c.MigrateDatabaseURL); err != nil {
		return applied, err
	}
	return applied, ledger.Grant(ctx, c.MigrateDatabaseURL, c.DatabaseURL)
}

// schema brings the ledger's schema up to date as soon as Postgres lets it.
type schema struct {
	db      *ledger.DB
	config  *config
	log     *zap.Logger
	isReady chan struct{} // closed when the ledger may be used
}

// run tries until it is done. A schema that is too new for this binary is the one error that ends the program.
func (s *schema) run(ctx context.Context) error {
	told := ""
	for {
		applied, err := s.once(ctx)
		switch {
		case errors.Is(err, ledger.ErrTooOld):
			return err
		case err == nil:
			s.log.Info("The ledger is ready", zap.Int("migrations_applied", applied))
			s.lookAtRole(ctx)
			close(s.isReady)
			return nil
		case ctx.Err() != nil:
			return nil
		case err.Error() != told:
			told = err.Error()
			s.log.Warn("Waiting for Postgres; webhooks are answered 503 until then", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(schemaRetry):
		}
	}
}

func (s *schema) once(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	applied, err := upToDate(ctx, s.config)
	if err != nil {
		return applied, err
	}
	return applied, s.db.CheckSchema(ctx)
}

// lookAtRole tells where the owner was given a role of its own and the runtime's may create tables all the same.
func (s *schema) lookAtRole(ctx context.Context) {
	if s.config.MigrateDatabaseURL == "" || s.config.MigrateDatabaseURL == s.config.DatabaseURL {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	if may, err := s.db.MayCreate(ctx); err == nil && may {
		s.log.Warn("The role of DATABASE_URL may create tables", zap.String("remedy", "REVOKE CREATE ON SCHEMA public FROM PUBLIC, and from that role"))
	}
}

// provisioner keeps the streams and consumers as they should be. Where its user may not create or change
// them, it only checks that they exist: then `ingest provision` creates them, as another user.
type provisioner struct {
	queue  *queue.Conn
	config queue.StreamConfig
	every  time.Duration // between two checks
	done   func()        // called after each successful check
	log    *zap.Logger
	woken  chan struct{}

	checkOnly bool     // the user may not create or change anything
	logged    []string // the last differences that were logged

	first   sync.Once
	isReady chan struct{} // closed after the first successful check
}

func newProvisioner(
	q *queue.Conn, c *config, every time.Duration, done func(), log *zap.Logger,
) *provisioner {
	return &provisioner{
		queue: q, config: queue.StreamConfig{Replicas: c.NATSReplicas, MaxBytes: int64(c.NATSMaxBytes)},
		every: every, done: done, log: log, woken: make(chan struct{}, 1), isReady: make(chan struct{}),
	}
}

// wake is called when the connection has been made: the server may be empty, or its users' rights may have
// changed.
func (p *provisioner) wake() {
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

func (p *provisioner) run(ctx context.Context) error {
	told := "never"
	for {
		next := p.every
		if p.queue.Connected() {
			err := p.once(ctx)
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				next = min(streamsRetry, p.every)
				if err.Error() != told {
					told = err.Error()
					p.log.Error("The streams are not as they should be; purchases wait on the ledger",
						zap.Error(err), zap.String("remedy", p.remedy()))
				}
			default:
				if told != "" {
					told = ""
					p.log.Info("The streams are ready")
				}
				p.first.Do(func() { close(p.isReady) })
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
func (p *provisioner) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	if !p.checkOnly {
		err := p.queue.Provision(ctx, p.config)
		if !errors.Is(err, queue.ErrNotPermitted) {
			return err
		}
		p.checkOnly = true
	}
	differences, err := p.queue.Inspect(ctx, p.config)
	if err == nil && len(differences) > 0 && !slices.Equal(differences, p.logged) {
		p.log.Warn("Streams have other settings",
			zap.Strings("differences", differences), zap.String("remedy", p.remedy()))
	}
	p.logged = differences
	return err
}

func (p *provisioner) remedy() string {
	if p.checkOnly {
		return "run `ingest provision` with NATS_URL naming a user that may create and change them"
	}
	return "often NATS_MAX_BYTES is more than the server offers"
}

// provision creates and repairs the streams and consumers, once or continuously.
func provision(ctx context.Context, c *config, log *zap.Logger) (err error) {
	registry, _ := service.Metrics(service.Version())
	js, err := queue.Connect(c.Config, queue.RoleProvision, log, registry)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, js.Close(context.WithoutCancel(ctx))) }()
	if every := c.Provision.Every; every > 0 {
		p := newProvisioner(js, c, every, func() {}, log)
		js.OnConnect(p.wake)
		return p.run(ctx)
	}
	if err := awaitConnection(ctx, js); err != nil {
		return err
	}
	p := newProvisioner(js, c, 0, func() {}, log)
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	if err := js.Provision(ctx, p.config); err != nil {
		return err
	}
	log.Info("The streams are ready")
	return nil
}

// awaitConnection waits for the connection for connectPatience.
func awaitConnection(ctx context.Context, js *queue.Conn) error {
	connected := make(chan struct{}, 1)
	js.OnConnect(func() {
		select {
		case connected <- struct{}{}:
		default:
		}
	})
	select {
	case <-connected:
		return nil
	case <-time.After(connectPatience):
		return errors.New("NATS does not answer: start it, or check NATS_URL")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// after runs a step once what it needs is there: before that it could only complain.
func after(run func(ctx context.Context) error, ready ...<-chan struct{}) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		for _, r := range ready {
			select {
			case <-ctx.Done():
				return nil
			case <-r:
			}
		}
		return run(ctx)
	}
}

// lastWebhook says when Stripe was last heard of: by this process or, before its start and by the other replicas, as far as the
// ledger tells.
func lastWebhook(h *intake.Handler, reports *report.Reader) func(ctx context.Context) (time.Time, error) {
	return func(ctx context.Context) (time.Time, error) {
		at := h.LastWebhook()
		told, err := reports.LastWebhook(ctx)
		switch {
		case err != nil && at.IsZero():
			return at, err
		case told.After(at):
			return told, nil
		}
		return at, nil
	}
}

// alarmed is what the workers tell, as far as people need to be told of it.
func alarmed(w *queue.Workers) func() []notify.Worker {
	return func() []notify.Worker {
		heard := w.List()
		list := make([]notify.Worker, len(heard))
		for i, x := range heard {
			list[i] = notify.Worker{Instance: x.Instance, Paused: x.State == message.WorkerPaused, Reason: x.Reason, Since: x.Since}
		}
		return list
	}
}

// receiver is who is to be told; nil: nobody.
func receiver(address secret.Text) notify.Receiver {
	if address == "" {
		return nil
	}
	return notify.NewWebhook(address)
}
