package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"purchase-relay/internal/service"
	"purchase-relay/internal/testkit/natslocal"
)

// A schedule survives failures, keeps its interval, and ends with its context.
func TestRepeat_SurvivesFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 73*time.Hour)
		defer cancel()
		began, runs, reported := time.Now(), []time.Duration(nil), 0
		err := repeat(ctx, 24*time.Hour, func(context.Context) error {
			if runs = append(runs, time.Since(began)); len(runs) == 2 {
				return errors.New("the ledger is away")
			}
			return nil
		}, func(error) { reported++ })
		if err != nil || len(runs) != 4 || runs[3] != 72*time.Hour || reported != 1 {
			t.Errorf("runs at %v, %d failures reported, error = %v; want 4 runs a day apart, 1 and nil", runs, reported, err)
		}
	})
}

// A wrong configuration ends the schedule: it would fail every time.
func TestRepeat_EndsOnUsageError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := &service.UsageError{Problems: []string{"--older-than"}}
		err := repeat(t.Context(), time.Hour, func(context.Context) error { return want }, func(err error) { t.Errorf("reported %v", err) })
		if !errors.Is(err, want) {
			t.Errorf("error = %v, want %v", err, want)
		}
	})
}

// A schedule has no terminal to answer a question.
func TestConfig_ScheduledPruneNeedsYes(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"prune", "--every=24h"}, {"prune", "--yes", "--every=-1h"}} {
		if got := problems(t, args, "DATABASE_URL=postgres://h/d"); !strings.Contains(got, "--every") {
			t.Errorf("%v: problems = %q, want --every", args, got)
		}
	}
}

// doctored runs doctor with these variables.
func doctored(t *testing.T, pairs ...string) (status int, out string) {
	t.Helper()
	var printed bytes.Buffer
	err := run(t.Context(), []string{"doctor"}, env(pairs...), strings.NewReader(""), &printed)
	return service.ExitCode(err, &bytes.Buffer{}), printed.String()
}

func TestDoctor(t *testing.T) {
	o := newOperator(t)
	server, err := natslocal.Start(natslocal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	metrics := `purchase_relay_webhooks_total{result="processed",type="checkout.session.completed"} 3`
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(metrics + "\n")) }))
	defer admin.Close()
	good := []string{"STRIPE_WEBHOOK_SECRET=" + goodSecret, "DATABASE_URL=" + o.url, "NATS_URL=" + server.URL(), "ADMIN_ADDR=" + strings.TrimPrefix(admin.URL, "http://")}

	// The tests' Postgres is a throw-away one, without fsync: the one thing to mend.
	status, out := doctored(t, good...)
	if status != 3 || !strings.Contains(out, "fail  Postgres: durability") || !strings.Contains(out, ", 1 to mend.") || !strings.Contains(out, "warn  NATS: stream PURCHASES") ||
		!strings.Contains(out, "pass  Stripe: snapshot events") {
		t.Errorf("%d\n%s", status, out)
	}
	o.count(`SELECT count(set_config('x.y', '1', false))`) // the connection stands
	if n := o.count(`SELECT count(*) FROM purchases`); n != 0 {
		t.Error("doctor wrote something")
	}
	metrics = `purchase_relay_webhooks_total{result="no_api_key",type="thin"} 3`
	if status, out := doctored(t, good...); status != 3 || !strings.Contains(out, "fail  Stripe: snapshot events") || !strings.Contains(out, "payload style") {
		t.Errorf("thin events: %d\n%s", status, out)
	}
	// All at once: configuration, Postgres, NATS, and no ingest that runs.
	status, out = doctored(t, "DATABASE_URL=postgres://u:hunter2@127.0.0.1:1/d", "NATS_URL=nats://127.0.0.1:1", "NATS_REPLICAS=2", "ADMIN_ADDR=127.0.0.1:1", "SWEEP_GRACE=soon")
	answer := http.StatusOK
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if w.WriteHeader(answer); answer != http.StatusOK {
			_, _ = w.Write([]byte(`{"error":{"type":"invalid_request_error","message":"no, hunter2"}}`))
			return
		}
		_, _ = w.Write([]byte(`{"object":"list","data":[],"has_more":false,"url":"/v1/events"}`))
	}))
	defer api.Close()
	for _, tc := range []struct {
		key, want string
		answer    int
	}{
		{"sk_live_hunter2", "warn  Stripe: API key", http.StatusOK},
		{"rk_test_hunter2", "pass  Stripe: list of events", http.StatusOK},
		{"rk_test_hunter2", "fail  Stripe: list of events", http.StatusUnauthorized},
		{"rk_test_hunter2", "fail  Stripe: list of events", http.StatusForbidden},
		{"rk_test_hunter2", "warn  Stripe: list of events", http.StatusServiceUnavailable},
	} {
		answer = tc.answer
		if _, out := doctored(t, append(good, "STRIPE_API_KEY="+tc.key, "STRIPE_API_URL="+api.URL)...); !strings.Contains(out, tc.want) || strings.Contains(out, "hunter2") {
			t.Errorf("an API key, Stripe answers %d: %s", tc.answer, out)
		}
	}
	for _, want := range []string{"STRIPE_WEBHOOK_SECRET is required", "NATS_REPLICAS is", "SWEEP_GRACE", "fail  Postgres ", "fail  NATS ", "warn  ingest "} {
		if !strings.Contains(out, want) {
			t.Errorf("it lacks %q", want)
		}
	}
	if status != 3 || strings.Contains(out, "hunter2") {
		t.Errorf("%d\n%s", status, out)
	}
	if status, out := doctored(t, "NATS_URL=http://x"); status != 3 || !strings.Contains(out, "NATS_URL") {
		t.Errorf("no form of an address: %d\n%s", status, out)
	}
}
