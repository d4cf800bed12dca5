package main

import (
	"context"
	"errors"
	"net/http"
	"strings"
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
	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
	"purchase-relay/internal/stripe"
	"purchase-relay/internal/tiktok"
)

// serve wires the steps to Postgres, NATS and Stripe and runs until ctx ends. It stops them in reverse order:
// the listeners, the steps, the connections.
func serve(ctx context.Context, c *config, getenv func(string) string, log *zap.Logger) (err error) {
	life := service.NewLifecycle(log)
	defer func() { err = errors.Join(err, life.Stop(c.ShutdownGrace)) }()
	service.LimitMemory()
	registry, metrics := service.Metrics(service.Version())
	registry.MustRegister(life.Collector())

	// Postgres and NATS.
	db, err := ledger.Open(context.WithoutCancel(ctx), c.DatabaseURL)
	if err != nil {
		return err
	}
	life.OnStop("postgres", func(context.Context) error { db.Close(); return nil })
	skipped := dashboard.NewSkippedRows(log, time.Now, registry)
	db.OnSkip(func(s ledger.Skipped) { skipped.Report(s.Where, s.ID, s.Err) })
	reports, jobs := report.New(db), maintenance.New(db)
	registry.MustRegister(dashboard.NewOutboxMetrics(reports, time.Now), dashboard.NewPurchasesMetrics(reports),
		dashboard.NewCountsMetrics(reports, c.countNames(), time.Now))
	js, err := queue.Connect(c.Config, queue.RoleIngest, log, registry)
	if err != nil {
		return err
	}
	life.OnStop("nats", js.Close)
	workers, err := js.WatchWorkers()
	if err != nil {
		return err
	}
	backlog := js.Consumer(message.StreamPurchases, message.ConsumerWorker)
	registry.MustRegister(queue.NewBacklogMetrics(backlog))

	// Outbox to stream, outcomes to ledger. Each step starts once the schema and the streams are ready.
	outbox := relay.New(db, js, time.Now, log, registry)
	streams := queue.NewProvisioner(js, c.streams(), queue.ProvisionInterval, outbox.Retry, log)
	setup := ledger.NewSetup(db, c.DatabaseURL, c.MigrateDatabaseURL, log)
	outcomes := recorder.New(js.Consumer(message.StreamOutcomes, message.ConsumerRecorder), db, log)
	sweeper := relay.NewSweeper(relay.SweeperConfig{
		Interval: c.SweepInterval, Grace: c.SweepGrace, MaxAge: c.RetryMaxAge,
	}, db, js, time.Now, log, registry)
	life.Go("streams", streams.Run)
	life.Go("recorder", after(outcomes.Run, setup.Ready(), streams.Ready()))
	life.Go("relay", after(outbox.Run, setup.Ready(), streams.Ready()))
	life.Go("sweeper", after(sweeper.Run, setup.Ready(), streams.Ready()))
	life.Go("rollup", after(reports.KeepFolded(log), setup.Ready()))
	life.Go("retention", after(maintenance.KeepLean(jobs.DropEnvelopes, log), setup.Ready()))
	life.Go("schema", setup.Run)

	// Intake, by webhook and by backfill.
	rules, err := c.rules()
	if err != nil {
		return err
	}
	if rules.FirstPayment {
		life.Go("first payments", after(intake.ConvertHeldInvoices(db, outbox.Wake, log), setup.Ready()))
	}
	secrets, _ := c.signingSecrets(c.StripeWebhookSecret) // checked with the configuration
	signatures := stripe.NewWebhook(secrets, time.Now)
	life.Go("signing secrets", func(ctx context.Context) error {
		return followSigningSecrets(ctx, c, getenv, signatures.SetSecrets, log)
	})
	var objects intake.Objects
	if c.StripeAPIKey != "" {
		objects = stripe.NewAPI(c.api())
	}
	events := intake.NewService(intake.Config{
		Ledger: db, Rules: rules, Objects: objects, Publisher: outbox, Now: time.Now,
	}, log, registry)
	webhook := intake.NewHandler(signatures, events, log, registry)
	check := backfill.NewCheck(checkConfig(c, db, events, rules), log, registry)
	switch {
	case c.BackfillInterval > 0 && c.StripeAPIKey != "":
		life.Go("backfill", after(check.Run, setup.Ready()))
	case c.BackfillInterval > 0:
		log.Warn("Automatic backfill is off without STRIPE_API_KEY")
	}

	// Problems, for the pages, the API and NOTIFY_URL.
	last := lastWebhook(webhook, reports)
	registry.MustRegister(notify.NewLastWebhookMetric(last))
	health := &health{db: db, setup: setup, queue: js, workers: workers, backlog: backlog}
	watch := &watcher{
		health: health, reports: reports, lastWebhook: last, thin: webhook.RejectedThin, silence: c.NotifySilence,
		now: time.Now,
	}
	life.Go("problems", watch.run)
	notifier := notify.New(notify.Config{
		Lead: db.NotifierLeadership(), Problems: watch.problems, SilenceCause: silenceCause(c), Now: time.Now,
	}, notify.NewReceiver(c.NotifyURL), log, registry)
	life.Go("notify", after(notifier.Run, setup.Ready()))

	// The listeners.
	public := webhook.Public(service.Healthz())
	if _, err := life.Serve("INGEST_ADDR", c.IngestAddr, service.PublicConnections, public); err != nil {
		return err
	}
	zone, err := c.zone()
	if err != nil {
		return err
	}
	pages := dashboard.New(dashboard.Config{
		Reports: reports, Replays: jobs, Health: health.dashboard, Problems: watch.problems, Wake: outbox.Wake,
		Body: tiktok.Preview, Version: service.Version(), Zone: zone, CountNames: c.countNames(), Now: time.Now,
		Log: log,
	})
	admin, err := adminHandler(c, service.NewAdminRefusals(registry), pages, metrics, health.ready, log)
	if err != nil {
		return err
	}
	if _, err := life.Serve("ADMIN_ADDR", c.AdminAddr, service.AdminConnections, admin); err != nil {
		return err
	}
	log.Info("ingest is up", zap.String("version", service.Version()),
		zap.String("public", c.IngestAddr), zap.String("admin", c.AdminAddr))
	return life.Wait(ctx)
}

// followSigningSecrets follows the file of the signing secrets until ctx ends, so that a rotation needs no
// restart. Of a list with a problem none is used: the old ones stay valid.
func followSigningSecrets(
	ctx context.Context, c *config, getenv func(string) string, set func([]secret.String), log *zap.Logger,
) error {
	const name = "STRIPE_WEBHOOK_SECRET"
	apply := func(list secret.String) error {
		secrets, wrong := c.signingSecrets(list)
		if len(wrong) > 0 {
			return errors.New(strings.Join(wrong, "; "))
		}
		set(secrets)
		log.Info("Signing secrets changed", zap.Int("secrets", len(secrets)))
		return nil
	}
	service.FollowSecret(ctx, getenv, name, c.StripeWebhookSecret, apply,
		"copy the signing secrets from Stripe into the file, comma-separated", log)
	return nil
}

// after returns run, delayed until all of ready are closed.
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

// lastWebhook returns the time of the last webhook: this process' or, from the ledger, any replica's.
func lastWebhook(h *intake.Handler, reports *report.Reader) func(ctx context.Context) (time.Time, error) {
	return func(ctx context.Context) (time.Time, error) {
		at := h.LastWebhook()
		recorded, err := reports.LastWebhook(ctx)
		switch {
		case err != nil && at.IsZero():
			return at, err
		case recorded.After(at):
			return recorded, nil
		}
		return at, nil
	}
}

type readiness = func(context.Context) (ready bool, body map[string]string)

// adminHandler serves health and metrics without a token and the dashboard with one.
func adminHandler(
	c *config, refused func(reason string), pages, metrics http.Handler, ready readiness, log *zap.Logger,
) (http.Handler, error) {
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
	mux.Handle("/", dashboard.NewAccess(tokens, pages, refused, log))
	return hosts.Guard(mux, refused, log), nil
}

// health reads the state of Postgres, NATS and the workers.
type health struct {
	db      *ledger.DB
	setup   *ledger.Setup
	queue   *queue.Conn
	workers *queue.Workers
	backlog *queue.Consumer // of the workers
}

// ready reports whether webhooks can be recorded. NATS does not count: without it ingest still provisions
// customers, and must stay in the load balancer.
func (h *health) ready(ctx context.Context) (bool, map[string]string) {
	up, schema := h.db.Ping(ctx) == nil, "waiting"
	if h.schemaReady() {
		schema = "ready"
	}
	body := map[string]string{"postgres": upDown(up), "schema": schema, "nats": upDown(h.queue.Connected())}
	return up && schema == "ready", body
}

func (h *health) schemaReady() bool {
	select {
	case <-h.setup.Ready():
		return true
	default:
		return false
	}
}

// backlogTimeout bounds the query: a page must not hang with NATS.
const backlogTimeout = 500 * time.Millisecond

// dashboard returns the health that the dashboard shows.
func (h *health) dashboard(ctx context.Context) dashboard.Health {
	view := dashboard.Health{
		Postgres: upDown(h.db.Ping(ctx) == nil), NATS: upDown(h.queue.Connected()), Workers: h.workers.List(),
	}
	ctx, cancel := context.WithTimeout(ctx, backlogTimeout)
	defer cancel()
	if waiting, taken, err := h.backlog.Pending(ctx); err == nil {
		view.Backlog = &dashboard.Backlog{Waiting: waiting, Taken: taken}
	}
	return view
}

func upDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}
