package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/contract"
	"purchase-relay/internal/delivery"
	"purchase-relay/internal/jetstream"
	"purchase-relay/internal/process"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/tiktok"
)

// tellEvery is how often the worker tells its state on workers.<instance>.
const tellEvery = 5 * time.Second

// run is the program without the process: tests call it.
func run(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	var c config
	command, err := process.Parse(&c, "tiktok-worker", "Delivers purchases from the queue to TikTok's Events API.", args, getenv, stdout)
	usage := &process.UsageError{}
	if err != nil && !errors.As(err, &usage) {
		return err
	}
	if usage.Problems = append(usage.Problems, c.problems(command)...); len(usage.Problems) > 0 {
		return usage
	}
	if command == "health" {
		return process.Health(ctx, c.AdminAddr)
	}
	return work(ctx, &c, c.Logger(stdout))
}

// work wires the delivery to the queue and to TikTok and runs until ctx ends.
func work(ctx context.Context, c *config, log *zap.Logger) (err error) {
	life := process.NewLifecycle(log)
	defer func() { err = errors.Join(err, life.Stop(c.ShutdownGrace)) }()
	registry, metrics := process.Metrics(process.Version())

	queue, err := jetstream.Connect(c.Config, "worker", log, registry)
	if err != nil {
		return err
	}
	life.OnStop("nats", queue.Close)
	purchases := queue.Consumer(contract.StreamPurchases, contract.ConsumerWorker)
	if err := purchases.WatchReturns(); err != nil {
		return err
	}

	instance := jetstream.Instance()
	live, test := destinations(c)
	worker := delivery.New(delivery.Config{
		Live: live, Test: test, EventName: c.EventName, BatchSize: c.batch(), Concurrency: c.WorkerConcurrency, MaxRPS: c.MaxRPS,
		RetryInitial: c.RetryInitial, RetryMax: c.RetryMax, RetryMaxAge: c.RetryMaxAge,
		AckWait: jetstream.AckWait, Instance: instance, Now: time.Now,
	}, purchases, queue, log, registry)
	state := func() contract.WorkerState {
		s := worker.State()
		s.Version = process.Version()
		return s
	}
	life.Go("state", func(ctx context.Context) error { return queue.TellState(ctx, instance, tellEvery, state) })
	life.Go("delivery", func(ctx context.Context) error {
		// hard outlives ctx by the grace, so that what is in flight is finished.
		hard, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		stop := context.AfterFunc(ctx, func() { time.AfterFunc(c.ShutdownGrace*9/10, cancel) })
		defer stop()
		return worker.Run(ctx, hard)
	})

	admin := http.NewServeMux()
	admin.Handle("GET /healthz", process.Healthz())
	admin.Handle("GET /metrics", metrics)
	admin.Handle("GET /readyz", process.Readyz(func(context.Context) (bool, map[string]string) {
		s := worker.State()
		body := map[string]string{"nats": "up", "delivery": s.State}
		if s.Reason != "" {
			body["reason"] = s.Reason
		}
		if err := purchases.Ready(); err != nil {
			body["nats"] = err.Error()
			return false, body
		}
		return worker.Ready() == nil, body
	}))
	if _, err := life.Serve("ADMIN_ADDR", c.AdminAddr, admin); err != nil {
		return err
	}
	log.Info("tiktok-worker is up", zap.String("version", process.Version()), zap.String("instance", instance),
		zap.String("admin", c.AdminAddr), zap.String("test_mode", c.TestMode))
	if c.AccessToken == "" {
		log.Warn("TIKTOK_ACCESS_TOKEN not configured, skipping tracking")
	}
	return life.Wait(ctx)
}

// destinations are where live and test purchases go; nil: nowhere. Without the live token nothing is sent at all: the
// quick off switch.
func destinations(c *config) (live, test delivery.Destination) {
	if c.AccessToken == "" {
		return nil, nil
	}
	wire := tiktok.Config{
		URL: c.APIURL, Payload: c.Payload, EventName: c.EventName, PageURL: c.PageURL, Timeout: c.Timeout, Now: time.Now,
	}
	live = tiktok.NewPixel(wire, c.PixelID, c.AccessToken, "")
	if c.TestMode == "send" {
		test = tiktok.NewPixel(wire, orElse(c.TestPixelID, c.PixelID),
			secret.Text(orElse(c.TestAccessToken.Reveal(), c.AccessToken.Reveal())), c.TestEventCode)
	}
	return live, test
}

func orElse(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
