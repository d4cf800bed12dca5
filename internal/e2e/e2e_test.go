package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

func sha(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

type body struct {
	Event      string `json:"event"`
	EventID    string `json:"event_id"`
	EventTime  int64  `json:"event_time"`
	Properties struct {
		Value    json.Number `json:"value"`
		Currency string      `json:"currency"`
	} `json:"properties"`
	User map[string]string `json:"user"`
	Page struct {
		URL string `json:"url"`
	} `json:"page"`
}

func bodyOf(t *testing.T, e tiktoksim.Event) (b body) {
	t.Helper()
	if err := json.Unmarshal(e.Body, &b); err != nil {
		t.Fatal(err)
	}
	return b
}

// The common case, in currencies with two, no and three decimals, and in ISK, which Stripe counts with two.
func TestPurchaseGoesAllTheWay(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	for _, tc := range []struct {
		currency string
		minor    int64
		value    string
	}{{"usd", 2999, "29.99"}, {"jpy", 800, "800"}, {"kwd", 12345, "12.345"}, {"isk", 500, "5.00"}} {
		c := stripegen.NewCheckout().Live()
		email := fmt.Sprintf("  Buyer+%s@Example.COM ", tc.currency)
		c.Currency, c.AmountTotal, c.Email = &tc.currency, &tc.minor, &email
		c.Created = time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
		if answer := s.send(c); answer.Status != 200 || answer.Body != `{"status":"processed"}` {
			t.Fatalf("%s: %+v", tc.currency, answer)
		}
		r := s.awaitStatus(c.SessionID, "delivered")
		if r.RequestID == "" || r.Attempts != 1 {
			t.Errorf("%s: ledger row %+v", tc.currency, r)
		}
		e := s.event(c.SessionID)
		b := bodyOf(t, e)
		if b.Event != "CompletePayment" || b.Properties.Value.String() != tc.value || b.Properties.Currency != strings.ToUpper(tc.currency) ||
			b.EventTime != c.Created.Unix() || e.TestEventCode != "" || e.Copies != 1 {
			t.Errorf("%s: TikTok has %s (%+v)", tc.currency, e.Body, e)
		}
		profile := query[string](s, `SELECT p.id::text FROM profiles p JOIN purchases USING (stripe_customer_id) WHERE checkout_session_id = $1`, c.SessionID)
		want := map[string]string{
			"email": sha("buyer+" + tc.currency + "@example.com"), "phone": sha("+12133734253"), "external_id": sha(profile),
			"ttclid": c.Metadata["ttclid"], "ttp": c.Metadata["ttp"], "ip": "203.0.113.7", "user_agent": c.Metadata["user_agent"],
			"first_name": sha("sample"), "last_name": sha("buyer"), "country": "us",
		}
		if fmt.Sprint(b.User) != fmt.Sprint(want) {
			t.Errorf("%s: user = %v\nwant %v", tc.currency, b.User, want)
		}
		if b.Page.URL != c.Metadata["page_url"] {
			t.Errorf("%s: page = %q", tc.currency, b.Page.URL)
		}
	}
	for _, msg := range []string{"Signature verified", "Processing checkout.session.completed", "Profile created", "PROVISIONING COMPLETE"} {
		if s.ingest.said(msg) != 4 {
			t.Errorf("ingest said %q %d times", msg, s.ingest.said(msg))
		}
	}
	for _, msg := range []string{"Sending CompletePayment event", "Purchase event sent successfully"} {
		if s.worker.said(msg) != 4 {
			t.Errorf("the worker said %q %d times", msg, s.worker.said(msg))
		}
	}
	s.noPersonalData("buyer+", "2133734253", "Sample Buyer", signingSecret, "local-token")
	s.summary()
	if code := s.ingest.stop(); code != 0 {
		t.Errorf("ingest ended with %d after SIGTERM", code)
	}
	if code := s.worker.stop(); code != 0 {
		t.Errorf("the worker ended with %d after SIGTERM", code)
	}
}

// noPersonalData searches the logs, the metrics and the queue's files.
func (s *stack) noPersonalData(needles ...string) {
	s.t.Helper()
	_, ingestMetrics := get(s.admin + "/metrics")
	_, workerMetrics := get(s.worker.admin + "/metrics")
	places := map[string]string{
		"ingest's log": strings.Join(s.ingest.lines(), "\n"), "the worker's log": strings.Join(s.worker.lines(), "\n"),
		"ingest's metrics": ingestMetrics, "the worker's metrics": workerMetrics,
	}
	if !strings.Contains(ingestMetrics, `purchase_relay_webhooks_total{result="processed",type="checkout.session.completed"} 4`) ||
		!strings.Contains(workerMetrics, `purchase_relay_attempts_total{class="delivered",code="0"} 4`) {
		s.t.Error("the metrics do not count the purchases")
	}
	files := 0
	err := filepath.Walk(s.natsDir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return nil
		}
		data, err := os.ReadFile(path)
		files++
		places[path] = string(data)
		return err
	})
	if err != nil || files == 0 {
		s.t.Fatalf("the queue's files: %d, %v", files, err)
	}
	for place, text := range places {
		for _, needle := range needles {
			if strings.Contains(strings.ToLower(text), strings.ToLower(needle)) {
				s.t.Errorf("%q stands in %s", needle, place)
			}
		}
	}
}

func (s *stack) summary() {
	s.t.Helper()
	var sum struct {
		Range, Mode string
		Purchases   map[string]int
		Value       []struct {
			Currency      string
			PaidMinor     int64 `json:"paid_minor"`
			AcceptedMinor int64 `json:"accepted_minor"`
		}
		Health struct {
			Postgres, NATS string
			Workers        []struct{ State string }
		}
	}
	s.await("the worker to be heard of", func() bool {
		code, text := get(s.admin + "/api/v1/summary?range=24h&mode=live")
		if code != http.StatusOK || json.Unmarshal([]byte(text), &sum) != nil {
			s.t.Fatalf("summary: %d %s", code, text)
		}
		return len(sum.Health.Workers) == 1
	})
	if sum.Purchases["delivered"] != 4 || len(sum.Purchases) != 9 || len(sum.Value) != 4 || sum.Value[0].AcceptedMinor != 500 ||
		sum.Health.Postgres != "up" || sum.Health.NATS != "up" || sum.Health.Workers[0].State != "running" {
		s.t.Errorf("summary: %+v", sum)
	}
}

func TestTenCopiesMakeOnePurchase(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := stripegen.NewCheckout().Live()
	second := c
	second.EventID = stripegen.ID("evt_", 24) // Stripe may make two events for one thing
	var group sync.WaitGroup
	var mu sync.Mutex
	answers := map[string]int{}
	for i := range 10 {
		group.Go(func() {
			event := c
			if i%2 == 1 {
				event = second
			}
			answer, err := s.sender.Send(t.Context(), event.Event())
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			answers[fmt.Sprint(answer.Status, answer.Body)]++
		})
	}
	group.Wait()
	if answers[`200{"status":"processed"}`] != 1 || answers[`200{"status":"duplicate"}`] != 9 {
		t.Errorf("answers: %v", answers)
	}
	s.awaitStatus(c.SessionID, "delivered")
	if n := query[int](s, `SELECT count(*) FROM profiles`); n != 1 {
		t.Errorf("%d profiles", n)
	}
	if n := query[int](s, `SELECT count(*) FROM purchases`); n != 1 {
		t.Errorf("%d purchases", n)
	}
	if e := s.event(c.SessionID); e.Copies != 1 || len(s.sim.Received()) != 1 {
		t.Errorf("TikTok has %d copies, %d events", e.Copies, len(s.sim.Received()))
	}
}

func TestForgedStaleAndMalformedLeaveNothing(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := stripegen.NewCheckout().Live()
	event := c.Event()
	post := func(body []byte, signature string) stripegen.Answer {
		t.Helper()
		answer, err := s.sender.Post(t.Context(), body, signature)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	now := time.Now()
	for name, answer := range map[string]stripegen.Answer{
		"forged":          post(event, stripegen.Sign(event, "whsec_forged", now)),
		"unsigned":        post(event, ""),
		"garbage":         post(event, "t=now,v1=abc"),
		"stale":           post(event, stripegen.Sign(event, signingSecret, now.Add(-6*time.Minute))),
		"from the future": post(event, stripegen.Sign(event, signingSecret, now.Add(6*time.Minute))),
		"another body":    post(append(event, ' '), stripegen.Sign(event, signingSecret, now)),
		"no event":        post([]byte(`[]`), stripegen.Sign([]byte(`[]`), signingSecret, now)),
		"no object": post([]byte(`{"id":"evt_1","type":"checkout.session.completed","data":{}}`),
			stripegen.Sign([]byte(`{"id":"evt_1","type":"checkout.session.completed","data":{}}`), signingSecret, now)),
	} {
		if answer.Status != http.StatusBadRequest || !strings.HasPrefix(answer.Body, `{"error":"`) {
			t.Errorf("%s: %+v", name, answer)
		}
	}
	huge := []byte(`{"id":"evt_1","type":"` + strings.Repeat("x", 1<<20) + `"}`)
	if answer := post(huge, stripegen.Sign(huge, signingSecret, now)); answer.Status != http.StatusRequestEntityTooLarge {
		t.Errorf("huge: %+v", answer)
	}
	if code, _ := get(s.webhook); code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", code)
	}
	if code, _ := get(strings.Replace(s.webhook, "/webhooks/stripe", "/metrics", 1)); code != http.StatusNotFound {
		t.Errorf("the public listener answers /metrics with %d", code)
	}
	for _, table := range []string{"stripe_events", "profiles", "purchases"} {
		if n := query[int](s, `SELECT count(*) FROM `+table); n != 0 {
			t.Errorf("%d rows in %s", n, table)
		}
	}
	if n := s.ingest.said("Invalid signature"); n != 6 {
		t.Errorf("Invalid signature was logged %d times", n)
	}
}

func TestTikTokRefusingDelaysNobody(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sim.Inject(tiktoksim.Fault{Status: http.StatusServiceUnavailable})
	var ids []string
	for range 20 {
		c := stripegen.NewCheckout().Live()
		ids = append(ids, c.SessionID)
		if answer := s.send(c); answer.Status != http.StatusOK {
			t.Fatalf("a webhook was answered %+v", answer)
		}
	}
	s.await("the circuit to open", func() bool {
		code, body := get(s.worker.admin + "/readyz")
		return code == http.StatusOK && strings.Contains(body, `"delivery":"circuit_open"`)
	})
	s.sim.Clear()
	for _, id := range ids {
		s.awaitStatus(id, "delivered")
		if e := s.event(id); e.Copies != 1 || e.Variants != 1 {
			t.Errorf("%s: %d copies in %d variants", id, e.Copies, e.Variants)
		}
	}
	if s.worker.said("TikTok tracking failed (non-critical)") == 0 {
		t.Error("the failures were not logged")
	}
}

func TestRevokedTokenStopsAndWaits(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sim.SetToken("another")
	c := stripegen.NewCheckout().Live()
	s.send(c)
	s.await("the worker to pause", func() bool { return status(s.worker.admin+"/readyz") == http.StatusServiceUnavailable })
	if r := s.awaitStatus(c.SessionID, "retrying"); r.Attempts == 0 {
		t.Errorf("row: %+v", r)
	}
	s.sim.SetToken("local-token")
	s.awaitStatus(c.SessionID, "delivered")
	s.await("the worker to be ready again", func() bool { return status(s.worker.admin+"/readyz") == http.StatusOK })
	if n := query[int](s, `SELECT count(*) FROM purchases WHERE status = 'dead'`); n != 0 {
		t.Errorf("%d dead", n)
	}
}

func TestBadEventDies(t *testing.T) {
	t.Parallel()
	s := newStack(t, "TIKTOK_EVENT_NAME=NoSuchEvent")
	c := stripegen.NewCheckout().Live()
	s.send(c)
	r := s.awaitStatus(c.SessionID, "dead")
	if r.Reason != "refused" || r.Attempts != 1 {
		t.Errorf("row: %+v", r)
	}
	if message := query[string](s, `SELECT last_error FROM purchases WHERE last_code = 40002`); !strings.HasPrefix(message, "Batch.0.event: ") {
		t.Errorf("last_error = %q", message)
	}
}

// What died is sent again by one command or one call, under the same event_id.
func TestReplay(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "no"})
	first, second := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	s.send(first)
	s.send(second)
	s.awaitStatus(first.SessionID, "dead")
	s.awaitStatus(second.SessionID, "dead")
	s.sim.Clear()
	command := func(args ...string) (int, string) { return s.command(append([]string{"replay"}, args...)...) }
	if code, out := command("--session", first.SessionID); code != 3 || !strings.Contains(out, "Nothing was done") || s.purchase(first.SessionID).Status != "dead" {
		t.Errorf("refused at the question: %d %s", code, out)
	}
	if code, out := command("--session", first.SessionID, "--yes"); code != 0 || !strings.Contains(out, "1 made pending again") || !strings.Contains(strings.Join(strings.Fields(out), " "), "1 refused 40002") {
		t.Errorf("replay: %d %s", code, out)
	}
	s.awaitStatus(first.SessionID, "delivered")
	if code, out := command("--session", first.SessionID, "--yes"); code != 1 || !strings.Contains(out, "delivered") {
		t.Errorf("replay of a delivered one: %d %s", code, out)
	}
	for _, args := range [][]string{{}, {"--status", "delivered"}, {"--status", "dead", "--session", "cs_1"}, {"--status", "dead", "--since", "x"}} {
		if code, out := command(args...); code != 2 {
			t.Errorf("replay %v: %d %s", args, code, out)
		}
	}
	resp, err := http.Post(s.admin+"/api/v1/replay?status=dead&reason=refused&code=40002", "", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Errorf("the API's replay: %d", resp.StatusCode)
	}
	s.awaitStatus(second.SessionID, "delivered")
	for _, c := range []stripegen.Checkout{first, second} {
		if e := s.event(c.SessionID); e.Copies != 1 || e.Variants != 1 {
			t.Errorf("%+v", e)
		}
	}
}

// One purchase's way in the terminal, found by each of its names, without the buyer's address.
func TestShow(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "no\x1b[2Jgood"})
	c := stripegen.NewCheckout().Live()
	s.send(c)
	s.awaitStatus(c.SessionID, "dead")
	for _, term := range []string{c.SessionID, c.EventID, strings.ToUpper(*c.Email)} {
		code, out := s.command("show", term)
		if code != 0 || strings.Contains(out, "\x1b") || strings.Contains(strings.ToLower(out), strings.ToLower(*c.Email)) {
			t.Errorf("show %s: %d %s", term, code, out)
		}
		for _, part := range []string{c.SessionID, "dead (refused)", "29.99 USD, live, subscription", c.Customer, c.EventID + "): processed", "code 40002", "ingest replay --session"} {
			if !strings.Contains(out, part) {
				t.Errorf("show %s lacks %q:\n%s", term, part, out)
			}
		}
	}
	if code, out := s.command("show", "nobody@example.com"); code != 1 || strings.Contains(out, "nobody") {
		t.Errorf("show of a stranger: %d %s", code, out)
	}
	if code, _ := s.command("show"); code != 2 {
		t.Errorf("show of nothing: %d", code)
	}
}

func TestNoTokenSkipsAndSaysSo(t *testing.T) {
	t.Parallel()
	s := newStack(t, "TIKTOK_ACCESS_TOKEN=")
	c := stripegen.NewCheckout().Live()
	s.send(c)
	if r := s.awaitStatus(c.SessionID, "skipped"); r.Reason != "not_configured" {
		t.Errorf("row: %+v", r)
	}
	if s.worker.said("TIKTOK_ACCESS_TOKEN not configured, skipping tracking") == 0 {
		t.Error("the worker did not say so")
	}
	if code := status(s.worker.admin + "/readyz"); code != http.StatusOK {
		t.Errorf("switched off, the worker's readiness is %d", code)
	}
	if len(s.sim.Received()) != 0 {
		t.Error("something was sent")
	}
}

func TestTestPurchases(t *testing.T) {
	t.Parallel()
	t.Run("skipped by default", func(t *testing.T) {
		s := newStack(t)
		c := stripegen.NewCheckout()
		s.send(c)
		if r := s.awaitStatus(c.SessionID, "skipped"); r.Reason != "test_purchase" {
			t.Errorf("row: %+v", r)
		}
	})
	t.Run("sent with a code", func(t *testing.T) {
		s := newStack(t, "TIKTOK_TEST_MODE=send", "TIKTOK_TEST_EVENT_CODE=TEST1")
		test, live := stripegen.NewCheckout(), stripegen.NewCheckout().Live()
		s.send(test)
		s.send(live)
		s.awaitStatus(test.SessionID, "delivered")
		s.awaitStatus(live.SessionID, "delivered")
		if s.event(test.SessionID).TestEventCode != "TEST1" || s.event(live.SessionID).TestEventCode != "" {
			t.Error("the test event code is on the wrong event")
		}
	})
}

// Webhooks are answered while the queue is away, the worker is killed, ingest is killed; all is delivered afterwards.
func TestNeighboursAway(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	first := stripegen.NewCheckout().Live()
	s.send(first)
	s.awaitStatus(first.SessionID, "delivered")
	s.worker.kill()
	if err := s.nats.Stop(); err != nil {
		t.Fatal(err)
	}
	s.await("ingest to notice", func() bool {
		code, text := get(s.admin + "/readyz")
		return code == http.StatusOK && strings.Contains(text, `"nats":"down"`)
	})
	var ids []string
	for range 5 {
		c := stripegen.NewCheckout().Live()
		ids = append(ids, c.SessionID)
		if answer := s.send(c); answer.Status != http.StatusOK {
			t.Fatalf("NATS away: %+v", answer)
		}
	}
	s.ingest.kill()
	s.startIngest()
	s.startNATS()
	s.startWorker()
	for _, id := range ids {
		s.awaitStatus(id, "delivered")
		if e := s.event(id); e.Copies != 1 {
			t.Errorf("%s: %d copies", id, e.Copies)
		}
	}
}

// Neither binary needs its neighbours to start.
func TestStartBeforeTheNeighbours(t *testing.T) {
	t.Parallel()
	s := &stack{t: t, natsAddr: freeAddr(t), natsDir: t.TempDir(), sim: tiktoksim.New(tiktoksim.Config{})}
	postgres := freeAddr(t) // nobody listens
	public, admin := freeAddr(t), freeAddr(t)
	ingest := start(t, "ingest", "STRIPE_WEBHOOK_SECRET="+signingSecret, "DATABASE_URL=postgres://nobody:pass-word@"+postgres+"/x",
		"NATS_URL=nats://"+s.natsAddr, "INGEST_ADDR="+public, "ADMIN_ADDR="+admin)
	s.sender = &stripegen.Sender{URL: "http://" + public + "/webhooks/stripe", Secret: signingSecret}
	s.await("ingest to live", func() bool { return status("http://"+admin+"/healthz") == http.StatusOK })
	if code, text := get("http://" + admin + "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, `"postgres":"down"`) {
		t.Errorf("readyz: %d %s", code, text)
	}
	if answer := s.send(stripegen.NewCheckout()); answer.Status != http.StatusServiceUnavailable {
		t.Errorf("Postgres away: %+v", answer)
	}
	if log := strings.Join(ingest.lines(), "\n"); strings.Contains(log, "pass-word") {
		t.Errorf("a password in the log:\n%s", log)
	}
	if code := ingest.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	worker := start(t, "tiktok-worker", "TIKTOK_ACCESS_TOKEN=x", "TIKTOK_PIXEL_ID=y", "NATS_URL=nats://"+s.natsAddr, "ADMIN_ADDR="+admin)
	s.await("the worker to live", func() bool { return status("http://"+admin+"/healthz") == http.StatusOK })
	if code := status("http://" + admin + "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("readyz: %d", code)
	}
	if code := worker.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestBadConfigurationListsAllProblems(t *testing.T) {
	t.Parallel()
	ingest := start(t, "ingest", "STRIPE_WEBHOOK_SECRET=hunter2,", "ADMIN_ADDR=:0", "CHECKOUT_MODES=setup", "SHUTDOWN_GRACE=soon", "NATS_URL=http://x")
	<-ingest.Ended()
	log := strings.Join(ingest.lines(), "\n")
	if code := ingest.ExitCode(); code != 2 {
		t.Errorf("exit code %d:\n%s", code, log)
	}
	for _, name := range []string{"STRIPE_WEBHOOK_SECRET", "DATABASE_URL", "ADMIN_TOKEN", "CHECKOUT_MODES", "SHUTDOWN_GRACE", "NATS_URL"} {
		if !strings.Contains(log, name) {
			t.Errorf("%s is not told of:\n%s", name, log)
		}
	}
	if strings.Contains(log, "hunter2") {
		t.Errorf("a secret was printed:\n%s", log)
	}
}

// A ledger that was emptied (or restored from a backup) beside a queue that was not: the stream still knows the message ids of
// the purchases that the ledger hears of again, and would swallow them.
func TestEmptiedLedger(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ token, ends string }{{"local-token", "delivered"}, {"", "skipped"}} {
		s := newStack(t, "TIKTOK_ACCESS_TOKEN="+tc.token)
		c := stripegen.NewCheckout().Live()
		for range 2 {
			s.exec(`TRUNCATE purchases, profiles, stripe_events, attempts`)
			if answer := s.send(c); answer.Body != `{"status":"processed"}` {
				t.Fatalf("answered %+v", answer)
			}
			s.awaitStatus(c.SessionID, tc.ends)
		}
		if n := query[int](s, `SELECT generation FROM purchases`); n != 2 {
			t.Errorf("%s under generation %d", tc.ends, n)
		}
	}
}

// The queue's store is wiped with purchases waiting: the ledger fills it again.
func TestWipedQueueIsFilledAgain(t *testing.T) {
	t.Parallel()
	s := newStack(t, "SWEEP_INTERVAL=200ms", "SWEEP_GRACE=1s")
	s.worker.kill()
	var ids []string
	for range 10 {
		c := stripegen.NewCheckout().Live()
		ids = append(ids, c.SessionID)
		s.send(c)
	}
	for _, id := range ids {
		s.awaitStatus(id, "published")
	}
	if err := s.nats.Stop(); err != nil {
		t.Fatal(err)
	}
	s.natsDir = t.TempDir()
	s.startNATS()
	s.startWorker()
	for _, id := range ids {
		s.awaitStatus(id, "delivered")
		if e := s.event(id); e.Copies != 1 {
			t.Errorf("%s: %d copies", id, e.Copies)
		}
	}
	if n := query[int](s, `SELECT min(generation) FROM purchases`); n < 2 {
		t.Errorf("generation %d: the sweeper had no hand in it", n)
	}
}

// In a long outage the sweeper asks for what the queue still holds, again and again, and nothing is doubled.
func TestSweepingAnOutageDoublesNothing(t *testing.T) {
	t.Parallel()
	s := newStack(t, "SWEEP_INTERVAL=50ms", "SWEEP_GRACE=50ms", "RETRY_INITIAL=300ms")
	s.sim.Inject(tiktoksim.Fault{Status: http.StatusServiceUnavailable})
	c := stripegen.NewCheckout().Live()
	s.send(c)
	s.await("several attempts and sweeps in vain", func() bool {
		return s.purchase(c.SessionID).Attempts >= 4 && s.ingestFigure(`purchase_relay_swept_total{result="still_queued"}`) > 0
	})
	// Looked at during the outage: with a grace this short, a sweep right between the purchase's end and its outcome would
	// send it once more, under the same event_id.
	if s.ingestFigure(`purchase_relay_swept_total{result="published"}`) > 0 {
		t.Error("the sweeper doubled a purchase that the queue still held")
	}
	s.sim.Clear()
	s.awaitStatus(c.SessionID, "delivered")
	if e := s.event(c.SessionID); e.Variants != 1 {
		t.Errorf("%d bodies under one event_id", e.Variants)
	}
}

// ownPostgres starts a server that a test may stop, and start again with the same options.
func ownPostgres(t *testing.T) (*pglocal.Server, pglocal.Options) {
	t.Helper()
	if err := pglocal.Ensure(t.Context(), os.Stderr); err != nil {
		t.Fatal(err)
	}
	options := pglocal.Options{Dir: filepath.Join(t.TempDir(), "postgres"), Addr: freeAddr(t)}
	return startPostgres(t, options), options
}

func startPostgres(t *testing.T, options pglocal.Options) *pglocal.Server {
	t.Helper()
	server, err := pglocal.Start(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Stop()
		_ = os.RemoveAll(server.Dir()) // it may be outside of the test's own folder
	})
	return server
}

// newStackWithPostgres starts everything beside a Postgres of its own, which start starts again.
func newStackWithPostgres(t *testing.T, env ...string) (s *stack, start func()) {
	t.Helper()
	s = &stack{t: t, natsDir: t.TempDir(), natsAddr: freeAddr(t), sim: tiktoksim.New(tiktoksim.Config{})}
	var options pglocal.Options
	s.postgres, options = ownPostgres(t)
	start = func() {
		t.Helper()
		s.postgres = startPostgres(t, options)
	}
	s.database = s.postgres.URL("postgres")
	s.startNATS()
	s.simURL = listen(t, s.sim)
	s.startIngest(env...)
	s.startWorker(env...)
	return s, start
}

// Postgres goes away and comes back: webhooks are answered 503 in time, Stripe's repeat succeeds, nothing is lost or doubled.
func TestPostgresAway(t *testing.T) {
	t.Parallel()
	s, start := newStackWithPostgres(t)
	postgres := s.postgres
	first, second := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	s.send(first)
	s.awaitStatus(first.SessionID, "delivered")
	if err := postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	s.await("ingest to notice", func() bool { return status(s.admin+"/readyz") == http.StatusServiceUnavailable })
	if answer := s.send(second); answer.Status != http.StatusServiceUnavailable {
		t.Errorf("Postgres away: %+v", answer)
	}
	if code := status(strings.Replace(s.webhook, "/webhooks/stripe", "/healthz", 1)); code != http.StatusOK {
		t.Errorf("ingest does not live: %d", code)
	}
	start()
	if answer, err := s.sender.Deliver(t.Context(), second.Event(), 50, 50*time.Millisecond); err != nil || answer.Body != `{"status":"processed"}` {
		t.Fatalf("the repeat: %+v, %v", answer, err)
	}
	s.awaitStatus(second.SessionID, "delivered")
	if answer := s.send(first); answer.Body != `{"status":"duplicate"}` {
		t.Errorf("the first event once more: %+v", answer)
	}
	for _, c := range []stripegen.Checkout{first, second} {
		if e := s.event(c.SessionID); e.Copies != 1 {
			t.Errorf("%d copies", e.Copies)
		}
	}
}
