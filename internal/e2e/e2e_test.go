package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

func sha(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// body is an event's body as TikTok received it.
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

// Currencies with two, no and three decimals, and ISK, which Stripe counts with two.
func TestPurchase_IsDelivered(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	unanswered := 0
	for _, tc := range []struct {
		currency string
		minor    int64
		value    string
	}{{"usd", 2999, "29.99"}, {"jpy", 800, "800"}, {"kwd", 12345, "12.345"}, {"isk", 500, "5.00"}} {
		c := stripegen.NewCheckout().Live()
		email := fmt.Sprintf("  Buyer+%s@Example.COM ", tc.currency)
		c.Currency, c.AmountTotal, c.Email = &tc.currency, &tc.minor, &email
		c.Created = time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
		s.post(c.Event(), http.StatusOK, `{"status":"processed"}`)
		r := s.awaitStatus(c.SessionID, "delivered")
		again := s.unanswered(c.SessionID)
		unanswered += again
		if r.RequestID == "" || r.Attempts != 1+again {
			t.Errorf("%s: row = %+v, want a request id and %d attempts", tc.currency, r, 1+again)
		}
		e := s.event(c.SessionID)
		got := bodyOf(t, e)
		want := got
		want.Event, want.EventTime, want.Page.URL = "CompletePayment", c.Created.Unix(), c.Metadata["page_url"]
		want.Properties.Value, want.Properties.Currency = json.Number(tc.value), strings.ToUpper(tc.currency)
		profile := query[string](s, `SELECT p.id::text FROM profiles p JOIN purchases USING (stripe_customer_id)
			WHERE checkout_session_id = $1`, c.SessionID)
		want.User = map[string]string{
			"email": sha("buyer+" + tc.currency + "@example.com"), "phone": sha("+12133734253"),
			"external_id": sha(profile), "ttclid": c.Metadata["ttclid"], "ttp": c.Metadata["ttp"],
			"ip": "203.0.113.7", "user_agent": c.Metadata["user_agent"],
			"first_name": sha("sample"), "last_name": sha("buyer"), "country": "us",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: body (-want +got):\n%s", tc.currency, diff)
		}
		if e.TestEventCode != "" || e.Copies != 1 {
			t.Errorf("%s: %d copies with test event code %q, want 1 without", tc.currency, e.Copies, e.TestEventCode)
		}
	}
	s.checkLogged(s.worker, "Sending CompletePayment event", 4+unanswered)
	s.checkLogged(s.worker, "Purchase event sent successfully", 4)
	if s.repeats.Load() == 0 { // a repeated webhook has more lines, or fewer if it is a duplicate
		for _, msg := range []string{
			"Signature verified", "Processing checkout.session.completed", "Profile created", "PROVISIONING COMPLETE",
		} {
			s.checkLogged(s.ingest, msg, 4)
		}
		const processed = `purchase_relay_webhooks_total{result="processed",type="checkout.session.completed"}`
		if n := s.metric(s.admin, processed); n != 4 {
			t.Errorf("webhooks counted as processed = %v, want 4", n)
		}
	}
	const accepted = `purchase_relay_attempts_total{class="delivered",code="0"}`
	if n := s.metric(s.worker.admin, accepted); n != 4 {
		t.Errorf("attempts counted as delivered = %v, want 4", n)
	}
	s.checkSummary()
	for name, p := range map[string]*program{"ingest": s.ingest, "tiktok-worker": s.worker} {
		if code := p.stop(); code != 0 {
			t.Errorf("exit code of %s after SIGTERM = %d, want 0", name, code)
		}
	}
}

func (s *stack) checkSummary() {
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
	s.await("the summary to report all up and the worker running", func() bool {
		code, text := httpGet(s.admin + "/api/v1/summary?range=24h&mode=live")
		if code != http.StatusOK || json.Unmarshal([]byte(text), &sum) != nil {
			s.t.Fatalf("summary: %d %s", code, text)
		}
		return fmt.Sprint(sum.Health) == "{up up [{running}]}"
	})
	if sum.Purchases["delivered"] != 4 || len(sum.Purchases) != 9 || len(sum.Value) != 4 ||
		sum.Value[0].AcceptedMinor != 500 {
		s.t.Errorf("summary = %+v, want 4 purchases delivered and 500 minor units of ISK", sum)
	}
}

func TestWebhook_RejectsForgedStaleAndMalformed(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := stripegen.NewCheckout().Live()
	event := string(c.Event())
	sign := func(body, secret string, age time.Duration) string {
		return stripegen.Sign([]byte(body), secret, time.Now().Add(-age))
	}
	signed := sign(event, signingSecret, 0)
	const noObject = `{"id":"evt_1","type":"checkout.session.completed","data":{}}`
	huge := `{"id":"evt_1","type":"` + strings.Repeat("x", 1<<20) + `"}`
	for name, tc := range map[string]struct {
		body, signature string
		want            int
	}{
		"forged":          {event, sign(event, "whsec_forged", 0), http.StatusBadRequest},
		"unsigned":        {event, "", http.StatusBadRequest},
		"malformed":       {event, "t=now,v1=abc", http.StatusBadRequest},
		"stale":           {event, sign(event, signingSecret, 6*time.Minute), http.StatusBadRequest},
		"from the future": {event, sign(event, signingSecret, -6*time.Minute), http.StatusBadRequest},
		"another body":    {event + " ", signed, http.StatusBadRequest},
		"no event":        {`[]`, sign(`[]`, signingSecret, 0), http.StatusBadRequest},
		"no object":       {noObject, sign(noObject, signingSecret, 0), http.StatusBadRequest},
		"huge":            {huge, sign(huge, signingSecret, 0), http.StatusRequestEntityTooLarge},
	} {
		answer, _ := s.sendUntilAnswered(tc.want, func(ctx context.Context) (stripegen.Answer, error) {
			return s.sender.Post(ctx, []byte(tc.body), tc.signature)
		})
		if answer.Status != tc.want || !strings.HasPrefix(answer.Body, `{"error":"`) {
			t.Errorf("%s: answer = %+v, want %d with an error", name, answer, tc.want)
		}
	}
	if code := statusCode(s.webhook); code != http.StatusMethodNotAllowed {
		t.Errorf("status of GET = %d, want 405", code)
	}
	if code := statusCode("http://" + s.publicAddr() + "/metrics"); code != http.StatusNotFound {
		t.Errorf("status of /metrics on the public listener = %d, want 404", code)
	}
	for _, table := range []string{"stripe_events", "profiles", "purchases"} {
		if n := s.rows(table); n != 0 {
			t.Errorf("%s has %d rows, want none", table, n)
		}
	}
	if s.repeats.Load() == 0 {
		s.checkLogged(s.ingest, "Invalid signature", 6)
	}
}

func TestWebhook_AnswersDuringTikTokOutage(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sim.Inject(tiktoksim.Fault{Status: http.StatusServiceUnavailable})
	ids := s.sell(20)
	s.await("the circuit to open", func() bool {
		code, body := httpGet(s.worker.admin + "/readyz")
		return code == http.StatusOK && strings.Contains(body, `"delivery":"circuit_open"`)
	})
	s.sim.Clear()
	s.checkDelivered(ids...)
	s.await("a failure to be logged", func() bool {
		return s.worker.logged("TikTok tracking failed (non-critical)") > 0
	})
}

func TestWorker_PausesOnRevokedToken(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sim.SetToken("another")
	id := s.sell(1)[0]
	s.awaitReadiness(s.worker.admin, http.StatusServiceUnavailable)
	if r := s.awaitStatus(id, "retrying"); r.Attempts == 0 {
		t.Errorf("row = %+v, want an attempt", r)
	}
	s.sim.SetToken("local-token")
	s.awaitStatus(id, "delivered")
	s.awaitReadiness(s.worker.admin, http.StatusOK)
}

// A dead purchase is sent again by one command or one call of the API, under the same event_id.
func TestReplay_SendsDeadLettersAgain(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "no"})
	ids := s.sell(2)
	s.awaitCount("dead", 2)
	s.sim.Clear()
	replay := func(wantCode int, want string, args ...string) (out string) {
		t.Helper()
		code, out := s.command(append([]string{"replay"}, args...)...)
		if out = strings.Join(strings.Fields(out), " "); code != wantCode || !strings.Contains(out, want) {
			t.Errorf("replay %v: exit code %d: %s, want %d and %q", args, code, out, wantCode, want)
		}
		return out
	}
	replay(3, "Nothing was done", "--session", ids[0]) // not confirmed
	s.checkPurchase(ids[0], "dead", "refused")
	out := replay(0, "1 made pending again", "--session", ids[0], "--yes")
	if !strings.Contains(out, "1 refused 40002") {
		t.Errorf("replay lacks the reason and the code: %s", out)
	}
	s.awaitStatus(ids[0], "delivered")
	replay(1, "delivered", "--session", ids[0], "--yes")
	replay(2, "")
	replay(2, "", "--status", "delivered")
	replay(2, "", "--status", "dead", "--session", "cs_1")
	replay(2, "", "--status", "dead", "--since", "x")
	resp, err := http.Post(s.admin+"/api/v1/replay?status=dead&reason=refused&code=40002", "", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Errorf("status of the API's replay = %d, want 202", resp.StatusCode)
	}
	s.checkDelivered(ids...)
}

// The output never contains the buyer's address, not even when the purchase is found by it.
func TestShow_FindsPurchaseByEveryID(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "no\x1b[2Jgood"})
	c := stripegen.NewCheckout().Live()
	s.send(c)
	s.awaitStatus(c.SessionID, "dead")
	for _, term := range []string{c.SessionID, c.EventID, strings.ToUpper(*c.Email)} {
		code, out := s.command("show", term)
		address := strings.Contains(strings.ToLower(out), strings.ToLower(*c.Email))
		if code != 0 || address || strings.Contains(out, "\x1b") {
			t.Errorf("show %s: exit code %d, want 0 without address and control characters: %s", term, code, out)
		}
		for _, part := range []string{
			c.SessionID, "dead (refused)", "29.99 USD, live, subscription", c.Customer,
			c.EventID + "): processed", "code 40002", "ingest replay --session",
		} {
			if !strings.Contains(out, part) {
				t.Errorf("show %s lacks %q:\n%s", term, part, out)
			}
		}
	}
	if code, out := s.command("show", "unknown@example.com"); code != 1 || strings.Contains(out, "unknown@") {
		t.Errorf("show of an unknown address: exit code %d, want 1 without the address: %s", code, out)
	}
	if code, _ := s.command("show"); code != 2 {
		t.Errorf("show without an argument: exit code %d, want 2", code)
	}
}

func TestWorker_SkipsWithoutToken(t *testing.T) {
	t.Parallel()
	s := newStack(t, "TIKTOK_ACCESS_TOKEN=")
	id := s.sell(1)[0]
	s.awaitStatus(id, "skipped")
	s.checkPurchase(id, "skipped", "not_configured")
	s.await("the skip to be logged", func() bool {
		return s.worker.logged("TIKTOK_ACCESS_TOKEN not configured, skipping tracking") > 0
	})
	s.awaitReadiness(s.worker.admin, http.StatusOK)
	if n := len(s.sim.Received()); n != 0 {
		t.Errorf("TikTok has %d events, want none", n)
	}
}

func TestWorker_TestModePurchases(t *testing.T) {
	t.Parallel()
	t.Run("skipped by default", func(t *testing.T) {
		s := newStack(t)
		c := stripegen.NewCheckout()
		s.send(c)
		s.awaitStatus(c.SessionID, "skipped")
		s.checkPurchase(c.SessionID, "skipped", "test_purchase")
	})
	t.Run("sent with a code", func(t *testing.T) {
		s := newStack(t, "TIKTOK_TEST_MODE=send", "TIKTOK_TEST_EVENT_CODE=TEST1")
		test, live := stripegen.NewCheckout(), stripegen.NewCheckout().Live()
		s.send(test)
		s.send(live)
		s.checkDelivered(test.SessionID, live.SessionID)
		for id, want := range map[string]string{test.SessionID: "TEST1", live.SessionID: ""} {
			if got := s.event(id).TestEventCode; got != want {
				t.Errorf("%s: test event code = %q, want %q", id, got, want)
			}
		}
	})
}

// Webhooks recorded while NATS is down are delivered afterwards, although both binaries are killed meanwhile.
func TestWebhook_AnswersWithoutNATS(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.checkDelivered(s.sell(1)...)
	s.worker.Kill()
	s.stopNATS()
	s.await("ingest to report NATS as down", func() bool {
		code, text := httpGet(s.admin + "/readyz")
		return code == http.StatusOK && strings.Contains(text, `"nats":"down"`)
	})
	ids := s.sell(5)
	s.ingest.Kill()
	s.startIngest()
	s.startNATS()
	s.startWorker()
	s.checkDelivered(ids...)
}

func TestStart_WithoutPostgresAndNATS(t *testing.T) {
	t.Parallel()
	s := newIdleStack(t, "postgres://user:pass-word@"+freeAddr(t)+"/x") // nothing listens there
	s.launchIngest("DATABASE_URL=" + s.database)
	s.startWorker()
	for _, tc := range []struct {
		*program
		name, admin, body string
	}{{s.ingest, "ingest", s.admin, `"postgres":"down"`}, {s.worker, "tiktok-worker", s.worker.admin, ""}} {
		s.await(tc.name+" to listen", func() bool { return statusCode(tc.admin+"/healthz") == http.StatusOK })
		code, text := httpGet(tc.admin + "/readyz")
		if code != http.StatusServiceUnavailable || !strings.Contains(text, tc.body) {
			t.Errorf("/readyz of %s = %d %s, want 503 with %s", tc.name, code, text, tc.body)
		}
	}
	s.post(stripegen.NewCheckout().Event(), http.StatusServiceUnavailable, "")
	for name, p := range map[string]*program{"ingest": s.ingest, "tiktok-worker": s.worker} {
		if code := p.stop(); code != 0 {
			t.Errorf("exit code of %s = %d, want 0", name, code)
		}
	}
	if strings.Contains(s.ingest.log(), "pass-word") {
		t.Error("the log contains the password")
	}
}

// The ledger was emptied, or restored from a backup, and the queue was not: the stream still has the message
// ids of the purchases that are recorded again, and rejects them as duplicates.
func TestRelay_PublishesAfterLedgerWasEmptied(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ token, want string }{{"local-token", "delivered"}, {"", "skipped"}} {
		s := newStack(t, "TIKTOK_ACCESS_TOKEN="+tc.token)
		c := stripegen.NewCheckout().Live()
		for range 2 {
			s.await("an empty queue", func() bool { // the worker acknowledges a purchase after its outcome
				return s.metric(s.admin, "purchase_relay_consumer_pending") == 0 &&
					s.metric(s.admin, "purchase_relay_consumer_ack_pending") == 0
			})
			s.exec(`TRUNCATE purchases, profiles, stripe_events, attempts`)
			s.post(c.Event(), http.StatusOK, `"processed"`)
			s.awaitStatus(c.SessionID, tc.want)
		}
		// A slow publish may have had another generation before.
		if n := query[int](s, `SELECT generation FROM purchases`); n < 2 {
			t.Errorf("generation of the %s purchase = %d, want 2", tc.want, n)
		}
	}
}

// In an outage the sweeper publishes again and again what the queue still holds: the stream rejects that.
func TestSweeper_OutageDoublesNothing(t *testing.T) {
	t.Parallel()
	s := newStack(t, "SWEEP_INTERVAL=50ms", "SWEEP_GRACE=50ms", "RETRY_INITIAL=300ms")
	s.sim.Inject(tiktoksim.Fault{Status: http.StatusServiceUnavailable})
	id := s.sell(1)[0]
	s.await("several attempts and sweeps", func() bool {
		return s.purchase(id).Attempts >= 4 && s.swept(s.admin, "still_queued") > 0
	})
	// Checked during the outage: with a grace this short, a sweep between the delivery and its outcome would
	// send the purchase again, under the same event_id.
	if n := s.swept(s.admin, "published"); n != 0 {
		t.Errorf("the sweeper published %v purchases that the queue held, want none", n)
	}
	s.sim.Clear()
	s.awaitStatus(id, "delivered")
	if e := s.event(id); e.Variants != 1 {
		t.Errorf("TikTok has %d bodies, want 1", e.Variants)
	}
}

// ownPostgres starts a server that a test may stop and start again with the same options.
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
		_ = os.RemoveAll(server.Dir()) // may be outside of the test's folder
	})
	return server
}

// newStackWithPostgres starts the whole product with its own Postgres. restart starts that server again.
func newStackWithPostgres(t *testing.T, env ...string) (s *stack, restart func()) {
	t.Helper()
	postgres, options := ownPostgres(t)
	s = newIdleStack(t, postgres.URL("postgres"))
	s.postgres = postgres
	restart = func() {
		t.Helper()
		s.postgres = startPostgres(t, options)
	}
	s.startNATS()
	s.startIngest(env...)
	s.startWorker(env...)
	return s, restart
}

// While Postgres is down, webhooks are answered 503. Stripe's retry succeeds, and nothing is lost or doubled.
func TestWebhook_PostgresOutage(t *testing.T) {
	t.Parallel()
	s, restart := newStackWithPostgres(t)
	first, second := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	s.send(first)
	s.awaitStatus(first.SessionID, "delivered")
	if err := s.postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	s.awaitReadiness(s.admin, http.StatusServiceUnavailable)
	s.post(second.Event(), http.StatusServiceUnavailable, "")
	if code := statusCode("http://" + s.publicAddr() + "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz without Postgres = %d, want 200", code)
	}
	restart()
	answer, err := s.sender.Deliver(t.Context(), second.Event(), 50, 50*time.Millisecond)
	if err != nil { // the last attempt may be a duplicate of one that was recorded and answered 503
		t.Fatalf("retry: %+v, %v, want 200", answer, err)
	}
	s.post(first.Event(), http.StatusOK, `"duplicate"`)
	s.checkDelivered(first.SessionID, second.SessionID)
}
