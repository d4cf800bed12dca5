package queue_test

import (
	"strings"
	"testing"

	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/secret"
)

func verdict(checks []doctor.Check, what string) doctor.Verdict {
	for _, c := range checks {
		if c.What == what {
			return c.Verdict
		}
	}
	return ""
}

// On the server as it is configured for production: what is there passes, what is not is told, nothing is changed.
func TestExamine(t *testing.T) {
	conf := ours(t)
	g := newGuarded(t, conf)
	config := func(user, password string) queue.Config {
		return queue.Config{NATSURL: secret.Text(g.url(user, password))}
	}
	before := queue.Examine(t.Context(), config("ingest", "hunter1"), queue.RoleIngest, small)
	for what, want := range map[string]doctor.Verdict{
		"NATS": doctor.Pass, "NATS: line": doctor.Pass, "NATS: rights": doctor.Pass, "NATS: stream PURCHASES": doctor.Warn, "NATS: consumer worker": doctor.Warn, "NATS: disk": doctor.Pass,
	} {
		if got := verdict(before, what); got != want {
			t.Errorf("before anything is there: %s: %q, want %q (%+v)", what, got, want, before)
		}
	}
	ingest, _, _ := g.as("ingest", "hunter1")
	await(t, "the connection", ingest.Connected)
	g.provisioned(small.MaxBytes)
	for role, password := range map[string]string{queue.RoleIngest: "hunter1", queue.RoleWorker: "hunter2"} {
		checks := queue.Examine(t.Context(), config(role, password), role, small)
		if n := doctor.Count(checks, doctor.Pass); n != len(checks) || n < 4 {
			t.Errorf("%s: %+v", role, checks)
		}
	}
	if published := ingest.Publish(t.Context(), []relay.Claim{claim("cs_1", 1)}); published[0].Err != nil || published[0].Sequence != 1 {
		t.Errorf("something was in the stream before: %+v", published)
	}
	if got := queue.Examine(t.Context(), config("ingest", "hunter1"), queue.RoleIngest, queue.StreamConfig{Replicas: 1, MaxBytes: 1 << 20}); verdict(got, "NATS: stream PURCHASES") != doctor.Warn {
		t.Errorf("another size: %+v", got)
	}

	wrong := queue.Examine(t.Context(), config("worker", "hunter9"), queue.RoleWorker, small)
	if len(wrong) != 1 || wrong[0].Verdict != doctor.Fail || !strings.Contains(wrong[0].Found, "credentials") {
		t.Errorf("a wrong password: %+v", wrong)
	}
	// Each other's user has none of the rights.
	mixed := queue.Examine(t.Context(), config("worker", "hunter2"), queue.RoleIngest, small)
	if verdict(mixed, "NATS: rights") != doctor.Fail || verdict(mixed, "NATS: disk") != doctor.Warn || verdict(mixed, "NATS: stream OUTCOMES") != doctor.Fail {
		t.Errorf("the worker's user for ingest: %+v", mixed)
	}
	g.restart(strings.Replace(conf, `"outcomes", "purchases.dead.*"`, `"purchases.dead.*"`, 1))
	lacking := queue.Examine(t.Context(), config("worker", "hunter2"), queue.RoleWorker, small)
	for _, c := range lacking {
		if c.What == "NATS: rights" && (c.Verdict != doctor.Fail || !strings.HasSuffix(c.Found, "lacks outcomes")) {
			t.Errorf("one right less: %+v", c)
		}
	}
	g.server.Shutdown()
	g.server.WaitForShutdown()
	if away := queue.Examine(t.Context(), config("worker", "hunter2"), queue.RoleWorker, small); len(away) != 1 || away[0].Verdict != doctor.Fail || away[0].Remedy == "" {
		t.Errorf("away: %+v", away)
	}
}
