package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/testkit/faultproxy"
	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/testkit/wait"
)

const (
	ingests, workers = 2, 3

	signingSecret = "whsec_chaos-0123456789abcdef" //nolint:gosec // guards nothing
	testCode      = "TEST12345"
	eventPath     = "/open_api/v1.3/event/track/"

	// What the two stores have to live on, where file systems may be mounted: little, so that they are filled quickly.
	ledgerSize, queueSize = "320m", "128m"
)

// stack is everything that runs.
type stack struct {
	dir      string
	findings *findings
	missing  []string // what cannot be done here, a sentence each

	database *ledger
	queue    *program
	ingests  []*program
	workers  []*program
	admins   map[*program]string // host:port of the admin listeners
	tiktok   *tiktoksim.Simulator
	server   *http.Server
	served   chan error

	webhooks []*faultproxy.Proxy          // Stripe → ingest, in the order of the ingests
	links    map[string]*faultproxy.Proxy // by name, the webhooks' included
	mounts   []string

	nats      *nats.Conn // the harness' own, past the proxies
	js        jetstream.JetStream
	queueAddr string
}

// newStack starts everything and returns when all are ready.
func newStack(ctx context.Context, c config, f *findings) (s *stack, err error) {
	s = &stack{dir: c.dir, findings: f, admins: make(map[*program]string), links: make(map[string]*faultproxy.Proxy)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	for _, disk := range []struct{ name, size string }{{"postgres", ledgerSize}, {"nats", queueSize}} {
		if err := s.mount(filepath.Join(c.dir, disk.name), disk.size); err != nil {
			return s, err
		}
	}
	if err := s.startNeighbours(ctx, c); err != nil {
		return s, err
	}
	grace := "5s" // shorter than the queue's 30 s: the stream itself refuses what it still holds
	if c.mode == modeKept {
		grace = "24h"
	}
	for i := range ingests {
		if err := s.startIngest(ctx, c, i+1, grace); err != nil {
			return s, err
		}
	}
	for i := range workers {
		if err := s.startWorker(ctx, c, i+1); err != nil {
			return s, err
		}
	}
	for p := range s.admins {
		if err := s.awaitReady(ctx, p); err != nil {
			return s, err
		}
	}
	return s, nil
}

// mount gives a store a small disk of its own, where that is permitted.
func (s *stack) mount(dir, size string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // Postgres' user goes through it
		return err
	}
	if err := mountSmall(dir, size); err != nil {
		s.missing = append(s.missing, fmt.Sprintf("No disk of %s is filled: mounting a small file system is not permitted here (%v).", filepath.Base(dir), err))
		return nil
	}
	s.mounts = append(s.mounts, dir)
	return nil
}

// small says whether a store has a small disk of its own.
func (s *stack) small(name string) bool {
	for _, dir := range s.mounts {
		if filepath.Base(dir) == name {
			return true
		}
	}
	return false
}

func (s *stack) startNeighbours(ctx context.Context, c config) error {
	addr, err := freeport.Addr()
	if err != nil {
		return err
	}
	s.database = &ledger{options: pglocal.Options{
		Dir: filepath.Join(c.dir, "postgres", "cluster"), Addr: addr, Durable: true,
		Settings: []string{"max_wal_size=64MB", "min_wal_size=32MB", "checkpoint_timeout=30s", "log_min_messages=log"},
	}}
	if err := pglocal.Ensure(ctx, c.out); err != nil {
		return err
	}
	if err := s.database.start(ctx); err != nil {
		return err
	}
	if err := s.database.now.Load().CreateDatabase(ctx, "chaos", ""); err != nil {
		return err
	}
	if s.queueAddr, err = freeport.Addr(); err != nil {
		return err
	}
	config := fmt.Sprintf("listen: %q\njetstream { store_dir: %q, max_file_store: 8GB }\n", s.queueAddr, s.store())
	file := filepath.Join(c.dir, "nats.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	s.queue = &program{name: "nats", path: filepath.Join(c.binaries, "nats-server"), args: []string{"-c", file}, log: filepath.Join(c.dir, "nats.log"), findings: s.findings}
	if err := s.queue.start(ctx); err != nil {
		return err
	}
	s.nats, err = nats.Connect("nats://"+s.queueAddr, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		return err
	}
	if s.js, err = jetstream.New(s.nats, jetstream.WithDefaultTimeout(2*time.Second)); err != nil {
		return err
	}
	return s.startTikTok(ctx, c)
}

// store is where JetStream keeps its streams.
func (s *stack) store() string { return filepath.Join(s.dir, "nats", "store") }

func (s *stack) startTikTok(ctx context.Context, c config) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.tiktok = tiktoksim.New(tiktoksim.Config{Seed: c.seed, Latency: 5 * time.Millisecond, Misbehave: 0.01})
	s.server = &http.Server{Handler: s.tiktok, ReadHeaderTimeout: 5 * time.Second}
	s.served = make(chan error, 1)
	go func() { s.served <- s.server.Serve(listener) }()
	s.server.Addr = listener.Addr().String()
	return nil
}

// link puts a proxy between two parts and returns its address.
func (s *stack) link(from, to, target string) (string, error) {
	proxy, err := faultproxy.Start(target)
	if err != nil {
		return "", err
	}
	s.links[from+"→"+to] = proxy
	return proxy.Addr(), nil
}

func (s *stack) startIngest(ctx context.Context, c config, i int, grace string) error {
	name := "ingest-" + strconv.Itoa(i)
	public, err1 := freeport.Addr()
	admin, err2 := freeport.Addr()
	database, err3 := s.link(name, "postgres", s.database.options.Addr)
	queue, err4 := s.link(name, "nats", s.queueAddr)
	_, err5 := s.link("stripe", name, public)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return err
	}
	s.webhooks = append(s.webhooks, s.links["stripe→"+name])
	p := &program{name: name, path: filepath.Join(c.binaries, "ingest"), log: filepath.Join(c.dir, name+".log"), findings: s.findings, env: []string{
		"STRIPE_WEBHOOK_SECRET=" + signingSecret, "DATABASE_URL=" + s.database.now.Load().URLAt(database, "chaos"), "NATS_URL=nats://" + queue,
		"NATS_MAX_BYTES=1GiB", "INGEST_ADDR=" + public, "ADMIN_ADDR=" + admin, "SWEEP_INTERVAL=1s", "SWEEP_GRACE=" + grace,
	}}
	s.ingests, s.admins[p] = append(s.ingests, p), admin
	return p.start(ctx)
}

func (s *stack) startWorker(ctx context.Context, c config, i int) error {
	name := "worker-" + strconv.Itoa(i)
	admin, err1 := freeport.Addr()
	queue, err2 := s.link(name, "nats", s.queueAddr)
	tiktok, err3 := s.link(name, "tiktok", s.server.Addr)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	p := &program{name: name, path: filepath.Join(c.binaries, "tiktok-worker"), log: filepath.Join(c.dir, name+".log"), findings: s.findings, env: []string{
		"TIKTOK_ACCESS_TOKEN=local-token", "TIKTOK_PIXEL_ID=LOCALPIXEL", "TIKTOK_API_URL=http://" + tiktok + eventPath,
		"TIKTOK_TEST_MODE=send", "TIKTOK_TEST_EVENT_CODE=" + testCode, "TIKTOK_MAX_RPS=200", "TIKTOK_TIMEOUT=2s", "BATCH_SIZE=50",
		"NATS_URL=nats://" + queue, "ADMIN_ADDR=" + admin, "RETRY_INITIAL=100ms", "RETRY_MAX=2s",
	}}
	s.workers, s.admins[p] = append(s.workers, p), admin
	return p.start(ctx)
}

// heal ends what stands of every fault. Connections that were deafened stay so: the product must find out by itself.
func (s *stack) heal() {
	for _, link := range s.links {
		link.Delay(0)
		link.Resume()
		link.Hear()
	}
	s.tiktok.Clear()
}

// stop ends everything.
func (s *stack) stop() error {
	var errs []error
	for p := range s.admins {
		if p.now.Load() != nil {
			p.kill()
		}
	}
	for _, link := range s.links {
		errs = append(errs, link.Close())
	}
	if s.server != nil {
		s.tiktok.Clear()
		errs = append(errs, s.server.Close())
		if err := <-s.served; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, err)
		}
	}
	if s.nats != nil {
		s.nats.Close()
	}
	if s.queue != nil && s.queue.now.Load() != nil {
		s.queue.kill()
	}
	if s.database != nil && s.database.now.Load() != nil {
		errs = append(errs, s.database.now.Load().Stop(), s.keepLog())
	}
	for _, dir := range s.mounts {
		errs = append(errs, unmount(dir))
	}
	return errors.Join(errs...)
}

// keepLog saves Postgres' log from the disk that goes.
func (s *stack) keepLog() error {
	data, err := os.ReadFile(filepath.Join(s.database.now.Load().Dir(), "server.log"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, "postgres.log"), data, 0o600) //nolint:gosec // below our own folder
}

// patience bounds every wait for what must come by itself. It is no expectation of speed: machines are shared, and what a killed
// process held comes again after 30 s.
const patience = 3 * time.Minute

// await waits for the thing itself; false: in vain.
func await(ctx context.Context, done func() bool) bool {
	return wait.Until(ctx, patience, 50*time.Millisecond, done)
}

func (s *stack) awaitReady(ctx context.Context, p *program) error {
	answer := ""
	if !await(ctx, func() bool {
		var code int
		code, answer = get(ctx, "http://"+s.admins[p]+"/readyz")
		return code == http.StatusOK && !strings.Contains(answer, "down")
	}) {
		return fmt.Errorf("%s does not become ready: %s", p.name, answer)
	}
	return nil
}

// query asks the ledger, past the proxies.
func query[T any](ctx context.Context, s *stack, row pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.database.now.Load().URL("chaos"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, row)
}

// get asks one of our own listeners; 0: no answer.
func get(ctx context.Context, url string) (code int, body string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, err.Error()
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(data)
}
