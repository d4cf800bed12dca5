package jetstream_test

import (
	"strings"
	"testing"

	"purchase-relay/internal/checkup"
	"purchase-relay/internal/contract"
	"purchase-relay/internal/jetstream"
	"purchase-relay/internal/secret"
)

func verdict(checks []checkup.Check, what string) checkup.Verdict {
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
	config := func(user, password string) jetstream.Config {
		return jetstream.Config{NATSURL: secret.Text(g.url(user, password))}
	}
	before := jetstream.Examine(t.Context(), config("ingest", "hunter1"), jetstream.RoleIngest, small)
	for what, want := range map[string]checkup.Verdict{
		"NATS": checkup.Pass, "NATS: line": checkup.Pass, "NATS: rights": checkup.Pass, "NATS: stream PURCHASES": checkup.Warn, "NATS: consumer worker": checkup.Warn, "NATS: disk": checkup.Pass,
	} {
		if got := verdict(before, what); got != want {
			t.Errorf("before anything is there: %s: %q, want %q (%+v)", what, got, want, before)
		}
	}
	ingest, _, _ := g.as("ingest", "hunter1")
	await(t, "the connection", ingest.Connected)
	g.provisioned(small.MaxBytes)
	for role, password := range map[string]string{jetstream.RoleIngest: "hunter1", jetstream.RoleWorker: "hunter2"} {
		checks := jetstream.Examine(t.Context(), config(role, password), role, small)
		if n := checkup.Count(checks, checkup.Pass); n != len(checks) || n < 4 {
			t.Errorf("%s: %+v", role, checks)
		}
	}
	if published := ingest.Publish(t.Context(), []contract.Publication{publication("cs_1", 1)}); published[0].Err != nil || published[0].Sequence != 1 {
		t.Errorf("something was in the stream before: %+v", published)
	}
	if got := jetstream.Examine(t.Context(), config("ingest", "hunter1"), jetstream.RoleIngest, jetstream.StreamConfig{Replicas: 1, MaxBytes: 1 << 20}); verdict(got, "NATS: stream PURCHASES") != checkup.Warn {
		t.Errorf("another size: %+v", got)
	}

	wrong := jetstream.Examine(t.Context(), config("worker", "hunter9"), jetstream.RoleWorker, small)
	if len(wrong) != 1 || wrong[0].Verdict != checkup.Fail || !strings.Contains(wrong[0].Found, "credentials") {
		t.Errorf("a wrong password: %+v", wrong)
	}
	// Each other's user has none of the rights.
	mixed := jetstream.Examine(t.Context(), config("worker", "hunter2"), jetstream.RoleIngest, small)
	if verdict(mixed, "NATS: rights") != checkup.Fail || verdict(mixed, "NATS: disk") != checkup.Warn || verdict(mixed, "NATS: stream OUTCOMES") != checkup.Fail {
		t.Errorf("the worker's user for ingest: %+v", mixed)
	}
	g.restart(strings.Replace(conf, `"outcomes", "purchases.dead.*"`, `"purchases.dead.*"`, 1))
	lacking := jetstream.Examine(t.Context(), config("worker", "hunter2"), jetstream.RoleWorker, small)
	for _, c := range lacking {
		if c.What == "NATS: rights" && (c.Verdict != checkup.Fail || !strings.HasSuffix(c.Found, "lacks outcomes")) {
			t.Errorf("one right less: %+v", c)
		}
	}
	g.server.Shutdown()
	g.server.WaitForShutdown()
	if away := jetstream.Examine(t.Context(), config("worker", "hunter2"), jetstream.RoleWorker, small); len(away) != 1 || away[0].Verdict != checkup.Fail || away[0].Remedy == "" {
		t.Errorf("away: %+v", away)
	}
}
