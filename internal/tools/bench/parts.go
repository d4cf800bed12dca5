package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/procfs"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/testkit/try"
)

const (
	migrated  = "migrated" // database that every ledger is a copy of
	waitLimit = 2 * time.Minute
	stopGrace = 20 * time.Second
)

// startPostgres starts the private server, checks that it is durable, and migrates a database to copy.
func (b *bench) startPostgres(ctx context.Context) {
	b.pg = try.Must(pglocal.Start(ctx, pglocal.Options{Durable: true}))
	b.OnEnd(b.pg.Stop)
	try.Check(b.pg.CreateDatabase(ctx, migrated, ""))
	url := b.pg.URL(migrated)
	try.Must(ledger.Migrate(ctx, secret.String(url)))
	b.Conditions = append(b.Conditions, "Postgres "+query[string](ctx, url, "SHOW server_version"))
	for _, setting := range []string{"fsync", "synchronous_commit", "full_page_writes"} {
		value := query[string](ctx, url, "SHOW "+setting)
		if value != "on" {
			try.Check(fmt.Errorf("postgres runs with %s=%s: commits are not durable", setting, value))
		}
		b.Conditions = append(b.Conditions, setting+" on")
	}
	b.Conditions = append(b.Conditions, fmt.Sprintf("one fdatasync %.2f ms", syncTime(b.pg.Dir())))
}

// syncTime returns the median time, in ms, of writing one page durably, as Postgres does at a commit, on the
// disk of a folder.
func syncTime(dir string) float64 {
	flags := os.O_RDWR | os.O_CREATE | syscall.O_DSYNC
	file := try.Must(os.OpenFile(filepath.Join(dir, "sync"), flags, 0o600)) //nolint:gosec // ours
	defer func() { _, _ = file.Close(), os.Remove(file.Name()) }()
	try.Must(file.Write(make([]byte, 1<<20))) // Postgres syncs existing pages, too
	var times series
	for i := range 50 {
		began := time.Now()
		try.Must(file.WriteAt(make([]byte, 8<<10), int64(i)*8<<10))
		times = append(times, time.Since(began).Seconds()*1000)
	}
	return times.median()
}

// database creates an empty, migrated ledger and returns its URL.
func (b *bench) database(ctx context.Context, name string) string {
	try.Check(b.pg.CreateDatabase(ctx, name, migrated))
	return b.pg.URL(name)
}

// baselineDatabase is like database, without the triggers of the dashboard's totals.
func (b *bench) baselineDatabase(ctx context.Context, name string) string {
	url := b.database(ctx, name)
	execute(ctx, url, "ALTER TABLE public.purchases DISABLE TRIGGER USER")
	return url
}

// query returns one value, read over a connection of its own.
func query[T any](ctx context.Context, url, sql string, args ...any) (value T) {
	conn := try.Must(pgx.Connect(ctx, url))
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := conn.QueryRow(ctx, sql, args...).Scan(&value); err != nil {
		try.Check(fmt.Errorf("%s: %w", sql, err))
	}
	return value
}

// execute runs statements.
func execute(ctx context.Context, url, sql string) {
	conn := try.Must(pgx.Connect(ctx, url))
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		try.Check(fmt.Errorf("%s: %w", sql, err))
	}
}

// server is a running program and the address that it listens on.
type server struct {
	*process.Process
	addr    string
	command process.Command
}

// serve runs a program until the end of the current scope, with env as its whole environment and its output
// in a file, as in production. It returns when the program listens on addr.
func (b *bench) serve(ctx context.Context, addr string, env []string, path string, args ...string) *server {
	log := filepath.Join(b.dir, filepath.Base(path)+".log")
	s := &server{addr: addr, command: process.Command{Path: path, Args: args, Env: env, Dir: b.dir, Log: log}}
	b.OnClose(s.stop)
	s.start(ctx)
	return s
}

// start starts the program, again after a stop, and waits until it listens.
func (s *server) start(ctx context.Context) {
	s.Process = try.Must(process.Start(s.command))
	s.await(ctx, "wait for "+s.addr, func() bool {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.addr)
		return err == nil && conn.Close() == nil
	})
}

// await waits until done returns true. It fails where the program ends before.
func (s *server) await(ctx context.Context, operation string, done func() bool) {
	try.Check(s.Await(ctx, operation, waitLimit, done))
}

// stop ignores the exit status: nats-server's is 1 after a signal.
func (s *server) stop() {
	if s.Process != nil {
		_ = s.Stop(stopGrace)
	}
}

// startNull serves a handler that does nothing.
func (b *bench) startNull() (addr string) {
	null := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	b.OnClose(null.Close)
	return null.Listener.Addr().String()
}

// startNATS runs a nats-server with JetStream. Its streams survive a stop, until the end of the current
// scope.
func (b *bench) startNATS(ctx context.Context) *server {
	store := try.Must(os.MkdirTemp(b.dir, "jetstream"))
	b.OnEnd(func() error { return os.RemoveAll(store) })
	addr := try.Must(freeport.Addr())
	host, port, _ := net.SplitHostPort(addr)
	return b.serve(ctx, addr, nil, b.dir+"/nats-server", "-a", host, "-p", port, "-js", "-sd", store)
}

// usualLatency is that of TikTok's simulator, ± 50 %.
const usualLatency = 20 * time.Millisecond

// startSimulator runs TikTok's, which accepts every valid event after a latency.
func (b *bench) startSimulator(ctx context.Context, latency time.Duration) *server {
	addr := try.Must(freeport.Addr())
	return b.serve(ctx, addr, nil,
		b.dir+"/tiktoksim", "-addr", addr, "-misbehave", "0", "-latency", latency.String())
}

func simulatorStats(ctx context.Context, tiktok *server) (stats tiktoksim.Stats) {
	try.Check(json.Unmarshal(try.Must(fetch(ctx, http.MethodGet, "http://"+tiktok.addr+"/stats", "")), &stats))
	return stats
}

// unlimited replaces the worker's rate limit of ten requests a second.
const unlimited = "TIKTOK_MAX_RPS=1000"

// startWorker runs the worker as it is shipped, with further environment.
func (b *bench) startWorker(ctx context.Context, nats, tiktok *server, env ...string) *server {
	worker := try.Must(launch.NewWorker("http://"+tiktok.addr, "nats://"+nats.addr))
	return b.serve(ctx, worker.Admin, worker.Env(env...), b.dir+"/tiktok-worker")
}

// system is ingest or a baseline in its place, with its ledger and what follows it.
type system struct {
	*server
	admin, ledger        string  // address, URL
	nats, tiktok, worker *server // nil where a system has none
}

// startIngest runs ingest on a ledger, with further environment. Without nats nothing is published.
func (b *bench) startIngest(ctx context.Context, ledger string, nats *server, env ...string) *system {
	queue, ready := "127.0.0.1:1", "" // a closed port
	if nats != nil {
		queue, ready = nats.addr, `"nats":"up"`
	}
	in := try.Must(launch.NewIngest(ledger, "nats://"+queue))
	env = in.Env(append(env, "NATS_MAX_BYTES=2GiB")...)
	s := &system{admin: in.Admin, ledger: ledger, nats: nats}
	s.server = b.serve(ctx, in.Public, env, b.dir+"/ingest")
	s.await(ctx, "wait for ingest to be ready", func() bool {
		body, err := fetch(ctx, http.MethodGet, "http://"+in.Admin+"/readyz", "")
		return err == nil && strings.Contains(string(body), ready)
	})
	return s
}

// startIngestAlone runs ingest without NATS on a new ledger of this name.
func (b *bench) startIngestAlone(ctx context.Context, name string) *system {
	return b.startIngest(ctx, b.database(ctx, name), nil)
}

// startPipeline starts everything from the webhook to TikTok on a ledger, each part in a process of its own.
func (b *bench) startPipeline(
	ctx context.Context, ledger string, latency time.Duration, workerEnv ...string,
) *system {
	s := b.startIngest(ctx, ledger, b.startNATS(ctx))
	s.tiktok = b.startSimulator(ctx, latency)
	s.worker = b.startWorker(ctx, s.nats, s.tiktok, workerEnv...)
	return s
}

const sqlCount = "SELECT count(*) FROM public.purchases"

// awaitDelivery waits until the ledger has every purchase's outcome.
func (s *system) awaitDelivery(ctx context.Context) {
	s.await(ctx, "wait for every purchase to be delivered", func() bool {
		return query[int](ctx, s.ledger, sqlCount+" WHERE status IN ('pending', 'published', 'retrying')") == 0
	})
}

// verify compares what measurements had answered with the ledger and with TikTok: every purchase, once.
func (s *system) verify(ctx context.Context, measurements ...*measurement) {
	answered, counts := 0, []int{query[int](ctx, s.ledger, sqlCount)}
	for _, m := range measurements {
		answered += m.answered
	}
	if s.tiktok != nil {
		delivered := query[int](ctx, s.ledger, sqlCount+" WHERE status = 'delivered'")
		counts = append(counts, delivered, simulatorStats(ctx, s.tiktok).Accepted)
	}
	if slices.ContainsFunc(counts, func(n int) bool { return n != answered }) {
		try.Check(fmt.Errorf("%d purchases answered; recorded, delivered, accepted: %d", answered, counts))
	}
}

// fetch returns the body of a response. Any status but 2xx is an error.
func fetch(ctx context.Context, method, url, body string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	status, answer := launch.Do(ctx, method, url, body)
	if status/100 != 2 {
		return nil, fmt.Errorf("%s %s: %d: %.200s", method, url, status, answer)
	}
	return []byte(answer), nil
}

// memory adds a row with the peak of a process' resident memory; without /proc it is empty.
func (b *bench) memory(name string, pid int) *row {
	r := b.row("resident memory of "+name+", peak", "MiB")
	if process, err := procfs.NewProc(pid); err == nil {
		if status, err := process.NewStatus(); err == nil {
			r.add(float64(status.VmHWM) / (1 << 20))
		}
	}
	return r
}

// usage is a row with the µs of processor time that processes use for each purchase; without /proc it is
// empty.
type usage struct {
	*row
	pids []int
}

func (b *bench) usage(name string, pids ...int) *usage {
	return &usage{b.row("processor of "+name, "µs"), pids}
}

// meter begins to measure processor time; end is called after a number of purchases.
func meter(usages ...*usage) (end func(purchases int)) {
	var before series
	for _, u := range usages {
		before = append(before, processorTime(u.pids))
	}
	return func(purchases int) {
		for i, u := range usages {
			if used := processorTime(u.pids) - before[i]; used > 0 {
				u.add(used * 1e6 / float64(purchases))
			}
		}
	}
}

// processorTime returns the seconds that processes and their children have used, children that ended
// included. It leaves out the children of this process: they are what is measured.
func processorTime(pids []int) (total float64) {
	const ticks = 100 // clock ticks a second in /proc, on every Linux that Go supports
	processes, _ := procfs.AllProcs()
	for _, process := range processes {
		stat, err := process.Stat()
		parent := stat.PPID != os.Getpid() && slices.Contains(pids, stat.PPID)
		if err != nil || !parent && !slices.Contains(pids, stat.PID) { // ended meanwhile, or another's
			continue
		}
		total += stat.CPUTime()
		if stat.PID != os.Getpid() {
			total += float64(stat.CUTime+stat.CSTime) / ticks
		}
	}
	return total
}
