package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/natslocal"
	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/safedir"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// The secrets are public: the stack listens on loopback and sends nothing anywhere.
const (
	signingSecret = "whsec_local"
	token         = "local-token"
	pixel         = "LOCALPIXEL"
	apiKey        = "rk_test_local"
	ingestPass    = "local-only-ingest"
	workerPass    = "local-only-worker"
	provisionPass = "local-only-provision"

	database = "purchase_relay"
	role     = "ingest" // runs ingest; the schema belongs to the superuser
	missed   = 3        // Stripe's events that no webhook brings, in a new list

	startTimeout = time.Minute
	stopGrace    = 15 * time.Second
)

// The stack's listeners, in the order of their ports.
const (
	ingest = iota
	ingestAdmin
	workerAdmin
	tiktok
	nats
	postgres
	stripe
)

var listeners = []string{"ingest", "ingest admin", "worker admin", "TikTok", "NATS", "Postgres", "Stripe"}

// stack is everything that runs.
type stack struct {
	at           []string // the listeners' addresses
	dir          string
	out          io.Writer
	pg           *pglocal.Server
	rolePassword string
	shelf        *stripegen.API
	last         *process.Process
	stops        []func() error
	ended        chan string // names of binaries that ended
}

func newStack(addrs []string, dir string, out io.Writer) *stack {
	return &stack{at: addrs, dir: dir, out: out, rolePassword: rand.Text(), ended: make(chan string, 2)}
}

func (s *stack) say(format string, args ...any) { _, _ = fmt.Fprintf(s.out, format, args...) }

func (s *stack) path(name string) string { return filepath.Join(s.dir, name) }

// ledger returns a role's address of the ledger, without its password: see pgpass.
func (s *stack) ledger(role string) string {
	return "postgres://" + role + "@" + s.at[postgres] + "/" + database + "?sslmode=disable"
}

func (s *stack) ingestEnv() []string {
	return []string{
		"LOCAL_STACK=true", "LOG_FORMAT=console", "STRIPE_WEBHOOK_SECRET=" + signingSecret,
		"INGEST_ADDR=" + s.at[ingest], "ADMIN_ADDR=" + s.at[ingestAdmin],
		"PGPASSFILE=" + s.path("pgpass"), "DATABASE_URL=" + s.ledger(role),
		"NATS_URL=nats://ingest:" + ingestPass + "@" + s.at[nats], "NATS_MAX_BYTES=1GiB",
		"STRIPE_API_KEY=" + apiKey, "STRIPE_API_URL=http://" + s.at[stripe],
		"CHECKOUT_MODES=subscription,payment",
	}
}

func (s *stack) workerEnv() []string {
	return []string{
		"LOCAL_STACK=true", "LOG_FORMAT=console", "ADMIN_ADDR=" + s.at[workerAdmin],
		"NATS_URL=nats://worker:" + workerPass + "@" + s.at[nats],
		"TIKTOK_API_URL=http://" + s.at[tiktok] + launch.EventPath, "TIKTOK_ACCESS_TOKEN=" + token,
		"TIKTOK_PIXEL_ID=" + pixel, "TIKTOK_TEST_MODE=send", "TIKTOK_TEST_EVENT_CODE=TEST12345",
		"TIKTOK_STATS_URL=http://" + s.at[tiktok] + launch.StatsPath,
		"TIKTOK_ADVERTISER_ID=" + launch.AdvertiserID, "TIKTOK_STATS_INTERVAL=15s",
	}
}

// start starts everything and returns when both binaries are ready.
func (s *stack) start(ctx context.Context) error {
	for i, name := range listeners {
		if err := freeport.Check(s.at[i]); err != nil {
			return fmt.Errorf("%s: %w; other ports: make run PORT=18080", name, err)
		}
	}
	checkout, err := os.Stat(".")
	if err != nil {
		return err
	}
	var owners []int
	if stat, ok := checkout.Sys().(*syscall.Stat_t); ok {
		owners = append(owners, int(stat.Uid)) // whose code runs anyway
	}
	if err := safedir.Make(s.dir, 0o002, owners...); err != nil {
		return err
	}
	s.say("Building ingest and tiktok-worker …\n")
	if err := launch.Build(ctx, s.path("bin"), "./cmd/..."); err != nil {
		return err
	}
	s.say("Starting Postgres, NATS and the simulators of TikTok and Stripe …\n")
	for _, start := range []func(context.Context) error{s.startPostgres, s.startNATS, s.startSimulators} {
		if err := start(ctx); err != nil {
			return err
		}
	}
	s.say("Migrating the ledger, provisioning the queue …\n")
	owner := "MIGRATE_DATABASE_URL=" + s.ledger("postgres")
	if _, err := s.command(ctx, []string{owner}, "migrate"); err != nil {
		return err
	}
	provision := "NATS_URL=nats://provision:" + provisionPass + "@" + s.at[nats]
	if _, err := s.command(ctx, []string{provision}, "provision"); err != nil {
		return err
	}
	s.say("Starting ingest and tiktok-worker …\n")
	if err := s.startBinary(ctx, "ingest", s.at[ingestAdmin], s.ingestEnv()); err != nil {
		return err
	}
	return s.startBinary(ctx, "tiktok-worker", s.at[workerAdmin], s.workerEnv())
}

// stop stops everything, in reverse order.
func (s *stack) stop() error {
	var errs []error
	for _, stop := range slices.Backward(s.stops) {
		errs = append(errs, stop())
	}
	return errors.Join(errs...)
}

// startPostgres makes the database and the role that ingest runs as.
func (s *stack) startPostgres(ctx context.Context) (err error) {
	if err := pglocal.Ensure(ctx, s.out); err != nil {
		return err
	}
	s.pg, err = pglocal.Start(ctx, pglocal.Options{Dir: s.path("postgres"), Addr: s.at[postgres], Durable: true})
	if err != nil {
		return err
	}
	s.stops = append(s.stops, s.pg.Stop)
	if s.pg.Dir() != s.path("postgres") {
		s.say("  Its data is in %s: its user cannot reach %s.\n", s.pg.Dir(), s.dir)
	}
	// As an argument, a password would be visible to every local user.
	pgpass := s.at[postgres] + ":*:postgres:" + s.pg.Password() + "\n" +
		s.at[postgres] + ":*:" + role + ":" + s.rolePassword + "\n"
	if err := os.WriteFile(s.path("pgpass"), []byte(pgpass), 0o600); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, s.pg.URL("postgres"))
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, `DO $$ BEGIN CREATE ROLE `+role+`; EXCEPTION WHEN duplicate_object THEN END $$;
		ALTER ROLE `+role+` LOGIN PASSWORD '`+s.rolePassword+`'`)
	if err != nil {
		return fmt.Errorf("make the role %s: %w", role, err)
	}
	const query = `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`
	var exists bool
	if err := conn.QueryRow(ctx, query, database).Scan(&exists); err != nil || exists {
		return err
	}
	return s.pg.CreateDatabase(ctx, database, "")
}

func (s *stack) startNATS(context.Context) error {
	server, err := natslocal.Start(natslocal.Options{
		Addr: s.at[nats], StoreDir: s.path("nats"), ConfigFile: filepath.Join("deploy", "nats", "nats-server.conf"),
		Variables: map[string]string{
			"NATS_INGEST_PASSWORD": ingestPass, "NATS_WORKER_PASSWORD": workerPass,
			"NATS_PROVISION_PASSWORD": provisionPass,
		},
	})
	if err != nil {
		return err
	}
	s.stops = append(s.stops, server.Stop)
	return nil
}

// startSimulators starts TikTok and Stripe's list of events, which is kept between starts as the ledger is.
func (s *stack) startSimulators(ctx context.Context) (err error) {
	var fresh bool
	if s.shelf, fresh, err = stripegen.Open(s.path("stripe-events.jsonl")); err != nil {
		return err
	}
	s.shelf.Limit(20)
	for i := 0; i < missed && fresh; i++ {
		c := stripegen.NewCheckout()
		c.Created = c.Created.Add(-time.Duration(i+1) * time.Hour)
		if err := s.shelf.Add(c.Event()); err != nil {
			return err
		}
	}
	sim := tiktoksim.New(tiktoksim.Config{
		Token: token, Pixel: pixel, Misbehave: 0.02, Latency: 20 * time.Millisecond,
	})
	sim.SetCounting(tiktoksim.Counting{Browser: 0.7, Attributed: 0.26}) // a browser pixel, with ad blockers
	for addr, handler := range map[string]http.Handler{s.at[tiktok]: sim, s.at[stripe]: s.shelf} {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		config := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
		server := &httptest.Server{Listener: listener, Config: config}
		server.Start()
		s.stops = append(s.stops, func() error { server.Close(); return nil })
	}
	return nil
}

// startBinary starts a binary and waits until it is ready. It gets no variable of the shell: a sample must
// not reach a real pixel or a real ledger.
func (s *stack) startBinary(ctx context.Context, name, admin string, env []string) (err error) {
	log := s.path(name + ".log")
	if err := os.Remove(log); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	p, err := process.Start(process.Command{Path: s.path("bin/" + name), Env: env, Log: log})
	if err != nil {
		return err
	}
	s.stops = append(s.stops, func() error { return p.Stop(stopGrace) })
	go func() {
		<-p.Ended()
		s.ended <- name
	}()
	s.last = p
	return p.Await(ctx, "start "+name, startTimeout, func() bool {
		status, _ := launch.Get(ctx, "http://"+admin+"/readyz")
		return status == http.StatusOK
	})
}

// command runs one of ingest's commands and returns its output.
func (s *stack) command(ctx context.Context, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.path("bin/ingest"), args...) //nolint:gosec // our own binary
	cmd.Env = append(s.ingestEnv(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("ingest %s: %w\n%s", args[0], err, out)
	}
	return string(out), nil
}

// sample sends one signed purchase, follows it to its end, and prints its timeline.
func (s *stack) sample(ctx context.Context) error {
	c := stripegen.NewCheckout()
	if err := s.shelf.Add(c.Event()); err != nil {
		return err
	}
	sender := &stripegen.Sender{URL: "http://" + s.at[ingest] + "/webhooks/stripe", Secret: signingSecret}
	answer, err := sender.Send(ctx, c.Event())
	if err != nil {
		return err
	}
	if answer.Status != http.StatusOK {
		return fmt.Errorf("send the sample purchase: ingest answered %d %s", answer.Status, answer.Body)
	}
	final := []string{"delivered", "dead", "skipped", "rejected"}
	var purchase struct{ Status string }
	err = s.last.Await(ctx, "deliver the sample purchase", startTimeout, func() bool {
		_, body := launch.Get(ctx, "http://"+s.at[ingestAdmin]+"/api/v1/purchases/"+c.SessionID)
		err := json.Unmarshal([]byte(body), &purchase)
		return err == nil && slices.Contains(final, purchase.Status)
	})
	if err != nil {
		return err
	}
	timeline, err := s.command(ctx, nil, "show", c.SessionID)
	if err != nil {
		return err
	}
	s.say("\nA sample purchase, as ingest show prints it:\n\n%s", timeline)
	if purchase.Status != "delivered" {
		return fmt.Errorf("deliver the sample purchase: its status is %s", purchase.Status)
	}
	return nil
}
