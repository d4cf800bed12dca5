package main

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/delivery"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/stats"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
	"purchase-relay/internal/tiktok"
)

// stateInterval is the interval of the state on workers.<instance>.
const stateInterval = 5 * time.Second

// serve wires delivery to the queue and to TikTok and runs until ctx ends.
func serve(ctx context.Context, c *config, getenv func(string) string, log *zap.Logger) (err error) {
	life := service.NewLifecycle(log)
	defer func() { err = errors.Join(err, life.Stop(c.ShutdownGrace)) }()
	service.LimitMemory()
	registry, metrics := service.Metrics(service.Version())
	registry.MustRegister(life.Collector())

	js, err := queue.Connect(c.Config, queue.RoleWorker, log, registry)
	if err != nil {
		return err
	}
	life.OnStop("nats", js.Close)
	purchases := js.Consumer(message.StreamPurchases, message.ConsumerWorker)
	if err := purchases.WatchReturns(); err != nil {
		return err
	}

	instance := queue.Instance()
	pixels := newPixels(c)
	live, test := pixels.destinations()
	worker := delivery.New(delivery.Config{
		Live: live, Test: test, EventName: c.EventName,
		BatchSize: c.batchSize(), Concurrency: c.WorkerConcurrency, MaxRPS: c.MaxRPS,
		RetryInitial: c.RetryInitial, RetryMax: c.RetryMax, RetryMaxAge: c.RetryMaxAge,
		AckWait: queue.AckWait, Instance: instance, Now: time.Now, ClockOffset: purchases.ClockOffset,
	}, purchases, js, log, registry)
	counts := stats.New(stats.Config{PixelID: c.PixelID, Interval: c.StatsInterval, Now: time.Now},
		pixels.stats, js, js.Lease(message.LeaseStats, instance), log, registry)
	if c.asksForStats() {
		life.Go("counts", counts.Run)
	}
	state := func() message.WorkerState {
		s := worker.State()
		s.Version, s.Stats = service.Version(), counts.Problem()
		s.Pixel, s.TestPixel = pixels.ids()
		return s
	}
	life.Go("state", func(ctx context.Context) error {
		return js.PublishState(ctx, instance, stateInterval, state)
	})
	life.Go("tokens", func(ctx context.Context) error {
		return pixels.followTokens(ctx, c, getenv, func() { worker.ProbeNow(); counts.PollNow() }, log)
	})
	life.Go("delivery", func(ctx context.Context) error {
		// Requests in flight get most of the grace period to finish after ctx ends.
		hard, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		stop := context.AfterFunc(ctx, func() { time.AfterFunc(c.ShutdownGrace*9/10, cancel) })
		defer stop()
		return worker.Run(ctx, hard)
	})

	admin := http.NewServeMux()
	admin.Handle("GET /healthz", service.Healthz())
	admin.Handle("GET /metrics", metrics)
	admin.Handle("GET /readyz", service.Readyz(func(context.Context) (bool, map[string]string) {
		s := worker.State()
		body := map[string]string{"nats": "up", "delivery": s.State}
		if s.State == message.WorkerOpen {
			body["delivery"] = "circuit_open"
		}
		if s.Reason != "" {
			body["reason"] = s.Reason
		}
		if err := purchases.Ready(); err != nil {
			body["nats"] = err.Error()
			return false, body
		}
		return worker.Ready() == nil, body
	}))
	hosts, err := service.ParseHosts(c.AdminHosts, c.AdminAddr)
	if err != nil {
		return err
	}
	guarded := hosts.Guard(admin, service.NewAdminRefusals(registry), log)
	if _, err := life.Serve("ADMIN_ADDR", c.AdminAddr, service.AdminConnections, guarded); err != nil {
		return err
	}
	log.Info("tiktok-worker is up", zap.String("version", service.Version()), zap.String("instance", instance),
		zap.String("admin", c.AdminAddr), zap.String("test_mode", c.TestMode))
	if c.AccessToken == "" {
		log.Warn("TIKTOK_ACCESS_TOKEN not configured, skipping tracking")
	}
	return life.Wait(ctx)
}

// pixels are the destinations of live and test purchases; nil: skipped. Without the live token both are nil.
// stats reads what TikTok counts.
type pixels struct {
	live, test *tiktok.Pixel
	stats      *tiktok.Stats
}

func newPixels(c *config) (p pixels) {
	p.stats = c.stats()
	if c.AccessToken == "" {
		return p
	}
	p.live = c.pixelFor(c.liveTarget())
	if c.TestMode == "send" {
		p.test = c.pixelFor(c.testTarget())
	}
	return p
}

// ids returns the pixels' ids; "": purchases are skipped.
func (p pixels) ids() (live, test string) {
	if p.live != nil {
		live = p.live.ID()
	}
	if p.test != nil {
		test = p.test.ID()
	}
	return live, test
}

// destinations converts the pixels to interfaces that are nil where a pixel is nil.
func (p pixels) destinations() (live, test delivery.Destination) {
	if p.live != nil {
		live = p.live
	}
	if p.test != nil {
		test = p.test
	}
	return live, test
}

// errPlainHTTP is returned for a live token that would be readable on the network.
var errPlainHTTP = errors.New("the address is plain http")

// followTokens follows the token files until ctx ends, so that a rotated token needs no restart. It calls
// changed after each change.
func (p pixels) followTokens(
	ctx context.Context, c *config, getenv func(string) string, changed func(), log *zap.Logger,
) error {
	var files sync.WaitGroup
	follow := func(name, to string, current secret.String, set func(secret.String)) {
		apply := func(token secret.String) error {
			token = secret.String(tiktok.Trim(token.Reveal()))
			if err := tiktok.CheckToken(token); err != nil {
				return err
			}
			if token == current { // only white space changed
				return nil
			}
			if unencrypted(to, token) {
				return errPlainHTTP
			}
			current = token
			log.Info("Access token changed", zap.String("file", name+"_FILE"))
			set(token)
			changed()
			return nil
		}
		files.Go(func() {
			service.FollowSecret(ctx, getenv, name, current, apply,
				"copy the token from Events Manager into the file; a live one needs an https address of TikTok", log)
		})
	}
	if c.asksForStats() && c.StatsToken != "" {
		follow("TIKTOK_STATS_TOKEN", c.StatsURL, c.StatsToken, p.stats.SetToken)
	}
	if p.live != nil {
		follow("TIKTOK_ACCESS_TOKEN", c.APIURL, c.AccessToken, func(token secret.String) {
			p.live.SetToken(token)
			if p.test != nil && c.TestAccessToken == "" {
				p.test.SetToken(token)
			}
			if c.StatsToken == "" && !unencrypted(c.StatsURL, token) {
				p.stats.SetToken(token)
			}
		})
	}
	if p.test != nil {
		follow("TIKTOK_TEST_ACCESS_TOKEN", c.APIURL, c.TestAccessToken, p.test.SetToken)
	}
	files.Wait()
	return nil
}
