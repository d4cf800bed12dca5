package queue_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"purchase-relay/internal/queue"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/secret"
)

// Both users can read everything under the shipped configuration, and nothing is changed.
func TestProbe_ReadsShippedServer(t *testing.T) {
	t.Parallel()
	conf := shippedConf(t)
	g := newAuthNATS(t, conf)
	open := func(user, password, role string) (p *queue.Probe) {
		t.Helper()
		_, err := repeat(t, func() (err error) {
			p, err = queue.OpenProbe(queue.Config{NATSURL: secret.String(g.url(user, password))}, role)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		return p
	}
	openMissing := func(user, password, role string) (p *queue.Probe, required, optional []string) {
		t.Helper()
		_, err := repeat(t, func() (err error) { // of a new probe: it collects the missing permissions
			p = open(user, password, role)
			required, optional, err = p.MissingPermissions()
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return p, required, optional
	}
	streams := func(p *queue.Probe, config queue.StreamConfig) (list []queue.StreamState) {
		t.Helper()
		await(t, "the streams", func() bool {
			list = p.Streams(t.Context(), config)
			return !slices.ContainsFunc(list, func(s queue.StreamState) bool { return isTimeout(s.Err) })
		})
		return list
	}
	consumers := func(p *queue.Probe) (list []queue.ConsumerState) {
		t.Helper()
		await(t, "the consumers", func() bool { // the clock is unknown after a slow response
			list = p.Consumers(t.Context())
			return !slices.ContainsFunc(list, func(c queue.ConsumerState) bool {
				return isTimeout(c.Err) || c.Err == nil && !c.ClockKnown
			})
		})
		return list
	}

	before, required, optional := openMissing("ingest", "hunter1", queue.RoleIngest)
	if server, encrypted := before.Server(); before.Version() == "" || !strings.Contains(server, "127.0.0.1") ||
		encrypted {
		t.Errorf("version = %q, server = %q, encrypted = %t", before.Version(), server, encrypted)
	}
	if len(required)+len(optional) > 0 {
		t.Errorf("missing permissions = %q and %q, want none", required, optional)
	}
	for _, s := range streams(before, streamConfig) {
		if !errors.Is(s.Err, queue.ErrMissing) {
			t.Errorf("stream %s before provisioning = %+v, want ErrMissing", s.Name, s)
		}
	}
	for _, c := range consumers(before) {
		if !errors.Is(c.Err, queue.ErrMissing) {
			t.Errorf("consumer %s before provisioning = %+v, want ErrMissing", c.Name, c)
		}
	}

	ingest, _, _ := g.connect("ingest", "hunter1")
	await(t, "the connection", ingest.Connected)
	g.provision(streamConfig.MaxBytes)
	for role, tc := range map[string]struct {
		password  string
		consumers int
	}{queue.RoleIngest: {"hunter1", 2}, queue.RoleWorker: {"hunter2", 1}} {
		p, required, optional := openMissing(role, tc.password, role)
		if len(required)+len(optional) > 0 {
			t.Errorf("%s: missing permissions = %q and %q, want none", role, required, optional)
		}
		list := consumers(p)
		for _, c := range list {
			if c.Err != nil || c.Differs || c.Waiting > 0 || c.Unacknowledged > 0 || !c.ClockKnown ||
				c.ClockAhead.Seconds() > 1 {
				t.Errorf("%s: consumer = %+v", role, c)
			}
		}
		if len(list) != tc.consumers {
			t.Errorf("%s: %d consumers, want %d", role, len(list), tc.consumers)
		}
	}
	p := open("ingest", "hunter1", queue.RoleIngest)
	for _, s := range streams(p, streamConfig) {
		if s.Err != nil || len(s.Differs) > 0 || s.Messages > 0 || s.MaxBytes != s.Wanted {
			t.Errorf("stream = %+v", s)
		}
	}
	var storage queue.Storage
	if _, err := repeat(t, func() (err error) {
		storage, err = p.Storage(t.Context())
		return err
	}); err != nil || storage.Reserved == 0 {
		t.Errorf("storage = %+v, error = %v", storage, err)
	}
	other := streams(p, queue.StreamConfig{Replicas: 1, MaxBytes: 1 << 20})
	if want := []string{"bytes (NATS_MAX_BYTES)"}; !slices.Equal(other[0].Differs, want) {
		t.Errorf("differences = %q, want %q", other[0].Differs, want)
	}
	results, _ := publish(t, ingest, []relay.Claim{claim("cs_1", 1)})
	if published := results[0]; published.Err != nil || published.Sequence != 1 {
		t.Errorf("publish = %+v, want sequence 1: the probe published", published)
	}

	// The other role's user lacks the permissions, and no request waits for a timeout.
	mixed, required, optional := openMissing("worker", "hunter2", queue.RoleIngest)
	if len(required) < 5 ||
		!slices.Equal(optional, []string{"$JS.API.INFO", "$JS.API.STREAM.INFO.LEASES"}) {
		t.Errorf("missing permissions of the worker's user as ingest = %q and %q", required, optional)
	}
	if s := streams(mixed, streamConfig)[2]; !errors.Is(s.Err, queue.ErrNotPermitted) {
		t.Errorf("stream as the worker's user = %+v, want ErrNotPermitted", s)
	}
	if _, err := mixed.Storage(t.Context()); !errors.Is(err, queue.ErrNotPermitted) {
		t.Errorf("storage as the worker's user: error = %v, want ErrNotPermitted", err)
	}
	g.restart(strings.Replace(conf, `"outcomes", "purchases.dead.*"`, `"purchases.dead.*"`, 1))
	_, required, optional = openMissing("worker", "hunter2", queue.RoleWorker)
	if !slices.Equal(required, []string{"outcomes"}) || len(optional) > 0 {
		t.Errorf("missing permissions = %q and %q, want outcomes", required, optional)
	}
	g.restart(strings.Replace(conf, `"outcomes.stats", "leases.stats"`, ``, 1))
	_, required, optional = openMissing("worker", "hunter2", queue.RoleWorker)
	if want := []string{"outcomes.stats", "leases.stats"}; len(required) > 0 || !slices.Equal(optional, want) {
		t.Errorf("missing permissions = %q and %q, want the optional %q", required, optional, want)
	}

	wrong := queue.Config{NATSURL: secret.String(g.url("worker", "hunter9"))}
	if _, err := repeat(t, func() error {
		_, err := queue.OpenProbe(wrong, queue.RoleWorker)
		return err
	}); !errors.Is(err, queue.ErrCredentials) {
		t.Errorf("error with a wrong password = %v, want ErrCredentials", err)
	}
	g.server.Shutdown()
	g.server.WaitForShutdown()
	_, err := queue.OpenProbe(queue.Config{NATSURL: secret.String(g.url("worker", "hunter2"))}, queue.RoleWorker)
	if err == nil || errors.Is(err, queue.ErrCredentials) || errors.Is(err, queue.ErrTLS) {
		t.Errorf("error while NATS is down = %v, want another one", err)
	}
}
