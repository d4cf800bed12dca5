package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

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
	signingSecret = "whsec_bench-0123456789abcdef" //nolint:gosec // protects nothing
	adminToken    = "bench-only-0123456789"
	template      = "migrated" // database that every ledger is a copy of
	waitLimit     = 2 * time.Minute
	stopGrace     = 20 * time.Second
)

// startPostgres starts the private server, checks that it is durable, and migrates the template.
func (b *bench) startPostgres(ctx context.Context) {
	b.pg = try.Must(pglocal.Start(ctx, pglocal.Options{Durable: true}))
	b.OnEnd(b.pg.Stop)
	try.Check(b.pg.CreateDatabase(ctx, template, ""))
	try.Must(ledger.Migrate(ctx, secret.String(b.pg.URL(template))))
	for _, setting := range []string{"server_version", "fsync", "synchronous_commit", "full_page_writes"} {
		value := query[string](ctx, b.pg.URL(template), "SELECT current_setting($1)", setting)
		if setting == "server_version" {
			value, _, _ = strings.Cut(value, " ")
			setting = "Postgres"
		} else if value != "on" {
			try.Check(fmt.Errorf("postgres runs with %s=%s: commits are not durable", setting, value))
		}
		b.report.Machine = append(b.report.Machine, fact{setting, value})
	}
	sync := fmt.Sprintf("%.2f ms", syncTime(b.pg.Dir()).Seconds()*1000)
	b.report.Machine = append(b.report.Machine, fact{"one fdatasync", sync})
}

// database creates an empty, migrated ledger and returns its URL.
func (b *bench) database(ctx context.Context, name string) string {
	try.Check(b.pg.CreateDatabase(ctx, name, template))
	return b.pg.URL(name)
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

func execute(ctx context.Context, url, sql string, args ...any) {
	conn := try.Must(pgx.Connect(ctx, url))
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, sql, args...); err != nil {
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
	if !filepath.IsAbs(path) {
		path = filepath.Join(b.dir, path)
	}
	log := filepath.Join(b.dir, filepath.Base(path)+".log")
	s := &server{addr: addr, command: process.Command{Path: path, Args: args, Env: env, Dir: b.dir, Log: log}}
	b.OnEnd(func() error {
		s.stop()
		return nil
	})
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

// ingest is the real one.
type ingest struct {
	*server
	admin  string // address
	ledger string // URL of its database
}

// startIngest runs ingest on a ledger. Without nats, the address of a nats-server, nothing is published.
func (b *bench) startIngest(ctx context.Context, ledger, nats string, env ...string) *ingest {
	const closedPort = "127.0.0.1:1"
	public, admin := try.Must(freeport.Addr()), try.Must(freeport.Addr())
	s := b.serve(ctx, public, append([]string{
		"STRIPE_WEBHOOK_SECRET=" + signingSecret, "DATABASE_URL=" + ledger,
		"NATS_URL=nats://" + cmp.Or(nats, closedPort), "NATS_MAX_BYTES=2GiB",
		"INGEST_ADDR=" + public, "ADMIN_ADDR=" + admin, "ADMIN_TOKEN=" + adminToken,
	}, env...), "ingest")
	s.await(ctx, "wait for ingest to be ready", func() bool {
		body, err := fetch(ctx, http.MethodGet, "http://"+admin+"/readyz", "")
		return err == nil && (nats == "" || strings.Contains(string(body), `"nats":"up"`))
	})
	return &ingest{server: s, admin: admin, ledger: ledger}
}

// startIngestAlone runs ingest without NATS on a new ledger of this name.
func (b *bench) startIngestAlone(ctx context.Context, name string) *ingest {
	return b.startIngest(ctx, b.database(ctx, name), "")
}

// startNATS runs a nats-server with JetStream. Its streams survive a stop, until the end of the current
// scope.
func (b *bench) startNATS(ctx context.Context) *server {
	store := try.Must(os.MkdirTemp(b.dir, "jetstream"))
	b.OnEnd(func() error { return os.RemoveAll(store) })
	addr := try.Must(freeport.Addr())
	host, port, _ := net.SplitHostPort(addr)
	return b.serve(ctx, addr, nil, "nats-server", "-a", host, "-p", port, "-js", "-sd", store)
}

// simulator is TikTok's. It accepts every valid event after a latency.
type simulator struct{ *server }

func (b *bench) startSimulator(ctx context.Context, latency time.Duration) simulator {
	addr := try.Must(freeport.Addr())
	args := []string{"-addr", addr, "-misbehave", "0", "-latency", latency.String()}
	return simulator{b.serve(ctx, addr, nil, "tiktoksim", args...)}
}

func (s simulator) url() string { return "http://" + s.addr + launch.EventPath }

func (s simulator) stats(ctx context.Context) (stats tiktoksim.Stats) {
	body := try.Must(fetch(ctx, http.MethodGet, "http://"+s.addr+"/stats", ""))
	try.Check(json.Unmarshal(body, &stats))
	return stats
}

// unlimited replaces the worker's rate limit of ten requests a second.
const unlimited = "TIKTOK_MAX_RPS=1000"

// startWorker runs the worker as it is shipped, with further environment.
func (b *bench) startWorker(ctx context.Context, nats *server, tiktok simulator, env ...string) *server {
	admin := try.Must(freeport.Addr())
	return b.serve(ctx, admin, append([]string{
		"TIKTOK_ACCESS_TOKEN=local-token", "TIKTOK_PIXEL_ID=LOCALPIXEL", "TIKTOK_API_URL=" + tiktok.url(),
		"NATS_URL=nats://" + nats.addr, "ADMIN_ADDR=" + admin,
	}, env...), "tiktok-worker")
}

// pipeline is everything from the webhook to TikTok, each part in a process of its own.
type pipeline struct {
	ingest       *ingest
	nats, worker *server
	tiktok       simulator
}

// startPipeline starts everything on a new ledger of this name.
func (b *bench) startPipeline(ctx context.Context, name string, ingestEnv, workerEnv []string) *pipeline {
	ledger := b.database(ctx, name)
	p := &pipeline{nats: b.startNATS(ctx), tiktok: b.startSimulator(ctx, b.latency)}
	p.ingest = b.startIngest(ctx, ledger, p.nats.addr, ingestEnv...)
	p.worker = b.startWorker(ctx, p.nats, p.tiktok, workerEnv...)
	return p
}

const (
	sqlCount       = "SELECT count(*) FROM public.purchases"
	sqlUndelivered = sqlCount + " WHERE status IN ('pending', 'published', 'retrying')"
)

// awaitDelivery waits until the ledger has every purchase's outcome.
func (p *pipeline) awaitDelivery(ctx context.Context) {
	p.ingest.await(ctx, "wait for every purchase to be delivered", func() bool {
		return query[int](ctx, p.ingest.ledger, sqlUndelivered) == 0
	})
}

// verify compares the ledger with what TikTok accepted: every purchase, once.
func (p *pipeline) verify(ctx context.Context) {
	all := query[int](ctx, p.ingest.ledger, sqlCount)
	delivered := query[int](ctx, p.ingest.ledger, sqlCount+" WHERE status = 'delivered'")
	accepted := p.tiktok.stats(ctx).Accepted
	if all != delivered || all != accepted {
		try.Check(fmt.Errorf("of %d purchases %d are delivered, and TikTok accepted %d", all, delivered, accepted))
	}
}

// fetch returns the body of a response. Any status but 2xx is an error.
func fetch(ctx context.Context, method, url, body string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %.200s", method, url, resp.Status, data)
	}
	return data, err
}
