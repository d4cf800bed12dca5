package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/pglocal/pgtest"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/migrations"
)

// nextMigration stands for the first one after a release: forward only, compatible with the running version.
const nextMigration = `-- +goose Up
ALTER TABLE purchases ADD COLUMN next_version text;
CREATE INDEX purchases_next_version ON purchases (next_version) WHERE next_version IS NOT NULL;
`

// buildNext builds the next version's binaries into the folder next: these sources with one more migration.
var buildNext = sync.OnceValue(func() error {
	folder, err := filepath.Abs("../../migrations")
	if err != nil {
		return err
	}
	level, err := os.ReadFile(filepath.Join(folder, "migrations.go"))
	if err != nil {
		return err
	}
	now, next := fmt.Sprintf("const Level = %d\n", migrations.Level), fmt.Sprintf("const Level = %d\n", migrations.Level+1)
	if !strings.Contains(string(level), now) {
		return fmt.Errorf("build the next version: migrations.go has no %q", now)
	}
	replace := map[string]string{}
	for name, text := range map[string]string{
		"migrations.go": strings.Replace(string(level), now, next, 1),
		fmt.Sprintf("%04d_next.sql", migrations.Level+1): nextMigration,
	} {
		path := filepath.Join(binaries, "next_"+name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
		replace[filepath.Join(folder, name)] = path
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	path := filepath.Join(binaries, "next_overlay.json")
	if err := os.WriteFile(path, overlay, 0o600); err != nil {
		return err
	}
	out, err := exec.Command("go", "build", "-race", "-overlay", path, "-o", filepath.Join(binaries, "next")+"/",
		"../../cmd/ingest", "../../cmd/tiktok-worker").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the next version: %w\n%s", err, out)
	}
	return nil
})

// newStackToUpgrade returns a stack without binaries, on a ledger of this version's schema, without grants to
// the runtime role. The upgrade is to the version that buildNext builds.
func newStackToUpgrade(t *testing.T) *stack {
	t.Helper()
	if err := buildNext(); err != nil {
		t.Fatal(err)
	}
	s := &stack{
		t: t, database: pgtest.Database(t), natsDir: t.TempDir(), natsAddr: freeAddr(t),
		sim: tiktoksim.New(tiktoksim.Config{}),
	}
	s.startNATS()
	s.simURL = listen(t, s.sim)
	s.makeRole()
	if code, out := command(t, "ingest", []string{"DATABASE_URL=" + s.database}, "migrate"); code != 0 {
		t.Fatalf("migrate: %d %s", code, out)
	}
	s.build = "next/"
	return s
}

// migrate runs `ingest migrate` of the version that s.build names, as the schema's owner.
func (s *stack) migrate() {
	s.t.Helper()
	env := []string{"DATABASE_URL=" + s.runtime(), "MIGRATE_DATABASE_URL=" + s.database}
	if code, out := command(s.t, s.build+"ingest", env, "migrate"); code != 0 {
		s.t.Fatalf("migrate: %d %s", code, out)
	}
}

// delivered waits until so many more purchases have reached TikTok.
func (s *stack) delivered(more int, when string) {
	s.t.Helper()
	want := len(s.sim.Received()) + more
	s.await(fmt.Sprintf("%d more purchases to be delivered %s", more, when), func() bool { return len(s.sim.Received()) >= want })
}

// The new ingest is started before the ledger was migrated, with Stripe sending: it takes nothing and says
// what to do, Stripe comes again, and after `ingest migrate` everything is taken without a restart.
func TestUpgradeBehindIngest(t *testing.T) {
	t.Parallel()
	s := newStackToUpgrade(t)
	public, admin := freeAddr(t), freeAddr(t)
	s.webhook, s.admin = "http://"+public+"/webhooks/stripe", "http://"+admin
	s.ingest = start(t, s.build+"ingest", "STRIPE_WEBHOOK_SECRET="+signingSecret, "DATABASE_URL="+s.runtime(),
		"INGEST_ADDR="+public, "ADMIN_ADDR="+admin, "NATS_URL="+natsURL("ingest", s.natsAddr), "NATS_MAX_BYTES=1GiB")
	s.sender = &stripegen.Sender{URL: s.webhook, Secret: signingSecret}
	s.startWorker()
	s.await("ingest to say what to do", func() bool { return strings.Contains(strings.Join(s.ingest.lines(), "\n"), "run `ingest migrate`") })
	s.await("ingest to listen", func() bool { return status(s.admin+"/metrics") == http.StatusOK }) // it may wait for Postgres before it does
	l := s.load()
	s.await("webhooks to be refused", func() bool {
		return s.metric(s.admin, `purchase_relay_webhooks_total{result="unavailable",type="checkout.session.completed"}`) > 0
	})
	if n := query[int](s, `SELECT count(*) FROM purchases`); n != 0 {
		t.Errorf("%d purchases were taken before the migration", n)
	}
	s.migrate()
	s.delivered(50, "after the migration")
	l.end()
}

// A rolling upgrade with purchases coming in all along: the ledger is migrated under the running binaries and
// they go on, others join them, the first ones leave. Nothing is lost, nothing is sent in two bodies.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	s := newStackToUpgrade(t)
	s.build = ""
	s.startIngest()
	s.startWorker()
	oldIngest, oldWorker := s.ingest, s.worker
	l := s.load()
	s.delivered(100, "by the old version")
	s.build = "next/"
	s.migrate()
	s.delivered(100, "by the old version on the new schema")
	s.startIngest()
	s.startWorker()
	s.delivered(100, "by both versions")
	l.moved()
	for name, p := range map[string]*program{"ingest": oldIngest, "tiktok-worker": oldWorker} {
		if code := p.stop(); code != 0 {
			t.Errorf("the old %s ended with %d", name, code)
		}
	}
	s.delivered(100, "by the new version alone")
	l.end()
	if code, text := get(s.admin + "/api/v1/summary"); code != http.StatusOK || !strings.Contains(text, fmt.Sprintf(`"delivered":%d,`, len(s.sim.Received()))) {
		t.Errorf("the dashboard's figures after the upgrade: %d %s", code, text)
	}
}

// leftover is a purchase that the version before took an hour ago, and what is to become of it.
type leftover struct {
	stripegen.Checkout
	status, after string
}

// The queue has lost the published ones.
const sqlLeave = `
WITH buyer AS (
    INSERT INTO profiles (livemode, email, stripe_customer_id, last_purchase_at) VALUES (true, $3, $4,
    now() - interval '1 hour') RETURNING id
), came AS (
    INSERT INTO stripe_events (event_id, type, checkout_session_id, livemode, created_at, received_at, disposition)
    VALUES ($2, 'checkout.session.completed', $1, true, now() - interval '1 hour', now() - interval '1 hour', 'processed')
), kind AS (
    SELECT $5::text AS status, $5 IN ('pending', 'published', 'retrying', 'delivered', 'dead', 'skipped') AS message,
        CASE WHEN $5 IN ('published', 'retrying', 'delivered', 'dead') THEN now() - interval '1 hour' END AS out, $5 IN ('retrying', 'delivered', 'dead') AS tried
)
INSERT INTO purchases (checkout_session_id, status, reason, profile_id, mode, livemode, amount_minor, currency, purchased_at, stripe_customer_id, envelope,
    claimed_until, first_published_at, published_at, stream_sequence, attempts, last_attempt_at, last_class, tiktok_request_id, finished_at, created_at, updated_at)
SELECT $1, status, $6, CASE WHEN message THEN buyer.id END, 'subscription', true, 2999, 'usd',
    CASE WHEN status NOT IN ('awaiting_payment', 'payment_failed') THEN now() - interval '1 hour' END, $4, CASE WHEN message THEN convert_to($7, 'UTF8') END,
    CASE WHEN $8 THEN now() - interval '59 minutes' END, COALESCE(out, CASE WHEN $8 THEN now() - interval '1 hour' END), out, CASE WHEN out IS NOT NULL THEN 1 END,
    tried::int, CASE WHEN tried THEN out END, CASE status WHEN 'retrying' THEN 'retry' WHEN 'dead' THEN 'refused' WHEN 'delivered' THEN 'delivered' END,
    CASE status WHEN 'delivered' THEN 'old-' || $1 END, CASE WHEN status IN ('delivered', 'dead', 'skipped', 'rejected') THEN now() - interval '1 hour' END,
    now() - interval '1 hour', now() - interval '1 hour'
FROM buyer, kind`

// leave puts purchases into the ledger as the version before would have left them, ten of each status.
func (s *stack) leave() (left []leftover) {
	s.t.Helper()
	kinds := []struct{ status, reason, after string }{
		{"awaiting_payment", "", "delivered"}, // the money comes after the upgrade
		{"payment_failed", "", "payment_failed"},
		{"rejected", "invalid_email", "rejected"},
		{"pending", "", "delivered"}, // of some, a relay that died had begun to publish them
		{"published", "", "delivered"},
		{"retrying", "", "delivered"},
		{"delivered", "", "not sent again"},
		{"dead", "refused", "dead"},
		{"skipped", "not_configured", "skipped"},
	}
	s.ledger(func(ctx context.Context, conn *pgx.Conn) error {
		for _, kind := range kinds {
			for i := range 10 {
				c := stripegen.NewCheckout().Live()
				if kind.status == "awaiting_payment" {
					c = c.Delayed("konbini")
				}
				c.Created = c.Created.Add(-time.Hour)
				envelope := fmt.Sprintf(`{"version":1,"event_id":%q,"livemode":true,"purchased_at":%d,"amount_minor":2999,"currency":"usd","match_keys":{"email":%q}}`,
					c.SessionID, c.Created.Unix(), sha(*c.Email))
				_, err := conn.Exec(ctx, sqlLeave, c.SessionID, c.EventID, *c.Email, c.Customer, kind.status, kind.reason, envelope, kind.status == "pending" && i%2 == 0)
				if err != nil {
					return fmt.Errorf("leave one %s: %w", kind.status, err)
				}
				left = append(left, leftover{Checkout: c, status: kind.status, after: kind.after})
			}
		}
		return nil
	})
	return left
}

// replicas is what stands before ingests: each request goes to the next one.
type replicas struct {
	hosts []string
	next  atomic.Int64
}

func (r *replicas) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Host = r.hosts[int(r.next.Add(1))%len(r.hosts)]
	return http.DefaultTransport.RoundTrip(req)
}

// newReplica starts one more ingest that may migrate, and does not wait for it. The rest of the stack sees
// the latest.
func (s *stack) newReplica(r *replicas) {
	s.t.Helper()
	public, admin := freeAddr(s.t), freeAddr(s.t)
	s.admin = "http://" + admin
	r.hosts = append(r.hosts, public)
	s.ingest = start(s.t, s.build+"ingest", "STRIPE_WEBHOOK_SECRET="+signingSecret, "DATABASE_URL="+s.runtime(),
		"MIGRATE_DATABASE_URL="+s.database, "NATS_URL="+natsURL("ingest", s.natsAddr), "NATS_MAX_BYTES=1GiB",
		"INGEST_ADDR="+public, "ADMIN_ADDR="+admin, "SWEEP_INTERVAL=200ms", "SWEEP_GRACE=20s")
}

// The old version is stopped in the middle of its work, with purchases of every kind on its ledger. Two new
// ingests start at once, both with the right to migrate, while Stripe sends from the first moment, new
// purchases and once more all that the old version took. What was taken is on the ledger, what was under way
// arrives, what had ended stays as it was, nothing is doubled, the figures are the ledger's.
func TestUpgradeKeepsWhatWasLeft(t *testing.T) {
	t.Parallel()
	s := newStackToUpgrade(t)
	left := s.leave()
	ingests := &replicas{}
	s.newReplica(ingests)
	first := s.ingest
	s.newReplica(ingests)
	second := s.ingest
	s.sender = &stripegen.Sender{URL: "http://ingest/webhooks/stripe", Secret: signingSecret, Client: &http.Client{Transport: ingests, Timeout: patience}}
	l := s.load()
	s.startWorker()
	for _, p := range left {
		s.repeat(p)
	}
	s.await("what was under way to arrive", func() bool {
		return query[int](s, `SELECT count(*) FROM purchases WHERE status IN ('awaiting_payment', 'pending', 'published', 'retrying') AND created_at < now() - interval '30 minutes'`) == 0
	})
	sold := l.sold()
	s.await("what was sold to arrive", func() bool {
		return query[int](s, `SELECT count(*) FROM purchases WHERE status IN ('pending', 'published', 'retrying')`) == 0
	})
	logs := strings.Join(append(first.lines(), second.lines()...), "\n")
	if one, none := strings.Count(logs, `"migrations_applied":1`), strings.Count(logs, `"migrations_applied":0`); one != 1 || none != 1 {
		t.Errorf("of two ingests %d migrated, %d found it done", one, none)
	}
	s.afterUpgrade(left, sold)
	s.figuresAreTheLedgers()
	s.schemaRefusesTooOldBinaries()
}

// repeat sends what the old version took already, as Stripe does that got no answer; and the money, where
// that comes now.
func (s *stack) repeat(p leftover) {
	s.t.Helper()
	answer, err := s.sender.Deliver(s.t.Context(), p.Event(), 1000, 10*time.Millisecond)
	if err != nil || answer.Body != `{"status":"duplicate"}` {
		s.t.Errorf("%s (%s) once more: %+v, %v", p.SessionID, p.status, answer, err)
	}
	if p.status != "awaiting_payment" {
		return
	}
	if answer, err = s.sender.Deliver(s.t.Context(), p.AsyncSucceeded(time.Hour).Event(), 1000, 10*time.Millisecond); err != nil || answer.Body != `{"status":"processed"}` {
		s.t.Errorf("the money for %s: %+v, %v", p.SessionID, answer, err)
	}
}

// afterUpgrade looks at each purchase on the ledger and at TikTok.
func (s *stack) afterUpgrade(left []leftover, sold map[string]bool) {
	s.t.Helper()
	if len(sold) < 10 {
		s.t.Fatalf("only %d purchases were sent: the test shows nothing", len(sold))
	}
	there := make(map[string]tiktoksim.Event)
	repeats := 0
	for _, e := range s.sim.Received() {
		there[e.EventID] = e
		if repeats += e.Copies - 1; e.Variants != 1 {
			s.t.Errorf("%s was sent in %d bodies", e.EventID, e.Variants)
		}
	}
	arrived := len(sold)
	for _, p := range left {
		want, sent := p.after, p.after == "delivered"
		if p.after == "not sent again" {
			want = "delivered"
		}
		if sent {
			arrived++
		}
		if r := s.purchase(p.SessionID); r.Status != want || (there[p.SessionID].Copies > 0) != sent {
			s.t.Errorf("%s was %s: is %+v, want %s; %d copies at TikTok", p.SessionID, p.status, r, p.after, there[p.SessionID].Copies)
		}
	}
	for id := range sold {
		if r := s.purchase(id); r.Status != "delivered" || there[id].Copies == 0 {
			s.t.Errorf("%s was answered 200: %+v, %d copies at TikTok", id, r, there[id].Copies)
		}
	}
	if rows := query[int](s, `SELECT count(*) FROM purchases`); rows != len(left)+len(sold) || len(there) != arrived {
		s.t.Errorf("%d rows and %d events for %d old purchases and %d new ones, want %d events", rows, len(there), len(left), len(sold), arrived)
	}
	s.t.Logf("%d old purchases and %d new ones, %d sent again under their own event_id", len(left), len(sold), repeats)
}

// figuresAreTheLedgers compares the dashboard's figures with the ledger's rows.
func (s *stack) figuresAreTheLedgers() {
	s.t.Helper()
	code, text := get(s.admin + "/api/v1/summary?range=24h&mode=live")
	var figures struct {
		Purchases map[string]int `json:"purchases"`
	}
	if err := json.Unmarshal([]byte(text), &figures); err != nil || code != http.StatusOK {
		s.t.Fatalf("the summary: %d %s", code, text)
	}
	for status, n := range figures.Purchases {
		if rows := query[int](s, `SELECT count(*) FROM purchases WHERE status = $1`, status); rows != n {
			s.t.Errorf("%d purchases are %s, the dashboard says %d", rows, status, n)
		}
	}
	if len(figures.Purchases) != len(purchase.Statuses()) {
		s.t.Errorf("the summary has %v", figures.Purchases)
	}
}

// schemaRefusesTooOldBinaries starts this version on the next one's schema: it runs unless the schema demands
// a newer binary.
func (s *stack) schemaRefusesTooOldBinaries() {
	s.t.Helper()
	s.build = ""
	if level := query[int](s, `SELECT max(version_id) FROM goose_db_version`); level != migrations.Level+1 {
		s.t.Errorf("schema level = %d, want %d", level, migrations.Level+1)
	}
	s.startIngest()
	s.exec(`UPDATE schema_compat SET oldest_binary = $1`, migrations.Level+1)
	s.newReplica(&replicas{})
	select {
	case <-s.ingest.ended:
	case <-time.After(patience):
		s.t.Fatal("an ingest older than schema_compat.oldest_binary keeps running")
	}
	log := strings.Join(s.ingest.lines(), "\n")
	if code := s.ingest.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(log, "too new for this binary") {
		s.t.Errorf("an ingest older than schema_compat.oldest_binary ended with %d: %s", code, log)
	}
}
