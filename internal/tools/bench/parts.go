package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/process"
)

const (
	signingSecret = "whsec_bench-0123456789abcdef" //nolint:gosec // guards nothing
	adminToken    = "bench-only-0123456789"
	migrated      = "migrated" // the database that the others are copies of
	patience      = 2 * time.Minute
	stopGrace     = 20 * time.Second
)

// startPostgres starts the private server, checks that it keeps its promise, and migrates the template of all ledgers.
func (b *bench) startPostgres(ctx context.Context) (err error) {
	if b.pg, err = pglocal.Start(ctx, pglocal.Options{Durable: true}); err != nil {
		return err
	}
	if err := b.pg.CreateDatabase(ctx, migrated, ""); err != nil {
		return err
	}
	if _, err := ledger.Migrate(ctx, secret.Text(b.pg.URL(migrated))); err != nil {
		return err
	}
	for _, setting := range []string{"server_version", "fsync", "synchronous_commit", "full_page_writes"} {
		value, err := query[string](ctx, b.pg.URL(migrated), "SELECT current_setting($1)", setting)
		if err != nil {
			return err
		}
		if setting == "server_version" {
			value, _, _ = strings.Cut(value, " ")
			setting = "Postgres"
		} else if value != "on" {
			return fmt.Errorf("postgres runs with %s=%s: its figures would promise what nobody keeps", setting, value)
		}
		b.report.Machine = append(b.report.Machine, fact{setting, value})
	}
	sync, err := syncTime(b.pg.Dir())
	if err != nil {
		return err
	}
	b.report.Machine = append(b.report.Machine, fact{"one fdatasync", fmt.Sprintf("%.2f ms", sync.Seconds()*1000)})
	return nil
}

// database makes a ledger: migrated, empty, and with an owner's rights for all.
func (b *bench) database(ctx context.Context, name string) (url string, err error) {
	if err := b.pg.CreateDatabase(ctx, name, migrated); err != nil {
		return "", err
	}
	return b.pg.URL(name), nil
}

// settle lets every measurement begin alike: nothing of the one before is left to be written.
func (b *bench) settle(ctx context.Context) error {
	return exec1(ctx, b.pg.URL("postgres"), "CHECKPOINT")
}

// query asks a database for one value, over a connection of its own.
func query[T any](ctx context.Context, url, sql string, args ...any) (value T, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return value, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := conn.QueryRow(ctx, sql, args...).Scan(&value); err != nil {
		return value, fmt.Errorf("%s: %w", sql, err)
	}
	return value, nil
}

func exec1(ctx context.Context, url, sql string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

// program is one process.
type program struct{ *process.Process }

// start runs a program with this environment alone, its output in a file, as in production.
func (b *bench) start(env []string, path string, args ...string) (*program, error) {
	log := filepath.Join(b.dir, filepath.Base(path)+".log")
	p, err := process.Start(process.Command{Path: path, Args: args, Env: env, Dir: b.dir, Log: log})
	if err != nil {
		return nil, err
	}
	return &program{p}, nil
}

// stop ends a program as an operator would.
func (p *program) stop() { _ = p.Stop(stopGrace) }

// await waits for the thing itself, or for the end of a program without which it cannot come.
func (p *program) await(ctx context.Context, what string, done func() bool) error {
	return p.Await(ctx, what, patience, done)
}

// nobody is an address at which nothing listens.
const nobody = "127.0.0.1:1"

// ingest is the real one.
type ingest struct {
	*program
	public, admin string
	ledger        string // its database
}

// startIngest runs ingest on a ledger; nats "" is a NATS that is away.
func (b *bench) startIngest(ctx context.Context, url, nats string, env ...string) (*ingest, error) {
	addrs, err := freeport.Addrs(2)
	if err != nil {
		return nil, err
	}
	i := &ingest{public: addrs[0], admin: addrs[1], ledger: url}
	i.program, err = b.start(append([]string{
		"STRIPE_WEBHOOK_SECRET=" + signingSecret, "DATABASE_URL=" + url, "NATS_URL=nats://" + cmp.Or(nats, nobody), "NATS_MAX_BYTES=2GiB",
		"INGEST_ADDR=" + i.public, "ADMIN_ADDR=" + i.admin, "ADMIN_TOKEN=" + adminToken,
	}, env...), filepath.Join(b.dir, "ingest"))
	if err != nil {
		return nil, err
	}
	err = i.await(ctx, "ingest to be ready", func() bool {
		status, body := get(ctx, "http://"+i.admin+"/readyz")
		return status == http.StatusOK && (nats == "" || strings.Contains(body, `"nats":"up"`))
	})
	if err != nil {
		i.stop()
		return nil, err
	}
	return i, nil
}

// startNATS runs a nats-server with JetStream on a folder of this name: again the same one, after a stop.
func (b *bench) startNATS(ctx context.Context, addr, store string) (*program, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	p, err := b.start(nil, filepath.Join(b.dir, "nats-server"), "-a", host, "-p", port, "-js", "-sd", filepath.Join(b.dir, store))
	if err != nil {
		return nil, err
	}
	if err := p.await(ctx, "nats-server to listen", func() bool { return listens(ctx, addr) }); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// simulator is TikTok's, answering well after a latency.
type simulator struct {
	*program
	addr string
}

const eventPath = "/open_api/v1.3/event/track/" // as TikTok answers it

func (s *simulator) url() string { return "http://" + s.addr + eventPath }

func (b *bench) startSimulator(ctx context.Context, latency time.Duration) (*simulator, error) {
	addrs, err := freeport.Addrs(1)
	if err != nil {
		return nil, err
	}
	s := &simulator{addr: addrs[0]}
	s.program, err = b.start(nil, filepath.Join(b.dir, "tiktoksim"), "-addr", s.addr, "-misbehave", "0", "-latency", latency.String())
	if err != nil {
		return nil, err
	}
	if err := s.await(ctx, "the simulator to listen", func() bool { return listens(ctx, s.addr) }); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// unlimited takes the worker's rate limit out of the way, where what is measured is not what is shipped: ten requests a second.
const unlimited = "TIKTOK_MAX_RPS=1000"

// startWorker runs the worker as it is shipped, but for env. It returns at once.
func (b *bench) startWorker(nats string, tiktok *simulator, env ...string) (*program, error) {
	return b.start(append([]string{
		"TIKTOK_ACCESS_TOKEN=local-token", "TIKTOK_PIXEL_ID=LOCALPIXEL", "TIKTOK_API_URL=" + tiktok.url(), "NATS_URL=nats://" + nats,
		"ADMIN_ADDR=127.0.0.1:0",
	}, env...), filepath.Join(b.dir, "tiktok-worker"))
}

// get asks a loopback address; status 0: no answer.
func get(ctx context.Context, url string) (status int, body string) {
	status, data, err := ask(ctx, http.MethodGet, url, "")
	if err != nil {
		return 0, err.Error()
	}
	return status, string(data)
}

func ask(ctx context.Context, method, url, body string) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

func listens(ctx context.Context, addr string) bool {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}
