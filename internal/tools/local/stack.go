package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
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
	"purchase-relay/internal/testkit/try"
)

// The secrets are public: the stack listens on loopback and sends nothing anywhere.
const (
	signingSecret = "whsec_local"
	apiKey        = "rk_test_local"
	ingestPass    = "local-only-ingest"
	workerPass    = "local-only-worker"
	provisionPass = "local-only-provision"

	database = "purchase_relay"
	role     = "ingest" // runs ingest; the schema belongs to the superuser
	missed   = 3        // Stripe's events that no webhook brings

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
	try.Scope
	at        []string // the listeners' addresses
	dir, bin  string   // folders of the data and the logs, of the binaries
	out       io.Writer
	extraEnv  []string // added to the worker's
	pg        *pglocal.Server
	stripeAPI *stripegen.API
	last      *process.Process
	ended     chan string // names of binaries that ended
}

func (s *stack) say(format string, args ...any) { _, _ = fmt.Fprintf(s.out, format, args...) }

func (s *stack) path(name string) string { return filepath.Join(s.dir, name) }

// ledger returns a role's address of the ledger, without its password: see pgpass.
func (s *stack) ledger(role string) string {
	return "postgres://" + role + "@" + s.at[postgres] + "/" + database + "?sslmode=disable"
}

// natsURL returns a user's address of NATS.
func (s *stack) natsURL(user, password string) string {
	return "nats://" + user + ":" + password + "@" + s.at[nats]
}

func (s *stack) ingestEnv() []string {
	i := launch.Ingest{
		Public: s.at[ingest], Admin: s.at[ingestAdmin], Database: s.ledger(role),
		NATS: s.natsURL("ingest", ingestPass),
	}
	return i.Env("LOCAL_STACK=true", "LOG_FORMAT=console", "STRIPE_WEBHOOK_SECRET="+signingSecret,
		"PGPASSFILE="+s.path("pgpass"), "CHECKOUT_MODES=subscription,payment",
		"STRIPE_API_KEY="+apiKey, "STRIPE_API_URL=http://"+s.at[stripe])
}

func (s *stack) workerEnv() []string {
	w := launch.Worker{
		Admin: s.at[workerAdmin], TikTok: "http://" + s.at[tiktok], NATS: s.natsURL("worker", workerPass),
	}
	return append(w.Env("LOCAL_STACK=true", "LOG_FORMAT=console", "TIKTOK_TEST_MODE=send",
		"TIKTOK_TEST_EVENT_CODE=TEST12345", "TIKTOK_ADVERTISER_ID="+tiktoksim.AdvertiserID,
		"TIKTOK_STATS_INTERVAL=15s"), s.extraEnv...)
}

// start starts everything and returns when both binaries are ready.
func (s *stack) start(ctx context.Context) {
	for i, name := range listeners {
		if err := freeport.Check(s.at[i]); err != nil {
			try.Check(fmt.Errorf("%s: %w; other ports: make run PORT=18080", name, err))
		}
	}
	var owners []int
	if stat, ok := try.Must(os.Stat(".")).Sys().(*syscall.Stat_t); ok {
		owners = append(owners, int(stat.Uid)) // whose code runs anyway
	}
	try.Check(safedir.Make(s.dir, 0o002, owners...))
	s.say("Building ingest and tiktok-worker …\n")
	try.Check(launch.Build(ctx, s.bin, "./cmd/..."))
	s.say("Starting Postgres, NATS and the simulators of TikTok and Stripe …\n")
	s.startPostgres(ctx)
	s.OnEnd(try.Must(natslocal.Start(natslocal.Options{
		Addr: s.at[nats], StoreDir: s.path("nats"), ConfigFile: filepath.Join("deploy", "nats", "nats-server.conf"),
		Variables: map[string]string{
			"NATS_INGEST_PASSWORD": ingestPass, "NATS_WORKER_PASSWORD": workerPass,
			"NATS_PROVISION_PASSWORD": provisionPass,
		},
	})).Stop)
	s.startSimulators(ctx)
	s.say("Migrating the ledger, provisioning the queue …\n")
	s.command(ctx, []string{"MIGRATE_DATABASE_URL=" + s.ledger("postgres")}, "migrate")
	s.command(ctx, []string{"NATS_URL=" + s.natsURL("provision", provisionPass)}, "provision")
	s.say("Starting ingest and tiktok-worker …\n")
	s.startBinary(ctx, "ingest", s.at[ingestAdmin], s.ingestEnv())
	s.startBinary(ctx, "tiktok-worker", s.at[workerAdmin], s.workerEnv())
}

// startPostgres makes the database and the role that ingest runs as.
func (s *stack) startPostgres(ctx context.Context) {
	try.Check(pglocal.Ensure(ctx, s.out))
	options := pglocal.Options{Dir: s.path("postgres"), Addr: s.at[postgres], Durable: true}
	s.pg = try.Must(pglocal.Start(ctx, options))
	s.OnEnd(s.pg.Stop)
	if s.pg.Dir() != s.path("postgres") {
		s.say("  Its data is in %s: its user cannot reach %s.\n", s.pg.Dir(), s.dir)
	}
	// As an argument, a password would be visible to every local user.
	password := rand.Text()
	pgpass := fmt.Sprintf("%[1]s:*:postgres:%[2]s\n%[1]s:*:%[3]s:%[4]s\n",
		s.at[postgres], s.pg.Password(), role, password)
	try.Check(os.WriteFile(s.path("pgpass"), []byte(pgpass), 0o600))
	conn := try.Must(pgx.Connect(ctx, s.pg.URL("postgres")))
	defer func() { _ = conn.Close(ctx) }()
	try.Must(conn.Exec(ctx, `DO $$ BEGIN CREATE ROLE `+role+`; EXCEPTION WHEN duplicate_object THEN END $$;
		ALTER ROLE `+role+` LOGIN PASSWORD '`+password+`'`))
	const query = `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`
	var exists bool
	try.Check(conn.QueryRow(ctx, query, database).Scan(&exists))
	if !exists {
		try.Check(s.pg.CreateDatabase(ctx, database, ""))
	}
}

// startSimulators starts TikTok and Stripe's list of events, which begins anew.
func (s *stack) startSimulators(ctx context.Context) {
	s.stripeAPI = stripegen.NewAPI()
	s.stripeAPI.Limit(20)
	for i := range missed {
		c := stripegen.NewCheckout()
		c.Created = c.Created.Add(-time.Duration(i+1) * time.Hour)
		try.Check(s.stripeAPI.Add(c.Event()))
	}
	sim := tiktoksim.New(tiktoksim.Config{Misbehave: 0.02, Latency: 20 * time.Millisecond})
	sim.SetCounting(tiktoksim.Counting{Browser: 0.7, Attributed: 0.26}) // a browser pixel, with ad blockers
	for addr, handler := range map[string]http.Handler{s.at[tiktok]: sim, s.at[stripe]: s.stripeAPI} {
		server := &httptest.Server{
			Listener: try.Must((&net.ListenConfig{}).Listen(ctx, "tcp", addr)),
			Config:   &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second},
		}
		server.Start()
		s.OnClose(server.Close)
	}
}

// startBinary starts a binary and waits until it is ready. It gets no variable of the shell: a sample must
// not reach a real pixel or a real ledger.
func (s *stack) startBinary(ctx context.Context, name, admin string, env []string) {
	log := s.path(name + ".log")
	_ = os.Remove(log) // of the last start
	s.last = try.Must(process.Start(process.Command{Path: filepath.Join(s.bin, name), Env: env, Log: log}))
	p := s.last
	s.OnEnd(func() error { return p.Stop(stopGrace) })
	go func() {
		<-p.Ended()
		s.ended <- name
	}()
	try.Check(p.Await(ctx, "start "+name, startTimeout, func() bool {
		status, _ := launch.Get(ctx, "http://"+admin+"/readyz")
		return status == http.StatusOK
	}))
}

// command runs one of ingest's commands and returns its output.
func (s *stack) command(ctx context.Context, env []string, args ...string) string {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "ingest"), args...) //nolint:gosec // our own binary
	cmd.Env = append(s.ingestEnv(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		try.Check(fmt.Errorf("ingest %s: %w\n%s", args[0], err, out))
	}
	return string(out)
}

// sample sends one signed purchase, follows it to its end, and prints its timeline.
func (s *stack) sample(ctx context.Context) {
	c := stripegen.NewCheckout()
	try.Check(s.stripeAPI.Add(c.Event()))
	sender := &stripegen.Sender{URL: "http://" + s.at[ingest] + "/webhooks/stripe", Secret: signingSecret}
	try.Must(sender.Deliver(ctx, c.Event(), 1, 0))
	final := []string{"delivered", "dead", "skipped", "rejected"}
	var purchase struct{ Status string }
	try.Check(s.last.Await(ctx, "deliver the sample purchase", startTimeout, func() bool {
		_, body := launch.Get(ctx, "http://"+s.at[ingestAdmin]+"/api/v1/purchases/"+c.SessionID)
		return json.Unmarshal([]byte(body), &purchase) == nil && slices.Contains(final, purchase.Status)
	}))
	timeline := s.command(ctx, nil, "show", c.SessionID)
	s.say("\nA sample purchase, as ingest show prints it:\n\n%s", timeline)
	if purchase.Status != "delivered" {
		try.Check(fmt.Errorf("deliver the sample purchase: its status is %s", purchase.Status))
	}
}
