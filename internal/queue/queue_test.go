package queue_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/faultproxy"
	"purchase-relay/internal/testkit/natslocal"
	"purchase-relay/internal/testkit/wait"
)

var streamConfig = queue.StreamConfig{Replicas: 1, MaxBytes: 64 << 20}

// testNATS is a nats-server that can be restarted, with a connection of the product and a raw one.
type testNATS struct {
	t      *testing.T
	server *natslocal.Server
	dir    string
	addr   string
	*queue.Conn
	raw natsjs.JetStream // waits long for responses
	nc  *nats.Conn

	slow     int // fetches, see fetch
	timeouts int // of publishes, see publish
}

func newNATS(t *testing.T) *testNATS {
	t.Helper()
	s := &testNATS{t: t, dir: t.TempDir()}
	s.start()
	s.addr = s.server.Addr()
	s.Conn = s.connect("ingest")
	nc, err := nats.Connect(s.server.URL(), nats.Timeout(time.Minute),
		nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	s.nc = nc
	if s.raw, err = natsjs.New(nc, natsjs.WithDefaultTimeout(time.Minute)); err != nil {
		t.Fatal(err)
	}
	s.provision(streamConfig)
	return s
}

func (s *testNATS) start() {
	s.t.Helper()
	server, err := natslocal.Start(natslocal.Options{Addr: s.addr, StoreDir: s.dir})
	if err != nil {
		s.t.Fatal(err)
	}
	s.server = server
	s.t.Cleanup(func() { _ = server.Stop() })
}

func (s *testNATS) stop() {
	s.t.Helper()
	if err := s.server.Stop(); err != nil {
		s.t.Fatal(err)
	}
	s.await("the disconnects", func() bool { return !s.Connected() && !s.nc.IsConnected() })
}

func (s *testNATS) connect(name string) *queue.Conn {
	s.t.Helper()
	return s.connectTo(s.server.URL(), name)
}

// connectVia connects through a proxy.
func (s *testNATS) connectVia(p *faultproxy.Proxy) *queue.Conn {
	s.t.Helper()
	return s.connectTo("nats://"+p.Addr(), "worker")
}

func (s *testNATS) connectTo(url, name string) *queue.Conn {
	s.t.Helper()
	config := queue.Config{NATSURL: secret.String(url)}
	c, err := queue.Connect(config, name, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close(context.Background()) })
	s.await("the connection", c.Connected)
	return c
}

func (s *testNATS) await(what string, done func() bool) {
	s.t.Helper()
	await(s.t, what, done)
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	if !until(t, done) {
		t.Fatalf("timeout waiting for %s", what)
	}
}

func until(t *testing.T, done func() bool) bool {
	t.Helper()
	return wait.Until(context.WithoutCancel(t.Context()), 3*time.Minute, 5*time.Millisecond, done)
}

// isTimeout reports whether a response was late.
func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, nats.ErrTimeout) || errors.Is(err, natsjs.ErrAsyncPublishTimeout)
}

// repeat repeats a request while it times out: on a busy machine a response may take longer than the product
// waits. It returns the number of timeouts and the last error.
func repeat(t *testing.T, request func() error) (timeouts int, err error) {
	t.Helper()
	await(t, "a response", func() bool {
		if err = request(); isTimeout(err) {
			timeouts++
			return false
		}
		return true
	})
	return timeouts, err
}

// provision creates the streams and the consumers.
func (s *testNATS) provision(config queue.StreamConfig) {
	s.t.Helper()
	provision(s.t, s.Conn, config, func() bool {
		_, err := s.raw.Stream(s.t.Context(), message.StreamLeases)
		return err == nil
	})
}

// provision repeats Provision until it succeeds and all streams exist: it only logs a timeout of the optional
// one.
func provision(t *testing.T, c *queue.Conn, config queue.StreamConfig, exist func() bool) {
	t.Helper()
	await(t, "the streams", func() bool {
		err := c.Provision(t.Context(), config)
		if err != nil && !isTimeout(err) {
			t.Fatal(err)
		}
		return err == nil && exist()
	})
}

// inspect repeats Inspect while a response is late. That of an optional stream is a difference.
func inspect(t *testing.T, c *queue.Conn) (differences []string, err error) {
	t.Helper()
	_, err = repeat(t, func() error {
		differences, err = c.Inspect(t.Context(), streamConfig)
		if strings.Contains(strings.Join(differences, "\n"), context.DeadlineExceeded.Error()) {
			return context.DeadlineExceeded
		}
		return err
	})
	return differences, err
}

func claim(id string, generation int) relay.Claim {
	return relay.Claim{
		ID: id, Livemode: true, Generation: generation,
		FirstPublished: time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC), Envelope: []byte(id),
	}
}

func delivered(id string) message.Outcome {
	return message.Outcome{EventID: id, Generation: 1, Result: purchase.StatusDelivered, At: time.Now().UTC()}
}

func deadLetter(id string, generation int) message.DeadLetter {
	return message.DeadLetter{
		EventID: id, Generation: generation, Reason: purchase.ReasonRefused, DiedAt: time.Now(),
		Envelope: []byte(`{}`),
	}
}

// publish publishes and, like the relay, repeats what times out: on a busy machine an acknowledgement may
// take longer than the client waits. The repeated publish of a stored message is a duplicate.
func publish(
	t *testing.T, c *queue.Conn, claims []relay.Claim,
) (results []relay.PublishResult, timeouts int) {
	t.Helper()
	results = make([]relay.PublishResult, len(claims))
	batch, indexes := claims, make([]int, len(claims))
	for i := range indexes {
		indexes[i] = i
	}
	await(t, "the acknowledgements", func() bool {
		var late []relay.Claim
		var lateIndexes []int
		for i, r := range c.Publish(t.Context(), batch) {
			results[indexes[i]] = r
			if isTimeout(r.Err) {
				late, lateIndexes = append(late, batch[i]), append(lateIndexes, indexes[i])
			}
		}
		batch, indexes = late, lateIndexes
		timeouts += len(batch)
		return len(batch) == 0
	})
	return results, timeouts
}

func (s *testNATS) publish(p ...relay.Claim) []relay.PublishResult {
	s.t.Helper()
	results, timeouts := publish(s.t, s.Conn, p)
	s.timeouts += timeouts
	return results
}

// store publishes in the relay's batches.
func (s *testNATS) store(claims []relay.Claim) {
	s.t.Helper()
	for batch := range slices.Chunk(claims, 500) {
		for _, r := range s.publish(batch...) {
			if r.Err != nil {
				s.t.Fatal(r.Err)
			}
		}
	}
}

// stored returns the number of a stream's messages.
func (s *testNATS) stored(stream string) uint64 {
	s.t.Helper()
	found, err := s.raw.Stream(s.t.Context(), stream)
	if err != nil {
		s.t.Fatal(err)
	}
	return found.CachedInfo().State.Msgs
}

// fetch fetches until it has a message. It counts the slow fetches: on a busy machine the client may drop a
// response that comes after its deadline, which is at least two seconds. Those messages are redelivered after
// AckWait.
func fetch(t *testing.T, c *queue.Consumer, limit int) (messages []message.Received, slow int) {
	t.Helper()
	await(t, "a message", func() bool {
		began := time.Now()
		got, err := c.Fetch(t.Context(), limit)
		if time.Since(began) >= 2*time.Second {
			slow++
		}
		messages = got
		return err == nil && len(messages) > 0
	})
	return messages, slow
}

func (s *testNATS) fetch(c *queue.Consumer, limit int) []message.Received {
	s.t.Helper()
	messages, slow := fetch(s.t, c, limit)
	s.slow += slow
	return messages
}

// fetchN fetches until it has n messages: the server may deliver fewer than are stored. A redelivered message
// replaces its earlier delivery.
func fetchN(t *testing.T, c *queue.Consumer, n int) (messages []message.Received, slow int) {
	t.Helper()
	for len(messages) < n {
		got, late := fetch(t, c, n)
		slow += late
		for _, m := range got {
			i := slices.IndexFunc(messages, func(o message.Received) bool { return o.Sequence == m.Sequence })
			if i >= 0 {
				messages[i] = m
			} else {
				messages = append(messages, m)
			}
		}
	}
	return messages, slow
}

func (s *testNATS) fetchN(c *queue.Consumer, n int) []message.Received {
	s.t.Helper()
	messages, slow := fetchN(s.t, c, n)
	s.slow += slow
	return messages
}

func (s *testNATS) worker() *queue.Consumer {
	return s.Consumer(message.StreamPurchases, message.ConsumerWorker)
}

func TestProvision_CreatesAndRepairs(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	check := func() {
		t.Helper()
		for name, want := range map[string]natsjs.StreamConfig{
			message.StreamPurchases: {
				Subjects: []string{"purchases.live.*", "purchases.test.*"}, Retention: natsjs.WorkQueuePolicy,
				Discard: natsjs.DiscardNew, DiscardNewPerSubject: true, MaxMsgsPerSubject: 1,
				MaxBytes: streamConfig.MaxBytes, MaxAge: 72 * time.Hour,
			},
			message.StreamPurchasesDead: {
				Subjects: []string{"purchases.dead.*"}, Retention: natsjs.LimitsPolicy, MaxMsgsPerSubject: -1,
				MaxBytes: 1 << 30, MaxAge: 30 * 24 * time.Hour,
			},
			message.StreamOutcomes: {
				Subjects: []string{"outcomes", "outcomes.stats"}, Retention: natsjs.WorkQueuePolicy,
				Discard: natsjs.DiscardNew, MaxMsgsPerSubject: -1, MaxBytes: 1 << 30,
			},
			message.StreamLeases: {
				Subjects: []string{"leases.*"}, Retention: natsjs.LimitsPolicy, MaxMsgsPerSubject: 1,
				MaxBytes: 64 << 10, MaxAge: queue.LeaseTTL,
			},
		} {
			stream, err := s.raw.Stream(t.Context(), name)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			want.Storage, want.Duplicates, want.Replicas = natsjs.FileStorage, 2*time.Minute, 1
			if name == message.StreamLeases {
				want.Duplicates = queue.LeaseTTL // at most the age
			}
			c := stream.CachedInfo().Config
			got := natsjs.StreamConfig{
				Subjects: c.Subjects, Retention: c.Retention, Storage: c.Storage, Discard: c.Discard,
				DiscardNewPerSubject: c.DiscardNewPerSubject, MaxMsgsPerSubject: c.MaxMsgsPerSubject,
				MaxBytes: c.MaxBytes, MaxAge: c.MaxAge, Duplicates: c.Duplicates, Replicas: c.Replicas,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
		durables := map[string]string{message.StreamPurchases: "worker", message.StreamOutcomes: "recorder"}
		for stream, durable := range durables {
			consumer, err := s.raw.Consumer(t.Context(), stream, durable)
			if err != nil {
				t.Fatalf("%s: %v", durable, err)
			}
			c := consumer.CachedInfo().Config
			if c.AckPolicy != natsjs.AckExplicitPolicy || c.AckWait != 30*time.Second ||
				c.MaxAckPending != 200_000 || c.MaxDeliver != -1 || len(c.BackOff) > 0 {
				t.Errorf("consumer %s = %+v, want the product's settings", durable, c)
			}
		}
	}
	check()
	stream, err := s.raw.Stream(t.Context(), message.StreamOutcomes)
	if err != nil {
		t.Fatal(err)
	}
	changed := stream.CachedInfo().Config
	changed.Discard, changed.MaxBytes = natsjs.DiscardOld, 1<<20
	if _, err := s.raw.UpdateStream(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	if err := s.raw.DeleteConsumer(t.Context(), message.StreamPurchases, message.ConsumerWorker); err != nil {
		t.Fatal(err)
	}
	if err := s.raw.DeleteStream(t.Context(), message.StreamPurchasesDead); err != nil {
		t.Fatal(err)
	}
	s.provision(streamConfig)
	check()
}

// A server that lost a consumer's folder rejects each write of that consumer, but still delivers from it.
func TestProvision_KeepsConsumerWithoutFolder(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	stream := filepath.Join(s.dir, "jetstream", "$G", "streams", message.StreamPurchases)
	folder := filepath.Join(stream, "obs", message.ConsumerWorker)
	if _, err := os.Stat(folder); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	if err := s.raw.DeleteStream(t.Context(), message.StreamOutcomes); err != nil {
		t.Fatal(err)
	}
	s.provision(streamConfig)
	if list, err := inspect(t, s.Conn); err != nil || len(list) > 0 {
		t.Errorf("Inspect = %v, %v; want no difference", list, err)
	}
	s.publish(claim("cs_1", 1))
	if messages := s.fetch(s.worker(), 10); len(messages) != 1 {
		t.Errorf("fetched %d messages, want 1", len(messages))
	}
}

func TestProvision_ContinuesAfterOneFailure(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	for _, stream := range []string{message.StreamPurchases, message.StreamOutcomes} {
		if err := s.raw.DeleteStream(t.Context(), stream); err != nil {
			t.Fatal(err)
		}
	}
	_, err := repeat(t, func() error {
		return s.Provision(t.Context(), queue.StreamConfig{Replicas: 1, MaxBytes: 1 << 50})
	})
	if want := fmt.Sprintf("reserve %d bytes (NATS_MAX_BYTES", 1<<50); err == nil ||
		!strings.Contains(err.Error(), want) {
		t.Errorf("error without storage for PURCHASES = %v, want %q", err, want)
	}
	if _, err := s.raw.Consumer(t.Context(), message.StreamOutcomes, message.ConsumerRecorder); err != nil {
		t.Errorf("OUTCOMES: %v", err)
	}
}

func TestPublish_ReportsDuplicateAndStillQueued(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	first := s.publish(claim("cs_1", 1), claim("cs_2", 1))
	if first[0].Err != nil || first[1].Err != nil || first[0].Sequence == 0 ||
		first[0].Sequence == first[1].Sequence || first[0].Duplicate && s.timeouts == 0 {
		t.Fatalf("publish = %+v, want two sequences", first)
	}
	same := s.publish(claim("cs_1", 1))[0]
	if same.Err != nil || same.Sequence != first[0].Sequence || !same.Duplicate {
		t.Errorf("publish of the same ID = %+v, want a duplicate", same)
	}
	if next := s.publish(claim("cs_1", 2))[0]; !errors.Is(next.Err, relay.ErrStillQueued) {
		t.Errorf("publish of the next generation = %+v, want ErrStillQueued", next)
	}
	c := s.worker()
	messages := s.fetchN(c, 2)
	if m := messages[0]; string(m.Data) != "cs_1" || m.MsgID != "cs_1:1" || m.Subject != "purchases.live.cs_1" ||
		m.NumDelivered > 1+s.slow || !m.FirstPublished.Equal(claim("", 1).FirstPublished) {
		t.Fatalf("message = %+v, want cs_1:1", m)
	}
	if next := s.publish(claim("cs_1", 2))[0]; !errors.Is(next.Err, relay.ErrStillQueued) {
		t.Errorf("publish while in flight = %+v, want ErrStillQueued", next)
	}
	if err := messages[0].DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if next := s.publish(claim("cs_1", 2)); next[0].Err != nil || next[0].Sequence <= first[1].Sequence {
		t.Errorf("publish after the ack = %+v, want a new sequence", next)
	}
}

// A publish while disconnected must not be buffered and stored later.
func TestPublish_FailsWhileDisconnected(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	s.stop()
	if r := s.publish(claim("cs_1", 1)); r[0].Err == nil || errors.Is(r[0].Err, relay.ErrStillQueued) {
		t.Errorf("publish = %+v, want an error", r)
	}
	if err := errors.Join(s.Outcomes(t.Context(), []message.Outcome{delivered("cs_1")})...); err == nil {
		t.Error("error = nil, want one")
	}
	connected := make(chan struct{}, 10)
	s.OnConnect(func() { connected <- struct{}{} })
	s.start()
	<-connected
	if n := s.stored(message.StreamPurchases); n != 0 {
		t.Errorf("%d messages, want 0", n)
	}
}

// A restart keeps queued messages and their delays.
func TestConsumer_SurvivesServerRestart(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	s.publish(claim("cs_1", 1), claim("cs_2", 1))
	c := s.worker()
	messages := s.fetchN(c, 2)
	// The server processes them in order: once the second is redelivered, the first one's delay is stored.
	if err := messages[0].NakWithDelay(time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := messages[1].NakWithDelay(10 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	again := s.fetch(c, 10)
	if len(again) != 1 || string(again[0].Data) != "cs_2" || again[0].NumDelivered < 2 {
		t.Fatalf("redelivered = %+v, want cs_2", again)
	}
	if err := again[0].DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.stop()
	s.start()
	s.await("a publish", func() bool { return s.publish(claim("cs_3", 1))[0].Err == nil })
	if messages := s.fetch(c, 10); len(messages) != 1 || string(messages[0].Data) != "cs_3" {
		t.Errorf("messages after the restart = %+v, want cs_3", messages)
	}
	if r := s.publish(claim("cs_1", 2)); !errors.Is(r[0].Err, relay.ErrStillQueued) {
		t.Errorf("publish = %+v, want ErrStillQueued: the delayed message is lost", r)
	}
}

func TestConsumer_BindsAgainAfterWipe(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	c := s.worker()
	s.publish(claim("cs_1", 1))
	s.fetch(c, 1)
	if err := s.raw.DeleteStream(t.Context(), message.StreamPurchases); err != nil {
		t.Fatal(err)
	}
	s.await("a fetch error", func() bool { _, err := c.Fetch(t.Context(), 1); return err != nil })
	if c.Ready() == nil {
		t.Error("Ready = nil without a stream, want an error")
	}
	s.provision(streamConfig)
	s.store([]relay.Claim{claim("cs_2", 1)})
	if m := s.fetch(c, 10); string(m[0].Data) != "cs_2" || c.Ready() != nil {
		t.Errorf("after the repair: messages %+v, ready %v", m, c.Ready())
	}
}

// A pull request to a deleted consumer gets no response.
func TestConsumer_BindsAgainAfterDeletion(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	c := s.worker()
	s.publish(claim("cs_1", 1))
	s.fetch(c, 1)
	if err := s.raw.DeleteConsumer(t.Context(), message.StreamPurchases, message.ConsumerWorker); err != nil {
		t.Fatal(err)
	}
	s.await("a fetch error", func() bool { _, err := c.Fetch(t.Context(), 500); return err != nil })
	if err := c.Ready(); err == nil {
		t.Error("Ready = nil without a consumer, want an error")
	}
	if _, err := repeat(t, func() error {
		_, _, err := c.Pending(t.Context())
		return err
	}); err == nil || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("Pending error = %v, want a missing consumer", err)
	}
	s.provision(streamConfig)
	if m := s.fetch(c, 500); string(m[0].Data) != "cs_1" || c.Ready() != nil {
		t.Errorf("after the repair: messages %+v, ready %v", m, c.Ready())
	}
}

func TestConsumer_PendingCounts(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	s.publish(claim("cs_1", 1), claim("cs_2", 1), claim("cs_3", 1))
	c := s.worker()
	check := func(want ...uint64) {
		t.Helper()
		var got []uint64
		var err error
		if !until(t, func() bool { // the server counts a message after its acknowledgement
			var waiting, unacknowledged uint64
			waiting, unacknowledged, err = c.Pending(t.Context())
			got = []uint64{waiting, unacknowledged}
			return err == nil && slices.Equal(got, want)
		}) {
			t.Errorf("waiting and unacknowledged = %d, error %v; want %d", got, err, want)
		}
	}
	metrics := queue.NewBacklogMetrics(s.worker())
	check(3, 0)
	consumer, err := s.raw.Consumer(t.Context(), message.StreamPurchases, message.ConsumerWorker)
	if err != nil {
		t.Fatal(err)
	}
	batch, err := consumer.Fetch(2, natsjs.FetchMaxWait(time.Minute), natsjs.FetchHeartbeat(30*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	var m []natsjs.Msg
	for msg := range batch.Messages() {
		m = append(m, msg)
	}
	if len(m) != 2 {
		t.Fatalf("fetched %d messages, error %v; want 2", len(m), batch.Error())
	}
	check(1, 2)
	const gauges = `
# HELP purchase_relay_consumer_ack_pending Purchases fetched and not settled, or waiting for a retry.
# TYPE purchase_relay_consumer_ack_pending gauge
purchase_relay_consumer_ack_pending 2
# HELP purchase_relay_consumer_pending Purchases that no worker has fetched.
# TYPE purchase_relay_consumer_pending gauge
purchase_relay_consumer_pending 1
`
	if !until(t, func() bool { // a scrape omits them if a response is late
		err = testutil.CollectAndCompare(metrics, strings.NewReader(gauges))
		return err == nil
	}) {
		t.Error(err)
	}
	if err := m[0].DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(1, 1)
	s.stop()
	if _, _, err := c.Pending(t.Context()); err == nil {
		t.Error("Pending error = nil while NATS is down, want one")
	}
	if n := testutil.CollectAndCount(metrics); n != 0 {
		t.Errorf("%d gauges while NATS is down, want 0", n)
	}
}

// A state has the time of its change, whether or not anybody asked in between.
func TestConn_StateHasItsTime(t *testing.T) {
	t.Parallel()
	before := time.Now()
	s := newNATS(t)
	expect := func(want bool, after time.Time) (since time.Time) {
		t.Helper()
		s.await("the state", func() bool {
			var connected bool
			connected, since = s.State()
			_, again := s.State() // the present, until the change is recorded
			return connected == want && again.Equal(since)
		})
		if since.Before(after) || since.After(time.Now()) {
			t.Errorf("connected = %t since %s, want after %s", want, since, after)
		}
		return since
	}
	up := expect(true, before)
	if again := expect(true, up); !again.Equal(up) {
		t.Errorf("connected since %s, then %s, want no change", up, again)
	}
	stopped := time.Now()
	s.stop()
	down := expect(false, stopped)
	if again := expect(false, stopped); again.Sub(down).Abs() > time.Second {
		t.Errorf("disconnected since %s, then %s", down, again)
	}
	s.start()
	expect(true, down)
}

// More publishes without a response than the client allows: each fails, and later ones are not blocked.
func TestPublish_RecoversFromMissingStream(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	if err := s.raw.DeleteStream(t.Context(), message.StreamPurchases); err != nil {
		t.Fatal(err)
	}
	batch := make([]relay.Claim, 4500)
	for i := range batch {
		batch[i] = claim(fmt.Sprintf("cs_%d", i), 1)
	}
	for i, r := range s.publish(batch...) {
		if r.Err == nil {
			t.Fatalf("publish %d: error = nil without a stream, want one", i)
		}
	}
	s.provision(streamConfig)
	sequence := uint64(0)
	for chunk := range slices.Chunk(batch, 500) { // the relay's batch size
		for _, r := range s.publish(chunk...) {
			if sequence++; r.Err != nil || r.Sequence != sequence {
				t.Fatalf("publish = %+v, want sequence %d", r, sequence)
			}
		}
	}
}

func TestFetch_WaitsForFirstMessageOnly(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	c := s.worker()
	got := make(chan []message.Received, 1)
	go func() {
		for t.Context().Err() == nil { // the first fetch may end before the publish
			messages, err := c.Fetch(context.WithoutCancel(t.Context()), 500)
			if err != nil && !isTimeout(err) && t.Context().Err() == nil {
				t.Error(err)
			}
			if len(messages) > 0 {
				got <- messages
				return
			}
		}
	}()
	s.await("the pull request", func() bool {
		info, err := s.raw.Consumer(t.Context(), message.StreamPurchases, message.ConsumerWorker)
		return err == nil && info.CachedInfo().NumWaiting > 0
	})
	s.publish(claim("cs_1", 1))
	if messages := <-got; len(messages) != 1 {
		t.Errorf("%d messages, want 1", len(messages))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.publish(claim("cs_2", 1))
	for _, limit := range []int{500, 1} {
		if m, err := c.Fetch(ctx, limit); !errors.Is(err, context.Canceled) || len(m) > 0 {
			t.Errorf("Fetch with a canceled context = %v, %v; want none, context.Canceled", m, err)
		}
	}
}

func TestConn_PublishesOutcomesAndDeadLetters(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	var list []message.Outcome
	for i := range 1000 { // more than fit into one message
		o := delivered(fmt.Sprintf("cs_%d", i))
		o.Attempt = message.NewAttempt(purchase.Attempt{
			ID: "a", At: time.Now().UTC(), Class: purchase.ClassDelivered, Message: strings.Repeat("m", 1000),
		})
		list = append(list, o)
	}
	list[7].EventID = "invalid id"
	var errs []error
	timeouts, _ := repeat(t, func() error {
		errs = s.Outcomes(t.Context(), list)
		return errors.Join(errs...)
	})
	if bad := errs[7]; bad == nil || errors.Join(append(errs[:7:7], errs[8:]...)...) != nil {
		t.Fatal(errors.Join(errs...))
	}
	got, count, messages := make(map[string]bool), 0, 0
	recorder := s.Consumer(message.StreamOutcomes, message.ConsumerRecorder)
	for len(got) < 999 {
		for _, m := range s.fetch(recorder, 10) {
			outcomes, err := message.DecodeOutcomes(m.Data)
			if err := errors.Join(err, m.Ack()); err != nil {
				t.Error(err)
			}
			for _, o := range outcomes {
				got[o.EventID] = true
			}
			messages, count = messages+1, count+len(outcomes)
		}
	}
	if repeated := timeouts > 0; messages < 4 || !got["cs_0"] || !got["cs_999"] ||
		!repeated && (messages > 6 || count != 999) {
		t.Errorf("%d outcomes in %d messages, want 999 in 4 to 6", count, messages)
	}
	if _, err := repeat(t, func() error {
		return errors.Join(s.DeadLetters(t.Context(), []message.DeadLetter{deadLetter("cs_1", 1)})...)
	}); err != nil {
		t.Fatal(err)
	}
	stream, err := s.raw.Stream(t.Context(), message.StreamPurchasesDead)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.GetLastMsgForSubject(t.Context(), "purchases.dead.cs_1")
	if err != nil || !strings.Contains(string(msg.Data), `"reason":"refused"`) {
		t.Errorf("dead letter = %v, %v; want reason refused", msg, err)
	}
}

func TestWorkers_ListsReports(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	workers, err := s.WatchWorkers()
	if err != nil {
		t.Fatal(err)
	}
	if list := workers.List(); list == nil || len(list) > 0 || !workers.LastSeen().IsZero() {
		t.Errorf("workers before a report = %v, last at %s, want an empty list", list, workers.LastSeen())
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended, worker := make(chan error), s.connect("worker")
	state := message.WorkerState{
		Version: "v1", State: message.WorkerPaused, Reason: "40105", Since: time.Unix(1, 0).UTC(),
	}
	go func() {
		ended <- worker.PublishState(ctx, "w-1", 20*time.Millisecond, func() message.WorkerState { return state })
	}()
	tooLarge := `{"state":"running","reason":"` + strings.Repeat("x", 5000) + `"}`
	for _, data := range []string{`{`, `null`, `{}`, `[1]`, `{"state":7}`, tooLarge} {
		if err := s.nc.Publish("workers.malformed", []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	var list []message.WorkerState
	s.await("the worker's state", func() bool {
		list = workers.List()
		return len(list) > 0
	})
	if workers.LastSeen().Before(list[0].Seen) {
		t.Errorf("last report at %s, want at least %s", workers.LastSeen(), list[0].Seen)
	}
	if w := list[0]; len(list) != 1 || w.Instance != "w-1" || w.State != "paused" || w.Reason != "40105" {
		t.Errorf("workers = %+v, want %+v alone", list, state)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Any permitted client could otherwise fill the memory with names.
func TestWorkers_IsBounded(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	workers, err := s.WatchWorkers()
	if err != nil {
		t.Fatal(err)
	}
	report := func(name, state string) {
		t.Helper()
		if err := s.nc.Publish(message.SubjectWorkers+name, []byte(`{"state":"`+state+`"}`)); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	s.await("the known worker", func() bool { // repeated: the subscription may be later
		report("known", message.WorkerRunning)
		return len(workers.List()) == 1
	})
	for i := range 1200 {
		report(fmt.Sprintf("n%04d", i), message.WorkerRunning)
	}
	var list []message.WorkerState
	s.await("the known worker's last report", func() bool {
		report("known", message.WorkerPaused) // after all of them
		list = workers.List()
		return len(list) > 0 && list[0].State == message.WorkerPaused
	})
	complete := time.Since(began) < queue.WorkerTTL // later, the first ones are no longer listed
	if n := len(list); n > 1000 || n < 1000 && complete {
		t.Errorf("%d workers, want 1000", n)
	}
}

func TestInstance_IsSubjectToken(t *testing.T) {
	t.Parallel()
	a, b := queue.Instance(), queue.Instance()
	if !purchase.ValidID(a) || a == b {
		t.Errorf("instances = %q and %q, want valid and different ones", a, b)
	}
}

func TestConfig_Problems(t *testing.T) {
	t.Parallel()
	bad := queue.Config{
		NATSURL: "nats://u:hunter2@host:4222,http://x", NATSCredsFile: "/missing", NATSCertFile: "/missing.pem",
	}
	list := strings.Join(bad.Problems(), "\n")
	for _, want := range []string{"NATS_URL", "NATS_CREDS_FILE", "NATS_CERT_FILE", "NATS_KEY_FILE"} {
		if !strings.Contains(list, want) {
			t.Errorf("problems lack %s: %s", want, list)
		}
	}
	if strings.Contains(list, "hunter2") {
		t.Errorf("problems contain the password: %s", list)
	}
	if p := (queue.Config{NATSURL: "nats://a:4222, tls://b:4222"}).Problems(); len(p) > 0 {
		t.Errorf("problems = %v, want none", p)
	}
}

func TestFetch_IsNotBlockedByDelayedMessages(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	const batch = 1000
	delayed := 100_000
	if testing.Short() {
		delayed = 5 * batch // JetStream's default would stop at 1,000
	}
	publish := func(name string, n int) {
		t.Helper()
		list := make([]relay.Claim, n)
		for i := range list {
			id := fmt.Sprintf("cs_%s_%d", name, i)
			list[i] = claim(id, 1)
		}
		s.store(list)
	}
	worker := s.worker()
	for i := range delayed / batch {
		publish(fmt.Sprintf("old%d", i), batch)
	}
	for returned := 0; returned < delayed; {
		messages := s.fetch(worker, batch)
		for _, m := range messages {
			if err := m.NakWithDelay(time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		returned += len(messages)
	}
	publish("new", 100)
	s.slow = 0
	for got := 0; got < 100; {
		messages := s.fetch(worker, batch)
		for _, m := range messages {
			if !strings.HasPrefix(m.MsgID, "cs_new_") || m.NumDelivered > 1+s.slow {
				t.Fatalf("message %s, delivery %d; want a new one", m.MsgID, m.NumDelivered)
			}
			if err := m.Ack(); err != nil {
				t.Fatal(err)
			}
		}
		got += len(messages)
	}
	var waiting, unacknowledged uint64
	_, err := repeat(t, func() (err error) {
		waiting, unacknowledged, err = worker.Pending(t.Context())
		return err
	})
	if err != nil || waiting != 0 || unacknowledged < uint64(delayed) {
		t.Errorf("%d waiting, %d delayed, error %v; want 0, at least %d", waiting, unacknowledged, err, delayed)
	}
}

// A fetch that is dropped is redelivered after AckWait as if its worker had crashed, and sent one by one.
func TestFetch_AcceptsLateResponse(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	const n = 20
	claims := make([]relay.Claim, n)
	for i := range claims {
		claims[i] = claim(fmt.Sprintf("cs_%d", i), 1)
	}
	s.store(claims)
	proxy := faultproxy.ForTest(t, s.server.Addr())
	worker := s.connectVia(proxy).Consumer(message.StreamPurchases, message.ConsumerWorker)
	if _, err := repeat(t, func() error {
		_, _, err := worker.Pending(t.Context()) // binds, so that a fetch is one request
		return err
	}); err != nil {
		t.Fatal(err)
	}
	proxy.Set(faultproxy.Fault{Delay: 700 * time.Millisecond})
	got := s.fetchN(worker, n)
	for _, m := range got {
		if m.NumDelivered > 1+s.slow {
			t.Errorf("%s: delivery %d, want the first", m.MsgID, m.NumDelivered)
		}
	}
}

// Every worker distinguishes a returned message from one whose worker crashed.
func TestConsumer_MarksReturnedMessages(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	one, other := s.worker(), s.worker()
	if err := other.WatchReturns(); err != nil {
		t.Fatal(err)
	}
	delivery := 0
	fetch := func(c *queue.Consumer, returned bool) message.Received {
		t.Helper()
		s.slow = 0
		m := s.fetch(c, 1)[0]
		delivery++ // or a higher one after a slow fetch, which may lose a delivery
		if s.slow == 0 && (m.NumDelivered != delivery || m.Returned != returned) {
			t.Errorf("delivery %d, returned %t; want %d, %t", m.NumDelivered, m.Returned, delivery, returned)
		}
		delivery = m.NumDelivered
		return m
	}
	s.store([]relay.Claim{claim("cs_1", 1)})
	if err := fetch(one, false).NakWithDelay(200 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	s.await("the NAK's advisory", func() bool { return other.Returns() > 0 })
	if err := fetch(other, true).NakWithDelay(0); err != nil { // returned by the other consumer
		t.Fatal(err)
	}
	m := fetch(one, false) // one does not watch the NAKs of others
	bound, err := s.raw.Consumer(t.Context(), message.StreamPurchases, message.ConsumerWorker)
	if err != nil {
		t.Fatal(err)
	}
	config := bound.CachedInfo().Config
	config.AckWait = time.Second // instead of 30 s
	if _, err := s.raw.UpdateConsumer(t.Context(), message.StreamPurchases, config); err != nil {
		t.Fatal(err)
	}
	m.Leave()
	if err := fetch(one, true).DoubleAck(t.Context()); err != nil { // redelivered after AckWait
		t.Fatal(err)
	}
}

// recorderInfo returns the state of the recorder's consumer.
func (s *testNATS) recorderInfo() *natsjs.ConsumerInfo {
	s.t.Helper()
	bound, err := s.raw.Consumer(s.t.Context(), message.StreamOutcomes, message.ConsumerRecorder)
	if err != nil {
		s.t.Fatal(err)
	}
	return bound.CachedInfo()
}

// report stores the outcome of a purchase and waits until the recorder's consumer counts it, which is a
// moment after the stream's acknowledgement.
func (s *testNATS) report(id string) {
	s.t.Helper()
	data, err := message.EncodeOutcome(delivered(id))
	if err != nil {
		s.t.Fatal(err)
	}
	data = message.EncodeOutcomes([][]byte{data})
	before := s.recorderInfo().NumPending
	if _, err := s.raw.Publish(s.t.Context(), message.SubjectOutcomes, data); err != nil {
		s.t.Fatal(err)
	}
	s.await("the outcome", func() bool { return s.recorderInfo().NumPending > before })
}

func (s *testNATS) lag() (lag time.Duration) {
	s.t.Helper()
	if _, err := repeat(s.t, func() (err error) {
		lag, err = s.OutcomeLag(s.t.Context())
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	return lag
}

func TestOutcomeLag_EndsWithAck(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	age := func() time.Duration { // of the stream's first message
		t.Helper()
		stream, err := s.raw.Stream(t.Context(), message.StreamOutcomes)
		if err != nil {
			t.Fatal(err)
		}
		return stream.CachedInfo().TimeStamp.Sub(stream.CachedInfo().State.FirstTime)
	}
	if got := s.lag(); got != 0 {
		t.Errorf("lag = %s without an outcome, want 0", got)
	}
	s.report("cs_1")
	s.report("cs_2")
	before := age()
	if got := s.lag(); got < before || got > age() {
		t.Errorf("lag = %s, want the first outcome's age, %s", got, before)
	}
	messages := s.fetch(s.Consumer(message.StreamOutcomes, message.ConsumerRecorder), 1)
	before = age()
	if got := s.lag(); got < before {
		t.Errorf("lag = %s while the first outcome is being recorded, want its age, %s", got, before)
	}
	if err := messages[0].DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	before = age()
	if got := s.lag(); got < before || got > age() {
		t.Errorf("lag = %s after the first was recorded, want the second's age, %s", got, before)
	}
	if err := s.raw.DeleteStream(t.Context(), message.StreamOutcomes); err != nil {
		t.Fatal(err)
	}
	if got, err := s.OutcomeLag(t.Context()); err == nil {
		t.Errorf("lag = %s without a stream, want an error", got)
	}
}

// A sweeper that asked while an outage's outcomes were being recorded saw a lag of nearly 0 and published the
// others' purchases again: the stream's state was older than the consumer's, and its first message passed for
// an orphan.
func TestOutcomeLag_CountsRemainingWhileOthersAreRecorded(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	const n = 500
	outcomes := make([]message.Outcome, n)
	for i := range outcomes {
		outcomes[i] = delivered(fmt.Sprintf("cs_%d", i))
	}
	for batch := range slices.Chunk(outcomes, 10) {
		if _, err := repeat(t, func() error { return errors.Join(s.Outcomes(t.Context(), batch)...) }); err != nil {
			t.Fatal(err)
		}
	}
	const age = 200 * time.Millisecond
	stream, err := s.raw.Stream(t.Context(), message.StreamOutcomes)
	if err != nil {
		t.Fatal(err)
	}
	s.await("the last outcome's age", func() bool {
		info, err := stream.Info(t.Context())
		return err == nil && info.TimeStamp.Sub(info.State.LastTime) > age
	})
	messages := s.fetch(s.Consumer(message.StreamOutcomes, message.ConsumerRecorder), 1000)
	var recorded atomic.Int64
	var recorder sync.WaitGroup
	recorder.Go(func() {
		for _, m := range messages {
			if err := m.DoubleAck(t.Context()); err != nil {
				t.Error(err)
			}
			recorded.Add(1)
		}
	})
	for checks := 0; ; checks++ {
		lag := s.lag()
		if recorded.Load() >= int64(len(messages))-1 {
			break
		}
		if lag < age {
			t.Fatalf("check %d: lag = %s, want at least %s", checks, lag, age)
		}
	}
	recorder.Wait()
}

// A killed server may restore a message whose acknowledgement its consumer has stored. This orphan is never
// delivered: its age counts neither alone nor beside an unrecorded outcome.
func TestOutcomeLag_IgnoresOrphan(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	record := func() {
		t.Helper()
		for _, m := range s.fetch(s.Consumer(message.StreamOutcomes, message.ConsumerRecorder), 10) {
			if err := m.DoubleAck(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	restart := func(between func(messages string)) {
		t.Helper()
		s.stop()
		between(filepath.Join(s.dir, "jetstream", "$G", "streams", message.StreamOutcomes, "msgs"))
		s.start()
		s.await("the connection", s.Connected)
	}
	s.report("cs_1")
	kept := filepath.Join(t.TempDir(), "msgs")
	restart(func(messages string) {
		if err := os.CopyFS(kept, os.DirFS(messages)); err != nil {
			t.Fatal(err)
		}
	})
	record()
	restart(func(messages string) {
		if err := errors.Join(os.RemoveAll(messages), os.CopyFS(messages, os.DirFS(kept))); err != nil {
			t.Fatal(err)
		}
	})
	s.await("the stream", func() bool {
		_, err := s.raw.Stream(t.Context(), message.StreamOutcomes)
		return err == nil
	})
	if n := s.stored(message.StreamOutcomes); n != 1 {
		t.Fatalf("%d messages in the stream, want the orphan", n)
	}
	if got := s.lag(); got != 0 {
		t.Errorf("lag = %s beside an orphan alone, want 0", got)
	}
	s.report("cs_2")
	if got := s.lag(); got == 0 {
		t.Error("lag = 0 with an unrecorded outcome, want more")
	}
	began := time.Now() // after the orphan, before the last ack
	record()
	s.report("cs_3")
	got := s.lag()
	if limit := time.Since(began); got == 0 || got > limit {
		t.Errorf("lag = %s beside an older orphan, want the time since the last ack, at most %s", got, limit)
	}
}
