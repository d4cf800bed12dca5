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
	const line = "const Level = %d\n"
	this, next := fmt.Sprintf(line, migrations.Level), fmt.Sprintf(line, migrations.Level+1)
	if !strings.Contains(string(level), this) {
		return fmt.Errorf("build the next version: migrations.go has no %q", this)
	}
	replace := map[string]string{}
	for name, text := range map[string]string{
		"migrations.go": strings.Replace(string(level), this, next, 1),
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
	folder = filepath.Join(binaries, "next") + "/"
	out, err := exec.Command("go", "build", "-race", "-overlay", path, "-o", folder,
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

// delivered waits until TikTok has received more purchases.
func (s *stack) delivered(more int, when string) {
	s.t.Helper()
	want := len(s.sim.Received()) + more
	s.await(fmt.Sprintf("%d more purchases to be delivered %s", more, when), func() bool {
		return len(s.sim.Received()) >= want
	})
}

// The new ingest is started before the ledger was migrated, with Stripe sending: it refuses webhooks and logs
// what to do. Stripe retries, and after `ingest migrate` everything is recorded without a restart.
func TestUpgradeBehindIngest(t *testing.T) {
	t.Parallel()
	s := newStackToUpgrade(t)
	public, admin := freeAddr(t), freeAddr(t)
	s.webhook, s.admin = "http://"+public+"/webhooks/stripe", "http://"+admin
	s.ingest = start(t, s.build+"ingest", "STRIPE_WEBHOOK_SECRET="+signingSecret, "DATABASE_URL="+s.runtime(),
		"INGEST_ADDR="+public, "ADMIN_ADDR="+admin,
		"NATS_URL="+natsURL("ingest", s.natsAddr), "NATS_MAX_BYTES=1GiB")
	s.sender = &stripegen.Sender{URL: s.webhook, Secret: signingSecret}
	s.startWorker()
	s.await("ingest to log what to do", func() bool {
		return strings.Contains(strings.Join(s.ingest.lines(), "\n"), "run `ingest migrate`")
	})
	s.await("ingest to listen", func() bool { return status(s.admin+"/metrics") == http.StatusOK })
	l := s.load()
	const refused = `purchase_relay_webhooks_total{result="unavailable",type="checkout.session.completed"}`
	s.await("webhooks to be refused", func() bool { return s.metric(s.admin, refused) > 0 })
	if n := query[int](s, `SELECT count(*) FROM purchases`); n != 0 {
		t.Errorf("%d purchases were recorded before the migration, want none", n)
	}
	s.migrate()
	s.delivered(50, "after the migration")
	l.end()
}

// A rolling upgrade under load: the ledger is migrated under the running binaries, the next version's join
// them, the old ones stop. Nothing is lost, and no purchase is sent in two bodies.
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
			t.Errorf("exit code of the old %s = %d, want 0", name, code)
		}
	}
	s.delivered(100, "by the new version alone")
	l.end()
	code, text := get(s.admin + "/api/v1/summary")
	want := fmt.Sprintf(`"delivered":%d,`, len(s.sim.Received()))
	if code != http.StatusOK || !strings.Contains(text, want) {
		t.Errorf("summary after the upgrade = %d %s, want %s", code, text, want)
	}
}

// leftover is a purchase that the old version recorded an hour ago, and its state after the upgrade.
type leftover struct {
	stripegen.Checkout
	status, after string
}

// The queue has lost the published ones.
const sqlLeave = `
WITH old AS (
    SELECT now() - interval '1 hour' AS at, $5::text AS status,
        $5 IN ('published', 'retrying', 'delivered', 'dead') AS sent,
        $5 IN ('retrying', 'delivered', 'dead') AS tried,
        $5 IN ('pending', 'published', 'retrying', 'delivered', 'dead', 'skipped') AS message
), buyer AS (
    INSERT INTO profiles (livemode, email, stripe_customer_id, last_purchase_at)
    SELECT true, $3, $4, at FROM old RETURNING id
), event AS (
    INSERT INTO stripe_events (event_id, type, checkout_session_id, livemode, created_at, received_at,
        disposition)
    SELECT $2, 'checkout.session.completed', $1, true, at, at, 'processed' FROM old
)
INSERT INTO purchases (checkout_session_id, status, reason, profile_id, mode, livemode, amount_minor,
    currency, purchased_at, stripe_customer_id, envelope, claimed_until, first_published_at, published_at,
    stream_sequence, attempts, last_attempt_at, last_class, tiktok_request_id, finished_at, created_at,
    updated_at)
SELECT $1, status, $6, CASE WHEN message THEN buyer.id END, 'subscription', true, 2999, 'usd',
    CASE WHEN status NOT IN ('awaiting_payment', 'payment_failed') THEN at END, $4,
    CASE WHEN message THEN convert_to($7, 'UTF8') END, CASE WHEN $8 THEN at + interval '1 minute' END,
    CASE WHEN sent OR $8 THEN at END, CASE WHEN sent THEN at END, CASE WHEN sent THEN 1 END, tried::int,
    CASE WHEN tried THEN at END,
    CASE status WHEN 'retrying' THEN 'retry' WHEN 'dead' THEN 'refused' WHEN 'delivered' THEN 'delivered' END,
    CASE status WHEN 'delivered' THEN 'old-' || $1 END,
    CASE WHEN status IN ('delivered', 'dead', 'skipped', 'rejected') THEN at END, at, at
FROM old, buyer`

// leave records ten purchases of each status as the old version leaves them.
func (s *stack) leave() (left []leftover) {
	s.t.Helper()
	kinds := []struct{ status, reason, after string }{
		{"awaiting_payment", "", "delivered"}, // paid after the upgrade
		{"payment_failed", "", "payment_failed"},
		{"rejected", "invalid_email", "rejected"},
		{"pending", "", "delivered"}, // half of them claimed by a relay that died
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
				envelope := fmt.Sprintf(`{"version":1,"event_id":%q,"livemode":true,"purchased_at":%d,`+
					`"amount_minor":2999,"currency":"usd","match_keys":{"email":%q}}`,
					c.SessionID, c.Created.Unix(), sha(*c.Email))
				claimed := kind.status == "pending" && i%2 == 0
				_, err := conn.Exec(ctx, sqlLeave,
					c.SessionID, c.EventID, *c.Email, c.Customer, kind.status, kind.reason, envelope, claimed)
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

// replicas balances requests over ingests, round robin.
type replicas struct {
	hosts []string
	next  atomic.Int64
}

func (r *replicas) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Host = r.hosts[int(r.next.Add(1))%len(r.hosts)]
	return http.DefaultTransport.RoundTrip(req)
}

// newReplica starts one more ingest that may migrate, and does not wait for it. The stack uses the latest.
func (s *stack) newReplica(r *replicas) {
	s.t.Helper()
	public, admin := freeAddr(s.t), freeAddr(s.t)
	s.admin = "http://" + admin
	r.hosts = append(r.hosts, public)
	s.ingest = start(s.t, s.build+"ingest", "STRIPE_WEBHOOK_SECRET="+signingSecret, "DATABASE_URL="+s.runtime(),
		"MIGRATE_DATABASE_URL="+s.database, "NATS_URL="+natsURL("ingest", s.natsAddr), "NATS_MAX_BYTES=1GiB",
		"INGEST_ADDR="+public, "ADMIN_ADDR="+admin, "SWEEP_INTERVAL=200ms", "SWEEP_GRACE=20s")
}

// The old version was stopped with purchases of every status on its ledger. Two new ingests that may migrate
// start together, while Stripe sends new purchases and repeats all old ones. Recorded purchases are kept,
// unfinished ones are delivered, finished ones do not change, nothing is doubled, the figures equal the
// ledger.
func TestUpgradeKeepsWhatWasLeft(t *testing.T) {
	t.Parallel()
	s := newStackToUpgrade(t)
	left := s.leave()
	ingests := &replicas{}
	s.newReplica(ingests)
	first := s.ingest
	s.newReplica(ingests)
	second := s.ingest
	client := &http.Client{Transport: ingests, Timeout: patience}
	s.sender = &stripegen.Sender{URL: "http://ingest/webhooks/stripe", Secret: signingSecret, Client: client}
	l := s.load()
	s.startWorker()
	for _, p := range left {
		s.repeat(p)
	}
	s.await("the unfinished purchases to be delivered", func() bool {
		return query[int](s, `SELECT count(*) FROM purchases WHERE created_at < now() - interval '30 minutes'
			AND status IN ('awaiting_payment', 'pending', 'published', 'retrying')`) == 0
	})
	sold := l.sold()
	s.await("the new purchases to be delivered", func() bool {
		return query[int](s, `SELECT count(*) FROM purchases
			WHERE status IN ('pending', 'published', 'retrying')`) == 0
	})
	logs := strings.Join(append(first.lines(), second.lines()...), "\n")
	migrated := strings.Count(logs, `"migrations_applied":1`)
	if found := strings.Count(logs, `"migrations_applied":0`); migrated != 1 || found != 1 {
		t.Errorf("of two ingests %d migrated and %d found it done, want one each", migrated, found)
	}
	s.afterUpgrade(left, sold)
	s.figuresEqualLedger()
	s.schemaRefusesTooOldBinaries()
}

// repeat sends an event that the old version recorded, as Stripe does without an answer, and then a delayed
// payment.
func (s *stack) repeat(p leftover) {
	s.t.Helper()
	answer, err := s.sender.Deliver(s.t.Context(), p.Event(), 1000, 10*time.Millisecond)
	if err != nil || answer.Body != `{"status":"duplicate"}` {
		s.t.Errorf("repeated %s (%s): %+v, %v", p.SessionID, p.status, answer, err)
	}
	if p.status != "awaiting_payment" {
		return
	}
	answer, err = s.sender.Deliver(s.t.Context(), p.AsyncSucceeded(time.Hour).Event(), 1000, 10*time.Millisecond)
	if err != nil || answer.Body != `{"status":"processed"}` {
		s.t.Errorf("delayed payment of %s: %+v, %v", p.SessionID, answer, err)
	}
}

// afterUpgrade checks each purchase on the ledger and at TikTok.
func (s *stack) afterUpgrade(left []leftover, sold map[string]bool) {
	s.t.Helper()
	if len(sold) < 10 {
		s.t.Fatalf("only %d purchases were sent, want at least 10", len(sold))
	}
	received := make(map[string]tiktoksim.Event)
	repeats := 0
	for _, e := range s.sim.Received() {
		received[e.EventID] = e
		if repeats += e.Copies - 1; e.Variants != 1 {
			s.t.Errorf("%s was sent in %d bodies, want one", e.EventID, e.Variants)
		}
	}
	wantEvents := len(sold)
	for _, p := range left {
		want, sent := p.after, p.after == "delivered"
		if p.after == "not sent again" {
			want = "delivered"
		}
		if sent {
			wantEvents++
		}
		copies := received[p.SessionID].Copies
		if r := s.purchase(p.SessionID); r.Status != want || (copies > 0) != sent {
			s.t.Errorf("%s was %s: %+v, %d copies at TikTok, want %s", p.SessionID, p.status, r, copies, p.after)
		}
	}
	for id := range sold {
		if r := s.purchase(id); r.Status != "delivered" || received[id].Copies == 0 {
			s.t.Errorf("%s was answered 200: %+v, %d copies at TikTok", id, r, received[id].Copies)
		}
	}
	rows, wantRows := query[int](s, `SELECT count(*) FROM purchases`), len(left)+len(sold)
	if rows != wantRows || len(received) != wantEvents {
		s.t.Errorf("%d rows and %d events, want %d and %d", rows, len(received), wantRows, wantEvents)
	}
	s.t.Logf("%d old purchases, %d new ones, %d repeats of an event_id", len(left), len(sold), repeats)
}

// figuresEqualLedger compares the dashboard's figures with the ledger's rows.
func (s *stack) figuresEqualLedger() {
	s.t.Helper()
	code, text := get(s.admin + "/api/v1/summary?range=24h&mode=live")
	var figures struct {
		Purchases map[string]int `json:"purchases"`
	}
	if err := json.Unmarshal([]byte(text), &figures); err != nil || code != http.StatusOK {
		s.t.Fatalf("summary: %d %s", code, text)
	}
	for status, n := range figures.Purchases {
		if rows := query[int](s, `SELECT count(*) FROM purchases WHERE status = $1`, status); rows != n {
			s.t.Errorf("summary has %d purchases %s, want %d", n, status, rows)
		}
	}
	if len(figures.Purchases) != len(purchase.Statuses()) {
		s.t.Errorf("summary has %v, want every status", figures.Purchases)
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
	case <-s.ingest.Ended():
	case <-time.After(patience):
		s.t.Fatal("an ingest older than schema_compat.oldest_binary keeps running")
	}
	code, log := s.ingest.ExitCode(), strings.Join(s.ingest.lines(), "\n")
	if code != 1 || !strings.Contains(log, "ledger schema requires a newer binary") {
		s.t.Errorf("an ingest older than schema_compat.oldest_binary ended with %d: %s", code, log)
	}
}
