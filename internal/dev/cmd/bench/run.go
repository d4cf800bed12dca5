package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/contract"
	"purchase-relay/internal/dev/natslocal"
	"purchase-relay/internal/dev/tiktoksim"
	"purchase-relay/internal/jetstream"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
)

// run measures and prints a table.
func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	backlog := flags.Int("backlog", 100_000, "purchases waiting for the worker")
	single := flags.Int("single", 3_000, "purchases of the baseline, one a request")
	latency := flags.Duration("latency", 5*time.Millisecond, "TikTok's, simulated")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary := filepath.Join(dir, "tiktok-worker")
	if out, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, "./cmd/tiktok-worker").CombinedOutput(); err != nil { //nolint:gosec // our own sources
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	b := bench{dir: dir, binary: binary, latency: *latency}
	_, _ = fmt.Fprintf(out, "Backlog to TikTok, answering after %s, %d slots, no rate limit in the way\n\n%-28s %10s %10s %10s %10s %10s\n", *latency, slots,
		"", "purchases", "seconds", "per second", "requests", "MiB")
	var alone, together float64
	for _, round := range []struct {
		name     string
		n, batch int
	}{{"one a request", *single, 1}, {"batches of 500", *backlog, 500}, {"one a request, once more", *single, 1}} {
		r, err := b.drain(ctx, round.n, round.batch)
		if err != nil {
			return fmt.Errorf("%s: %w", round.name, err)
		}
		perSecond := float64(round.n) / r.took.Seconds()
		if round.batch == 1 {
			alone += perSecond / 2
		} else {
			together = perSecond
		}
		_, _ = fmt.Fprintf(out, "%-28s %10d %10.2f %10.0f %10d %10.1f\n", round.name, round.n, r.took.Seconds(), perSecond, r.requests, r.mebibytes)
	}
	_, _ = fmt.Fprintf(out, "\nratio %.1f (to reach: 10)\n", together/alone)
	return nil
}

const slots = 4

type bench struct {
	dir, binary string
	latency     time.Duration
}

type result struct {
	took      time.Duration // from the worker's start to the last acknowledgement
	requests  int
	mebibytes float64 // the worker's largest resident memory
}

// drain fills a queue of its own with purchases and measures how long the real worker takes to deliver them.
func (b *bench) drain(ctx context.Context, n, batch int) (r result, err error) {
	store, err := os.MkdirTemp(b.dir, "nats")
	if err != nil {
		return r, err
	}
	server, err := natslocal.Start(natslocal.Options{Addr: "127.0.0.1:0", StoreDir: store})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	url := server.URL()
	queue, err := jetstream.Connect(jetstream.Config{NATSURL: secret.Text(url)}, "ingest", zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, queue.Close(context.WithoutCancel(ctx))) }()
	if err := queue.Provision(ctx, jetstream.StreamConfig{Replicas: 1, MaxBytes: 1 << 30}); err != nil {
		return r, err
	}
	if err := fill(ctx, queue, n); err != nil {
		return r, err
	}
	sim := tiktoksim.New(tiktoksim.Config{Latency: b.latency})
	tiktok := httptest.NewServer(sim)
	defer tiktok.Close()
	return b.work(ctx, queue, sim, url, tiktok.URL, batch)
}

// fill publishes purchases as the relay does.
func fill(ctx context.Context, queue *jetstream.Conn, n int) error {
	const at = 1000
	for done := 0; done < n; done += at {
		var batch []contract.Publication
		for i := done; i < min(n, done+at); i++ {
			id := fmt.Sprintf("cs_live_bench%09d", i)
			amount := int64(2999)
			data, err := contract.EncodeEnvelope(&purchase.Purchase{
				ID: id, Livemode: true, At: time.Now(), AmountMinor: &amount, Currency: "usd",
				Keys: purchase.MatchKeys{
					Email: purchase.HashEmail(id + "@example.com"), Phone: purchase.HashPhone("+12133734253"), ExternalID: purchase.HashExternalID(id),
					TTCLID: "E.C.P." + id, TTP: id, IP: "203.0.113.7", UserAgent: "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X)", PageURL: "https://shop.example/checkout",
				},
			})
			if err != nil {
				return err
			}
			batch = append(batch, contract.Publication{Subject: contract.Subject(id, true), MsgID: contract.MsgID(id, 1), FirstPublished: time.Now(), Data: data})
		}
		for _, p := range queue.Publish(ctx, batch) {
			if p.Err != nil {
				return p.Err
			}
		}
	}
	return nil
}

// work runs the worker until nothing waits and nothing is unacknowledged.
func (b *bench) work(ctx context.Context, queue *jetstream.Conn, sim *tiktoksim.Simulator, nats, tiktok string, batch int) (r result, err error) {
	worker := exec.CommandContext(ctx, b.binary) //nolint:gosec // built above
	worker.Env = []string{
		"TIKTOK_ACCESS_TOKEN=local-token", "TIKTOK_PIXEL_ID=LOCALPIXEL", "TIKTOK_API_URL=" + tiktok + "/open_api/v1.3/event/track/", "NATS_URL=" + nats,
		"ADMIN_ADDR=127.0.0.1:0", "TIKTOK_MAX_RPS=1000", "WORKER_CONCURRENCY=" + strconv.Itoa(slots), "BATCH_SIZE=" + strconv.Itoa(batch),
	}
	began := time.Now()
	if err := worker.Start(); err != nil {
		return r, err
	}
	defer func() {
		_ = worker.Process.Signal(syscall.SIGTERM)
		_ = worker.Wait()
	}()
	consumer := queue.Consumer(contract.StreamPurchases, contract.ConsumerWorker)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		waiting, unacknowledged, err := consumer.Pending(ctx)
		if err == nil && waiting == 0 && unacknowledged == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-tick.C:
		}
	}
	r.took, r.requests, r.mebibytes = time.Since(began), sim.Stats().Requests, peak(worker.Process.Pid)
	return r, nil
}

// peak reads a process' largest resident memory in MiB; 0 where the system does not say.
func peak(pid int) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(data), "VmHWM:")
	fields := strings.Fields(after)
	if len(fields) == 0 {
		return 0
	}
	kib, err := strconv.ParseFloat(fields[0], 64)
	if err != nil {
		return 0
	}
	return kib / 1024
}
