package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"purchase-relay/internal/testkit/natslocal"
	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// What is known to everybody here: the stack listens on loopback alone and sends nothing anywhere.
const (
	signingSecret = "whsec_local"
	token         = "local-token"
	pixel         = "LOCALPIXEL"
	testCode      = "TEST12345"
	apiKey        = "rk_test_local"
	database      = "purchase_relay"
	runtimeRole   = "ingest" // owns nothing; the schema is the superuser's
	ingestPass    = "local-only-ingest"
	workerPass    = "local-only-worker"
	provisionPass = "local-only-provision"
	stopGrace     = 15 * time.Second
)

// addresses are the stack's listeners, counted up from one port.
type addresses struct {
	ingest, ingestAdmin, workerAdmin, simulator, nats, postgres, stripe string
}

func newAddresses(port int) addresses {
	at := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port+i)) }
	return addresses{ingest: at(0), ingestAdmin: at(1), workerAdmin: at(2), simulator: at(3), nats: at(4), postgres: at(5), stripe: at(6)}
}

// ingestEnv is the environment of `ingest serve`: its ledger as the runtime role.
func (a addresses) ingestEnv(ledger string) []string {
	return []string{
		"LOCAL_STACK=true", "STRIPE_WEBHOOK_SECRET=" + signingSecret, "DATABASE_URL=" + ledger, "NATS_URL=nats://ingest:" + ingestPass + "@" + a.nats,
		"INGEST_ADDR=" + a.ingest, "ADMIN_ADDR=" + a.ingestAdmin, "CHECKOUT_MODES=subscription,payment", "NATS_MAX_BYTES=1GiB", "LOG_FORMAT=console",
		"STRIPE_API_KEY=" + apiKey, "STRIPE_API_URL=http://" + a.stripe,
	}
}

// workerEnv is the worker's environment.
func (a addresses) workerEnv() []string {
	return []string{
		"LOCAL_STACK=true", "TIKTOK_ACCESS_TOKEN=" + token, "TIKTOK_PIXEL_ID=" + pixel, "TIKTOK_API_URL=http://" + a.simulator + "/open_api/v1.3/event/track/",
		"TIKTOK_TEST_MODE=send", "TIKTOK_TEST_EVENT_CODE=" + testCode, "ADMIN_ADDR=" + a.workerAdmin,
		"NATS_URL=nats://worker:" + workerPass + "@" + a.nats, "LOG_FORMAT=console",
	}
}

// free says which of the addresses is taken by somebody else, in one sentence with the remedy.
func (a addresses) free(ctx context.Context, port int) error {
	for _, x := range []struct{ what, addr string }{
		{"ingest", a.ingest},
		{"ingest's admin listener", a.ingestAdmin},
		{"the worker's admin listener", a.workerAdmin},
		{"the TikTok simulator", a.simulator},
		{"NATS", a.nats},
		{"Postgres", a.postgres},
		{"the stand-in for Stripe's API", a.stripe},
	} {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", x.addr)
		if err != nil {
			return fmt.Errorf("%s cannot listen on %s, something else does: stop that, or take other ports with `make run PORT=%d`", x.what, x.addr, port+10000)
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("local", flag.ContinueOnError)
	port := flags.Int("port", 8080, "the first of seven ports: ingest, its admin, the worker's admin, the simulator, NATS, Postgres, the stand-in for Stripe's API")
	dir := flags.String("dir", ".local", "where the data, the binaries and the logs are kept")
	once := flags.Bool("once", false, "stop after the sample purchase instead of staying")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *port < 1 || *port > 65529 {
		return errors.New("-port is a number from 1 to 65529")
	}
	root, err := filepath.Abs(*dir)
	if err != nil {
		return err
	}
	if err := makeRoot(root); err != nil {
		return err
	}
	at := newAddresses(*port)
	if err := at.free(ctx, *port); err != nil {
		return err
	}
	s := &stack{out: out, root: root, at: at, getenv: getenv}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.start(ctx); err != nil {
		return err
	}
	if err := s.sample(ctx); err != nil {
		return err
	}
	if *once {
		return nil
	}
	s.printAddresses()
	select {
	case <-ctx.Done():
		s.say("\nStopping …\n")
		return nil
	case name := <-s.died:
		return fmt.Errorf("%s ended by itself; its log is %s", name, s.log(name))
	}
}

// stack is everything that was started.
type stack struct {
	out    io.Writer
	root   string
	at     addresses
	getenv func(string) string
	pg     *pglocal.Server
	nats   *natslocal.Server
	sim    *server
	stripe *server
	shelf  *stripegen.API
	procs  []*process.Process
	died   chan string
}

func (s *stack) say(format string, args ...any) { _, _ = fmt.Fprintf(s.out, format, args...) }

func (s *stack) start(ctx context.Context) (err error) {
	s.died = make(chan string, 2)
	s.say("Building ingest and tiktok-worker …\n")
	bin, err := build(ctx, s.root, s.getenv)
	if err != nil {
		return err
	}
	if err := pglocal.Ensure(ctx, s.out); err != nil {
		return err
	}
	s.say("Starting Postgres …\n")
	if s.pg, err = pglocal.Start(ctx, pglocal.Options{Dir: filepath.Join(s.root, "postgres"), Addr: s.at.postgres, Durable: true}); err != nil {
		return err
	}
	if wanted := filepath.Join(s.root, "postgres"); !strings.HasPrefix(s.pg.Dir(), wanted) {
		s.say("  Its data is in %s: the user it runs as cannot reach %s.\n", s.pg.Dir(), wanted)
	}
	if err := s.ensureDatabase(ctx); err != nil {
		return err
	}
	if err := s.writePasswords(); err != nil {
		return err
	}
	s.say("Starting NATS, the TikTok simulator and the stand-in for Stripe's API …\n")
	if s.nats, err = natslocal.Start(natslocal.Options{
		Addr: s.at.nats, StoreDir: filepath.Join(s.root, "nats"), ConfigFile: filepath.Join("deploy", "nats", "nats-server.conf"),
		Variables: map[string]string{
			"NATS_INGEST_PASSWORD": ingestPass, "NATS_WORKER_PASSWORD": workerPass, "NATS_PROVISION_PASSWORD": provisionPass,
		},
	}); err != nil {
		return err
	}
	if s.sim, err = serve(ctx, s.at.simulator, tiktoksim.New(tiktoksim.Config{Token: token, Pixel: pixel, Misbehave: 0.02, Latency: 20 * time.Millisecond})); err != nil {
		return err
	}
	if err := s.startStripe(ctx); err != nil {
		return err
	}
	s.say("Migrating the ledger, provisioning the queue …\n")
	ledger := s.pg.URLOf(runtimeRole, database)
	for _, step := range []struct {
		command string
		env     []string
	}{
		{"migrate", []string{"DATABASE_URL=" + ledger, "MIGRATE_DATABASE_URL=" + s.pg.URL(database)}},
		{"provision", []string{"NATS_URL=nats://provision:" + provisionPass + "@" + s.at.nats, "NATS_MAX_BYTES=1GiB"}},
	} {
		if err := runCommand(ctx, filepath.Join(bin, "ingest"), step.command, step.env, s.getenv); err != nil {
			return err
		}
	}
	s.say("Starting ingest and tiktok-worker …\n")
	for _, p := range []struct {
		name, health string
		env          []string
	}{
		{"ingest", s.at.ingestAdmin, s.at.ingestEnv(ledger)},
		{"tiktok-worker", s.at.workerAdmin, s.at.workerEnv()},
	} {
		proc, err := s.startProcess(filepath.Join(bin, p.name), p.env)
		if err != nil {
			return err
		}
		s.procs = append(s.procs, proc)
	}
	for i, addr := range []string{s.at.ingestAdmin, s.at.workerAdmin} {
		url := "http://" + addr + "/readyz"
		ready := func() bool { status, _ := get(ctx, url); return status == http.StatusOK }
		if err := s.procs[i].Await(ctx, "wait for "+url, time.Minute, ready); err != nil {
			return err
		}
	}
	return nil
}

func (s *stack) log(name string) string { return filepath.Join(s.root, name+".log") }

// writePasswords writes the roles' passwords in libpq's form, which psql, pg_dump and ingest read through
// PGPASSFILE: as an argument a password would be visible to every local user.
func (s *stack) writePasswords() error {
	file, err := os.OpenFile(s.passwords(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	for _, role := range []string{"postgres", runtimeRole} {
		if _, err := fmt.Fprintf(file, "%s:*:%s:%s\n", s.at.postgres, role, s.pg.Password(role)); err != nil {
			return errors.Join(err, file.Close())
		}
	}
	return file.Close()
}

func (s *stack) passwords() string { return filepath.Join(s.root, "pgpass") }

// withoutPassword is a role's address of the ledger, for PGPASSFILE.
func (a addresses) withoutPassword(role string) string {
	return "postgres://" + role + "@" + a.postgres + "/" + database + "?sslmode=disable"
}

// server is a listener of this process.
type server struct {
	http  *http.Server
	ended chan error
}

func serve(ctx context.Context, addr string, h http.Handler) (*server, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	s := &server{http: &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}, ended: make(chan error, 1)}
	go func() { s.ended <- s.http.Serve(l) }()
	return s, nil
}

func (s *server) stop() error {
	err := s.http.Close()
	if ended := <-s.ended; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, ended)
	}
	return err
}

// missed is how many purchases of the stand-in's list no webhook brings at the first start: something to catch up with.
const missed = 3

// startStripe starts the stand-in for Stripe's list of events. Its list outlives the process, as the ledger does.
func (s *stack) startStripe(ctx context.Context) (err error) {
	var fresh bool
	if s.shelf, fresh, err = stripegen.Open(filepath.Join(s.root, "stripe-events.jsonl"), time.Now()); err != nil {
		return err
	}
	for i := range missed {
		if !fresh {
			break
		}
		c := stripegen.NewCheckout()
		c.Created = c.Created.Add(-time.Duration(i+1) * time.Hour)
		if err := s.shelf.Add(c.Event()); err != nil {
			return err
		}
	}
	s.shelf.Limit(20)
	s.stripe, err = serve(ctx, s.at.stripe, s.shelf)
	return err
}

// stop ends everything in reverse order.
func (s *stack) stop() error {
	var errs []error
	for _, p := range slices.Backward(s.procs) {
		errs = append(errs, p.Stop(stopGrace))
	}
	for _, listener := range []*server{s.sim, s.stripe} {
		if listener != nil {
			errs = append(errs, listener.stop())
		}
	}
	if s.shelf != nil {
		errs = append(errs, s.shelf.Close())
	}
	if s.nats != nil {
		errs = append(errs, s.nats.Stop())
	}
	if s.pg != nil {
		errs = append(errs, s.pg.Stop())
	}
	return errors.Join(errs...)
}

func (s *stack) printAddresses() {
	ingest := filepath.Join(s.root, "bin", "ingest")
	s.say(`
Everything is up. Ctrl-C stops it; the data stays for the next start; logs are in %s.

  webhook        http://%s/webhooks/stripe   (signing secret %s)
  dashboard      http://%s/   (beside it /api/v1/…, /metrics, /readyz)
  worker admin   http://%s/readyz · /metrics
  TikTok (sim)   http://%s/events · /stats · POST /faults
  Stripe (sim)   http://%s/v1/events   (key %s)
  NATS           %s
  Postgres       PGPASSFILE=%s psql '%s'
  logs           %s

Send another purchase:

  go run ./internal/tools/stripegen -url http://%s/webhooks/stripe -list http://%s

Hold Stripe's book against the ledger's, and catch up with what webhooks missed (at the first start, %d purchases; with -n 20 -withhold 0.5
the command above loses some more):

  export STRIPE_API_KEY=%s STRIPE_API_URL=http://%s CHECKOUT_MODES=subscription,payment
  export PGPASSFILE=%s DATABASE_URL='%s'
  %s reconcile
  %s backfill

Let TikTok fail for ten seconds, and watch the worker's log:

  curl -X POST http://%s/faults -d '{"status":503,"for":"10s"}'

docs/quickstart.md goes on from here: a refused token and why nothing arrives, a replay, your own Stripe account, your own pixel.

`, s.root, s.at.ingest, signingSecret, s.at.ingestAdmin, s.at.workerAdmin, s.at.simulator, s.at.stripe, apiKey, s.nats.URL(), s.passwords(), s.at.withoutPassword("postgres"),
		filepath.Join(s.root, "*.log"), s.at.ingest, s.at.stripe, missed, apiKey, s.at.stripe, s.passwords(), s.at.withoutPassword(runtimeRole), ingest, ingest, s.at.simulator)
}

// get asks a loopback address and returns status and body; status 0: no answer.
func get(ctx context.Context, url string) (int, []byte) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, nil
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		return 0, nil
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return 0, nil
	}
	return resp.StatusCode, body
}
