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
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/testkit/faultproxy"
	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/testkit/try"
	"purchase-relay/internal/testkit/wait"
)

const (
	ingests, workers = 2, 3

	testCode = "TEST12345"

	// The stores' disks are small, so that they are filled quickly.
	postgresSize, natsSize = "320m", "128m"

	// patience bounds every wait. It is no expectation of speed: machines are shared, and messages of a killed
	// process are redelivered after 30 s.
	patience = 3 * time.Minute

	// stopTimeout bounds the shutdown after a signal: far more than the binaries' grace period of 8 s.
	stopTimeout = 40 * time.Second
)

// part is a process that is killed, stopped, frozen and started again. The fault that acts on it holds its
// lock.
type part struct {
	sync.Mutex
	*process.Process // the latest one
	name             string
	addr             string         // host:port; of an ingest or a worker: the admin listener's
	stopSignal       syscall.Signal // an operator's; Postgres' breaks transactions off
	launch           func(ctx context.Context) (*process.Process, error)
}

func (p *part) start(ctx context.Context) error {
	started, err := p.launch(ctx)
	if err == nil {
		p.Process = started
	}
	return err
}

// end ends a part with a signal and returns its exit code. Only Postgres may have exited on its own, for lack
// of space.
func (x *experiment) end(p *part, signal syscall.Signal) int {
	select {
	case <-p.Ended():
		if p != x.postgres {
			x.find("%s exited on its own with code %d", p.name, p.ExitCode())
		}
		return p.ExitCode()
	default:
	}
	p.Signal(signal)
	select {
	case <-p.Ended():
	case <-time.After(stopTimeout):
		x.find("%s did not stop within %s", p.name, stopTimeout)
		p.Kill()
	}
	return p.ExitCode()
}

// start starts everything and waits until it is ready.
func (x *experiment) start(ctx context.Context) {
	try.Check(pglocal.Ensure(ctx, x.out))
	x.startPostgres(ctx)
	x.startNATS(ctx)
	x.tiktok = tiktoksim.New(tiktoksim.Config{Seed: x.seed, Latency: 5 * time.Millisecond, Misbehave: 0.01})
	tiktok := httptest.NewServer(x.tiktok)
	x.OnClose(tiktok.Close)
	x.OnClose(x.tiktok.Clear) // before: Close waits for requests that hang
	grace := "5s"             // under the 30 s of a redelivery: the stream itself rejects what it still holds
	if x.keepQueue {
		grace = "24h"
	}
	for i := range ingests {
		name := fmt.Sprintf("ingest-%d", i+1)
		database := x.database.URLAt(x.link(name, "postgres", x.postgres.addr), "chaos")
		ingest := try.Must(launch.NewIngest(database, "nats://"+x.link(name, "nats", x.nats.addr)))
		x.link("stripe", name, ingest.Public)
		env := ingest.Env("SWEEP_INTERVAL=1s", "SWEEP_GRACE="+grace)
		x.ingests = append(x.ingests, x.program(ctx, name, ingest.Admin, "ingest", env))
	}
	for i := range workers {
		name := fmt.Sprintf("worker-%d", i+1)
		link := x.link(name, "tiktok", tiktok.Listener.Addr().String())
		worker := try.Must(launch.NewWorker("http://"+link, "nats://"+x.link(name, "nats", x.nats.addr)))
		env := worker.Env(
			"TIKTOK_TEST_MODE=send", "TIKTOK_TEST_EVENT_CODE="+testCode, "TIKTOK_MAX_RPS=200", "TIKTOK_TIMEOUT=2s",
			"BATCH_SIZE=50", "RETRY_INITIAL=100ms", "RETRY_MAX=2s",
		)
		x.workers = append(x.workers, x.program(ctx, name, worker.Admin, "tiktok-worker", env))
	}
	for _, p := range x.replicas() {
		try.Check(awaitReady(ctx, p))
	}
}

// replicas are the ingests and the workers.
func (x *experiment) replicas() []*part { return slices.Concat(x.ingests, x.workers) }

func (x *experiment) startPostgres(ctx context.Context) {
	options := pglocal.Options{
		Dir: filepath.Join(x.disk(ctx, "postgres", postgresSize), "cluster"), Addr: try.Must(freeport.Addr()),
		Durable: true, Settings: []string{
			"max_wal_size=64MB", "min_wal_size=32MB", "checkpoint_timeout=30s", "log_min_messages=log",
		},
	}
	launch := func(ctx context.Context) (_ *process.Process, err error) {
		var server *pglocal.Server
		// The children of a killed server hold its memory and its port for a moment.
		if !wait.Until(ctx, stopTimeout, 200*time.Millisecond, func() bool {
			server, err = pglocal.Start(ctx, options)
			return err == nil
		}) {
			return nil, fmt.Errorf("start Postgres: %w", err)
		}
		x.database = server
		return server.Process(), nil
	}
	p := &part{name: "postgres", addr: options.Addr, stopSignal: syscall.SIGINT, launch: launch}
	x.postgres = x.add(ctx, p)
	x.OnEnd(func() error {
		err1 := x.database.Stop()
		log, err2 := os.ReadFile(filepath.Join(x.database.Dir(), "server.log")) // its disk is unmounted
		return errors.Join(err1, err2, os.WriteFile(filepath.Join(x.dir, "postgres.log"), log, 0o600))
	})
	try.Check(x.database.CreateDatabase(ctx, "chaos", ""))
	x.pool = try.Must(pgxpool.New(ctx, x.database.URL("chaos")))
	x.OnClose(x.pool.Close)
}

func (x *experiment) startNATS(ctx context.Context) {
	x.disk(ctx, "nats", natsSize)
	addr, file := try.Must(freeport.Addr()), filepath.Join(x.dir, "nats.conf")
	const format = "listen: %q\njetstream { store_dir: %q, max_file_store: 8GB }\n"
	try.Check(os.WriteFile(file, fmt.Appendf(nil, format, addr, x.store()), 0o600))
	x.nats = x.program(ctx, "nats", addr, "nats-server", nil, "-c", file)
	conn := try.Must(nats.Connect("nats://"+addr,
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond)))
	x.OnClose(conn.Close)
	x.js = try.Must(jetstream.New(conn, jetstream.WithDefaultTimeout(2*time.Second)))
}

// store is JetStream's folder.
func (x *experiment) store() string { return filepath.Join(x.dir, "nats", "store") }

// disk makes the folder of a part's store, on a small disk where that is possible.
func (x *experiment) disk(ctx context.Context, name, size string) string {
	dir := filepath.Join(x.dir, name)
	try.Check(os.Mkdir(dir, 0o711)) //nolint:gosec // Postgres' user goes through it
	if x.noDisks != nil {
		return dir
	}
	args := []string{"-t", "tmpfs", "-o", "mode=0711,size=" + size, "chaos", dir}
	out, err := exec.CommandContext(ctx, "mount", args...).CombinedOutput() //nolint:gosec // ours
	if err != nil {
		x.noDisks = fmt.Errorf("mount a small file system: %w: %s", err, out)
		return dir
	}
	x.OnEnd(func() error {
		return exec.Command("umount", "--lazy", dir).Run() //nolint:gosec,noctx // ours; ctx may have ended
	})
	return dir
}

// link starts a proxy between two parts and returns its address.
func (x *experiment) link(from, to, target string) string {
	proxy := try.Must(faultproxy.Start(target))
	x.OnEnd(proxy.Close)
	x.links[from+"→"+to] = proxy
	return proxy.Addr()
}

// add starts a part for the first time.
func (x *experiment) add(ctx context.Context, p *part) *part {
	try.Check(p.start(ctx))
	x.parts[p.name] = p
	return p
}

// program starts one of our binaries, or nats-server.
func (x *experiment) program(
	ctx context.Context, name, addr, binary string, env []string, args ...string,
) *part {
	command := process.Command{
		Path: filepath.Join(x.binaries, binary), Args: args, Env: append(env, "GORACE=halt_on_error=1"),
		Log: filepath.Join(x.dir, name+".log"),
	}
	launch := func(context.Context) (*process.Process, error) { return process.Start(command) }
	p := x.add(ctx, &part{name: name, addr: addr, stopSignal: syscall.SIGTERM, launch: launch})
	x.OnClose(func() { p.Kill() }) // the latest process
	return p
}

func await(ctx context.Context, done func() bool) bool {
	return wait.Until(ctx, patience, 50*time.Millisecond, done)
}

// awaitReady waits for an ingest or a worker.
func awaitReady(ctx context.Context, p *part) error {
	body := ""
	if !await(ctx, func() bool {
		var status int
		status, body = launch.Get(ctx, "http://"+p.addr+"/readyz")
		return status == http.StatusOK && !strings.Contains(body, "down")
	}) {
		return fmt.Errorf("wait for %s to be ready: %s", p.name, body)
	}
	return nil
}

// query reads the ledger.
func query[T any](
	ctx context.Context, x *experiment, row pgx.RowToFunc[T], sql string, args ...any,
) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	rows, _ := x.pool.Query(ctx, sql, args...) // CollectRows returns the error
	return pgx.CollectRows(rows, row)
}
