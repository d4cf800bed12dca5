package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/contract"
	"purchase-relay/internal/jetstream"
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

// as connects as a user; it need not succeed.
func (g *guarded) as(user, password string) (*jetstream.Conn, *observer.ObservedLogs, *prometheus.Registry) {
	g.t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	registry := prometheus.NewRegistry()
	url := secret.Text("nats://" + user + ":" + password + "@127.0.0.1:" + strconv.Itoa(g.port))
	c, err := jetstream.Connect(jetstream.Config{NATSURL: url}, user, zap.New(core), registry)
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

func told(logs *observer.ObservedLogs, what string) (times int) {
	for _, line := range logs.All() {
		if strings.HasPrefix(line.Message, what) {
			times++
		}
	}
	return times
}

// nats.go closes a connection for good at the second refusal of its credentials: a password that was mistyped, or rotated on
// the server first, left a process that never came back, and said nothing where it had not been connected before.
func TestRefusedCredentialsAreToldAndTriedAgain(t *testing.T) {
	const refused = "NATS refuses the credentials"
	only := func(password string) string { return "authorization { user: ingest, password: " + password + " }" }
	g := newGuarded(t, only("other"))
	c, logs, _ := g.as("ingest", "hunter2")
	for outage := range 2 { // one before it has ever been connected, one after
		await(t, "the refusal to be told", func() bool { return told(logs, refused) == outage+1 })
		await(t, "it to be tried again and again", func() bool { return g.tries() >= 4 })
		g.restart(only("hunter2"))
		await(t, "the mended password to be taken", c.Connected)
		if times := told(logs, refused); times != outage+1 {
			t.Errorf("%d refusals were told %d times", outage+1, times)
		}
		g.restart(only("rotated"))
	}
}

// A server that knows two users: each does its own work, and what it may not is counted. The server does not answer what it
// refuses, so that the caller sees a timeout only.
func TestLeastPrivilege(t *testing.T) {
	g := newGuarded(t, leastPrivilege)
	ingest, _, ingestMetrics := g.as("ingest", "hunter1")
	worker, logs, workerMetrics := g.as("worker", "hunter2")
	await(t, "the connections", func() bool { return ingest.Connected() && worker.Connected() })

	if err := ingest.Provision(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	if r := ingest.Publish(t.Context(), []contract.Publication{publication("cs_1", 1)}); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	purchases := worker.Consumer(contract.StreamPurchases, contract.ConsumerWorker)
	if err := purchases.WatchReturns(); err != nil { // not permitted here: it does without, and it is no alarm
		t.Fatal(err)
	}
	messages, err := purchases.Fetch(t.Context(), 10)
	if err != nil || len(messages) != 1 {
		t.Fatalf("the worker's fetch: %v, %v", messages, err)
	}
	if err := errors.Join(worker.Outcomes(t.Context(), []contract.Outcome{delivered("cs_1")})...); err != nil {
		t.Error(err)
	}
	if err := worker.DeadLetter(t.Context(), contract.DeadLetter{EventID: "cs_1", Generation: 1, Envelope: []byte(`{}`)}); err != nil {
		t.Error(err)
	}
	if err := messages[0].DoubleAck(t.Context()); err != nil {
		t.Error(err)
	}
	if messages, err := ingest.Consumer(contract.StreamOutcomes, contract.ConsumerRecorder).Fetch(t.Context(), 10); err != nil || len(messages) != 1 {
		t.Errorf("the recorder's fetch: %v, %v", messages, err)
	}
	if n := violations(t, ingestMetrics) + violations(t, workerMetrics); n != 0 {
		t.Errorf("%v violations by ordinary work", n)
	}

	ctx, cancel := context.WithCancel(t.Context())
	refused := make(chan []contract.Published)
	go func() { refused <- worker.Publish(ctx, []contract.Publication{publication("cs_2", 1)}) }()
	await(t, "the violation to be counted", func() bool { return violations(t, workerMetrics) == 1 })
	cancel() // what is refused is never answered
	if r := <-refused; r[0].Err == nil {
		t.Errorf("the worker published a purchase: %+v", r)
	}
	if told(logs, "NATS refuses a request for lack of permission") != 1 {
		t.Errorf("log: %v", logs.All())
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

const leastPrivilege = `
jetstream { max_file_store: 8GB }
accounts { APP {
  jetstream: enabled
  users: [
    { user: ingest, password: hunter1, permissions: {
      publish: { allow: [
        "purchases.live.*", "purchases.test.*"
        "$JS.API.STREAM.CREATE.PURCHASES", "$JS.API.STREAM.UPDATE.PURCHASES", "$JS.API.STREAM.INFO.PURCHASES"
        "$JS.API.STREAM.CREATE.PURCHASES_DEAD", "$JS.API.STREAM.UPDATE.PURCHASES_DEAD", "$JS.API.STREAM.INFO.PURCHASES_DEAD"
        "$JS.API.STREAM.CREATE.OUTCOMES", "$JS.API.STREAM.UPDATE.OUTCOMES", "$JS.API.STREAM.INFO.OUTCOMES"
        "$JS.API.CONSUMER.CREATE.PURCHASES.worker.>", "$JS.API.CONSUMER.CREATE.PURCHASES.worker", "$JS.API.CONSUMER.INFO.PURCHASES.worker"
        "$JS.API.CONSUMER.CREATE.OUTCOMES.recorder.>", "$JS.API.CONSUMER.CREATE.OUTCOMES.recorder", "$JS.API.CONSUMER.INFO.OUTCOMES.recorder"
        "$JS.API.CONSUMER.MSG.NEXT.OUTCOMES.recorder", "$JS.ACK.OUTCOMES.recorder.>"
      ] }
      subscribe: { allow: [ "_INBOX_ingest.>", "workers.*" ] } } }
    { user: worker, password: hunter2, permissions: {
      publish: { allow: [
        "outcomes", "purchases.dead.*", "workers.*"
        "$JS.API.STREAM.INFO.PURCHASES", "$JS.API.STREAM.INFO.OUTCOMES", "$JS.API.CONSUMER.INFO.PURCHASES.worker"
        "$JS.API.CONSUMER.MSG.NEXT.PURCHASES.worker", "$JS.ACK.PURCHASES.worker.>"
      ] }
      subscribe: { allow: [ "_INBOX_worker.>" ] } } }
  ]
} }
`
