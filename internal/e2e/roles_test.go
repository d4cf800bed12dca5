package e2e

import (
	"net/http"
	"strings"
	"testing"

	"purchase-relay/internal/dev/pglocal/pgtest"
)

// Ingest runs as a role that owns nothing (every test here does so). Before the owner has migrated it waits and says what to
// do; after `ingest migrate`, a step of its own, it goes on by itself and takes purchases, without ever having the owner's URL.
func TestRuntimeRoleWaitsForTheOwner(t *testing.T) {
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
