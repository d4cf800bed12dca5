package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/testkit/faultproxy"
	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/testkit/wait"
)

const (
	ingests, workers = 2, 3

	testCode = "TEST12345"

	// The stores' disks are small, so that they are filled quickly.
	postgresSize, natsSize = "320m", "128m"
)

// stack is everything that runs.
type stack struct {
	dir, binaries string
	findings      *findings
	mounts        []string // the small disks
	noDisks       error    // why there are none

	parts    []*part // all of them, in the order of their start
	postgres *part
	nats     *part
	ingests  []*part
	workers  []*part
	tiktok   *tiktoksim.Simulator
	server   *httptest.Server             // TikTok's
	refusals atomic.Int64                 // injected faults refusedOnce
	links    map[string]*faultproxy.Proxy // "from→to"; from stripe to each ingest, too
	natsAddr string
	database *pglocal.Server

	// The experiment's own connections, past the proxies.
	pool *pgxpool.Pool
	conn *nats.Conn
	js   jetstream.JetStream
}

// start returns when everything is ready. After an error, too, stop must be called.
func (s *stack) start(ctx context.Context, c config) error {
	if !c.isolated {
		s.noDisks = errors.New("a small file system would outlive this process: namespaces are not permitted")
	}
	if err := pglocal.Ensure(ctx, c.out); err != nil {
		return err
	}
	if err := s.startPostgres(ctx); err != nil {
		return err
	}
	if err := s.startNATS(ctx); err != nil {
		return err
	}
	s.tiktok = tiktoksim.New(tiktoksim.Config{Seed: c.seed, Latency: 5 * time.Millisecond, Misbehave: 0.01})
	s.server = httptest.NewServer(s.tiktok)
	grace := "5s" // shorter than the queue's 30 s, so that the stream itself rejects what it still holds
	if c.mode == modeKept {
		grace = "24h"
	}
	for i := range ingests {
		if err := s.startIngest(ctx, fmt.Sprintf("ingest-%d", i+1), grace); err != nil {
			return err
		}
	}
	for i := range workers {
		if err := s.startWorker(ctx, fmt.Sprintf("worker-%d", i+1)); err != nil {
			return err
		}
	}
	for _, p := range s.replicas() {
		if err := awaitReady(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (s *stack) startPostgres(ctx context.Context) error {
	disk := filepath.Join(s.dir, "postgres")
	if err := s.mount(ctx, disk, postgresSize); err != nil {
		return err
	}
	addr, err := freeport.Addr()
	if err != nil {
		return err
	}
	s.postgres = s.newPostgres(pglocal.Options{
		Dir: filepath.Join(disk, "cluster"), Addr: addr, Durable: true,
		Settings: []string{
			"max_wal_size=64MB", "min_wal_size=32MB", "checkpoint_timeout=30s", "log_min_messages=log",
		},
	})
	if err := s.postgres.start(ctx); err != nil {
		return err
	}
	if err := s.database.CreateDatabase(ctx, "chaos", ""); err != nil {
		return err
	}
	s.pool, err = pgxpool.New(ctx, s.database.URL("chaos"))
	return err
}

func (s *stack) startNATS(ctx context.Context) (err error) {
	if err := s.mount(ctx, filepath.Join(s.dir, "nats"), natsSize); err != nil {
		return err
	}
	if s.natsAddr, err = freeport.Addr(); err != nil {
		return err
	}
	const format = "listen: %q\njetstream { store_dir: %q, max_file_store: 8GB }\n"
	config := fmt.Sprintf(format, s.natsAddr, s.store())
	file := filepath.Join(s.dir, "nats.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	s.nats = s.newProgram("nats", "nats-server", nil, "-c", file)
	if err := s.nats.start(ctx); err != nil {
		return err
	}
	s.conn, err = nats.Connect("nats://"+s.natsAddr,
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		return err
	}
	s.js, err = jetstream.New(s.conn, jetstream.WithDefaultTimeout(2*time.Second))
	return err
}

// store is JetStream's folder.
func (s *stack) store() string { return filepath.Join(s.dir, "nats", "store") }

// mount gives a store a small disk.
func (s *stack) mount(ctx context.Context, dir, size string) error {
	err := os.Mkdir(dir, 0o711) //nolint:gosec // Postgres' user goes through it
	if err != nil || s.noDisks != nil {
		return err
	}
	args := []string{"-t", "tmpfs", "-o", "mode=0711,size=" + size, "chaos", dir}
	out, err := exec.CommandContext(ctx, "mount", args...).CombinedOutput() //nolint:gosec // own folder
	if err != nil {
		s.noDisks = fmt.Errorf("mount a small file system: %w: %s", err, out)
		return nil
	}
	s.mounts = append(s.mounts, dir)
	return nil
}

// link starts a proxy between two parts and returns its address.
func (s *stack) link(from, to, target string) (string, error) {
	proxy, err := faultproxy.Start(target)
	if err != nil {
		return "", err
	}
	s.links[from+"→"+to] = proxy
	return proxy.Addr(), nil
}

// webhooks is the address at which Stripe reaches an ingest.
func (s *stack) webhooks(ingest *part) string { return s.links["stripe→"+ingest.name].Addr() }

func (s *stack) startIngest(ctx context.Context, name, grace string) error {
	postgres, err1 := s.link(name, "postgres", s.postgres.addr)
	queue, err2 := s.link(name, "nats", s.natsAddr)
	ingest, err3 := launch.NewIngest(s.database.URLAt(postgres, "chaos"), "nats://"+queue)
	_, err4 := s.link("stripe", name, ingest.Public)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	p := s.newProgram(name, "ingest", ingest.Env("SWEEP_INTERVAL=1s", "SWEEP_GRACE="+grace))
	p.admin = ingest.Admin
	s.ingests = append(s.ingests, p)
	return p.start(ctx)
}

func (s *stack) startWorker(ctx context.Context, name string) error {
	queue, err1 := s.link(name, "nats", s.natsAddr)
	tiktok, err2 := s.link(name, "tiktok", strings.TrimPrefix(s.server.URL, "http://"))
	worker, err3 := launch.NewWorker("http://"+tiktok, "nats://"+queue)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	p := s.newProgram(name, "tiktok-worker", worker.Env(
		"TIKTOK_TEST_MODE=send", "TIKTOK_TEST_EVENT_CODE="+testCode, "TIKTOK_MAX_RPS=200", "TIKTOK_TIMEOUT=2s",
		"BATCH_SIZE=50", "RETRY_INITIAL=100ms", "RETRY_MAX=2s",
	))
	p.admin = worker.Admin
	s.workers = append(s.workers, p)
	return p.start(ctx)
}

// replicas are the ingests and the workers.
func (s *stack) replicas() []*part { return slices.Concat(s.ingests, s.workers) }

// heal ends the faults that are still active. Half-open connections stay half-open: the product must detect
// them.
func (s *stack) heal() {
	for _, link := range s.links {
		link.Delay(0)
		link.Resume()
		link.Drop(false, false)
	}
	s.tiktok.Clear()
}

func (s *stack) stop() error {
	var errs []error
	for _, p := range slices.Backward(s.parts) {
		switch {
		case p.running == nil:
		case p == s.postgres:
			p.terminate()
			errs = append(errs, s.keepLog())
		default:
			p.kill()
		}
	}
	for _, link := range s.links {
		errs = append(errs, link.Close())
	}
	if s.server != nil {
		s.tiktok.Clear()
		s.server.Close()
	}
	if s.conn != nil {
		s.conn.Close()
	}
	if s.pool != nil {
		s.pool.Close()
	}
	for _, dir := range s.mounts {
		//nolint:gosec,noctx // own folder; ctx may have ended
		errs = append(errs, exec.Command("umount", "--lazy", dir).Run())
	}
	return errors.Join(errs...)
}

// keepLog copies Postgres' log from the disk that is unmounted.
func (s *stack) keepLog() error {
	data, err := os.ReadFile(filepath.Join(s.database.Dir(), "server.log"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, "postgres.log"), data, 0o600)
}

// patience bounds every wait. It is no expectation of speed: machines are shared, and messages of a killed
// process are redelivered after 30 s.
const patience = 3 * time.Minute

func await(ctx context.Context, done func() bool) bool {
	return wait.Until(ctx, patience, 50*time.Millisecond, done)
}

func awaitReady(ctx context.Context, p *part) error {
	body := ""
	if !await(ctx, func() bool {
		var status int
		status, body = launch.Get(ctx, "http://"+p.admin+"/readyz")
		return status == http.StatusOK && !strings.Contains(body, "down")
	}) {
		return fmt.Errorf("wait for %s to be ready: %s", p.name, body)
	}
	return nil
}

// query reads the ledger.
func query[T any](ctx context.Context, s *stack, row pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, row)
}
