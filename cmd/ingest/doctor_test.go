package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/service"
	"purchase-relay/internal/testkit/natslocal"
)

const goodSecret = "whsec_0123456789abcdef0123456789abcdef"

// Each judgement passes, and does not.
func TestJudgements(t *testing.T) {
	first := func(checks []doctor.Check) doctor.Check { return append(checks, doctor.Check{})[0] }
	for name, tc := range map[string]struct {
		check doctor.Check
		want  doctor.Verdict
	}{
		"a secret":                 {first(signingSecrets(goodSecret)), doctor.Pass},
		"two secrets":              {first(signingSecrets(goodSecret + ", " + goodSecret + "0")), doctor.Pass},
		"one secret twice":         {first(signingSecrets(goodSecret + "," + goodSecret)), doctor.Warn},
		"a secret that was cut":    {first(signingSecrets("whsec_hunter2")), doctor.Warn},
		"an API key":               {first(signingSecrets("sk_live_hunter2")), doctor.Fail},
		"a restricted key":         {judgeAPIKey("rk_live_hunter2", true), doctor.Pass},
		"a key of test mode":       {judgeAPIKey("rk_test_hunter2", false), doctor.Pass},
		"a test key for live ones": {judgeAPIKey("rk_test_hunter2", true), doctor.Fail},
		"a secret key":             {judgeAPIKey("sk_live_hunter2", true), doctor.Warn},
		"another kind of key":      {judgeAPIKey("hunter2", true), doctor.Fail},
		"good signatures":          {judgeSignatures(counts{signed: 5, wronglySigned: 1}), doctor.Pass},
		"nothing but bad ones":     {judgeSignatures(counts{wronglySigned: 1}), doctor.Fail},
		"snapshot events":          {judgeThin(counts{signed: 5}), doctor.Pass},
		"thin events":              {judgeThin(counts{signed: 5, thin: 2}), doctor.Fail},
		"a good configuration":     {first(service.Configuration(nil)), doctor.Pass},
		"a configuration at fault": {first(service.Configuration([]string{"X is wrong"})), doctor.Fail},
	} {
		if tc.check.Verdict != tc.want || (tc.check.Remedy == "") != (tc.want == doctor.Pass) || strings.Contains(tc.check.Found, "hunter2") {
			t.Errorf("%s: %+v, want %q", name, tc.check, tc.want)
		}
	}
	if none := signingSecrets(""); len(none) != 0 {
		t.Errorf("a missing secret is told twice: %+v", none)
	}
}

func TestWebhookCounts(t *testing.T) {
	got := webhookCounts([]byte(`# HELP purchase_relay_webhooks_total x
purchase_relay_webhooks_total{result="processed",type="checkout.session.completed"} 3
purchase_relay_webhooks_total{result="no_api_key",type="thin"} 2
purchase_relay_webhooks_total{result="processed",type="thin"} 1
purchase_relay_webhooks_total{result="ignored",type="other"} 1
purchase_relay_webhooks_total{result="invalid_signature",type="none"} 4
purchase_relay_webhooks_total{result="not_an_event",type="none"} 9
purchase_relay_webhook_duration_seconds_count{result="processed"} 3
`))
	if want := (counts{signed: 7, wronglySigned: 4, thin: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
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
