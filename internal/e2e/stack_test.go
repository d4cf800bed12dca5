// Package e2e tests the product from the outside: the real binaries as processes, a real Postgres, a real nats-server, the
// strict simulator of TikTok, over real sockets.
package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/natslocal"
	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/pglocal/pgtest"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/testkit/wait"
)

const (
	signingSecret = launch.SigningSecret
	eventPath     = launch.EventPath
)

// raceOptions ends a binary at its first data race. Otherwise each would also wait a second when it exits.
const raceOptions = "GORACE=halt_on_error=1 atexit_sleep_ms=0"

// binaries is the folder of the programs that the tests run. It is kept: Go links again only what has changed.
var binaries string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if what := os.Getenv(nodeVariable); what != "" {
		return runNode(what)
	}
	var err error
	if binaries, err = filepath.Abs("../../.local/e2e"); err != nil {
		panic(err)
	}
	ctx := context.Background()
	err = errors.Join(
		launch.Build(ctx, binaries, "-race", "purchase-relay/cmd/ingest", "purchase-relay/cmd/tiktok-worker",
			"purchase-relay/internal/tools/chaos"),
		launch.Build(ctx, binaries, "github.com/nats-io/nats-server/v2"),
	)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return pgtest.Run(m)
}

// readSources opens what the binaries are built from, once: the test cache sees the files that a test opens (after TestMain
// has begun to run tests), not those that a child process compiles, and would repeat an old "ok" after the product changed.
var readSources = sync.OnceValue(func() error {
	for _, top := range []string{"../../go.mod", "../../cmd", "../../internal", "../../migrations"} {
		err := filepath.WalkDir(top, func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			_, err = os.ReadFile(path)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
})

// stack is the whole product around one test.
type stack struct {
	t        *testing.T
	build    string // the binaries' names begin with it: "plain-" has no race detector
	natsConf string // "": the shipped configuration
	database string
	postgres *pglocal.Server // where it is a private one

	poolMutex sync.Mutex
	pool      *pgxpool.Pool // of the test's own, to database

	nats     *natslocal.Server
	natsDir  string
	natsAddr string
	sim      *tiktoksim.Simulator
	simURL   string
	ingest   *program
	worker   *program
	webhook  string
	admin    string
	sender   *stripegen.Sender
}

// newStack starts everything; env is added to both binaries' environment.
func newStack(t *testing.T, env ...string) *stack {
	t.Helper()
	return newStackOf(t, "", env...)
}

// newStackOf starts binaries whose names begin with build.
func newStackOf(t *testing.T, build string, env ...string) *stack {
	t.Helper()
	s := &stack{t: t, build: build, natsDir: t.TempDir(), sim: tiktoksim.New(tiktoksim.Config{})}
	s.database = pgtest.Migrated(t, func(url string) error { return migrate(t, url) })
	s.natsAddr = freeAddr(t)
	s.startNATS()
	s.simURL = listen(t, s.sim)
	s.startIngest(env...)
	s.startWorker(env...)
	return s
}

// migrate prepares an empty database as a deployment does: the runtime role, then the schema and the role's rights.
func migrate(t *testing.T, database string) error {
	t.Helper()
	s := &stack{t: t, database: database}
	s.makeRole()
	s.connect().Close() // a template must have no connections
	if code, out := command(t, "ingest", []string{"DATABASE_URL=" + s.runtime(), "MIGRATE_DATABASE_URL=" + database}, "migrate"); code != 0 {
		return fmt.Errorf("migrate: exit status %d: %s", code, out)
	}
	return nil
}

// The passwords of the queue's users, and of the role that ingest runs as.
const (
	ingestPassword    = "hunter-ingest"
	workerPassword    = "hunter-worker"
	provisionPassword = "hunter-provision"
	rolePassword      = "hunter-role"
)

// natsURL is the queue's address for one of its users.
func natsURL(user, addr string) string {
	password := map[string]string{"ingest": ingestPassword, "worker": workerPassword, "provision": provisionPassword}[user]
	return "nats://" + user + ":" + password + "@" + addr
}

// natsPasswords are the variables of the shipped configuration.
func natsPasswords() map[string]string {
	return map[string]string{"NATS_INGEST_PASSWORD": ingestPassword, "NATS_WORKER_PASSWORD": workerPassword, "NATS_PROVISION_PASSWORD": provisionPassword}
}

// natsConfig is the configuration that is shipped, with its user for people: a test that connects without a name is one.
func natsConfig(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../deploy/nats/nats-server.conf")
	if err != nil {
		t.Fatal(err)
	}
	const people = "# { user: operator, password: $NATS_OPERATOR_PASSWORD }"
	if !strings.Contains(string(text), people) {
		t.Fatal("the configuration has no line for people any more")
	}
	file := filepath.Join(t.TempDir(), "nats.conf")
	text = []byte(strings.Replace(string(text), people, "{ user: operator, password: anybody }", 1) + "\nno_auth_user: operator\n")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// roles lets one test at a time look for the role and make it: two that ran side by side, first of all, both made it.
var roles sync.Mutex

// makeRole makes the role that ingest runs as, with the script that is shipped, once a server.
func (s *stack) makeRole() {
	s.t.Helper()
	roles.Lock()
	defer roles.Unlock()
	if query[bool](s, `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ingest')`) {
		return
	}
	config, err := pgx.ParseConfig(s.database)
	if err != nil {
		s.t.Fatal(err)
	}
	script := exec.Command("/bin/sh", "../../deploy/postgres/roles.sh")
	script.Env = []string{
		"PATH=" + pgtest.Server(s.t).Programs(), "PGHOST=" + config.Host, fmt.Sprintf("PGPORT=%d", config.Port), "PGPASSWORD=" + config.Password,
		"POSTGRES_USER=" + config.User, "POSTGRES_DB=" + config.Database, "INGEST_DATABASE_PASSWORD=" + rolePassword,
	}
	if out, err := script.CombinedOutput(); err != nil {
		s.t.Fatalf("roles.sh: %v\n%s", err, out)
	}
}

// runtime is the ledger's URL as that role. s.database is the owner's.
func (s *stack) runtime() string {
	s.t.Helper()
	config, err := pgx.ParseConfig(s.database)
	if err != nil {
		s.t.Fatal(err)
	}
	return "postgres:///" + config.Database + "?" + url.Values{
		"host": {config.Host}, "port": {fmt.Sprint(config.Port)}, "user": {"ingest"}, "password": {rolePassword}, "sslmode": {"disable"},
	}.Encode()
}

// startNATS starts the server and provisions it, as a deployment does.
func (s *stack) startNATS() {
	s.t.Helper()
	s.startBareNATS()
	s.provision("1GiB")
}

// startBareNATS starts the server as it is, for instance empty.
func (s *stack) startBareNATS() {
	s.t.Helper()
	file := s.natsConf
	if file == "" {
		file = natsConfig(s.t)
	}
	server, err := natslocal.Start(natslocal.Options{Addr: s.natsAddr, StoreDir: s.natsDir, ConfigFile: file, Variables: natsPasswords()})
	if err != nil {
		s.t.Fatal(err)
	}
	s.nats = server
	s.t.Cleanup(func() { _ = server.Stop() })
}

// provision runs `ingest provision`: size is that of PURCHASES.
func (s *stack) provision(size string) {
	s.t.Helper()
	env := []string{"NATS_URL=" + natsURL("provision", s.natsAddr), "NATS_MAX_BYTES=" + size}
	if code, out := command(s.t, "ingest", env, "provision"); code != 0 {
		s.t.Fatalf("provision: %d %s", code, out)
	}
}

func (s *stack) startIngest(env ...string) {
	s.t.Helper()
	s.makeRole()
	ingest, err := launch.NewIngest(s.runtime(), natsURL("ingest", s.natsAddr))
	if err != nil {
		s.t.Fatal(err)
	}
	s.webhook, s.admin = ingest.Webhook(), "http://"+ingest.Admin
	s.sender = &stripegen.Sender{URL: s.webhook, Secret: signingSecret}
	s.ingest = start(s.t, s.build+"ingest", append(ingest.Env("MIGRATE_DATABASE_URL="+s.database), env...)...)
	s.await("ingest to be ready", func() bool { return status(s.admin+"/readyz") == http.StatusOK })
}

func (s *stack) startWorker(env ...string) {
	s.t.Helper()
	worker, err := launch.NewWorker(s.simURL, natsURL("worker", s.natsAddr))
	if err != nil {
		s.t.Fatal(err)
	}
	fast := worker.Env("TIKTOK_MAX_RPS=500", "RETRY_INITIAL=100ms", "RETRY_MAX=2s")
	s.worker = start(s.t, s.build+"tiktok-worker", append(fast, env...)...)
	s.worker.admin = "http://" + worker.Admin
}

// command runs one of ingest's commands against the stack's ledger, and answers no to what it asks.
func (s *stack) command(args ...string) (code int, out string) {
	s.t.Helper()
	env := []string{"DATABASE_URL=" + s.runtime(), "STATUS=skipped"} // a stranger's variable is not looked at
	return command(s.t, "ingest", env, args...)
}

// command runs one of the binaries to its end.
func command(t *testing.T, name string, env []string, args ...string) (code int, out string) {
	t.Helper()
	p := exec.Command(filepath.Join(binaries, name), args...)
	p.Env = append([]string{raceOptions}, env...)
	p.Stdin = strings.NewReader("n\n")
	text, err := p.CombinedOutput()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return p.ProcessState.ExitCode(), string(text)
}

// program is one of the real binaries.
type program struct {
	*process.Process
	t     *testing.T
	admin string
	log   *output
}

// output collects a program's log lines.
type output struct {
	mu   sync.Mutex
	text []byte
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	return len(p), nil
}

// start starts one of the binaries; name may go on with a command and its flags.
func start(t *testing.T, name string, env ...string) *program {
	t.Helper()
	if err := readSources(); err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(name)
	p := &program{t: t, log: &output{}}
	var err error
	p.Process, err = process.Start(process.Command{
		Path: filepath.Join(binaries, words[0]), Args: words[1:], Output: p.log,
		Env: append([]string{"PATH=" + os.Getenv("PATH"), raceOptions}, env...),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s's log:\n%s", name, strings.Join(p.lines(), "\n"))
		}
	})
	return p
}

// lines are the complete lines of the log.
func (p *program) lines() []string {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	lines := strings.Split(string(p.log.text), "\n")
	return lines[:len(lines)-1]
}

// said counts the log lines with this msg.
func (p *program) said(msg string) int {
	n := 0
	for _, line := range p.lines() {
		var entry struct {
			Msg string `json:"msg"`
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == msg {
			n++
		}
	}
	return n
}

func (p *program) kill() { p.Kill() }

// stop ends a program as an operator would and returns its exit code.
func (p *program) stop() int {
	p.Signal(syscall.SIGTERM)
	<-p.Ended()
	return p.ExitCode()
}

// patience bounds every wait. It is no expectation of speed: machines are shared, and tests run in parallel.
const patience = 3 * time.Minute

// await waits for the thing itself.
func (s *stack) await(what string, done func() bool) {
	s.t.Helper()
	if !wait.Until(context.WithoutCancel(s.t.Context()), patience, 25*time.Millisecond, done) {
		s.t.Fatalf("waited in vain for %s", what)
	}
}

func (s *stack) send(c stripegen.Checkout) stripegen.Answer {
	s.t.Helper()
	answer, err := s.sender.Send(s.t.Context(), c.Event())
	if err != nil {
		s.t.Fatal(err)
	}
	return answer
}

// row is a purchase on the ledger, as far as the tests look.
type row struct {
	Status, Reason, RequestID string
	Attempts                  int
}

// ledger runs a function on a connection of the test's own, as the ledger's owner.
func (s *stack) ledger(use func(ctx context.Context, conn *pgx.Conn) error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := s.connect().AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return use(ctx, conn.Conn()) })
	if err != nil {
		s.t.Fatal(err)
	}
}

// connect opens the test's own pool at its first use. Each connection is checked before it is used again: tests
// restart Postgres.
func (s *stack) connect() *pgxpool.Pool {
	s.t.Helper()
	s.poolMutex.Lock()
	defer s.poolMutex.Unlock()
	if s.pool != nil && s.pool.Config().ConnString() == s.database {
		return s.pool
	}
	config, err := pgxpool.ParseConfig(s.database)
	if err != nil {
		s.t.Fatal(err)
	}
	config.MaxConns = 4
	config.BeforeAcquire = func(ctx context.Context, conn *pgx.Conn) bool { return conn.Ping(ctx) == nil }
	if s.pool, err = pgxpool.NewWithConfig(context.Background(), config); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(s.pool.Close)
	return s.pool
}

// query asks the ledger for one value.
func query[T any](s *stack, sql string, args ...any) (value T) {
	s.t.Helper()
	s.ledger(func(ctx context.Context, conn *pgx.Conn) error {
		if err := conn.QueryRow(ctx, sql, args...).Scan(&value); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
		return nil
	})
	return value
}

// exec changes the ledger behind everybody's back.
func (s *stack) exec(sql string, args ...any) {
	s.t.Helper()
	s.ledger(func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql, args...)
		return err
	})
}

func (s *stack) purchase(id string) (r row) {
	s.t.Helper()
	s.ledger(func(ctx context.Context, conn *pgx.Conn) error {
		err := conn.QueryRow(ctx, `SELECT status, reason, COALESCE(tiktok_request_id, ''), attempts FROM purchases WHERE checkout_session_id = $1`, id).
			Scan(&r.Status, &r.Reason, &r.RequestID, &r.Attempts)
		if err != nil {
			return fmt.Errorf("purchase %s: %w", id, err)
		}
		return nil
	})
	return r
}

func (s *stack) awaitStatus(id, want string) row {
	s.t.Helper()
	var r row
	s.await(id+" to be "+want, func() bool { r = s.purchase(id); return r.Status == want })
	return r
}

// event returns what TikTok holds of a purchase.
func (s *stack) event(id string) tiktoksim.Event {
	s.t.Helper()
	for _, e := range s.sim.Received() {
		if e.EventID == id {
			return e
		}
	}
	s.t.Fatalf("TikTok does not know %s", id)
	return tiktoksim.Event{}
}

// ingestFigure reads one of ingest's metrics; -1 where it is missing.
func (s *stack) ingestFigure(series string) float64 {
	s.t.Helper()
	_, text := get(s.admin + "/metrics")
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return number
		}
	}
	return -1
}

// listen serves a handler for as long as the test and returns its URL.
func listen(t *testing.T, h http.Handler) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

func freeAddr(t *testing.T) string {
	t.Helper()
	addr, err := freeport.Addr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func status(url string) int {
	code, _ := get(url)
	return code
}

func get(url string) (int, string) { return launch.Get(context.Background(), url) }
