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
	"purchase-relay/internal/queue"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/freeport"
)

// authNATS is a server with users. It runs in this process, because tests read its count of connections.
type authNATS struct {
	t      *testing.T
	dir    string
	port   int
	server *server.Server
}

func newAuthNATS(t *testing.T, conf string) *authNATS {
	t.Helper()
	addr, err := freeport.Addr() // not port 0: another process could take it before a restart
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	g := &authNATS{t: t, dir: t.TempDir()}
	if g.port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	g.start(conf)
	return g
}

func (g *authNATS) start(conf string) {
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
	options.AuthTimeout, options.TLSTimeout = 60, 60 // seconds; a busy client exceeds the defaults
	s, err := server.NewServer(options)
	if err != nil {
		g.t.Fatal(err)
	}
	s.Start()
	g.t.Cleanup(s.Shutdown)
	if !s.ReadyForConnections(time.Minute) {
		g.t.Fatal("the server is not ready")
	}
	g.server = s
}

func (g *authNATS) restart(conf string) {
	g.t.Helper()
	g.server.Shutdown()
	g.server.WaitForShutdown()
	g.start(conf)
}

// attempts counts the attempted connections since the server's start.
func (g *authNATS) attempts() uint64 {
	g.t.Helper()
	v, err := g.server.Varz(nil)
	if err != nil {
		g.t.Fatal(err)
	}
	return v.TotalConnections
}

func (g *authNATS) url(user, password string) string {
	return "nats://" + user + ":" + password + "@127.0.0.1:" + strconv.Itoa(g.port)
}

// connect starts to connect as a user.
func (g *authNATS) connect(
	user, password string,
) (*queue.Conn, *observer.ObservedLogs, *prometheus.Registry) {
	g.t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	registry := prometheus.NewRegistry()
	config := queue.Config{NATSURL: secret.String(g.url(user, password))}
	c, err := queue.Connect(config, user, zap.New(core), registry)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			g.t.Error(err)
		}
		for _, line := range logs.All() {
			if text := line.Message + fmt.Sprint(line.ContextMap()); strings.Contains(text, password) {
				g.t.Errorf("a password was logged: %s", text)
			}
		}
	})
	return c, logs, registry
}

func logged(logs *observer.ObservedLogs, message string) int {
	return logs.FilterMessage(message).Len()
}

// By default nats.go closes the connection at the second authorization error, and logs nothing before the
// first connection: after a mistyped or rotated password the process never reconnected.
func TestConnect_RetriesRejectedCredentials(t *testing.T) {
	t.Parallel()
	const rejected = "NATS rejected the credentials"
	only := func(password string) string { return "authorization { user: ingest, password: " + password + " }" }
	g := newAuthNATS(t, only("other"))
	c, logs, _ := g.connect("ingest", "hunter2")
	for outage := range 2 { // before the first connection, and after it
		await(t, "the log line", func() bool { return logged(logs, rejected) == outage+1 })
		await(t, "several attempts", func() bool { return g.attempts() >= 4 })
		g.restart(only("hunter2"))
		await(t, "the connection", c.Connected)
		if times := logged(logs, rejected); times != outage+1 {
			t.Errorf("%d rejections were logged %d times", outage+1, times)
		}
		g.restart(only("rotated"))
	}
}

// shippedConf returns the shipped configuration with passwords for its users.
func shippedConf(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../deploy/nats/nats-server.conf")
	if err != nil {
		t.Fatal(err)
	}
	return "NATS_INGEST_PASSWORD: hunter1, NATS_WORKER_PASSWORD: hunter2, " +
		"NATS_PROVISION_PASSWORD: hunter3\n" + string(text)
}

// provision creates the streams and consumers as their user.
func (g *authNATS) provision(size int64) *prometheus.Registry {
	g.t.Helper()
	c, _, metrics := g.connect("provision", "hunter3")
	await(g.t, "the connection", c.Connected)
	g.provisionAs(c, size)
	return metrics
}

func (g *authNATS) provisionAs(c *queue.Conn, size int64) {
	g.t.Helper()
	provision(g.t, c, queue.StreamConfig{Replicas: 1, MaxBytes: size}, func() bool {
		account, err := g.server.LookupAccount("APP")
		if err != nil {
			g.t.Fatal(err)
		}
		return account.JetStreamUsage().Streams == 4
	})
}

// Each user can do all of its work under the shipped configuration: a missing permission shows as a timeout
// or a violation.
func TestPermissions_AllowEachUsersWork(t *testing.T) {
	t.Parallel()
	g := newAuthNATS(t, shippedConf(t))
	ingest, _, ingestMetrics := g.connect("ingest", "hunter1")
	worker, workerLog, workerMetrics := g.connect("worker", "hunter2")
	await(t, "the connections", func() bool { return ingest.Connected() && worker.Connected() })
	other, _, _ := g.connect("worker", "hunter2")
	await(t, "the connection", other.Connected)
	provisionMetrics := g.provision(64 << 20)
	g.provision(65 << 20) // the second time it changes the stream
	exercise(t, ingest, worker, other)
	for _, metrics := range []*prometheus.Registry{ingestMetrics, workerMetrics, provisionMetrics} {
		if n := violations(t, metrics); n != 0 {
			t.Errorf("%v permission violations, want 0", n)
		}
	}
	if logged(workerLog, "Not permitted to subscribe to NAK advisories") != 0 {
		t.Error("the worker may not subscribe to NAK advisories")
	}
	provision, _, provisionMetrics := g.connect("provision", "hunter3")
	await(t, "the connection", provision.Connected)
	var err error
	if !until(t, func() bool { // the error lacks the figure if a response is late
		err = provision.Provision(t.Context(), queue.StreamConfig{Replicas: 1, MaxBytes: 1 << 50})
		return err != nil && strings.Contains(err.Error(), "bytes reserved")
	}) || violations(t, provisionMetrics) != 0 {
		t.Errorf("error without storage = %v, want the reserved bytes and no violation", err)
	}
}

// The server does not respond to a denied request: ErrNotPermitted must not take a timeout.
func TestProvision_DeniedUserInspects(t *testing.T) {
	t.Parallel()
	g := newAuthNATS(t, shippedConf(t))
	for user, password := range map[string]string{"ingest": "hunter1", "worker": "hunter2"} {
		c, logs, metrics := g.connect(user, password)
		await(t, "the connection", c.Connected)
		timeouts := 0 // of requests whose permission error came later, and was counted and logged
		for range 2 {
			late, err := repeat(t, func() error { return c.Provision(t.Context(), streamConfig) })
			if timeouts += late; !errors.Is(err, queue.ErrNotPermitted) {
				t.Errorf("%s: error = %v, want %v", user, err, queue.ErrNotPermitted)
			}
		}
		if n, lines := violations(t, metrics), logged(logs, "NATS denied a request"); n > float64(timeouts) ||
			lines > timeouts {
			t.Errorf("%s: %v violations counted, %d logged; want 0", user, n, lines)
		}
	}
	ingest, _, _ := g.connect("ingest", "hunter1")
	await(t, "the connection", ingest.Connected)
	list, err := ingest.Inspect(t.Context(), streamConfig)
	if err == nil || !strings.Contains(err.Error(), "stream PURCHASES: ") {
		t.Errorf("before provisioning: %v, %v; want the missing stream", list, err)
	}
	g.provision(streamConfig.MaxBytes)
	if list, err := inspect(t, ingest); err != nil || len(list) > 0 {
		t.Errorf("after provisioning: %v, %v; want no difference", list, err)
	}
	g.provision(streamConfig.MaxBytes * 2)
	want := []string{"stream PURCHASES: bytes (NATS_MAX_BYTES)"}
	if list, err := inspect(t, ingest); err != nil || !slices.Equal(list, want) {
		t.Errorf("other settings: %v, %v; want %v", list, err, want)
	}
}

// exercise does everything that ingest and the worker do; other is a second worker.
func exercise(t *testing.T, ingest, worker, other *queue.Conn) {
	t.Helper()
	workers, err := ingest.WatchWorkers()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inspect(t, ingest); err != nil {
		t.Fatal(err)
	}
	purchases := worker.Consumer(message.StreamPurchases, message.ConsumerWorker)
	second := other.Consumer(message.StreamPurchases, message.ConsumerWorker)
	for _, c := range []*queue.Consumer{purchases, second} {
		if err := c.WatchReturns(); err != nil {
			t.Fatal(err)
		}
		if _, err := repeat(t, func() error {
			_, _, err := c.Pending(t.Context())
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	batch := []relay.Claim{claim("cs_1", 1), claim("cs_2", 1), claim("cs_3", 1), claim("cs_4", 1)}
	batch[3].Livemode = false
	results, _ := publish(t, ingest, batch)
	for _, r := range results {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	messages, _ := fetchN(t, purchases, 4)
	if err := errors.Join(
		messages[0].InProgress(), messages[0].DoubleAck(t.Context()), messages[1].Ack(),
		messages[2].TermWithReason("malformed"),
		messages[3].NakWithDelay(200*time.Millisecond),
	); err != nil {
		t.Error(err)
	}
	await(t, "the NAK's advisory", func() bool { return second.Returns() > 0 })
	again, slow := fetch(t, second, 10) // a slow fetch may lose the returned delivery
	if len(again) != 1 || !again[0].Returned && slow == 0 {
		t.Errorf("the second worker's fetch: %v, want one returned message", again)
	}
	if err := again[0].Ack(); err != nil {
		t.Error(err)
	}
	many := make([]message.Outcome, 1000) // more than fit into one message
	for i := range many {
		many[i] = delivered("cs_" + strconv.Itoa(i))
	}
	for name, request := range map[string]func() error{
		"outcomes": func() error { return errors.Join(worker.Outcomes(t.Context(), many)...) },
		"counts":   func() error { return worker.Stats(t.Context(), dayCounts("2026-01-01")) },
		"dead letter": func() error {
			return errors.Join(worker.DeadLetters(t.Context(), []message.DeadLetter{deadLetter("cs_3", 1)})...)
		},
	} {
		if _, err := repeat(t, request); err != nil {
			t.Errorf("publish %s: %v", name, err)
		}
	}
	checkHeld(t, worker.Lease(message.LeaseStats, "w-1"), true)
	recorded, _ := fetchN(t, ingest.Consumer(message.StreamOutcomes, message.ConsumerRecorder), 3)
	for _, m := range recorded {
		if err := m.DoubleAck(t.Context()); err != nil {
			t.Error(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	running := func() message.WorkerState { return message.WorkerState{State: message.WorkerRunning} }
	go func() { ended <- worker.PublishState(ctx, "w-1", time.Second, running) }()
	await(t, "the worker's state", func() bool { return len(workers.List()) == 1 })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The server does not respond to a denied publish or subscription: it reports an error on the connection.
func TestPermissions_DenyTheRest(t *testing.T) {
	t.Parallel()
	g := newAuthNATS(t, shippedConf(t))
	g.provision(streamConfig.MaxBytes)
	// The permissions to create streams would also allow to empty or copy them.
	creates := []string{"$JS.API.CONSUMER.CREATE.PURCHASES.worker", "$JS.API.CONSUMER.CREATE.OUTCOMES.recorder"}
	for _, stream := range []string{"PURCHASES", "PURCHASES_DEAD", "OUTCOMES", "LEASES"} {
		creates = append(creates, "$JS.API.STREAM.CREATE."+stream, "$JS.API.STREAM.UPDATE."+stream)
	}
	for _, user := range []struct {
		name, password     string
		publish, subscribe []string
	}{
		{
			name: "worker", password: "hunter2",
			publish: []string{
				"purchases.live.cs_1", "purchases.test.cs_1", "purchases.live.cs_1.x",
				"elsewhere", "outcomes.x", "leases.x", // reserved for ingest
				"$JS.API.STREAM.UPDATE.LEASES", "$JS.API.STREAM.PURGE.LEASES", "$JS.API.DIRECT.GET.LEASES",
				"$JS.API.STREAM.CREATE.PURCHASES", "$JS.API.STREAM.CREATE.OTHER", "$JS.API.STREAM.UPDATE.PURCHASES",
				"$JS.API.STREAM.DELETE.PURCHASES",
				"$JS.API.STREAM.PURGE.PURCHASES", "$JS.API.STREAM.MSG.DELETE.PURCHASES",
				"$JS.API.STREAM.RESTORE.OTHER", "$JS.API.STREAM.SNAPSHOT.PURCHASES",
				"$JS.API.STREAM.MSG.GET.OUTCOMES", "$JS.API.STREAM.MSG.GET.PURCHASES_DEAD",
				"$JS.API.DIRECT.GET.OUTCOMES", "$JS.API.STREAM.LEADER.STEPDOWN.PURCHASES",
				"$JS.API.CONSUMER.CREATE.OUTCOMES.spy", "$JS.API.CONSUMER.CREATE.PURCHASES.worker",
				"$JS.API.CONSUMER.CREATE.PURCHASES.spy.>",
				"$JS.API.CONSUMER.DURABLE.CREATE.OUTCOMES.spy", "$JS.API.CONSUMER.MSG.NEXT.OUTCOMES.recorder",
				"$JS.ACK.OUTCOMES.recorder.1.1.1.1.1",
				"$JS.API.CONSUMER.DELETE.PURCHASES.worker", "$JS.API.CONSUMER.PAUSE.PURCHASES.worker",
				"$JS.API.CONSUMER.RESET.PURCHASES.worker",
				"$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.INFO", "$SYS.REQ.SERVER.PING",
				"_INBOX_ingest.forged.1",
			},
			subscribe: []string{
				"_INBOX_ingest.>", "_INBOX.>", ">", "*", "purchases.>", "purchases.dead.*", "outcomes", "workers.*",
				"outcomes.stats", "leases.stats",
				"$JS.>", "$JS.EVENT.ADVISORY.>", "$SYS.>",
			},
		},
		{
			name: "provision", password: "hunter3",
			publish: []string{
				"purchases.live.cs_1", "purchases.test.cs_1", "purchases.dead.cs_1", "outcomes", "workers.w-1",
				"elsewhere", "outcomes.stats", "leases.stats",
				"$JS.API.STREAM.DELETE.PURCHASES", "$JS.API.STREAM.PURGE.PURCHASES", "$JS.API.STREAM.CREATE.OTHER",
				"$JS.API.STREAM.UPDATE.OTHER",
				"$JS.API.STREAM.MSG.GET.PURCHASES", "$JS.API.DIRECT.GET.PURCHASES",
				"$JS.API.STREAM.SNAPSHOT.PURCHASES", "$JS.API.STREAM.NAMES",
				"$JS.API.CONSUMER.MSG.NEXT.PURCHASES.worker", "$JS.API.CONSUMER.MSG.NEXT.OUTCOMES.recorder",
				"$JS.ACK.PURCHASES.worker.1.1.1.1.1",
				"$JS.API.CONSUMER.CREATE.PURCHASES.spy", "$JS.API.CONSUMER.CREATE.PURCHASES_DEAD.spy",
				"$JS.API.CONSUMER.DURABLE.CREATE.PURCHASES.worker",
				"$JS.API.CONSUMER.DELETE.PURCHASES.worker", "$SYS.REQ.SERVER.PING", "_INBOX_ingest.forged.1",
			},
			subscribe: []string{
				"_INBOX_ingest.>", "_INBOX_worker.>", "_INBOX.>", ">", "purchases.>", "outcomes", "workers.*",
				"$JS.>", "$SYS.>",
			},
		},
		{
			name: "ingest", password: "hunter1",
			publish: append([]string{
				"outcomes", "outcomes.stats", "leases.stats", // reserved for the worker
				"purchases.dead.cs_1", "workers.w-1", "elsewhere",
				"$JS.API.CONSUMER.MSG.NEXT.PURCHASES.worker", "$JS.ACK.PURCHASES.worker.1.1.1.1.1",
				"$JS.API.CONSUMER.CREATE.PURCHASES.spy",
				"$JS.API.CONSUMER.CREATE.PURCHASES.worker.purchases.live.cs_1",
				"$JS.API.CONSUMER.DURABLE.CREATE.PURCHASES.spy", "$JS.API.CONSUMER.CREATE.PURCHASES_DEAD.spy",
				"$JS.API.STREAM.DELETE.PURCHASES", "$JS.API.STREAM.PURGE.PURCHASES",
				"$JS.API.STREAM.DELETE.OUTCOMES", "$JS.API.STREAM.PURGE.PURCHASES_DEAD",
				"$JS.API.STREAM.MSG.DELETE.PURCHASES", "$JS.API.STREAM.MSG.GET.PURCHASES",
				"$JS.API.DIRECT.GET.PURCHASES", "$JS.API.STREAM.SNAPSHOT.PURCHASES",
				"$JS.API.CONSUMER.DELETE.PURCHASES.worker", "$JS.API.CONSUMER.DELETE.OUTCOMES.recorder",
				"$JS.API.STREAM.CREATE.OTHER", "$JS.API.STREAM.NAMES",
				"$SYS.REQ.SERVER.PING", "_INBOX_worker.forged.1", "_INBOX_provision.forged.1",
			}, creates...),
			subscribe: []string{
				"_INBOX_worker.>", "_INBOX_provision.>", "_INBOX.>", ">", "purchases.>", "outcomes", "$JS.>",
				"$JS.ACK.>", "$SYS.>",
			},
		},
	} {
		ignore := nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})
		nc, err := nats.Connect(g.url(user.name, user.password), ignore, nats.Timeout(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		checkDenied := func(verb, subject string) {
			t.Helper()
			if err := nc.FlushTimeout(time.Minute); err != nil { // the permission error precedes the pong
				t.Fatal(err)
			}
			err := nc.LastError()
			if !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), strconv.Quote(subject)) {
				t.Errorf("%s may %s %q (%v), want a permission violation", user.name, verb, subject, err)
			}
		}
		for _, subject := range user.publish {
			if err := nc.Publish(subject, []byte(`{}`)); err != nil {
				t.Fatal(err)
			}
			checkDenied("publish", subject)
		}
		for _, subject := range user.subscribe {
			if _, err := nc.SubscribeSync(subject); err != nil {
				t.Fatal(err)
			}
			checkDenied("subscribe", subject)
		}
	}
}

// A denied request is a timeout to its caller, so it is counted and logged, at a limited rate.
func TestConnect_CountsPermissionViolations(t *testing.T) {
	t.Parallel()
	g := newAuthNATS(t, shippedConf(t))
	ingest, _, _ := g.connect("ingest", "hunter1")
	worker, logs, metrics := g.connect("worker", "hunter2")
	await(t, "the connections", func() bool { return ingest.Connected() && worker.Connected() })
	g.provision(streamConfig.MaxBytes)
	const flood = 100
	batch := make([]relay.Claim, flood)
	for i := range batch {
		batch[i] = claim(fmt.Sprintf("cs_%d", i), 1)
	}
	ctx, cancel := context.WithCancel(t.Context())
	results := make(chan []relay.PublishResult)
	go func() { results <- worker.Publish(ctx, batch) }()
	await(t, "the violations", func() bool { return violations(t, metrics) == flood })
	cancel() // the server does not respond to denied publishes
	for _, r := range <-results {
		if r.Err == nil {
			t.Errorf("publish as the worker = %+v, want an error", r)
		}
	}
	if n := logged(logs, "NATS denied a request"); n == 0 || n > flood/4 {
		t.Errorf("%d violations were logged %d times, want 1 to %d", flood, n, flood/4)
	}
}

// An older server configuration lacks the permissions for TikTok's counts: purchases flow without them.
func TestProvision_WithoutLeases(t *testing.T) {
	t.Parallel()
	conf := shippedConf(t)
	for _, subject := range []string{
		`"$JS.API.STREAM.CREATE.LEASES", "$JS.API.STREAM.UPDATE.LEASES"`, `"$JS.API.STREAM.INFO.LEASES"`,
		`"outcomes.stats", "leases.stats"`,
	} {
		if !strings.Contains(conf, subject) {
			t.Fatalf("the configuration lacks %s", subject)
		}
		conf = strings.Replace(conf, subject, "", 1)
	}
	g := newAuthNATS(t, conf)
	provision, log, _ := g.connect("provision", "hunter3")
	await(t, "the connection", provision.Connected)
	for range 2 {
		if _, err := repeat(t, func() error { return provision.Provision(t.Context(), streamConfig) }); err != nil {
			t.Errorf("Provision = %v, want nil", err)
		}
	}
	if n := logged(log, "Optional stream not ready"); n != 1 {
		t.Errorf("logged %d times, want once", n)
	}
	ingest, _, _ := g.connect("ingest", "hunter1")
	worker, _, _ := g.connect("worker", "hunter2")
	await(t, "the connections", func() bool { return ingest.Connected() && worker.Connected() })
	list, err := inspect(t, ingest)
	if err != nil || len(list) != 1 || !strings.HasPrefix(list[0], "stream LEASES: not permitted") {
		t.Errorf("Inspect = %v, %v, want the optional stream's difference", list, err)
	}
	for name, tc := range map[string]struct {
		request func() error
		want    error
	}{
		"take the lease": {func() error {
			_, err := worker.Lease(message.LeaseStats, "w").Hold(t.Context())
			return err
		}, queue.ErrNotPermitted},
		"publish counts": {func() error {
			return worker.Stats(t.Context(), dayCounts("2026-01-01"))
		}, queue.ErrNotPermitted},
		"publish outcome": {func() error {
			return errors.Join(worker.Outcomes(t.Context(), []message.Outcome{delivered("cs_1")})...)
		}, nil},
	} {
		if _, err := repeat(t, tc.request); !errors.Is(err, tc.want) {
			t.Errorf("%s: error = %v, want %v", name, err, tc.want)
		}
	}
}

// An older server configuration lacks the permission: the worker runs without.
func TestWatchReturns_LogsMissingPermission(t *testing.T) {
	t.Parallel()
	const advisory = `, "$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED.PURCHASES.worker"`
	g := newAuthNATS(t, strings.Replace(shippedConf(t), advisory, "", 1))
	worker, logs, metrics := g.connect("worker", "hunter2")
	await(t, "the connection", worker.Connected)
	if err := worker.Consumer(message.StreamPurchases, message.ConsumerWorker).WatchReturns(); err != nil {
		t.Fatal(err)
	}
	await(t, "the log line", func() bool {
		return logged(logs, "Not permitted to subscribe to NAK advisories") == 1
	})
	if n := violations(t, metrics); n != 0 {
		t.Errorf("%v violations counted, want 0", n)
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
