package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"purchase-relay/internal/service"
	"purchase-relay/internal/testkit/natslocal"
	"purchase-relay/internal/testkit/wait"
)

func TestRepeat_ContinuesAfterFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 73*time.Hour)
		defer cancel()
		start, runs, reported := time.Now(), []time.Duration(nil), 0
		err := repeat(ctx, 24*time.Hour, func(context.Context) error {
			if runs = append(runs, time.Since(start)); len(runs) == 2 {
				return errors.New("connection refused")
			}
			return nil
		}, func(error) { reported++ })
		if err != nil || len(runs) != 4 || runs[3] != 72*time.Hour || reported != 1 {
			t.Errorf("runs = %v, reported = %d, error = %v, want 4 a day apart, 1, nil", runs, reported, err)
		}
	})
}

func TestRepeat_EndsOnUsageError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := &service.UsageError{Problems: []string{"--older-than"}}
		job := func(context.Context) error { return want }
		err := repeat(t.Context(), time.Hour, job, func(err error) { t.Errorf("reported = %v, want nothing", err) })
		if !errors.Is(err, want) {
			t.Errorf("error = %v, want %v", err, want)
		}
	})
}

// A schedule has no terminal to confirm on.
func TestConfig_ScheduledPruneNeedsYes(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"prune", "--every=24h"}, {"prune", "--yes", "--every=-1h"}} {
		if got := problems(t, args, "DATABASE_URL=postgres://h/d"); !strings.Contains(got, "--every") {
			t.Errorf("%v: problems = %q, want --every", args, got)
		}
	}
}

// expectDoctor checks the exit status of a doctor and that it printed each of want and no secret.
func expectDoctor(t *testing.T, name string, pairs []string, status int, want ...string) {
	t.Helper()
	expectOutput(t, name, func() (int, string) {
		var out bytes.Buffer
		err := run(t.Context(), []string{"doctor"}, env(pairs...), strings.NewReader(""), &out)
		return service.ExitCode(err, io.Discard), out.String()
	}, status, "hunter2", want...)
}

// expectOutput checks the exit status of a command and that it printed each of want and not forbidden. A busy
// machine exceeds the few seconds that a command waits for responses: then it runs again.
func expectOutput(
	t *testing.T, name string, run func() (status int, out string), status int, forbidden string, want ...string,
) {
	t.Helper()
	var got int
	var out string
	missing := func(line string) bool { return !strings.Contains(out, line) }
	wait.Until(t.Context(), time.Minute, 100*time.Millisecond, func() bool {
		got, out = run()
		return got == status && !slices.ContainsFunc(want, missing)
	})
	if got != status || strings.Contains(out, forbidden) {
		t.Errorf("%s: status = %d, want %d without %q:\n%s", name, got, status, forbidden, out)
	}
	for _, line := range want {
		if missing(line) {
			t.Errorf("%s: %q is missing:\n%s", name, line, out)
		}
	}
}

func TestDoctor(t *testing.T) {
	o := newOperator(t)
	server, err := natslocal.Start(natslocal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	var metrics atomic.Value // a request that doctor gave up may still read it
	metrics.Store(`purchase_relay_webhooks_total{result="processed",type="checkout.session.completed"} 3`)
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, metrics.Load())
	}))
	defer admin.Close()
	good := []string{
		"STRIPE_WEBHOOK_SECRET=" + goodSecret, "DATABASE_URL=" + o.url, "NATS_URL=" + server.URL(),
		"ADMIN_ADDR=" + strings.TrimPrefix(admin.URL, "http://"),
	}

	// The tests' Postgres runs without fsync: the only failure.
	expectDoctor(t, "good", good, 3, "fail  Postgres: durability", ", 1 failed.",
		"warn  NATS: stream PURCHASES", "pass  Stripe: snapshot events")
	if n := o.count(`SELECT count(*) FROM purchases`); n != 0 {
		t.Errorf("purchases = %d, want 0: doctor must not write", n)
	}
	metrics.Store(`purchase_relay_webhooks_total{result="no_api_key",type="thin"} 3`)
	expectDoctor(t, "thin events", good, 3, "fail  Stripe: snapshot events", "payload style")

	var answer atomic.Int64
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		body, status := `{"object":"list","data":[],"has_more":false,"url":"/v1/events"}`, int(answer.Load())
		if w.WriteHeader(status); status != http.StatusOK {
			body = `{"error":{"type":"invalid_request_error","message":"no, hunter2"}}`
		}
		_, _ = w.Write([]byte(body))
	}))
	defer api.Close()
	for _, tc := range []struct {
		key    string
		status int
		want   string
	}{
		{"sk_live_hunter2", http.StatusOK, "warn  Stripe: API key"},
		{"rk_test_hunter2", http.StatusOK, "pass  Stripe: list of events"},
		{"rk_test_hunter2", http.StatusUnauthorized, "fail  Stripe: list of events"},
		{"rk_test_hunter2", http.StatusForbidden, "fail  Stripe: list of events"},
		{"rk_test_hunter2", http.StatusServiceUnavailable, "warn  Stripe: list of events"},
	} {
		answer.Store(int64(tc.status))
		pairs := append(slices.Clone(good), "STRIPE_API_KEY="+tc.key, "STRIPE_API_URL="+api.URL)
		expectDoctor(t, fmt.Sprint("Stripe answers ", tc.status), pairs, 3, tc.want)
	}

	expectDoctor(t, "everything is wrong", []string{
		"DATABASE_URL=postgres://u:hunter2@127.0.0.1:1/d", "NATS_URL=nats://127.0.0.1:1", "NATS_REPLICAS=2",
		"ADMIN_ADDR=127.0.0.1:1", "SWEEP_GRACE=soon",
	}, 3, "STRIPE_WEBHOOK_SECRET is required", "NATS_REPLICAS must be", "SWEEP_GRACE", "fail  Postgres ",
		"fail  NATS ", "warn  ingest ")
	expectDoctor(t, "a malformed address", []string{"NATS_URL=http://x"}, 3, "NATS_URL")
}
