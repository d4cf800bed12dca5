package e2e

import (
	"net/http"
	"strings"
	"testing"

	"purchase-relay/internal/testkit/pglocal/pgtest"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// Ingest runs as a role that owns nothing (every test here does so). Before the owner has migrated it waits and says what to
// do; after `ingest migrate`, a step of its own, it goes on by itself and takes purchases, without ever having the owner's URL.
func TestRuntimeRoleWaitsForTheOwner(t *testing.T) {
	t.Parallel()
	s := &stack{t: t, database: pgtest.Database(t)}
	s.makeRole()
	s.exec(`REVOKE CREATE ON SCHEMA public FROM PUBLIC`) // Postgres before 15
	public, admin := freeAddr(t), freeAddr(t)
	s.webhook, s.admin = "http://"+public+"/webhooks/stripe", "http://"+admin
	s.ingest = start(t, "ingest", "STRIPE_WEBHOOK_SECRET="+signingSecret, "DATABASE_URL="+s.runtime(), "INGEST_ADDR="+public, "ADMIN_ADDR="+admin,
		"NATS_URL="+natsURL("ingest", freeAddr(t)))
	s.await("ingest to say what to do", func() bool { return strings.Contains(strings.Join(s.ingest.lines(), "\n"), "run `ingest migrate`") })
	if code := status(s.admin + "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("ready without a schema: %d", code)
	}
	if code, out := s.command("migrate"); code != 1 || !strings.Contains(out, "MIGRATE_DATABASE_URL") {
		t.Errorf("the runtime role's migration: %d %s", code, out)
	}
	for range 2 { // once more harms nothing
		code, out := command(t, "ingest", []string{"DATABASE_URL=" + s.runtime(), "MIGRATE_DATABASE_URL=" + s.database}, "migrate")
		if code != 0 || strings.Contains(out, rolePassword) {
			t.Fatalf("the owner's migration: %d %s", code, out)
		}
	}
	s.await("ingest to be ready", func() bool { return status(s.admin+"/readyz") == http.StatusOK })
	if n := s.ingest.said("The role of DATABASE_URL may create tables"); n != 0 {
		t.Error("the runtime role may create tables")
	}
	if owned := query[int](s, `SELECT count(*) FROM pg_class WHERE pg_get_userbyid(relowner) = 'ingest'`); owned != 0 {
		t.Errorf("the runtime role owns %d tables and indexes", owned)
	}
}

// The queue's users are those that are shipped: ingest cannot create its streams. It waits, says what to do
// and answers webhooks, and goes on without a restart after `ingest provision`; where that command stays, a
// wiped queue needs no operator.
func TestIngest_WaitsForProvision(t *testing.T) {
	t.Parallel()
	s := &stack{t: t, database: pgtest.Database(t), natsDir: t.TempDir(), natsAddr: freeAddr(t), sim: tiktoksim.New(tiktoksim.Config{})}
	s.startBareNATS()
	s.simURL = listen(t, s.sim)
	s.startIngest("SWEEP_INTERVAL=200ms", "SWEEP_GRACE=1s")
	s.startWorker()
	s.await("ingest to say what to do", func() bool { return strings.Contains(strings.Join(s.ingest.lines(), "\n"), "run `ingest provision`") })
	c := stripegen.NewCheckout().Live()
	if answer := s.send(c); answer.Status != http.StatusOK {
		t.Errorf("status = %d before the streams exist, want 200", answer.Status)
	}
	if n := s.ingestFigure("purchase_relay_permission_violations_total"); n != 0 {
		t.Errorf("violations = %v, want 0: waiting for the streams is no violation", n)
	}
	if code, out := command(t, "ingest", []string{"NATS_URL=" + natsURL("ingest", s.natsAddr)}, "provision"); code != 1 || !strings.Contains(out, "not permitted") {
		t.Errorf("ingest's own user: code = %d, want 1 and the refusal: %s", code, out)
	}
	start(t, "ingest provision --every 100ms", "NATS_URL="+natsURL("provision", s.natsAddr), "NATS_MAX_BYTES=1GiB")
	s.awaitStatus(c.SessionID, "delivered")

	s.worker.kill()
	lost := stripegen.NewCheckout().Live()
	s.send(lost)
	s.awaitStatus(lost.SessionID, "published")
	if err := s.nats.Stop(); err != nil {
		t.Fatal(err)
	}
	s.natsDir = t.TempDir()
	s.startBareNATS()
	s.startWorker()
	s.awaitStatus(lost.SessionID, "delivered")
}
