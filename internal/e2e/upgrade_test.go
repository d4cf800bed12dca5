package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
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
	"purchase-relay/migrations"
)

// nextMigration is like the first one after a release: forward only, compatible with the running version.
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
	return buildBinaries(filepath.Join(binaries, "next"), "-race", "-overlay", path)
})

// newStackToUpgrade returns a stack without binaries, on a ledger of this version's schema, without grants to
// the runtime role. The upgrade is to the version that buildNext builds.
func newStackToUpgrade(t *testing.T) *stack {
	t.Helper()
	if err := buildNext(); err != nil {
		t.Fatal(err)
	}
	s := newIdleStack(t, pgtest.Database(t))
	s.startNATS()
	s.createRole()
	if code, out := command(t, "ingest", []string{"DATABASE_URL=" + s.database}, "migrate"); code != 0 {
		t.Fatalf("migrate: exit code %d: %s", code, out)
	}
	s.folder = "next/"
	return s
}

// migrate runs `ingest migrate` of the version in s.folder, as the schema's owner.
func (s *stack) migrate() {
	s.t.Helper()
	env := []string{"DATABASE_URL=" + s.runtimeURL(), "MIGRATE_DATABASE_URL=" + s.database}
	code, out := command(s.t, s.folder+"ingest", env, "migrate")
	if code != 0 || strings.Contains(out, rolePassword) {
		s.t.Fatalf("migrate: exit code %d, want 0 without the password: %s", code, out)
	}
}

// awaitMore waits until TikTok has received more purchases.
func (s *stack) awaitMore(more int, when string) {
	s.t.Helper()
	want := len(s.sim.Received()) + more
	s.await(fmt.Sprintf("%d more purchases to be delivered %s", more, when), func() bool {
		return len(s.sim.Received()) >= want
	})
}

// The new ingest starts before the ledger is migrated: it answers 503 and logs the remedy. Stripe retries,
// and after `ingest migrate` everything is recorded without a restart.
func TestUpgrade_IngestBeforeMigration(t *testing.T) {
	t.Parallel()
	s := newStackToUpgrade(t)
	s.launchIngest()
	s.startWorker()
	s.awaitIngestLog("run `ingest migrate`")
	s.await("ingest to listen", func() bool { return statusCode(s.admin+"/metrics") == http.StatusOK })
	l := s.startLoad()
	const refused = `purchase_relay_webhooks_total{result="unavailable",type="checkout.session.completed"}`
	s.await("webhooks to be refused", func() bool { return s.metric(s.admin, refused) > 0 })
	if n := s.rows("purchases"); n != 0 {
		t.Errorf("purchases before the migration = %d, want none", n)
	}
	s.migrate()
	s.awaitMore(30, "after the migration")
	l.finish()
}

// A rolling upgrade under load: the ledger is migrated while the old binaries run, the new ones join, the old
// ones stop. Nothing is lost, and no purchase is sent in two bodies.
func TestUpgrade_RollingLosesNothing(t *testing.T) {
	t.Parallel()
	s := newStackToUpgrade(t)
	s.folder = ""
	s.startIngest()
	s.startWorker()
	oldIngest, oldWorker := s.ingest, s.worker
	l := s.startLoad()
	s.awaitMore(40, "by the old version")
	s.folder = "next/"
	s.migrate()
	s.awaitMore(40, "by the old version on the new schema")
	s.startIngest()
	s.startWorker()
	s.awaitMore(40, "by both versions")
	l.followIngest()
	for name, p := range map[string]*program{"ingest": oldIngest, "tiktok-worker": oldWorker} {
		if code := p.stop(); code != 0 {
			t.Errorf("exit code of the old %s = %d, want 0", name, code)
		}
	}
	s.awaitMore(40, "by the new version alone")
	l.finish()
	code, text := httpGet(s.admin + "/api/v1/summary")
	want := fmt.Sprintf(`"delivered":%d,`, len(s.sim.Received()))
	if code != http.StatusOK || !strings.Contains(text, want) {
		t.Errorf("summary after the upgrade = %d %s, want %s", code, text, want)
	}
}

// oldPurchase is a purchase that the old version recorded an hour ago.
type oldPurchase struct {
	stripegen.Checkout
	status, after string // before and after the upgrade
}

// The published ones are not in the queue.
const sqlOldPurchase = `
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

// seedOldPurchases writes ten purchases of each status as the old version does.
func (s *stack) seedOldPurchases() (old []oldPurchase) {
	s.t.Helper()
	kinds := []struct{ status, reason, after string }{
		{"awaiting_payment", "", "delivered"}, // paid after the upgrade
		{"payment_failed", "", "payment_failed"},
		{"rejected", "invalid_email", "rejected"},
		{"pending", "", "delivered"}, // half of them claimed by a killed relay
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
				_, err := conn.Exec(ctx, sqlOldPurchase,
					c.SessionID, c.EventID, *c.Email, c.Customer, kind.status, kind.reason, envelope, claimed)
				if err != nil {
					return fmt.Errorf("insert a %s purchase: %w", kind.status, err)
				}
				old = append(old, oldPurchase{c, kind.status, kind.after})
			}
		}
		return nil
	})
	return old
}

// replicas sends requests to several ingests, round robin.
type replicas struct {
	hosts []string
	next  atomic.Int64
}

func (r *replicas) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Host = r.hosts[int(r.next.Add(1))%len(r.hosts)]
	return http.DefaultTransport.RoundTrip(req)
}

// launchReplica starts another ingest that may migrate, and does not wait for it.
func (s *stack) launchReplica(r *replicas) {
	s.t.Helper()
	s.launchIngest("MIGRATE_DATABASE_URL="+s.database, "SWEEP_INTERVAL=200ms", "SWEEP_GRACE=20s")
	r.hosts = append(r.hosts, s.publicAddr())
}

// The old version was stopped with purchases of every status. Two new ingests that may migrate start
// together, while Stripe sends new purchases and repeats all old ones. Unfinished purchases are delivered,
// finished ones do not change, nothing is doubled, and the figures equal the ledger.
func TestUpgrade_KeepsOldPurchases(t *testing.T) {
	t.Parallel()
	s := newStackToUpgrade(t)
	old := s.seedOldPurchases()
	ingests := &replicas{}
	s.launchReplica(ingests)
	first := s.ingest
	s.launchReplica(ingests)
	second := s.ingest
	client := &http.Client{Transport: ingests, Timeout: timeout}
	s.sender = &stripegen.Sender{URL: "http://ingest/webhooks/stripe", Secret: signingSecret, Client: client}
	l := s.startLoad()
	s.startWorker()
	for _, p := range old {
		s.repeat(p)
	}
	s.awaitNone(`purchases WHERE created_at < now() - interval '30 minutes'
			AND status IN ('awaiting_payment', 'pending', 'published', 'retrying')`)
	sold := l.stop()
	s.awaitNone(`purchases
			WHERE status IN ('pending', 'published', 'retrying')`)
	logs := first.log() + second.log()
	migrated := strings.Count(logs, `"migrations_applied":1`)
	if skipped := strings.Count(logs, `"migrations_applied":0`); migrated != 1 || skipped != 1 {
		t.Errorf("migrating ingests = %d, others = %d, want one each", migrated, skipped)
	}
	s.checkUpgraded(old, sold)
	s.checkFigures()
	s.checkOldBinaryIsRefused()
}

// repeat sends an event that the old version recorded and then, where one is due, its delayed payment.
func (s *stack) repeat(p oldPurchase) {
	s.t.Helper()
	deliver := func(event []byte, want string) {
		s.t.Helper()
		answer, err := s.sender.Deliver(s.t.Context(), event, 1000, 10*time.Millisecond)
		if err != nil || answer.Body != `{"status":"`+want+`"}` {
			s.t.Errorf("%s (%s): answer = %+v, %v, want %s", p.SessionID, p.status, answer, err, want)
		}
	}
	deliver(p.Event(), "duplicate")
	if p.status == "awaiting_payment" {
		deliver(p.AsyncSucceeded(time.Hour).Event(), "processed")
	}
}

// checkUpgraded checks each purchase on the ledger and at TikTok.
func (s *stack) checkUpgraded(old []oldPurchase, sold map[string]bool) {
	s.t.Helper()
	received := s.received()
	repeats := 0
	for id, e := range received {
		if repeats += e.Copies - 1; e.Variants != 1 {
			s.t.Errorf("%s was sent in %d bodies, want 1", id, e.Variants)
		}
	}
	wantEvents := len(sold)
	for _, p := range old {
		want, sent := p.after, p.after == "delivered"
		if p.after == "not sent again" {
			want = "delivered"
		}
		if sent {
			wantEvents++
		}
		copies := received[p.SessionID].Copies
		if r := s.purchase(p.SessionID); r.Status != want || (copies > 0) != sent {
			s.t.Errorf("%s, before %s, is %s with %d copies at TikTok, want %s",
				p.SessionID, p.status, r.Status, copies, p.after)
		}
	}
	for id := range sold {
		if r := s.purchase(id); r.Status != "delivered" || received[id].Copies == 0 {
			s.t.Errorf("%s is %s with %d copies at TikTok, want delivered", id, r.Status, received[id].Copies)
		}
	}
	rows, wantRows := s.rows("purchases"), len(old)+len(sold)
	if rows != wantRows || len(received) != wantEvents {
		s.t.Errorf("rows = %d, want %d; events = %d, want %d", rows, wantRows, len(received), wantEvents)
	}
	s.t.Logf("%d old purchases, %d new ones, %d repeats of an event_id", len(old), len(sold), repeats)
}

// checkFigures compares the dashboard's figures with the ledger's rows.
func (s *stack) checkFigures() {
	s.t.Helper()
	code, text := httpGet(s.admin + "/api/v1/summary?range=24h&mode=live")
	var figures struct {
		Purchases map[string]int `json:"purchases"`
	}
	if err := json.Unmarshal([]byte(text), &figures); err != nil || code != http.StatusOK {
		s.t.Fatalf("summary: %d %s", code, text)
	}
	for status, n := range figures.Purchases {
		if rows := s.count(status); rows != n {
			s.t.Errorf("summary: %s = %d, want %d", status, n, rows)
		}
	}
	if len(figures.Purchases) != len(purchase.Statuses()) {
		s.t.Errorf("summary: statuses = %v, want every status", figures.Purchases)
	}
}

// checkOldBinaryIsRefused starts this version on the next one's schema: it runs until the schema demands a
// newer binary.
func (s *stack) checkOldBinaryIsRefused() {
	s.t.Helper()
	s.folder = ""
	if level := query[int](s, `SELECT max(version_id) FROM goose_db_version`); level != migrations.Level+1 {
		s.t.Errorf("schema level = %d, want %d", level, migrations.Level+1)
	}
	s.startIngest()
	s.exec(`UPDATE schema_compat SET oldest_binary = $1`, migrations.Level+1)
	s.launchReplica(&replicas{})
	select {
	case <-s.ingest.Ended():
	case <-time.After(timeout):
		s.t.Fatal("an ingest older than schema_compat.oldest_binary keeps running")
	}
	code, log := s.ingest.ExitCode(), s.ingest.log()
	if code != 1 || !strings.Contains(log, "ledger schema requires a newer binary") {
		s.t.Errorf("an ingest older than schema_compat.oldest_binary ended with %d: %s", code, log)
	}
}
