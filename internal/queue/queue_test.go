package queue_test

import (
	"context"
	"errors"
	"fmt"
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
	raw natsjs.JetStream
	nc  *nats.Conn
}

func newNATS(t *testing.T) *testNATS {
	t.Helper()
	s := &testNATS{t: t, dir: t.TempDir()}
	s.start()
	s.addr = s.server.Addr()
	s.Conn = s.connect("ingest")
	nc, err := nats.Connect(s.server.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	s.nc = nc
	if s.raw, err = natsjs.New(nc); err != nil {
		t.Fatal(err)
	}
	if err := s.Provision(t.Context(), streamConfig); err != nil {
		t.Fatal(err)
	}
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
}

func (s *testNATS) connect(name string) *queue.Conn {
	s.t.Helper()
	config := queue.Config{NATSURL: secret.String(s.server.URL())}
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
	if !wait.Until(context.WithoutCancel(t.Context()), time.Minute, 5*time.Millisecond, done) {
		t.Fatalf("timeout waiting for %s", what)
	}
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

func (s *testNATS) publish(p ...relay.Claim) []relay.PublishResult {
	s.t.Helper()
	return s.Publish(s.t.Context(), p)
}

// store publishes in the relay's batches and, like the relay, repeats what failed: on a busy machine an
// acknowledgement may take longer than the client waits.
func (s *testNATS) store(claims []relay.Claim) {
	s.t.Helper()
	for batch := range slices.Chunk(claims, 500) {
		s.await("the acknowledgements", func() bool {
			var failed []relay.Claim
			for i, r := range s.publish(batch...) {
				if r.Err != nil {
					failed = append(failed, batch[i])
				}
			}
			batch = failed
			return len(batch) == 0
		})
	}
}

func (s *testNATS) fetch(c *queue.Consumer, limit int) []message.Received {
	s.t.Helper()
	var got []message.Received
	s.await("a message", func() bool {
		messages, err := c.Fetch(s.t.Context(), limit)
		if err != nil {
			return false
		}
		got = messages
		return len(got) > 0
	})
	return got
}

// fetchN fetches until it has n messages: the server may deliver fewer than are stored.
func (s *testNATS) fetchN(c *queue.Consumer, n int) (messages []message.Received) {
	s.t.Helper()
	for len(messages) < n {
		messages = append(messages, s.fetch(c, n-len(messages))...)
	}
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
	if err := s.Provision(t.Context(), streamConfig); err != nil {
		t.Fatal(err)
	}
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
	if err := s.Provision(t.Context(), streamConfig); err != nil {
		t.Error(err)
	}
	if list, err := s.Inspect(t.Context(), streamConfig); err != nil || len(list) > 0 {
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
	if err := s.Provision(t.Context(), queue.StreamConfig{Replicas: 1, MaxBytes: 1 << 50}); err == nil {
		t.Error("error = nil without storage for PURCHASES, want one")
	}
	if _, err := s.raw.Consumer(t.Context(), message.StreamOutcomes, message.ConsumerRecorder); err != nil {
		t.Errorf("OUTCOMES: %v", err)
	}
}

func TestProvision_ReportsAvailableStorage(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	err := s.Provision(t.Context(), queue.StreamConfig{Replicas: 1, MaxBytes: 1 << 50})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("reserve %d bytes (NATS_MAX_BYTES", 1<<50)) {
		t.Errorf("error = %v, want the bytes and NATS_MAX_BYTES", err)
	}
}

func TestPublish_ReportsDuplicateAndStillQueued(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	first := s.publish(claim("cs_1", 1), claim("cs_2", 1))
	if first[0].Err != nil || first[1].Err != nil || first[0].Sequence == 0 ||
		first[0].Sequence == first[1].Sequence || first[0].Duplicate {
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
		m.NumDelivered != 1 || !m.FirstPublished.Equal(claim("", 1).FirstPublished) {
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

func TestPublish_ReportsFullStream(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	if err := s.Provision(t.Context(), queue.StreamConfig{Replicas: 1, MaxBytes: 2000}); err != nil {
		t.Fatal(err)
	}
	var full error
	for i := range 50 {
		p := claim(fmt.Sprintf("cs_%d", i), 1)
		p.Envelope = make([]byte, 200)
		if r := s.publish(p); r[0].Err != nil {
			full = r[0].Err
			break
		}
	}
	if !errors.Is(full, relay.ErrStreamFull) {
		t.Errorf("error = %v, want ErrStreamFull", full)
	}
}

// A publish while disconnected must not be buffered and stored later.
func TestPublish_FailsWhileDisconnected(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	s.stop()
	s.await("the disconnect", func() bool { return !s.Connected() })
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
	stream, err := s.raw.Stream(t.Context(), message.StreamPurchases)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := stream.Info(t.Context()); err != nil || info.State.Msgs != 0 {
		t.Errorf("%d messages, error %v; want 0, nil", info.State.Msgs, err)
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
	if len(again) != 1 || string(again[0].Data) != "cs_2" || again[0].NumDelivered != 2 {
		t.Fatalf("redelivered = %+v, want cs_2", again)
	}
	if err := again[0].DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.stop()
	s.await("the disconnect", func() bool { return !s.Connected() })
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
	if err := s.Provision(t.Context(), streamConfig); err != nil {
		t.Fatal(err)
	}
	if r := s.publish(claim("cs_2", 1)); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
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
	if _, _, err := c.Pending(t.Context()); err == nil || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("Pending error = %v, want a missing consumer", err)
	}
	if err := s.Provision(t.Context(), streamConfig); err != nil {
		t.Fatal(err)
	}
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
		waiting, unacknowledged, err := c.Pending(t.Context())
		if got := []uint64{waiting, unacknowledged}; err != nil || !slices.Equal(got, want) {
			t.Errorf("waiting and unacknowledged = %d, error %v; want %d", got, err, want)
		}
	}
	metrics := queue.NewBacklogMetrics(s.worker())
	check(3, 0)
	m := s.fetch(c, 2)
	check(1, 2)
	const gauges = `
# HELP purchase_relay_consumer_ack_pending Purchases fetched and not settled, or waiting for a retry.
# TYPE purchase_relay_consumer_ack_pending gauge
purchase_relay_consumer_ack_pending 2
# HELP purchase_relay_consumer_pending Purchases that no worker has fetched.
# TYPE purchase_relay_consumer_pending gauge
purchase_relay_consumer_pending 1
`
	if err := testutil.CollectAndCompare(metrics, strings.NewReader(gauges)); err != nil {
		t.Error(err)
	}
	if err := m[0].DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(1, 1)
	s.stop()
	s.await("the disconnect", func() bool { return !s.Connected() })
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
			return connected == want
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
	if err := s.Provision(t.Context(), streamConfig); err != nil {
		t.Fatal(err)
	}
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
	got := make(chan []message.Received)
	go func() {
		messages, err := c.Fetch(context.WithoutCancel(t.Context()), 500)
		if err != nil {
			t.Error(err)
		}
		got <- messages
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
	errs := s.Outcomes(t.Context(), list)
	if bad := errs[7]; bad == nil || errors.Join(append(errs[:7:7], errs[8:]...)...) != nil {
		t.Fatal(errors.Join(errs...))
	}
	var got []string
	messages := s.fetch(s.Consumer(message.StreamOutcomes, message.ConsumerRecorder), 10)
	for _, m := range messages {
		outcomes, err := message.DecodeOutcomes(m.Data)
		if err != nil {
			t.Error(err)
		}
		for _, o := range outcomes {
			got = append(got, o.EventID)
		}
	}
	if len(messages) < 4 || len(messages) > 6 || len(got) != 999 || got[0] != "cs_0" || got[998] != "cs_999" {
		t.Errorf("%d outcomes in %d messages, want 999 in 4 to 6", len(got), len(messages))
	}
	letters := []message.DeadLetter{deadLetter("cs_1", 1)}
	if err := errors.Join(s.DeadLetters(t.Context(), letters)...); err != nil {
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
	s.await("the worker's state", func() bool { return len(workers.List()) > 0 })
	list := workers.List()
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

// A compromised worker's state is shown on pages, without control, direction or invisible characters.
func TestWorkers_ShowHostileStatesSafely(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	workers, err := s.WatchWorkers()
	if err != nil {
		t.Fatal(err)
	}
	const hostile = `{"version":"v\u202e1","state":"running",` +
		`"reason":"\u2067all \u200bis\u001b[2J\nwell","since":"9999-01-01T00:00:00Z"}`
	s.await("the state", func() bool { // repeated: the subscription may be later
		if err := s.nc.Publish("workers.w-1", []byte(hostile)); err != nil {
			t.Fatal(err)
		}
		return len(workers.List()) == 1
	})
	if w := workers.List()[0]; w.Version != "v1" || w.Reason != "all is[2J well" || w.Since.After(time.Now()) {
		t.Errorf("state = %+v, want sanitized texts", w)
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
	s.await("the known worker", func() bool { // repeated: the subscription may be later
		report("known", message.WorkerRunning)
		return len(workers.List()) == 1
	})
	for i := range 1200 {
		report(fmt.Sprintf("n%04d", i), message.WorkerRunning)
	}
	report("known", message.WorkerPaused) // after all of them
	s.await("the known worker's last report", func() bool {
		list := workers.List()
		return len(list) > 0 && list[0].State == message.WorkerPaused
	})
	if n := len(workers.List()); n != 1000 {
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
		messages, err := worker.Fetch(t.Context(), batch)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			if err := m.NakWithDelay(time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		returned += len(messages)
	}
	publish("new", 100)
	for got := 0; got < 100; {
		messages, err := worker.Fetch(t.Context(), batch)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			if !strings.HasPrefix(m.MsgID, "cs_new_") || m.NumDelivered != 1 {
				t.Fatalf("message %s, delivery %d; want a new one", m.MsgID, m.NumDelivered)
			}
			if err := m.Ack(); err != nil {
				t.Fatal(err)
			}
		}
		got += len(messages)
	}
	waiting, unacknowledged, err := worker.Pending(t.Context())
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
	proxy.Set(faultproxy.Fault{Delay: 700 * time.Millisecond})
	got := s.fetchN(worker, n)
	for _, m := range got {
		if m.NumDelivered != 1 {
			t.Errorf("%s: delivery %d, want the first", m.MsgID, m.NumDelivered)
		}
	}
}

// Every worker distinguishes a returned message from one whose worker crashed.
func TestConsumer_MarksReturnedMessages(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	bound, err := s.raw.Consumer(t.Context(), message.StreamPurchases, message.ConsumerWorker)
	if err != nil {
		t.Fatal(err)
	}
	config := bound.CachedInfo().Config
	config.AckWait = time.Second // instead of 30 s
	if _, err := s.raw.UpdateConsumer(t.Context(), message.StreamPurchases, config); err != nil {
		t.Fatal(err)
	}
	one, other := s.worker(), s.worker()
	if err := other.WatchReturns(); err != nil {
		t.Fatal(err)
	}
	fetch := func(c *queue.Consumer, delivery int, returned bool) message.Received {
		t.Helper()
		m := s.fetch(c, 1)[0]
		if m.NumDelivered != delivery || m.Returned != returned {
			t.Errorf("delivery %d, returned %t; want %d, %t", m.NumDelivered, m.Returned, delivery, returned)
		}
		return m
	}
	if r := s.publish(claim("cs_1", 1))[0]; r.Err != nil {
		t.Fatal(r.Err)
	}
	if err := fetch(one, 1, false).NakWithDelay(200 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := fetch(other, 2, true).NakWithDelay(0); err != nil { // returned by the other consumer
		t.Fatal(err)
	}
	fetch(one, 3, false).Leave()                                       // one does not watch the NAKs of others
	if err := fetch(one, 4, true).DoubleAck(t.Context()); err != nil { // redelivered after AckWait
		t.Fatal(err)
	}
}

func TestOutcomeLag_EndsWithAck(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	lag := func() time.Duration {
		t.Helper()
		got, err := s.OutcomeLag(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	age := func() time.Duration { // of the stream's first message
		t.Helper()
		stream, err := s.raw.Stream(t.Context(), message.StreamOutcomes)
		if err != nil {
			t.Fatal(err)
		}
		return stream.CachedInfo().TimeStamp.Sub(stream.CachedInfo().State.FirstTime)
	}
	if got := lag(); got != 0 {
		t.Errorf("lag = %s without an outcome, want 0", got)
	}
	for _, id := range []string{"cs_1", "cs_2"} {
		if err := errors.Join(s.Outcomes(t.Context(), []message.Outcome{delivered(id)})...); err != nil {
			t.Fatal(err)
		}
	}
	before := age()
	if got := lag(); got < before || got > age() {
		t.Errorf("lag = %s, want the first outcome's age, %s", got, before)
	}
	consumer := s.Consumer(message.StreamOutcomes, message.ConsumerRecorder)
	messages, err := consumer.Fetch(t.Context(), 1)
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d messages, %v", len(messages), err)
	}
	before = age()
	if got := lag(); got < before {
		t.Errorf("lag = %s while the first outcome is being recorded, want its age, %s", got, before)
	}
	if err := messages[0].DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	before = age()
	if got := lag(); got < before || got > age() {
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
		if err := errors.Join(s.Outcomes(t.Context(), batch)...); err != nil {
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
		lag, err := s.OutcomeLag(t.Context())
		if err != nil {
			t.Fatal(err)
		}
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
	report := func(id string) {
		t.Helper()
		if err := errors.Join(s.Outcomes(t.Context(), []message.Outcome{delivered(id)})...); err != nil {
			t.Fatal(err)
		}
	}
	lag := func() (got time.Duration) {
		t.Helper()
		s.await("the lag", func() bool {
			var err error
			got, err = s.OutcomeLag(t.Context())
			return err == nil
		})
		return got
	}
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
		if err := s.server.Stop(); err != nil {
			t.Fatal(err)
		}
		between(filepath.Join(s.dir, "jetstream", "$G", "streams", message.StreamOutcomes, "msgs"))
		s.start()
		s.await("the connection", s.Connected)
	}
	state := func() *natsjs.StreamInfo {
		t.Helper()
		stream, err := s.raw.Stream(t.Context(), message.StreamOutcomes)
		if err != nil {
			t.Fatal(err)
		}
		return stream.CachedInfo()
	}
	report("cs_1")
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
	if n := state().State.Msgs; n != 1 {
		t.Fatalf("%d messages in the stream, want the orphan", n)
	}
	if got := lag(); got != 0 {
		t.Errorf("lag = %s beside an orphan alone, want 0", got)
	}
	report("cs_2")
	if got := lag(); got == 0 {
		t.Error("lag = 0 with an unrecorded outcome, want more")
	}
	record()
	recorded := state()
	report("cs_3")
	if got, orphan := lag(), recorded.TimeStamp.Sub(recorded.State.FirstTime); got == 0 || got >= orphan {
		t.Errorf("lag = %s beside an orphan of %s, want the shorter time since the last ack", got, orphan)
	}
}
