package queue_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	"purchase-relay/internal/testkit/natslocal"
	"purchase-relay/internal/testkit/wait"
)

var small = queue.StreamConfig{Replicas: 1, MaxBytes: 64 << 20}

// site is a real nats-server that can be stopped and started again, and a connection to it.
type site struct {
	t      *testing.T
	server *natslocal.Server
	dir    string
	addr   string
	*queue.Conn
	raw natsjs.JetStream
	nc  *nats.Conn
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir()}
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
	if err := s.Provision(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) start() {
	s.t.Helper()
	server, err := natslocal.Start(natslocal.Options{Addr: s.addr, StoreDir: s.dir})
	if err != nil {
		s.t.Fatal(err)
	}
	s.server = server
	s.t.Cleanup(func() { _ = server.Stop() })
}

func (s *site) stop() {
	s.t.Helper()
	if err := s.server.Stop(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) connect(name string) *queue.Conn {
	s.t.Helper()
	c, err := queue.Connect(queue.Config{NATSURL: secret.String(s.server.URL())}, name, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close(context.Background()) })
	s.await("the connection", c.Connected)
	return c
}

func (s *site) await(what string, done func() bool) {
	s.t.Helper()
	await(s.t, what, done)
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	if !wait.Until(context.WithoutCancel(t.Context()), time.Minute, 5*time.Millisecond, done) {
		t.Fatalf("waited in vain for %s", what)
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

func (s *site) publish(p ...relay.Claim) []relay.PublishResult {
	s.t.Helper()
	return s.Publish(s.t.Context(), p)
}

func (s *site) fetch(c *queue.Consumer, most int) []message.Received {
	s.t.Helper()
	var got []message.Received
	s.await("a message", func() bool {
		messages, err := c.Fetch(s.t.Context(), most)
		if err != nil {
			return false
		}
		got = messages
		return len(got) > 0
	})
	return got
}

func TestProvision_CreatesAndRepairs(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	check := func() {
		t.Helper()
		for name, want := range map[string]natsjs.StreamConfig{
			message.StreamPurchases: {
				Subjects: []string{"purchases.live.*", "purchases.test.*"}, Retention: natsjs.WorkQueuePolicy, Storage: natsjs.FileStorage,
				Discard: natsjs.DiscardNew, DiscardNewPerSubject: true, MaxMsgsPerSubject: 1, MaxBytes: small.MaxBytes, Duplicates: 2 * time.Minute, Replicas: 1,
			},
			message.StreamPurchasesDead: {
				Subjects: []string{"purchases.dead.*"}, Retention: natsjs.LimitsPolicy, Storage: natsjs.FileStorage, MaxMsgsPerSubject: -1,
				MaxBytes: 1 << 30, MaxAge: 30 * 24 * time.Hour, Duplicates: 2 * time.Minute, Replicas: 1,
			},
			message.StreamOutcomes: {
				Subjects: []string{"outcomes"}, Retention: natsjs.WorkQueuePolicy, Storage: natsjs.FileStorage, Discard: natsjs.DiscardNew,
				MaxMsgsPerSubject: -1, MaxBytes: 1 << 30, Duplicates: 2 * time.Minute, Replicas: 1,
			},
		} {
			stream, err := s.raw.Stream(t.Context(), name)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			c := stream.CachedInfo().Config
			got := natsjs.StreamConfig{
				Subjects: c.Subjects, Retention: c.Retention, Storage: c.Storage, Discard: c.Discard, DiscardNewPerSubject: c.DiscardNewPerSubject,
				MaxMsgsPerSubject: c.MaxMsgsPerSubject, MaxBytes: c.MaxBytes, MaxAge: c.MaxAge, Duplicates: c.Duplicates, Replicas: c.Replicas,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
		for stream, durable := range map[string]string{message.StreamPurchases: "worker", message.StreamOutcomes: "recorder"} {
			consumer, err := s.raw.Consumer(t.Context(), stream, durable)
			if err != nil {
				t.Fatalf("%s: %v", durable, err)
			}
			c := consumer.CachedInfo().Config
			if c.AckPolicy != natsjs.AckExplicitPolicy || c.AckWait != 30*time.Second || c.MaxAckPending != 200_000 || c.MaxDeliver != -1 || len(c.BackOff) > 0 {
				t.Errorf("%s: %+v", durable, c)
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
	if err := s.Provision(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	check()
}

// A server that lost a consumer's folder refuses to write that consumer. The consumer still delivers, and
// what else is missing is created.
func TestProvision_ConsumerWithoutFolder(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	folder := filepath.Join(s.dir, "jetstream", "$G", "streams", message.StreamPurchases, "obs", message.ConsumerWorker)
	if _, err := os.Stat(folder); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	if err := s.raw.DeleteStream(t.Context(), message.StreamOutcomes); err != nil {
		t.Fatal(err)
	}
	if err := s.Provision(t.Context(), small); err != nil {
		t.Error(err)
	}
	if list, err := s.Inspect(t.Context(), small); err != nil || len(list) > 0 {
		t.Errorf("afterwards: %v, %v", list, err)
	}
	s.publish(claim("cs_1", 1))
	if messages := s.fetch(s.Consumer(message.StreamPurchases, message.ConsumerWorker), 10); len(messages) != 1 {
		t.Errorf("fetched %d messages, want 1", len(messages))
	}
}

// A stream for which there is no room does not keep the others from being created.
func TestProvision_OneFails(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, stream := range []string{message.StreamPurchases, message.StreamOutcomes} {
		if err := s.raw.DeleteStream(t.Context(), stream); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Provision(t.Context(), queue.StreamConfig{Replicas: 1, MaxBytes: 1 << 50}); err == nil {
		t.Error("no error without room for PURCHASES")
	}
	if _, err := s.raw.Consumer(t.Context(), message.StreamOutcomes, message.ConsumerRecorder); err != nil {
		t.Errorf("OUTCOMES: %v", err)
	}
}

func TestProvision_ReportsAvailableStorage(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	err := s.Provision(t.Context(), queue.StreamConfig{Replicas: 1, MaxBytes: 1 << 50})
	if err == nil || !strings.Contains(err.Error(), "NATS_MAX_BYTES") || !strings.Contains(err.Error(), fmt.Sprint(1<<50)) {
		t.Errorf("error: %v", err)
	}
}

// The stream itself says what is still queued.
func TestPublish_ReportsDuplicateAndStillQueued(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first := s.publish(claim("cs_1", 1), claim("cs_2", 1))
	if first[0].Err != nil || first[1].Err != nil || first[0].Sequence == 0 || first[0].Sequence == first[1].Sequence {
		t.Fatalf("first: %+v", first)
	}
	if same := s.publish(claim("cs_1", 1)); same[0].Err != nil || same[0].Sequence != first[0].Sequence || !same[0].Duplicate || first[0].Duplicate {
		t.Errorf("the same id again: %+v", same)
	}
	if next := s.publish(claim("cs_1", 2)); !errors.Is(next[0].Err, relay.ErrStillQueued) {
		t.Errorf("the next generation while the first is queued: %+v", next)
	}
	c := s.Consumer(message.StreamPurchases, message.ConsumerWorker)
	messages := s.fetch(c, 10)
	if len(messages) != 2 || string(messages[0].Data) != "cs_1" || messages[0].MsgID != "cs_1:1" || messages[0].Subject != "purchases.live.cs_1" ||
		messages[0].NumDelivered != 1 || !messages[0].FirstPublished.Equal(claim("", 1).FirstPublished) {
		t.Fatalf("fetched: %+v", messages)
	}
	if next := s.publish(claim("cs_1", 2)); !errors.Is(next[0].Err, relay.ErrStillQueued) {
		t.Errorf("while it is being worked on: %+v", next)
	}
	if err := messages[0].DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if next := s.publish(claim("cs_1", 2)); next[0].Err != nil || next[0].Sequence <= first[1].Sequence {
		t.Errorf("after its end: %+v", next)
	}
}

func TestPublish_ReportsFullStream(t *testing.T) {
	t.Parallel()
	s := newSite(t)
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
		t.Errorf("error: %v", full)
	}
}

// While the server is away a publish fails at once, and nothing of it is stored later.
func TestPublish_FailsWhileDisconnected(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.stop()
	s.await("the loss to be noticed", func() bool { return !s.Connected() })
	if r := s.publish(claim("cs_1", 1)); r[0].Err == nil || errors.Is(r[0].Err, relay.ErrStillQueued) {
		t.Errorf("published to nobody: %+v", r)
	}
	if err := errors.Join(s.Outcomes(t.Context(), []message.Outcome{delivered("cs_1")})...); err == nil {
		t.Error("told to nobody")
	}
	woken := make(chan struct{}, 10)
	s.OnConnect(func() { woken <- struct{}{} })
	s.start()
	<-woken
	stream, err := s.raw.Stream(t.Context(), message.StreamPurchases)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := stream.Info(t.Context()); err != nil || info.State.Msgs != 0 {
		t.Errorf("%d messages, %v", info.State.Msgs, err)
	}
}

// A restart keeps what is queued and the delays; consuming goes on by itself.
func TestConsumer_SurvivesServerRestart(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.publish(claim("cs_1", 1), claim("cs_2", 1))
	c := s.Consumer(message.StreamPurchases, message.ConsumerWorker)
	messages := s.fetch(c, 10)
	if len(messages) != 2 {
		t.Fatalf("%d messages", len(messages))
	}
	// The server takes the words in order: when the second message is back, the first one's delay was taken.
	if err := messages[0].NakWithDelay(time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := messages[1].NakWithDelay(10 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	again := s.fetch(c, 10)
	if len(again) != 1 || string(again[0].Data) != "cs_2" || again[0].NumDelivered != 2 {
		t.Fatalf("put off for a moment: %+v", again)
	}
	if err := again[0].DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.stop()
	s.await("the loss to be noticed", func() bool { return !s.Connected() })
	s.start()
	s.await("a publish to be taken", func() bool { return s.publish(claim("cs_3", 1))[0].Err == nil })
	if messages := s.fetch(c, 10); len(messages) != 1 || string(messages[0].Data) != "cs_3" {
		t.Errorf("after the restart: %+v", messages)
	}
	if r := s.publish(claim("cs_1", 2)); !errors.Is(r[0].Err, relay.ErrStillQueued) {
		t.Errorf("the message that was put off is gone: %+v", r)
	}
}

func TestConsumer_BindsAgainAfterWipe(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.Consumer(message.StreamPurchases, message.ConsumerWorker)
	s.publish(claim("cs_1", 1))
	s.fetch(c, 1)
	if err := s.raw.DeleteStream(t.Context(), message.StreamPurchases); err != nil {
		t.Fatal(err)
	}
	s.await("the loss to be told", func() bool { _, err := c.Fetch(t.Context(), 1); return err != nil })
	if c.Ready() == nil {
		t.Error("a consumer without its stream is ready")
	}
	if err := s.Provision(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	if r := s.publish(claim("cs_2", 1)); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	if m := s.fetch(c, 10); string(m[0].Data) != "cs_2" || c.Ready() != nil {
		t.Errorf("after the repair: %+v, %v", m, c.Ready())
	}
}

// A pull request to a deleted consumer is answered by nobody; only its name is the same when it is back.
func TestConsumer_BindsAgainAfterDeletion(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.Consumer(message.StreamPurchases, message.ConsumerWorker)
	s.publish(claim("cs_1", 1))
	s.fetch(c, 1)
	if err := s.raw.DeleteConsumer(t.Context(), message.StreamPurchases, message.ConsumerWorker); err != nil {
		t.Fatal(err)
	}
	s.await("the loss to be told", func() bool { _, err := c.Fetch(t.Context(), 500); return err != nil })
	if err := c.Ready(); err == nil {
		t.Error("a consumer that is gone is ready")
	}
	if _, _, err := c.Pending(t.Context()); err == nil || !strings.Contains(err.Error(), "ingest creates it") {
		t.Errorf("what waits at a consumer that is gone: %v", err)
	}
	if err := s.Provision(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	if m := s.fetch(c, 500); string(m[0].Data) != "cs_1" || c.Ready() != nil {
		t.Errorf("after the repair: %+v, %v", m, c.Ready())
	}
}

func TestConsumer_PendingCounts(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.publish(claim("cs_1", 1), claim("cs_2", 1), claim("cs_3", 1))
	c := s.Consumer(message.StreamPurchases, message.ConsumerWorker)
	check := func(wantWaiting, wantUnacknowledged uint64) {
		t.Helper()
		if waiting, unacknowledged, err := c.Pending(t.Context()); err != nil || waiting != wantWaiting || unacknowledged != wantUnacknowledged {
			t.Errorf("%d waiting, %d unacknowledged, %v; want %d, %d", waiting, unacknowledged, err, wantWaiting, wantUnacknowledged)
		}
	}
	metrics := queue.NewBacklogMetrics(s.Consumer(message.StreamPurchases, message.ConsumerWorker))
	gauge := func(name, help string, value int) string {
		return fmt.Sprintf("# HELP %s %s\n# TYPE %s gauge\n%s %d\n", name, help, name, name, value)
	}
	check(3, 0)
	m := s.fetch(c, 2)
	check(1, 2)
	if err := testutil.CollectAndCompare(metrics, strings.NewReader(
		gauge("purchase_relay_consumer_ack_pending", "Purchases that a worker has fetched and not settled, or that wait for their retry.", 2)+
			gauge("purchase_relay_consumer_pending", "Purchases in the queue that no worker has fetched yet.", 1))); err != nil {
		t.Error(err)
	}
	if err := m[0].DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(1, 1)
	s.stop()
	s.await("the loss to be noticed", func() bool { return !s.Connected() })
	if _, _, err := c.Pending(t.Context()); err == nil {
		t.Error("a server that is away was asked")
	}
	if n := testutil.CollectAndCount(metrics); n != 0 {
		t.Errorf("%d figures from a queue that is away", n)
	}
}

// More than the window of publishes without answer: each has its error, and the next ones are not blocked by them.
func TestPublish_RecoversFromMissingStream(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if err := s.raw.DeleteStream(t.Context(), message.StreamPurchases); err != nil {
		t.Fatal(err)
	}
	batch := make([]relay.Claim, 4500)
	for i := range batch {
		batch[i] = claim(fmt.Sprintf("cs_%d", i), 1)
	}
	for i, r := range s.publish(batch...) {
		if r.Err == nil {
			t.Fatalf("%d: published to nobody", i)
		}
	}
	if err := s.Provision(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	sequence := uint64(0)
	for some := range slices.Chunk(batch, 500) { // as many as the relay publishes at a time: the window is never full
		for _, r := range s.publish(some...) {
			if sequence++; r.Err != nil || r.Sequence != sequence {
				t.Fatalf("%d: %+v", sequence, r)
			}
		}
	}
}

func TestFetch_WaitsForFirstMessageOnly(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.Consumer(message.StreamPurchases, message.ConsumerWorker)
	got := make(chan []message.Received)
	go func() {
		messages, err := c.Fetch(context.WithoutCancel(t.Context()), 500)
		if err != nil {
			t.Error(err)
		}
		got <- messages
	}()
	s.await("the consumer to be asked", func() bool {
		info, err := s.raw.Consumer(t.Context(), message.StreamPurchases, message.ConsumerWorker)
		return err == nil && info.CachedInfo().NumWaiting > 0
	})
	s.publish(claim("cs_1", 1))
	if messages := <-got; len(messages) != 1 {
		t.Errorf("%d messages", len(messages))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.publish(claim("cs_2", 1))
	for _, most := range []int{500, 1} { // 1 after 500: it would have taken the message from it
		if m, err := c.Fetch(ctx, most); !errors.Is(err, context.Canceled) || len(m) > 0 {
			t.Errorf("a caller that stops was given %v, %v", m, err)
		}
	}
}

func TestConn_PublishesOutcomesAndDeadLetters(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var list []message.Outcome
	for i := range 1000 { // more than one message has room for
		o := delivered(fmt.Sprintf("cs_%d", i))
		o.Attempt = message.NewAttempt(purchase.Attempt{ID: "a", At: time.Now().UTC(), Class: purchase.ClassDelivered, Message: strings.Repeat("m", 1000)})
		list = append(list, o)
	}
	list[7].EventID = "none of ours"
	errs := s.Outcomes(t.Context(), list)
	if bad := errs[7]; bad == nil || errors.Join(append(errs[:7:7], errs[8:]...)...) != nil {
		t.Fatal(errors.Join(errs...))
	}
	var got []string
	messages := s.fetch(s.Consumer(message.StreamOutcomes, message.ConsumerRecorder), 10)
	for _, m := range messages {
		some, err := message.DecodeOutcomes(m.Data)
		if err != nil {
			t.Error(err)
		}
		for _, o := range some {
			got = append(got, o.EventID)
		}
	}
	if len(messages) < 4 || len(messages) > 6 || len(got) != 999 || got[0] != "cs_0" || got[998] != "cs_999" {
		t.Errorf("%d outcomes in %d messages", len(got), len(messages))
	}
	letter := message.DeadLetter{EventID: "cs_1", Generation: 1, Reason: purchase.ReasonRefused, DiedAt: time.Unix(1, 0), Envelope: []byte(`{}`)}
	if err := errors.Join(s.DeadLetters(t.Context(), []message.DeadLetter{letter})...); err != nil {
		t.Fatal(err)
	}
	stream, err := s.raw.Stream(t.Context(), message.StreamPurchasesDead)
	if err != nil {
		t.Fatal(err)
	}
	if msg, err := stream.GetLastMsgForSubject(t.Context(), "purchases.dead.cs_1"); err != nil || !strings.Contains(string(msg.Data), `"reason":"refused"`) {
		t.Errorf("%v, %v", msg, err)
	}
}

func TestWorkers_ListsReports(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	workers, err := s.WatchWorkers()
	if err != nil {
		t.Fatal(err)
	}
	if list := workers.List(); list == nil || len(list) > 0 {
		t.Errorf("before anybody spoke: %v", list)
	}
	ctx, cancel := context.WithCancel(t.Context())
	told, worker := make(chan error), s.connect("worker")
	go func() {
		told <- worker.PublishState(ctx, "w-1", 20*time.Millisecond, func() message.WorkerState {
			return message.WorkerState{Version: "v1", State: message.WorkerPaused, Reason: "40105", Since: time.Unix(1, 0).UTC()}
		})
	}()
	for _, junk := range []string{`{`, `null`, `{}`, `[1]`, `{"state":7}`, `{"state":"running","reason":"` + strings.Repeat("x", 5000) + `"}`} {
		if err := s.nc.Publish("workers.junk", []byte(junk)); err != nil {
			t.Fatal(err)
		}
	}
	s.await("the worker to be heard", func() bool { return len(workers.List()) > 0 })
	if list := workers.List(); len(list) != 1 || list[0].Instance != "w-1" || list[0].State != message.WorkerPaused || list[0].Reason != "40105" {
		t.Errorf("workers: %+v", list)
	}
	cancel()
	if err := <-told; err != nil {
		t.Error(err)
	}
}

// What a worker says that was taken over is shown to people: nothing in it turns the text around, hides or
// pretends.
func TestWorkers_ShowHostileStatesSafely(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	workers, err := s.WatchWorkers()
	if err != nil {
		t.Fatal(err)
	}
	const hostile = `{"version":"v\u202e1","state":"running","reason":"\u2067all \u200bis\u001b[2J\nwell","since":"9999-01-01T00:00:00Z"}`
	s.await("the state", func() bool { // said again: nothing orders it after the subscription
		if err := s.nc.Publish("workers.w-1", []byte(hostile)); err != nil {
			t.Fatal(err)
		}
		return len(workers.List()) == 1
	})
	if w := workers.List()[0]; w.Version != "v1" || w.Reason != "all is[2J well" || w.Since.After(time.Now()) {
		t.Errorf("state = %+v", w)
	}
}

// Whoever may publish on the subject could otherwise fill the memory with names.
func TestWorkers_IsBounded(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	workers, err := s.WatchWorkers()
	if err != nil {
		t.Fatal(err)
	}
	say := func(name, state string) {
		t.Helper()
		if err := s.nc.Publish(message.SubjectWorkers+name, []byte(`{"state":"`+state+`"}`)); err != nil {
			t.Fatal(err)
		}
	}
	s.await("the known one", func() bool { // said again: nothing orders it after the subscription
		say("known", message.WorkerRunning)
		return len(workers.List()) == 1
	})
	for i := range 1200 {
		say(fmt.Sprintf("n%04d", i), message.WorkerRunning)
	}
	say("known", message.WorkerPaused) // after all of them, and still heard
	s.await("the known one again", func() bool { return workers.List()[0].State == message.WorkerPaused })
	if n := len(workers.List()); n != 1000 {
		t.Errorf("%d workers are remembered", n)
	}
}

func TestInstance_IsSubjectToken(t *testing.T) {
	t.Parallel()
	a, b := queue.Instance(), queue.Instance()
	if !purchase.ValidID(a) || a == b {
		t.Errorf("%q, %q", a, b)
	}
}

func TestConfig_Problems(t *testing.T) {
	t.Parallel()
	bad := queue.Config{NATSURL: "nats://u:hunter2@host:4222,http://x", NATSCredsFile: "/nowhere", NATSCertFile: "/nowhere.pem"}
	list := strings.Join(bad.Problems(), "\n")
	for _, want := range []string{"NATS_URL", "NATS_CREDS_FILE", "NATS_CERT_FILE", "NATS_KEY_FILE"} {
		if !strings.Contains(list, want) {
			t.Errorf("%s is not told of: %s", want, list)
		}
	}
	if strings.Contains(list, "hunter2") {
		t.Errorf("a password was printed: %s", list)
	}
	if p := (queue.Config{NATSURL: "nats://a:4222, tls://b:4222"}).Problems(); len(p) > 0 {
		t.Errorf("%v", p)
	}
}

// A hundred thousand delayed purchases stop no new ones.
func TestFetch_IsNotBlockedByDelayedMessages(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const delayed, batch = 100_000, 1000
	publish := func(name string, n int) {
		t.Helper()
		list := make([]relay.Claim, n)
		for i := range list {
			id := fmt.Sprintf("cs_%s_%d", name, i)
			list[i] = claim(id, 1)
		}
		for _, p := range s.Publish(t.Context(), list) {
			if p.Err != nil {
				t.Fatal(p.Err)
			}
		}
	}
	worker := s.Consumer(message.StreamPurchases, message.ConsumerWorker)
	for i := range delayed / batch {
		publish(fmt.Sprintf("old%d", i), batch)
	}
	for put := 0; put < delayed; {
		messages, err := worker.Fetch(t.Context(), batch)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			if err := m.NakWithDelay(time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		put += len(messages)
	}
	publish("new", 100)
	for got := 0; got < 100; {
		messages, err := worker.Fetch(t.Context(), batch)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			if !strings.HasPrefix(m.MsgID, "cs_new_") || m.NumDelivered != 1 {
				t.Fatalf("%s, delivery %d", m.MsgID, m.NumDelivered)
			}
			if err := m.Ack(); err != nil {
				t.Fatal(err)
			}
		}
		got += len(messages)
	}
	if waiting, unacknowledged, err := worker.Pending(t.Context()); err != nil || waiting != 0 || unacknowledged < delayed {
		t.Errorf("%d wait, %d delayed, %v", waiting, unacknowledged, err)
	}
}

// What one worker hands back, every worker knows as handed back; what a dead one held, none does.
func TestReceived_Returned(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	bound, err := s.raw.Consumer(t.Context(), message.StreamPurchases, message.ConsumerWorker)
	if err != nil {
		t.Fatal(err)
	}
	config := bound.CachedInfo().Config
	config.AckWait = time.Second // half a minute is long for a test
	if _, err := s.raw.UpdateConsumer(t.Context(), message.StreamPurchases, config); err != nil {
		t.Fatal(err)
	}
	one, other := s.Consumer(message.StreamPurchases, message.ConsumerWorker), s.Consumer(message.StreamPurchases, message.ConsumerWorker)
	if err := other.WatchReturns(); err != nil {
		t.Fatal(err)
	}
	fetch := func(c interface {
		Fetch(ctx context.Context, most int) ([]message.Received, error)
	},
	) message.Received {
		t.Helper()
		for range 20 {
			messages, err := c.Fetch(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			if len(messages) == 1 {
				return messages[0]
			}
		}
		t.Fatal("nothing came")
		return message.Received{}
	}
	for _, p := range s.Publish(t.Context(), []relay.Claim{claim("cs_1", 1)}) {
		if p.Err != nil {
			t.Fatal(p.Err)
		}
	}
	first := fetch(one)
	if first.Returned || first.NumDelivered != 1 {
		t.Errorf("the first delivery: %+v", first)
	}
	if err := first.NakWithDelay(200 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	second := fetch(other)
	if !second.Returned || second.NumDelivered != 2 {
		t.Errorf("handed back by another: %+v", second)
	}
	if err := second.NakWithDelay(0); err != nil {
		t.Fatal(err)
	}
	third := fetch(one)
	if third.NumDelivered != 3 || third.Returned {
		t.Errorf("one that does not listen: %+v", third)
	}
	third.Leave()
	// Nothing is said of it: after the time limit it comes again, and who left it knows.
	fourth := fetch(one)
	if fourth.NumDelivered != 4 || !fourth.Returned {
		t.Errorf("left: %+v", fourth)
	}
	if err := fourth.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// The age of the oldest unrecorded outcome: delivered ones count until they are acknowledged.
func TestOutcomeLag_EndsWithTheAcknowledgement(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	lag := func() time.Duration {
		t.Helper()
		got, err := s.OutcomeLag(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	age := func() time.Duration { // of the stream's first message; more than was just returned
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

// A killed server may find a message again although its consumer remembers the acknowledgement. This orphan
// is never delivered: its age counts neither alone nor beside an outcome that waits.
func TestOutcomeLag_IgnoresOrphan(t *testing.T) {
	t.Parallel()
	s := newSite(t)
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
		t.Fatalf("the stream holds %d messages: no orphan was made", n)
	}
	if got := lag(); got != 0 {
		t.Errorf("lag = %s beside an orphan alone, want 0", got)
	}
	report("cs_2")
	if got := lag(); got == 0 {
		t.Error("lag = 0 while an outcome waits")
	}
	record()
	recorded := state()
	report("cs_3")
	if got, orphan := lag(), recorded.TimeStamp.Sub(recorded.State.FirstTime); got == 0 || got >= orphan {
		t.Errorf("lag = %s beside an orphan of %s, want less, for the last acknowledgement was later", got, orphan)
	}
}
