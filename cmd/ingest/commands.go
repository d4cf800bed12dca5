package main

import (
	"context"
	"errors"
	"io"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/ops/doctor/ingestdoctor"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/service"
)

// run is the program without the process: tests call it.
func run(
	ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout io.Writer,
) error {
	var c config
	command, err := service.Parse(&c, "ingest",
		"Takes Stripe's webhooks and relays paid purchases to the queue.", args, getenv, stdout)
	usage := &service.UsageError{}
	if err != nil && !errors.As(err, &usage) {
		return err
	}
	usage.Problems = append(usage.Problems, c.problems(command)...)
	if command == "doctor" { // it reports the problems beside everything else
		return diagnose(ctx, &c, usage.Problems, stdout)
	}
	if len(usage.Problems) > 0 {
		return usage
	}
	switch command {
	case "migrate":
		return migrate(ctx, &c, c.Logger(stdout))
	case "provision":
		return provision(ctx, &c, c.Logger(stdout))
	case "replay":
		return replay(ctx, &c, stdin, stdout)
	case "backfill":
		return runBackfill(ctx, &c, stdout)
	case "reconcile":
		return reconcile(ctx, &c, stdout)
	case "show":
		return show(ctx, &c, stdout)
	case "forget":
		return forget(ctx, &c, stdin, stdout)
	case "prune":
		if c.Prune.Every > 0 {
			return pruneRepeatedly(ctx, &c, stdout)
		}
		return prune(ctx, &c, stdin, stdout)
	case "health":
		return service.Health(ctx, c.AdminAddr)
	default:
		return serve(ctx, &c, c.Logger(stdout))
	}
}

// migrate brings the schema up to date once.
func migrate(ctx context.Context, c *config, log *zap.Logger) error {
	applied, err := ledger.MigrateAndGrant(ctx, c.DatabaseURL, c.MigrateDatabaseURL)
	if err != nil {
		return err
	}
	log.Info("The ledger's schema is up to date", zap.Int("applied", applied))
	return nil
}

// provisionFlags are the flags of `ingest provision`.
type provisionFlags struct {
	Every time.Duration `noenv:"" help:"Stay, and check again this often, for instance 15s: a queue that was wiped is filled again without an operator. Default: once."`
}

// Help is the command's own page.
func (*provisionFlags) Help() string {
	return `Streams PURCHASES, PURCHASES_DEAD and OUTCOMES, consumers worker and recorder. NATS_URL names the user
provision of deploy/nats/nats-server.conf, or any user with its rights; NATS_REPLICAS and NATS_MAX_BYTES are those
of the streams. It needs no database.

  ingest provision
  ingest provision --every 15s`
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
		return queue.NewProvisioner(js, c.streams(), every, func() {}, log).Run(ctx)
	}
	if err := awaitConnection(ctx, js); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, queue.ProvisionTimeout)
	defer cancel()
	if err := js.Provision(ctx, c.streams()); err != nil {
		return err
	}
	log.Info("Streams ready")
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

// doctorCommand is `ingest doctor`, which has no flags.
type doctorCommand struct{}

// Help is the command's own page.
func (doctorCommand) Help() string {
	return `Each check passes, warns or fails; what does not pass says what to do. Nothing is changed. Run it with ingest's own environment, best beside a running one, which is asked at ADMIN_ADDR
what Stripe sends it.

Exit status 0: nothing has to be fixed; 3: something has to be.`
}

// diagnose checks everything that ingest needs, as far as the configuration's problems allow.
func diagnose(ctx context.Context, c *config, problems []string, out io.Writer) error {
	return doctor.Report(out, ingestdoctor.Ingest{
		Problems: problems, SigningSecrets: c.StripeWebhookSecret, API: c.api(),
		DatabaseURL: c.DatabaseURL, MigrateDatabaseURL: c.MigrateDatabaseURL,
		Queue: c.Config, Streams: c.streams(), AdminAddr: c.AdminAddr,
	}.Checks(ctx))
}

// pruneRepeatedly prunes now and then again at each interval, until ctx ends: for a container without cron.
// What stays for a person to decide (exit status 3 of a single run) is no failure of the schedule.
func pruneRepeatedly(ctx context.Context, c *config, out io.Writer) error {
	log := c.Logger(out)
	return repeat(ctx, c.Prune.Every, func(ctx context.Context) error {
		err := prune(ctx, c, nil, out)
		if errors.Is(err, service.ErrLeft) {
			return nil
		}
		return err
	}, func(err error) {
		log.Error("Prune failed", zap.Error(err), zap.Duration("next", c.Prune.Every))
	})
}

// repeat runs a job immediately and then at each interval, until ctx ends. A failure is reported and the job
// repeated, unless it is the configuration's.
func repeat(
	ctx context.Context, every time.Duration, job func(context.Context) error, report func(error),
) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := job(ctx)
		var usage *service.UsageError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &usage):
			return err
		case err != nil:
			report(err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
