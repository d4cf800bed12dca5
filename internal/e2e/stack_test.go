// Package e2e tests the real binaries as processes, with a real Postgres, a real nats-server and TikTok's
// simulator, over real sockets.
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
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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

// raceOptions ends a binary at its first data race, and spares the race detector's wait of 1 s at exit.
const raceOptions = "GORACE=halt_on_error=1 atexit_sleep_ms=0"

// binaries is the folder of the built programs. It is kept, so that go build links only changed ones.
var binaries string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if options := os.Getenv(nodeVariable); options != "" {
		return runNode(options)
	}
	var err error
	if binaries, err = filepath.Abs("../../.local/e2e"); err != nil {
		panic(err)
	}
	if err := buildBinaries(binaries, "-race"); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return pgtest.Run(m)
}

// buildBinaries compiles ingest and tiktok-worker into a folder. args are flags of go build.
func buildBinaries(dir string, args ...string) error {
	args = append(args, "purchase-relay/cmd/ingest", "purchase-relay/cmd/tiktok-worker")
	return launch.Build(context.Background(), dir, args...)
}

// readSources opens the binaries' sources once. The test cache tracks the files that a test opens while tests
// run, not those that a child process compiles: without this, a changed product would get a cached "ok".
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
	folder   string          // of the binaries, within binaries: "plain/" has no race detector
	database string          // URL as the schema's owner
	postgres *pglocal.Server // nil: the server that the tests share

	poolMutex sync.Mutex
	pool      *pgxpool.Pool // the test's own connections to database

	nats     *natslocal.Server
	natsDir  string
	natsAddr string
	sim      *tiktoksim.Simulator
	simURL   string
	ingest   *program // the latest one started
	worker   *program // the latest one started
	webhook  string   // URL of the latest ingest
	admin    string   // URL of the latest ingest
	sender   *stripegen.Sender
	repeats  atomic.Int64 // events that were sent again, see sendUntilAnswered
}

// newStack starts the whole product. env is added to both binaries' environment.
func newStack(t *testing.T, env ...string) *stack {
	t.Helper()
	return newStackOf(t, "", env...)
}

// newStackOf is newStack with the binaries of a folder.
func newStackOf(t *testing.T, folder string, env ...string) *stack {
	t.Helper()
	s := newIdleStack(t, pgtest.Migrated(t, func(url string) error { return migrateTemplate(t, url) }))
	s.folder = folder
	s.startNATS()
	s.startIngest(env...)
	s.startWorker(env...)
	return s
}

// newIdleStack starts TikTok's simulator alone.
func newIdleStack(t *testing.T, database string) *stack {
	t.Helper()
	sim := tiktoksim.New(tiktoksim.Config{})
	return &stack{
		t: t, database: database, natsDir: t.TempDir(), natsAddr: freeAddr(t), sim: sim, simURL: listen(t, sim),
	}
}

// migrateTemplate prepares an empty database as a deployment does: the role, then the schema and its rights.
func migrateTemplate(t *testing.T, database string) error {
	t.Helper()
	s := &stack{t: t, database: database}
	s.createRole()
	s.connect().Close() // a template must have no connections
	env := []string{"DATABASE_URL=" + s.runtimeURL(), "MIGRATE_DATABASE_URL=" + database}
	if code, out := command(t, "ingest", env, "migrate"); code != 0 {
		return fmt.Errorf("migrate: exit code %d: %s", code, out)
	}
	return nil
}

// Passwords of the NATS users and of ingest's Postgres role.
const (
	ingestPassword    = "hunter-ingest"
	workerPassword    = "hunter-worker"
	provisionPassword = "hunter-provision"
	rolePassword      = "hunter-role"
)

// natsURL returns the URL of a NATS server for one of its users.
func natsURL(user, addr string) string {
	return "nats://" + user + ":" + natsPasswords()["NATS_"+strings.ToUpper(user)+"_PASSWORD"] + "@" + addr
}

// natsPasswords returns the variables of the shipped NATS configuration.
func natsPasswords() map[string]string {
	return map[string]string{
		"NATS_INGEST_PASSWORD": ingestPassword, "NATS_WORKER_PASSWORD": workerPassword,
		"NATS_PROVISION_PASSWORD": provisionPassword, "NATS_OPERATOR_PASSWORD": "hunter-operator",
	}
}

// natsConfig writes the shipped configuration with its operator enabled: a test that connects without a user
// is the operator.
func natsConfig(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../deploy/nats/nats-server.conf")
	if err != nil {
		t.Fatal(err)
	}
	const operator = "{ user: operator, password: $NATS_OPERATOR_PASSWORD }"
	if !strings.Contains(string(text), "# "+operator) {
		t.Fatalf("nats-server.conf has no line # %s", operator)
	}
	config := strings.Replace(string(text), "# "+operator, operator, 1)
	file := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(file, []byte(config+"\nno_auth_user: operator\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// roleMutex serialises createRole: parallel tests share one server, and both would create the role.
var roleMutex sync.Mutex

// createRole creates ingest's role with the shipped script unless the server has it.
func (s *stack) createRole() {
	s.t.Helper()
	roleMutex.Lock()
	defer roleMutex.Unlock()
	if query[bool](s, `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ingest')`) {
		return
	}
	config, err := pgx.ParseConfig(s.database)
	if err != nil {
		s.t.Fatal(err)
	}
	script := exec.Command("/bin/sh", "../../deploy/postgres/roles.sh")
	script.Env = []string{
		"PATH=" + pgtest.Server(s.t).Programs(), "PGPASSWORD=" + config.Password,
		"PGHOST=" + config.Host, fmt.Sprintf("PGPORT=%d", config.Port),
		"POSTGRES_USER=" + config.User, "POSTGRES_DB=" + config.Database,
		"INGEST_DATABASE_PASSWORD=" + rolePassword,
	}
	if out, err := script.CombinedOutput(); err != nil {
		s.t.Fatalf("roles.sh: %v\n%s", err, out)
	}
}

// runtimeURL returns the ledger's URL as ingest's role.
func (s *stack) runtimeURL() string {
	s.t.Helper()
	config, err := pgx.ParseConfig(s.database)
	if err != nil {
		s.t.Fatal(err)
	}
	return "postgres:///" + config.Database + "?" + url.Values{
		"host": {config.Host}, "port": {fmt.Sprint(config.Port)}, "sslmode": {"disable"},
		"user": {"ingest"}, "password": {rolePassword},
	}.Encode()
}

// startNATS starts NATS and creates its streams, as a deployment does.
func (s *stack) startNATS() {
	s.t.Helper()
	s.startNATSWithoutStreams()
	if code, out := s.provision("provision"); code != 0 {
		s.t.Fatalf("provision: exit code %d: %s", code, out)
	}
}

// provision runs `ingest provision` as a NATS user, again if it exceeded a time limit.
func (s *stack) provision(user string) (code int, out string) {
	s.t.Helper()
	env := []string{"NATS_URL=" + natsURL(user, s.natsAddr), "NATS_MAX_BYTES=1GiB"}
	for range 3 {
		if code, out = command(s.t, "ingest", env, "provision"); !timedOut.MatchString(out) {
			break
		}
	}
	return code, out
}

func (s *stack) startNATSWithoutStreams() {
	s.t.Helper()
	server, err := natslocal.Start(natslocal.Options{
		Addr: s.natsAddr, StoreDir: s.natsDir, ConfigFile: natsConfig(s.t), Variables: natsPasswords(),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.nats = server
	s.t.Cleanup(func() { _ = server.Stop() })
}

func (s *stack) stopNATS() {
	s.t.Helper()
	if err := s.nats.Stop(); err != nil {
		s.t.Fatal(err)
	}
}

// startIngest starts an ingest that may migrate, and waits until it is ready.
func (s *stack) startIngest(env ...string) {
	s.t.Helper()
	s.createRole()
	s.launchIngest(append([]string{"MIGRATE_DATABASE_URL=" + s.database}, env...)...)
	s.awaitReadiness(s.admin, http.StatusOK)
}

// launchIngest starts an ingest as it runs in production, and does not wait for it.
func (s *stack) launchIngest(env ...string) {
	s.t.Helper()
	ingest, err := launch.NewIngest(s.runtimeURL(), natsURL("ingest", s.natsAddr))
	if err != nil {
		s.t.Fatal(err)
	}
	s.webhook, s.admin = ingest.Webhook(), "http://"+ingest.Admin
	s.sender = &stripegen.Sender{URL: s.webhook, Secret: signingSecret}
	s.ingest = start(s.t, s.folder+"ingest", append(ingest.Env(longGrace), env...)...)
}

// longGrace is enough for a shutdown on a busy machine.
const longGrace = "SHUTDOWN_GRACE=1m"

func (s *stack) startWorker(env ...string) {
	s.t.Helper()
	worker, err := launch.NewWorker(s.simURL, natsURL("worker", s.natsAddr))
	if err != nil {
		s.t.Fatal(err)
	}
	// TikTok's simulator shares the machine. After a timeout, an event that it has accepted would be sent
	// again.
	fast := worker.Env("TIKTOK_MAX_RPS=500", "RETRY_INITIAL=100ms", "RETRY_MAX=2s", "TIKTOK_TIMEOUT=1m",
		longGrace)
	s.worker = start(s.t, s.folder+"tiktok-worker", append(fast, env...)...)
	s.worker.admin = "http://" + worker.Admin
}

// command runs one of ingest's commands on the stack's ledger.
func (s *stack) command(args ...string) (code int, out string) {
	s.t.Helper()
	env := []string{"DATABASE_URL=" + s.runtimeURL(), "STATUS=skipped"} // an unknown variable has no effect
	return command(s.t, "ingest", env, args...)
}

// command runs a binary until it exits, and declines each confirmation. One that could not connect to
// Postgres within its 3 s is repeated.
func command(t *testing.T, name string, env []string, args ...string) (code int, out string) {
	t.Helper()
	for range 3 {
		if code, out = commandOnce(t, name, env, args...); !connectTimedOut.MatchString(out) {
			break
		}
	}
	return code, out
}

var (
	timedOut        = regexp.MustCompile(`deadline exceeded|i/o timeout|no connection within`)
	connectTimedOut = regexp.MustCompile("(?s)failed to connect to `.*timeout: ") // pgx's error
)

func commandOnce(t *testing.T, name string, env []string, args ...string) (code int, out string) {
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

// program is a running binary.
type program struct {
	*process.Process
	admin  string // a worker's URL
	output output
}

// output collects what a program writes.
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

// start starts a binary. A command and its flags may follow the name, separated by spaces.
func start(t *testing.T, name string, env ...string) *program {
	t.Helper()
	if err := readSources(); err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(name)
	p := &program{}
	var err error
	p.Process, err = process.Start(process.Command{
		Path: filepath.Join(binaries, words[0]), Args: words[1:], Output: &p.output,
		Env: append([]string{"PATH=" + os.Getenv("PATH"), raceOptions}, env...),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s's log:\n%s", name, p.log())
		}
	})
	return p
}

// log returns the complete lines so far.
func (p *program) log() string {
	p.output.mu.Lock()
	defer p.output.mu.Unlock()
	text := string(p.output.text)
	return text[:strings.LastIndexByte(text, '\n')+1]
}

// logged counts the log lines with a message.
func (p *program) logged(msg string) int {
	n := 0
	for line := range strings.Lines(p.log()) {
		var entry struct {
			Msg string `json:"msg"`
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == msg {
			n++
		}
	}
	return n
}

// stop sends SIGTERM and returns the exit code.
func (p *program) stop() int {
	p.Signal(syscall.SIGTERM)
	<-p.Ended()
	return p.ExitCode()
}

// timeout bounds every wait. It is generous because tests run in parallel on shared machines.
const timeout = 3 * time.Minute

// await fails the test unless a condition holds within the timeout.
func (s *stack) await(condition string, holds func() bool) {
	s.t.Helper()
	if !wait.Until(context.WithoutCancel(s.t.Context()), timeout, 25*time.Millisecond, holds) {
		s.t.Fatalf("timed out waiting for %s", condition)
	}
}

// checkLogged waits until a program has logged a message n times and checks that it was not logged more
// often.
func (s *stack) checkLogged(p *program, msg string, n int) {
	s.t.Helper()
	s.await(fmt.Sprintf("%q to be logged %d times", msg, n), func() bool { return p.logged(msg) >= n })
	if got := p.logged(msg); got != n {
		s.t.Errorf("%q was logged %d times, want %d", msg, got, n)
	}
}

// awaitIngestLog waits until ingest's log contains part.
func (s *stack) awaitIngestLog(part string) {
	s.t.Helper()
	s.await("ingest to log "+part, func() bool { return strings.Contains(s.ingest.log(), part) })
}

// awaitReadiness waits until a binary's /readyz returns a status.
func (s *stack) awaitReadiness(admin string, want int) {
	s.t.Helper()
	ready := admin + "/readyz"
	s.await(fmt.Sprintf("%s to return %d", ready, want), func() bool { return statusCode(ready) == want })
}

// shortestLimit is below the time limits of the listeners' requests. The shortest of them is that of a query
// in /readyz, 2 s.
const shortestLimit = time.Second

// sendUntilAnswered sends an event as Stripe does: again after a lost connection, and after an answer at a
// time limit of ingest, unless its status is want. repeated reports whether an earlier attempt may have
// recorded the event.
func (s *stack) sendUntilAnswered(
	want int, send func(ctx context.Context) (stripegen.Answer, error),
) (answer stripegen.Answer, repeated bool) {
	s.t.Helper()
	ctx := s.t.Context()
	s.await("an event to be answered", func() bool {
		var err error
		answer, err = send(ctx)
		if err == nil && (answer.Status == want || !exceededLimit(answer)) || ctx.Err() != nil {
			return true
		}
		if !repeated {
			s.t.Logf("an event is sent again after %+v, %v", answer, err)
			s.repeats.Add(1)
			repeated = true
		}
		return false
	})
	return answer, repeated
}

// exceededLimit reports whether an answer may be that to a webhook that exceeded a time limit of ingest: 503
// after 5 s of recording, 400 for a body that takes 10 s.
func exceededLimit(answer stripegen.Answer) bool {
	return answer.Took > shortestLimit && (answer.Status == http.StatusServiceUnavailable ||
		strings.Contains(answer.Body, "body could not be read"))
}

// sendEvent sends a signed event until it is answered, see sendUntilAnswered.
func (s *stack) sendEvent(event []byte, want int) (answer stripegen.Answer, repeated bool) {
	s.t.Helper()
	return s.sendUntilAnswered(want, func(ctx context.Context) (stripegen.Answer, error) {
		return s.sender.Send(ctx, event)
	})
}

func (s *stack) send(c stripegen.Checkout) stripegen.Answer {
	s.t.Helper()
	answer, _ := s.sendEvent(c.Event(), http.StatusOK)
	return answer
}

// post sends a signed event and checks the status and a part of the body of the response. A repeated event
// may also be a duplicate. ok reports whether the response is right.
func (s *stack) post(event []byte, status int, part string) (ok bool) {
	s.t.Helper()
	answer, repeated := s.sendEvent(event, status)
	ok = answer.Status == status && (strings.Contains(answer.Body, part) ||
		repeated && strings.Contains(answer.Body, `"duplicate"`))
	if !ok {
		s.t.Errorf("answer = %+v, want %d %s", answer, status, part)
	}
	return ok
}

// sell sends n live checkouts, each of which must be processed, and returns their ids. Of five or more, one
// at least must be answered within ingest's time limits.
func (s *stack) sell(n int) (ids []string) {
	s.t.Helper()
	before := s.repeats.Load()
	for range n {
		c := stripegen.NewCheckout().Live()
		s.post(c.Event(), http.StatusOK, `"processed"`)
		ids = append(ids, c.SessionID)
	}
	if repeated := s.repeats.Load() - before; n >= 5 && repeated >= int64(n) {
		s.t.Errorf("all %d webhooks exceeded ingest's time limits", n)
	}
	return ids
}

// purchaseRow is a purchase on the ledger.
type purchaseRow struct {
	Status, Reason, RequestID string
	Attempts                  int
}

// ledger runs a function on a connection as the schema's owner.
func (s *stack) ledger(use func(ctx context.Context, conn *pgx.Conn) error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err := s.connect().AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return use(ctx, conn.Conn()) })
	if err != nil {
		s.t.Fatal(err)
	}
}

// connect opens the test's pool at its first use. Connections are pinged before use: tests restart Postgres.
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
	config.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
		return conn.Ping(ctx) == nil, nil
	}
	if s.pool, err = pgxpool.NewWithConfig(context.Background(), config); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(s.pool.Close)
	return s.pool
}

// query returns one value from the ledger.
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

// exec changes the ledger without the product.
func (s *stack) exec(sql string, args ...any) {
	s.t.Helper()
	s.ledger(func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql, args...)
		return err
	})
}

// rows counts the rows of a table. from may continue with WHERE and its condition.
func (s *stack) rows(from string, args ...any) int {
	s.t.Helper()
	return query[int](s, `SELECT count(*) FROM `+from, args...)
}

// count counts the purchases with a status.
func (s *stack) count(status string) int {
	s.t.Helper()
	return s.rows(`purchases WHERE status = $1`, status)
}

func (s *stack) awaitCount(status string, want int) {
	s.t.Helper()
	s.await(fmt.Sprintf("%d purchases to be %s", want, status), func() bool { return s.count(status) == want })
}

// awaitNone waits until rows(from) is 0.
func (s *stack) awaitNone(from string) {
	s.t.Helper()
	s.await("no more "+from, func() bool { return s.rows(from) == 0 })
}

func (s *stack) purchase(id string) (r purchaseRow) {
	s.t.Helper()
	s.ledger(func(ctx context.Context, conn *pgx.Conn) error {
		err := conn.QueryRow(ctx, `SELECT status, reason, COALESCE(tiktok_request_id, ''), attempts
			FROM purchases WHERE checkout_session_id = $1`, id).Scan(&r.Status, &r.Reason, &r.RequestID, &r.Attempts)
		if err != nil {
			return fmt.Errorf("purchase %s: %w", id, err)
		}
		return nil
	})
	return r
}

// unanswered counts a purchase's attempts without an answer, for instance after a slow dial.
func (s *stack) unanswered(id string) int {
	s.t.Helper()
	return s.rows(`purchase_attempts WHERE checkout_session_id = $1 AND message LIKE 'no answer: %'`, id)
}

// checkPurchase compares a purchase's status and reason.
func (s *stack) checkPurchase(id, status, reason string) {
	s.t.Helper()
	if r := s.purchase(id); r.Status != status || r.Reason != reason {
		s.t.Errorf("purchase %s is %s (%s), want %s (%s)", id, r.Status, r.Reason, status, reason)
	}
}

func (s *stack) awaitStatus(id, want string) purchaseRow {
	s.t.Helper()
	var r purchaseRow
	s.await(id+" to be "+want, func() bool { r = s.purchase(id); return r.Status == want })
	return r
}

// received returns TikTok's events by event_id.
func (s *stack) received() map[string]tiktoksim.Event {
	events := map[string]tiktoksim.Event{}
	for _, e := range s.sim.Received() {
		events[e.EventID] = e
	}
	return events
}

// event returns TikTok's event of a purchase.
func (s *stack) event(id string) tiktoksim.Event {
	s.t.Helper()
	e, found := s.received()[id]
	if !found {
		s.t.Fatalf("TikTok has no event %s", id)
	}
	return e
}

// checkDelivered waits for purchases to be delivered and checks that TikTok has each of them once.
func (s *stack) checkDelivered(ids ...string) {
	s.t.Helper()
	for _, id := range ids {
		s.awaitStatus(id, "delivered")
	}
	events := s.received()
	for _, id := range ids {
		if e := events[id]; e.Copies != 1 || e.Variants != 1 {
			s.t.Errorf("TikTok has %d copies of %s in %d bodies, want 1 and 1", e.Copies, id, e.Variants)
		}
	}
}

// checkOnlyDelivered is checkDelivered, and TikTok must have no other event.
func (s *stack) checkOnlyDelivered(ids ...string) {
	s.t.Helper()
	s.checkDelivered(ids...)
	if n := len(s.sim.Received()); n != len(ids) {
		s.t.Errorf("TikTok has %d events, want %d", n, len(ids))
	}
}

// metric returns the value of a binary's series, or -1 without that series.
func (s *stack) metric(admin, series string) float64 {
	s.t.Helper()
	_, text := httpGet(admin + "/metrics")
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

func statusCode(url string) int {
	code, _ := httpGet(url)
	return code
}

// httpGet requests a URL, again if a time limit of the server ended the request: it closes a connection whose
// request is late, and answers 503 where Postgres is.
func httpGet(url string) (code int, body string) {
	for range 3 {
		began := time.Now()
		code, body = launch.Get(context.Background(), url)
		failed := code == 0 || code == http.StatusServiceUnavailable
		if !failed || time.Since(began) < shortestLimit {
			break
		}
	}
	return code, body
}
