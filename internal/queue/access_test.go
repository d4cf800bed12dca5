package queue_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/secret"
)

// guarded is a server that asks for credentials. It is started here because the test looks at the server's own count of
// connections.
type guarded struct {
	t      *testing.T
	dir    string
	port   int
	server *server.Server
}

func newGuarded(t *testing.T, conf string) *guarded {
	t.Helper()
	g := &guarded{t: t, dir: t.TempDir(), port: server.RANDOM_PORT}
	g.start(conf)
	addr, ok := g.server.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatalf("listens on %v", g.server.Addr())
	}
	g.port = addr.Port
	return g
}

func (g *guarded) start(conf string) {
	g.t.Helper()
	file := filepath.Join(g.dir, "nats.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		g.t.Fatal(err)
	}
	options := &server.Options{}
	if err := options.ProcessConfigFile(file); err != nil {
		g.t.Fatal(err)
	}
	options.NoSigs, options.NoLog, options.Host, options.Port = true, true, "127.0.0.1", g.port
	options.HTTPPort = 0
	options.JetStream, options.StoreDir = true, filepath.Join(g.dir, "store")
	s, err := server.NewServer(options)
	if err != nil {
		g.t.Fatal(err)
	}
	s.Start()
	g.t.Cleanup(s.Shutdown)
	if !s.ReadyForConnections(time.Minute) {
		g.t.Fatal("the server takes no connections")
	}
	g.server = s
}

func (g *guarded) restart(conf string) {
	g.t.Helper()
	g.server.Shutdown()
	g.server.WaitForShutdown()
	g.start(conf)
}

// tries counts the connections that were tried since the server's start.
func (g *guarded) tries() uint64 {
	g.t.Helper()
	v, err := g.server.Varz(nil)
	if err != nil {
		g.t.Fatal(err)
	}
	return v.TotalConnections
}

func (g *guarded) url(user, password string) string {
	return "nats://" + user + ":" + password + "@127.0.0.1:" + strconv.Itoa(g.port)
}

// as connects as a user; it need not succeed.
func (g *guarded) as(user, password string) (*queue.Conn, *observer.ObservedLogs, *prometheus.Registry) {
	g.t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	registry := prometheus.NewRegistry()
	c, err := queue.Connect(queue.Config{NATSURL: secret.String(g.url(user, password))}, user, zap.New(core), registry)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			g.t.Error(err)
		}
		for _, line := range logs.All() {
			if said := line.Message + fmt.Sprint(line.ContextMap()); strings.Contains(said, password) {
				g.t.Errorf("a password was logged: %s", said)
			}
		}
	})
	return c, logs, registry
}

func logged(logs *observer.ObservedLogs, what string) (times int) {
	for _, line := range logs.All() {
		if strings.HasPrefix(line.Message, what) {
			times++
		}
	}
	return times
}

// nats.go closes a connection for good at the second refusal of its credentials: a password that was mistyped, or rotated on
// the server first, left a process that never came back, and said nothing where it had not been connected before.
func TestConnect_RetriesRefusedCredentials(t *testing.T) {
	t.Parallel()
	const refused = "NATS refuses the credentials"
	only := func(password string) string { return "authorization { user: ingest, password: " + password + " }" }
	g := newGuarded(t, only("other"))
	c, logs, _ := g.as("ingest", "hunter2")
	for outage := range 2 { // one before it has ever been connected, one after
		await(t, "the refusal to be told", func() bool { return logged(logs, refused) == outage+1 })
		await(t, "it to be tried again and again", func() bool { return g.tries() >= 4 })
		g.restart(only("hunter2"))
		await(t, "the mended password to be taken", c.Connected)
		if times := logged(logs, refused); times != outage+1 {
			t.Errorf("%d refusals were told %d times", outage+1, times)
		}
		g.restart(only("rotated"))
	}
}

// ours is the configuration that is shipped, with passwords for its users.
func ours(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../deploy/nats/nats-server.conf")
	if err != nil {
		t.Fatal(err)
	}
	return "NATS_INGEST_PASSWORD: hunter1, NATS_WORKER_PASSWORD: hunter2, NATS_PROVISION_PASSWORD: hunter3\n" + string(text)
}

// provisioned creates the streams and consumers as the user for that.
func (g *guarded) provisioned(size int64) *prometheus.Registry {
	g.t.Helper()
	c, _, metrics := g.as("provision", "hunter3")
	await(g.t, "the connection", c.Connected)
	if err := c.Provision(g.t.Context(), queue.StreamConfig{Replicas: 1, MaxBytes: size}); err != nil {
		g.t.Fatal(err)
	}
	return metrics
}

// Under the shipped configuration each user can do all of its work. The whole of it: a permission that is missing shows as a
// time limit that was reached, or here as a violation.
func TestPermissions_AllowEachUsersWork(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, ours(t))
	ingest, _, ingestMetrics := g.as("ingest", "hunter1")
	worker, workerLog, workerMetrics := g.as("worker", "hunter2")
	await(t, "the connections", func() bool { return ingest.Connected() && worker.Connected() })
	other, _, _ := g.as("worker", "hunter2")
	await(t, "the connection", other.Connected)
	provisionMetrics := g.provisioned(64 << 20)
	g.provisioned(65 << 20) // the second time it changes the stream
	work(t, ingest, worker, other)
	if n := violations(t, ingestMetrics) + violations(t, workerMetrics) + violations(t, provisionMetrics); n != 0 {
		t.Errorf("%v violations by ordinary work", n)
	}
	if logged(workerLog, "Not permitted to subscribe to NAK advisories") != 0 {
		t.Error("the worker does not hear what others hand back")
	}
	provision, _, provisionMetrics := g.as("provision", "hunter3")
	await(t, "the connection", provision.Connected)
	err := provision.Provision(t.Context(), queue.StreamConfig{Replicas: 1, MaxBytes: 1 << 50})
	if err == nil || !strings.Contains(err.Error(), "bytes reserved") || violations(t, provisionMetrics) != 0 {
		t.Errorf("no room: %v", err)
	}
}

// A user that may not create streams learns so immediately, although the server answers nothing, and checks
// instead.
func TestProvision_RefusedUserChecks(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, ours(t))
	for user, password := range map[string]string{"ingest": "hunter1", "worker": "hunter2"} {
		c, logs, metrics := g.as(user, password)
		await(t, "the connection", c.Connected)
		for range 2 {
			if err := c.Provision(t.Context(), small); !errors.Is(err, queue.ErrNotPermitted) {
				t.Errorf("%s: error = %v, want %v", user, err, queue.ErrNotPermitted)
			}
		}
		if n := violations(t, metrics); n != 0 || logged(logs, "NATS refuses a request") != 0 {
			t.Errorf("%s: %v violations counted, want 0: the caller handles them", user, n)
		}
	}
	ingest, _, _ := g.as("ingest", "hunter1")
	await(t, "the connection", ingest.Connected)
	if list, err := ingest.Inspect(t.Context(), small); err == nil || !strings.Contains(err.Error(), "stream PURCHASES: ") {
		t.Errorf("nothing there: %v, %v, want the missing stream", list, err)
	}
	g.provisioned(small.MaxBytes)
	if list, err := ingest.Inspect(t.Context(), small); err != nil || len(list) > 0 {
		t.Errorf("provisioned: %v, %v, want no difference", list, err)
	}
	g.provisioned(small.MaxBytes * 2)
	want := []string{"stream PURCHASES: bytes (NATS_MAX_BYTES)"}
	if list, err := ingest.Inspect(t.Context(), small); err != nil || !slices.Equal(list, want) {
		t.Errorf("other settings: %v, %v, want %v", list, err, want)
	}
}

// work is everything that ingest and the worker do; other is a second worker.
func work(t *testing.T, ingest, worker, other *queue.Conn) {
	t.Helper()
	workers, err := ingest.WatchWorkers()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ingest.Inspect(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	purchases := worker.Consumer(message.StreamPurchases, message.ConsumerWorker)
	elsewhere := other.Consumer(message.StreamPurchases, message.ConsumerWorker)
	for _, c := range []*queue.Consumer{purchases, elsewhere} {
		if err := c.WatchReturns(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Pending(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	batch := []relay.Claim{claim("cs_1", 1), claim("cs_2", 1), claim("cs_3", 1), claim("cs_4", 1)}
	batch[3].Livemode = false
	for _, r := range ingest.Publish(t.Context(), batch) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	messages, err := purchases.Fetch(t.Context(), 10)
	if err != nil || len(messages) != 4 {
		t.Fatalf("the worker's fetch: %v, %v", messages, err)
	}
	for i, end := range []func() error{
		messages[0].InProgress, func() error { return messages[0].DoubleAck(t.Context()) }, messages[1].Ack,
		func() error { return messages[2].TermWithReason("junk") }, func() error { return messages[3].NakWithDelay(200 * time.Millisecond) }, // its word about it comes first
	} {
		if err := end(); err != nil {
			t.Errorf("end %d: %v", i, err)
		}
	}
	await(t, "what was handed back to come again", func() bool {
		again, err := elsewhere.Fetch(t.Context(), 10)
		return err == nil && len(again) == 1 && again[0].Returned && again[0].Ack() == nil
	})
	many := make([]message.Outcome, 1000) // more than this server takes in one message
	for i := range many {
		many[i] = delivered("cs_" + strconv.Itoa(i))
	}
	if err := errors.Join(worker.Outcomes(t.Context(), many)...); err != nil {
		t.Error(err)
	}
	letter := message.DeadLetter{
		EventID: "cs_3", Generation: 1, Reason: purchase.ReasonRefused, DiedAt: time.Now(), Envelope: []byte(`{}`),
	}
	if err := errors.Join(worker.DeadLetters(t.Context(), []message.DeadLetter{letter})...); err != nil {
		t.Error(err)
	}
	outcomes := ingest.Consumer(message.StreamOutcomes, message.ConsumerRecorder)
	recorded, err := outcomes.Fetch(t.Context(), 10)
	if err != nil || len(recorded) < 2 {
		t.Fatalf("the recorder's fetch: %v, %v", recorded, err)
	}
	for _, m := range recorded {
		if err := m.DoubleAck(t.Context()); err != nil {
			t.Error(err)
		}
	}
	telling, stop := context.WithCancel(t.Context())
	told := make(chan error)
	go func() {
		told <- worker.PublishState(telling, "w-1", time.Hour, func() message.WorkerState { return message.WorkerState{State: "running"} })
	}()
	await(t, "the worker to be heard", func() bool { return len(workers.List()) == 1 })
	stop()
	if err := <-told; err != nil {
		t.Error(err)
	}
}

// What each user must not do, tried with its password and a client of its own. The server answers none of it: what it refuses
// comes to the connection's error handler.
func TestPermissions_DenyTheRest(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, ours(t))
	g.provisioned(small.MaxBytes)
	// What ingest needs once to have the streams is also what could empty or copy them.
	creates := []string{"$JS.API.CONSUMER.CREATE.PURCHASES.worker", "$JS.API.CONSUMER.CREATE.OUTCOMES.recorder"}
	for _, stream := range []string{"PURCHASES", "PURCHASES_DEAD", "OUTCOMES"} {
		creates = append(creates, "$JS.API.STREAM.CREATE."+stream, "$JS.API.STREAM.UPDATE."+stream)
	}
	for _, user := range []struct {
		name, password     string
		publish, subscribe []string
	}{
		{
			name: "worker", password: "hunter2",
			publish: []string{
				"purchases.live.cs_1", "purchases.test.cs_1", "purchases.live.cs_1.x", "elsewhere", "outcomes.x", // what ingest says
				"$JS.API.STREAM.CREATE.PURCHASES", "$JS.API.STREAM.CREATE.OTHER", "$JS.API.STREAM.UPDATE.PURCHASES", "$JS.API.STREAM.DELETE.PURCHASES",
				"$JS.API.STREAM.PURGE.PURCHASES", "$JS.API.STREAM.MSG.DELETE.PURCHASES", "$JS.API.STREAM.RESTORE.OTHER", "$JS.API.STREAM.SNAPSHOT.PURCHASES",
				"$JS.API.STREAM.MSG.GET.OUTCOMES", "$JS.API.STREAM.MSG.GET.PURCHASES_DEAD", "$JS.API.DIRECT.GET.OUTCOMES", "$JS.API.STREAM.LEADER.STEPDOWN.PURCHASES",
				"$JS.API.CONSUMER.CREATE.OUTCOMES.spy", "$JS.API.CONSUMER.CREATE.PURCHASES.worker", "$JS.API.CONSUMER.CREATE.PURCHASES.spy.>",
				"$JS.API.CONSUMER.DURABLE.CREATE.OUTCOMES.spy", "$JS.API.CONSUMER.MSG.NEXT.OUTCOMES.recorder", "$JS.ACK.OUTCOMES.recorder.1.1.1.1.1",
				"$JS.API.CONSUMER.DELETE.PURCHASES.worker", "$JS.API.CONSUMER.PAUSE.PURCHASES.worker", "$JS.API.CONSUMER.RESET.PURCHASES.worker",
				"$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.INFO", "$SYS.REQ.SERVER.PING", "_INBOX_ingest.forged.1",
			},
			subscribe: []string{
				"_INBOX_ingest.>", "_INBOX.>", ">", "*", "purchases.>", "purchases.dead.*", "outcomes", "workers.*", "$JS.>", "$JS.EVENT.ADVISORY.>", "$SYS.>",
			},
		},
		{
			name: "provision", password: "hunter3",
			publish: []string{
				"purchases.live.cs_1", "purchases.test.cs_1", "purchases.dead.cs_1", "outcomes", "workers.w-1", "elsewhere",
				"$JS.API.STREAM.DELETE.PURCHASES", "$JS.API.STREAM.PURGE.PURCHASES", "$JS.API.STREAM.CREATE.OTHER", "$JS.API.STREAM.UPDATE.OTHER",
				"$JS.API.STREAM.MSG.GET.PURCHASES", "$JS.API.DIRECT.GET.PURCHASES", "$JS.API.STREAM.SNAPSHOT.PURCHASES", "$JS.API.STREAM.NAMES",
				"$JS.API.CONSUMER.MSG.NEXT.PURCHASES.worker", "$JS.API.CONSUMER.MSG.NEXT.OUTCOMES.recorder", "$JS.ACK.PURCHASES.worker.1.1.1.1.1",
				"$JS.API.CONSUMER.CREATE.PURCHASES.spy", "$JS.API.CONSUMER.CREATE.PURCHASES_DEAD.spy", "$JS.API.CONSUMER.DURABLE.CREATE.PURCHASES.worker",
				"$JS.API.CONSUMER.DELETE.PURCHASES.worker", "$SYS.REQ.SERVER.PING", "_INBOX_ingest.forged.1",
			},
			subscribe: []string{"_INBOX_ingest.>", "_INBOX_worker.>", "_INBOX.>", ">", "purchases.>", "outcomes", "workers.*", "$JS.>", "$SYS.>"},
		},
		{
			name: "ingest", password: "hunter1",
			publish: append([]string{
				"outcomes", "purchases.dead.cs_1", "workers.w-1", "elsewhere", // what the worker says
				"$JS.API.CONSUMER.MSG.NEXT.PURCHASES.worker", "$JS.ACK.PURCHASES.worker.1.1.1.1.1", "$JS.API.CONSUMER.CREATE.PURCHASES.spy",
				"$JS.API.CONSUMER.CREATE.PURCHASES.worker.purchases.live.cs_1", "$JS.API.CONSUMER.DURABLE.CREATE.PURCHASES.spy", "$JS.API.CONSUMER.CREATE.PURCHASES_DEAD.spy",
				"$JS.API.STREAM.DELETE.PURCHASES", "$JS.API.STREAM.PURGE.PURCHASES", "$JS.API.STREAM.DELETE.OUTCOMES", "$JS.API.STREAM.PURGE.PURCHASES_DEAD",
				"$JS.API.STREAM.MSG.DELETE.PURCHASES", "$JS.API.STREAM.MSG.GET.PURCHASES", "$JS.API.DIRECT.GET.PURCHASES", "$JS.API.STREAM.SNAPSHOT.PURCHASES",
				"$JS.API.CONSUMER.DELETE.PURCHASES.worker", "$JS.API.CONSUMER.DELETE.OUTCOMES.recorder", "$JS.API.STREAM.CREATE.OTHER", "$JS.API.STREAM.NAMES",
				"$SYS.REQ.SERVER.PING", "_INBOX_worker.forged.1", "_INBOX_provision.forged.1",
			}, creates...),
			subscribe: []string{"_INBOX_worker.>", "_INBOX_provision.>", "_INBOX.>", ">", "purchases.>", "outcomes", "$JS.>", "$JS.ACK.>", "$SYS.>"},
		},
	} {
		nc, err := nats.Connect(g.url(user.name, user.password), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		refused := func(what, subject string) {
			t.Helper()
			if err := nc.Flush(); err != nil { // the refusal comes before the answer to this
				t.Fatal(err)
			}
			if err := nc.LastError(); !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), strconv.Quote(subject)) {
				t.Errorf("%s may %s %q (%v)", user.name, what, subject, err)
			}
		}
		for _, subject := range user.publish {
			if err := nc.Publish(subject, []byte(`{}`)); err != nil {
				t.Fatal(err)
			}
			refused("publish", subject)
		}
		for _, subject := range user.subscribe {
			if _, err := nc.SubscribeSync(subject); err != nil {
				t.Fatal(err)
			}
			refused("subscribe", subject)
		}
	}
}

// A refusal shows as a time limit to the caller, so it is counted and logged; a flood of them does not fill the log.
func TestConnect_CountsPermissionViolations(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, ours(t))
	ingest, _, _ := g.as("ingest", "hunter1")
	worker, logs, metrics := g.as("worker", "hunter2")
	await(t, "the connections", func() bool { return ingest.Connected() && worker.Connected() })
	g.provisioned(small.MaxBytes)
	const flood = 100
	batch := make([]relay.Claim, flood)
	for i := range batch {
		batch[i] = claim(fmt.Sprintf("cs_%d", i), 1)
	}
	ctx, cancel := context.WithCancel(t.Context())
	refused := make(chan []relay.PublishResult)
	go func() { refused <- worker.Publish(ctx, batch) }()
	await(t, "the violations to be counted", func() bool { return violations(t, metrics) == flood })
	cancel() // what is refused is never answered
	for _, r := range <-refused {
		if r.Err == nil {
			t.Errorf("the worker published a purchase: %+v", r)
		}
	}
	if n := logged(logs, "NATS refuses a request for lack of permission"); n == 0 || n > flood/4 {
		t.Errorf("%d violations were told %d times", flood, n)
	}
}

// A server without the worker's advisory, as an older configuration had it: it does without, and it is no alarm.
func TestWatchReturns_LogsMissingPermission(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, strings.Replace(ours(t), `, "$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED.PURCHASES.worker"`, "", 1))
	worker, logs, metrics := g.as("worker", "hunter2")
	await(t, "the connection", worker.Connected)
	if err := worker.Consumer(message.StreamPurchases, message.ConsumerWorker).WatchReturns(); err != nil {
		t.Fatal(err)
	}
	await(t, "it to be told", func() bool { return logged(logs, "Not permitted to subscribe to NAK advisories") == 1 })
	if n := violations(t, metrics); n != 0 {
		t.Errorf("%v violations were counted", n)
	}
}

func violations(t *testing.T, registry *prometheus.Registry) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "purchase_relay_permission_violations_total" {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatal("the metric is missing")
	return 0
}
