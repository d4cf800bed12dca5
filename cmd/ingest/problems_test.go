package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
	"purchase-relay/internal/testkit/natslocal"
	"purchase-relay/internal/testkit/pglocal/pgtest"
	"purchase-relay/internal/testkit/wait"
)

func TestFailure_KeepsItsFirstTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f failure
		if c := f.condition(0, time.Now()); c.Checked || c.Failed {
			t.Errorf("condition = %+v, want unknown", c)
		}
		f.record(true, time.Now())
		first := time.Now()
		<-time.After(9 * time.Second)
		f.record(true, time.Now())
		if c := f.condition(startGrace, time.Now()); c.Checked || c.Failed {
			t.Errorf("condition = %+v within the grace period, want unknown", c)
		}
		<-time.After(time.Second)
		if c := f.condition(startGrace, time.Now()); !c.Failed || !c.Since.Equal(first) {
			t.Errorf("condition = %+v, want a failure since %s", c, first)
		}
		f.record(false, time.Now())
		if c := f.condition(0, time.Now()); !c.Checked || c.Failed {
			t.Errorf("condition = %+v, want no failure", c)
		}
	})
}

// A lost connection to NATS neither starts nor ends the problem of missing streams.
func TestWatcher_QueueIsUnknownWithoutNATS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &watcher{now: time.Now}
		for _, tc := range []struct {
			connected, missing bool
			checked, failed    bool // after startGrace
		}{
			{true, true, true, true},
			{false, true, false, false},
			{true, false, true, false},
			{false, false, false, false},
		} {
			w.recordQueue(tc.connected, tc.missing)
			<-time.After(startGrace)
			c := w.queue.condition(startGrace, time.Now())
			if c.Checked != tc.checked || c.Failed != tc.failed {
				t.Errorf("connected %t, missing %t: condition = %+v, want checked %t, failed %t",
					tc.connected, tc.missing, c, tc.checked, tc.failed)
			}
		}
	})
}

func TestConfig_DefaultNATSURL(t *testing.T) {
	if text := help(t, "forget"); !strings.Contains(text, `="`+queue.DefaultURL.Reveal()+`"`) {
		t.Errorf("help = %s, want %s as the default of NATS_URL", text, queue.DefaultURL.Reveal())
	}
}

// The ledger alone is enough; NATS_URL adds NATS and the workers.
func TestShowProblems(t *testing.T) {
	t.Parallel()
	o := newOperator(t)
	expect := func(name string, status int, nats string, want ...string) {
		t.Helper()
		c := config{DatabaseURL: secret.String(o.url), Config: queue.Config{NATSURL: secret.String(nats)}}
		expectOutput(t, name, func() (int, string) {
			var out bytes.Buffer
			err := showProblems(t.Context(), &c, 2*time.Second, &out)
			return service.ExitCode(err, io.Discard), out.String()
		}, status, "\x1b", want...)
	}
	const down = "nats://127.0.0.1:1"
	server, err := natslocal.Start(natslocal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	up := server.URL()
	js, err := queue.Connect(queue.Config{NATSURL: secret.String(server.URL())}, queue.RoleIngest, zap.NewNop(),
		prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = js.Close(context.WithoutCancel(t.Context())) })

	expect("no streams", 3, up, "streams or the workers' consumer are missing", "ingest provision")
	if !wait.Until(t.Context(), time.Minute, 100*time.Millisecond, func() bool {
		err = js.Provision(t.Context(), queue.StreamConfig{Replicas: 1, MaxBytes: 64 << 20})
		return err == nil
	}) {
		t.Fatal(err)
	}
	expect("none", 0, up, "No problems.")
	o.count(`WITH p AS (
		INSERT INTO purchases (checkout_session_id, status, reason, mode, livemode, last_code, finished_at,
			published_at)
		VALUES ('cs_1', 'dead', 'refused', 'subscription', true, 40002, '2026-01-02 03:04:05Z', now()),
			('cs_2', 'published', '', 'subscription', true, NULL, NULL, now())
		RETURNING 1) SELECT count(*) FROM p`)
	expect("no worker", 3, up, "SINCE", "2026-01-02 03:04:05Z   1 ", "dead (refused, code 40002)",
		"ingest replay --status dead --reason refused", "unknown", "No worker reports", "Start tiktok-worker")
	expect("NATS down", 3, down, "NATS is down", "unknown", "2 ")

	state := message.WorkerState{State: "paused", Reason: "live: 40105 \x1b[2Jno", Since: time.Unix(1e9, 0)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- js.PublishState(ctx, "w1", time.Second, func() message.WorkerState { return state })
	}()
	expect("paused", 3, up, "2001-09-09 01:46:40Z   1 ", "Worker w1 is paused", "40105")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}

	// An empty database, then none.
	o.url = pgtest.Database(t)
	expect("no schema", 3, up, "schema is behind", "ingest migrate")
	o.url = "postgres://127.0.0.1:1/d"
	expect("Postgres down", 1, up, "")
}
