package e2e

import (
	"net/http"
	"strings"
	"testing"

	"purchase-relay/internal/testkit/pglocal/pgtest"
)

// Ingest's role owns nothing, and ingest never has the owner's URL. Until the owner migrates, ingest waits
// and logs the remedy. After `ingest migrate` it continues without a restart.
func TestIngest_WaitsForMigration(t *testing.T) {
	t.Parallel()
	s := newIdleStack(t, pgtest.Database(t))
	s.createRole()
	s.exec(`REVOKE CREATE ON SCHEMA public FROM PUBLIC`) // Postgres before 15
	s.launchIngest()
	s.awaitIngestLog("run `ingest migrate`")
	if code := statusCode(s.admin + "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz without a schema = %d, want 503", code)
	}
	if code, out := s.command("migrate"); code != 1 || !strings.Contains(out, "MIGRATE_DATABASE_URL") {
		t.Errorf("migrate as ingest's role: exit code %d, want 1: %s", code, out)
	}
	for range 2 { // the second one changes nothing
		s.migrate()
	}
	s.awaitReadiness(s.admin, http.StatusOK)
	if n := s.ingest.logged("The role of DATABASE_URL may create tables"); n != 0 {
		t.Error("ingest's role may create tables")
	}
	if n := s.rows(`pg_class WHERE pg_get_userbyid(relowner) = 'ingest'`); n != 0 {
		t.Errorf("ingest's role owns %d tables and indexes, want none", n)
	}
}

// The shipped NATS users do not let ingest create its streams. It answers webhooks, logs the remedy, and
// continues without a restart after `ingest provision`. With --every a wiped queue needs no operator.
func TestIngest_WaitsForProvision(t *testing.T) {
	t.Parallel()
	s := newIdleStack(t, pgtest.Database(t))
	s.startNATSWithoutStreams()
	s.startIngest("SWEEP_INTERVAL=200ms", "SWEEP_GRACE=1s")
	s.startWorker()
	s.awaitIngestLog("run `ingest provision`")
	id := s.sell(1)[0]
	if n := s.metric(s.admin, "purchase_relay_permission_violations_total"); n != 0 {
		t.Errorf("violations = %v, want 0: waiting for the streams is no violation", n)
	}
	code, out := s.provision("ingest")
	if code != 1 || !strings.Contains(out, "not permitted") {
		t.Errorf("provision as ingest's user: exit code %d, want 1 without permission: %s", code, out)
	}
	provision := "NATS_URL=" + natsURL("provision", s.natsAddr)
	start(t, "ingest provision --every 100ms", provision, "NATS_MAX_BYTES=1GiB")
	s.awaitStatus(id, "delivered") // with a grace this short, a sweep before its outcome may send it again

	s.worker.Kill()
	lost := s.sell(1)[0]
	s.awaitStatus(lost, "published")
	s.stopNATS()
	s.natsDir = t.TempDir()
	s.startNATSWithoutStreams()
	s.startWorker()
	s.awaitStatus(lost, "delivered")
}
