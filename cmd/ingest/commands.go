package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/ops/doctor/ingestdoctor"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/service"
)

// run is main without the process, for tests.
func run(
	ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout io.Writer,
) error {
	var c config
	command, err := service.Parse(&c, "ingest",
		"Receives Stripe's webhooks and publishes paid purchases to the queue.", args, getenv, stdout)
	usage := &service.UsageError{}
	if err != nil && !errors.As(err, &usage) {
		return err
	}
	if command != "" { // after a wrong command line the defaults are not set
		usage.Problems = append(usage.Problems, c.problems(command)...)
	}
	if command == "doctor" { // it reports the problems among its checks
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
	case "stripe-endpoint":
		return stripeEndpoint(ctx, &c, stdout)
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
		return serve(ctx, &c, getenv, c.Logger(stdout))
	}
}

func migrate(ctx context.Context, c *config, log *zap.Logger) error {
	applied, err := ledger.MigrateAndGrant(ctx, c.DatabaseURL, c.MigrateDatabaseURL)
	if err != nil {
		return err
	}
	log.Info("Schema is up to date", zap.Int("applied", applied))
	return nil
}

// provisionFlags are the flags of `ingest provision`.
type provisionFlags struct {
	Every time.Duration `noenv:"" help:"Keep running and check at this interval, such as 15s. Default: once."`
}

// Help implements kong.HelpProvider.
func (*provisionFlags) Help() string {
	return `Creates and repairs the streams PURCHASES, PURCHASES_DEAD and OUTCOMES and the consumers worker and
recorder. NATS_URL needs the rights of the user provision in deploy/nats/nats-server.conf. NATS_REPLICAS and
NATS_MAX_BYTES apply to the streams. No database is needed.

With --every, the streams of a wiped NATS server are created again.

  ingest provision
  ingest provision --every 15s`
}

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
	if err := awaitConnection(ctx, js, connectTimeout); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, queue.ProvisionTimeout)
	defer cancel()
	if err := js.Provision(ctx, c.streams()); err != nil {
		return err
	}
	log.Info("Streams are ready")
	return nil
}

// connectTimeout bounds the wait of a command for NATS.
const connectTimeout = 10 * time.Second

func awaitConnection(ctx context.Context, js *queue.Conn, timeout time.Duration) error {
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
	case <-time.After(timeout):
		return fmt.Errorf("connect to NATS: no connection within %s", timeout)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// doctorCommand is `ingest doctor`, which has no flags.
type doctorCommand struct{}

// Help implements kong.HelpProvider.
func (doctorCommand) Help() string {
	return `Each check passes, warns or fails; a warning or failure shows its remedy. Nothing is changed. Use the
environment of ingest. If ingest is running at ADMIN_ADDR, its webhook metrics are checked, too.

Exit status 0: no check failed; 3: a check failed.`
}

// diagnose runs the checks that the configuration's problems allow.
func diagnose(ctx context.Context, c *config, problems []string, out io.Writer) error {
	address, _ := c.publicURL() // an error is one of the problems, and so is that of the rules
	rules, _ := c.rules()
	return doctor.Report(out, ingestdoctor.Ingest{
		Problems: problems, SigningSecrets: c.StripeWebhookSecret, API: c.api(),
		Endpoint: c.endpoint(address), Rules: rules,
		DatabaseURL: c.DatabaseURL, MigrateDatabaseURL: c.MigrateDatabaseURL,
		Queue: c.Config, Streams: c.streams(), AdminAddr: c.AdminAddr,
	}.Checks(ctx))
}

// pruneRepeatedly prunes at each interval until ctx ends, for a container without cron. Rows kept for the
// operator (exit status 3 of a single run) are no failure here.
func pruneRepeatedly(ctx context.Context, c *config, out io.Writer) error {
	log := c.Logger(out)
	return repeat(ctx, c.Prune.Every, func(ctx context.Context) error {
		err := prune(ctx, c, nil, out)
		if errors.Is(err, service.ErrActionRequired) {
			return nil
		}
		return err
	}, func(err error) {
		log.Error("Prune failed", zap.Error(err), zap.Duration("next", c.Prune.Every))
	})
}

// repeat runs a job immediately and then at each interval until ctx ends. Only a usage error ends it earlier.
func repeat(
	ctx context.Context, interval time.Duration, job func(context.Context) error, report func(error),
) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
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
		case <-ticker.C:
		}
	}
}
