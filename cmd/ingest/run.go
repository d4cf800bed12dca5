package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/intake"
	"purchase-relay/internal/ledger"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/backfill"
	"purchase-relay/internal/ops/dashboard"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/notify"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/recorder"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/service"
	"purchase-relay/internal/stripe"
)

// run is the program without the process: tests call it.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout io.Writer) error {
	var c config
	command, err := service.Parse(&c, "ingest", "Takes Stripe's webhooks and relays paid purchases to the queue.", args, getenv, stdout)
	usage := &service.UsageError{}
	if err != nil && !errors.As(err, &usage) {
		return err
	}
	usage.Problems = append(usage.Problems, c.problems(command)...)
	if command == "doctor" {
		return runDoctor(ctx, &c, usage.Problems, stdout)
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
		return catchUp(ctx, &c, stdout)
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

// serve wires the steps to the neighbours and runs until ctx ends. What is started last is stopped first: the
// listeners, then the steps, then the neighbours.
func serve(ctx context.Context, c *config, log *zap.Logger) (err error) {
	life := service.NewLifecycle(log)
	defer func() { err = errors.Join(err, life.Stop(c.ShutdownGrace)) }()
	service.BoundMemory()
	registry, metrics := service.Metrics(service.Version())
	registry.MustRegister(life.Collector())

	db, err := ledger.Open(context.WithoutCancel(ctx), c.DatabaseURL)
	if err != nil {
		return err
	}
	life.OnStop("postgres", func(context.Context) error { db.Close(); return nil })
	skipped := dashboard.NewSkippedRows(log, time.Now, registry)
	db.OnSkip(func(s ledger.Skipped) { skipped.Report(s.Where, s.ID, s.Err) })
	reports, jobs := report.New(db), maintenance.New(db)
	registry.MustRegister(dashboard.NewOutboxMetrics(reports, time.Now), dashboard.NewPurchasesMetrics(reports))

	js, err := queue.Connect(c.Config, "ingest", log, registry)
	if err != nil {
		return err
	}
	life.OnStop("nats", js.Close)
	workers, err := js.WatchWorkers()
	if err != nil {
		return err
	}

	registry.MustRegister(queue.NewBacklogMetrics(js.Consumer(message.StreamPurchases, message.ConsumerWorker)))

	outcomes := js.Consumer(message.StreamOutcomes, message.ConsumerRecorder)
	outbox := relay.New(db, js, time.Now, log, registry)
	streams := newProvisioner(js, c, streamsCheck, outbox.Retry, log)
	js.OnConnect(streams.wake)
	schema := &schema{db: db, config: c, log: log, isReady: make(chan struct{})}
	life.Go("streams", streams.run)
	life.Go("recorder", after(recorder.New(outcomes, db, log).Run, schema.isReady, streams.isReady))
	life.Go("relay", after(outbox.Run, schema.isReady, streams.isReady))
	sweeper := relay.NewSweeper(relay.SweeperConfig{Interval: c.SweepInterval, Grace: c.SweepGrace, MaxAge: c.RetryMaxAge}, db, js, time.Now, log, registry)
	life.Go("sweeper", after(sweeper.Run, schema.isReady, streams.isReady))
	life.Go("rollup", after(reports.KeepFolded(log), schema.isReady))
	life.Go("retention", after(maintenance.KeepLean(jobs.DropEnvelopes, log), schema.isReady))
	life.Go("schema", schema.run)

	secrets, _ := stripe.ParseSecrets(c.StripeWebhookSecret) // checked with the configuration
	rules, err := c.rules()
	if err != nil {
		return err
	}
	if rules.FirstPayment {
		life.Go("first payments", after(intake.KeepConverted(db, outbox.Wake, log), schema.isReady))
	}
	webhook := intake.NewHandler(stripe.NewWebhook(secrets, time.Now), db, rules, outbox, time.Now, log, registry)
	check := backfill.NewCheck(checkConfig(c, db, webhook, rules), log, registry)
	switch {
	case c.BackfillInterval > 0 && c.StripeAPIKey != "":
		life.Go("backfill", after(check.Run, schema.isReady))
	case c.BackfillInterval > 0:
		log.Warn("BACKFILL_INTERVAL does nothing without STRIPE_API_KEY: what webhooks miss is not looked for")
	}
	heard := lastWebhook(webhook, reports)
	registry.MustRegister(notify.NewLastWebhookMetric(heard))
	alarms := notify.New(notify.Config{Silence: c.NotifySilence, Now: time.Now}, notify.Sources{
		Ledger: reports, Lead: db.LeadAlarm(), Workers: alarmed(workers), LastWebhook: heard,
	}, receiver(c.NotifyURL), log, registry)
	life.Go("alarm", after(alarms.Run, schema.isReady))
	if c.StripeAPIKey != "" {
		webhook.FetchWith(stripe.NewAPI(c.api()))
	}
	public := webhook.Public(service.Healthz())
	if _, err := life.Serve("INGEST_ADDR", c.IngestAddr, service.PublicConnections, public); err != nil {
		return err
	}

	lights := &lights{db: db, schema: schema, queue: js, workers: workers, backlog: js.Consumer(message.StreamPurchases, message.ConsumerWorker)}
	admin, err := adminHandler(c, service.NewAdminRefusals(registry), newDashboard(reports, jobs, lights, outbox.Wake, log), metrics, lights.ready, log)
	if err != nil {
		return err
	}
	if _, err := life.Serve("ADMIN_ADDR", c.AdminAddr, service.AdminConnections, admin); err != nil {
		return err
	}
	log.Info("ingest is up", zap.String("version", service.Version()), zap.String("public", c.IngestAddr), zap.String("admin", c.AdminAddr))
	return life.Wait(ctx)
}

type readiness = func(context.Context) (ready bool, body map[string]string)

// adminHandler is the admin listener's: what is open to everybody who reaches it under one of its names, and
// the dashboard behind the tokens.
func adminHandler(c *config, refused func(reason string), board, metrics http.Handler, ready readiness, log *zap.Logger) (http.Handler, error) {
	tokens, err := dashboard.ParseTokens(c.AdminToken, c.AdminTokens)
	if err != nil {
		return nil, err
	}
	hosts, err := service.ParseHosts(c.AdminHosts, c.AdminAddr)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", service.Healthz())
	mux.Handle("GET /readyz", service.Readyz(ready))
	mux.Handle("GET /metrics", metrics)
	mux.Handle("/", dashboard.NewAccess(tokens, board, refused, log))
	return hosts.Guard(mux, refused, log), nil
}

// lights tells how the neighbours are.
type lights struct {
	db      *ledger.DB
	schema  *schema
	queue   *queue.Conn
	workers *queue.Workers
	backlog *queue.Consumer // the workers' own, looked at from here
}

func upDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

// ready: only Postgres and its schema decide. NATS away must not take ingest out of a load balancer, or TikTok's side
// would cost the customer's access.
func (l *lights) ready(ctx context.Context) (bool, map[string]string) {
	up, schema := l.db.Ping(ctx) == nil, "waiting"
	select {
	case <-l.schema.isReady:
		schema = "ready"
	default:
	}
	return up && schema == "ready", map[string]string{"postgres": upDown(up), "schema": schema, "nats": upDown(l.queue.Connected())}
}
