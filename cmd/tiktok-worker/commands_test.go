package main

import (
	"bytes"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/queue"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
	"purchase-relay/internal/testkit/natslocal"
	"purchase-relay/internal/testkit/tiktoksim"
)

// doctored runs doctor with these variables.
func doctored(t *testing.T, args []string, pairs ...string) (status int, out string) {
	t.Helper()
	var printed bytes.Buffer
	err := run(t.Context(), append([]string{"doctor"}, args...), env(pairs...), &printed)
	return service.ExitCode(err, &bytes.Buffer{}), printed.String()
}

func TestDoctor(t *testing.T) {
	server, err := natslocal.Start(natslocal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	js, err := queue.Connect(queue.Config{NATSURL: secret.String(server.URL())}, "ingest", zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = js.Close(t.Context()) }()
	simulator := tiktoksim.New(tiktoksim.Config{})
	tiktok := httptest.NewServer(simulator)
	defer tiktok.Close()
	good := []string{"NATS_URL=" + server.URL(), "TIKTOK_API_URL=" + tiktok.URL + "/open_api/v1.3/event/track/", "TIKTOK_PIXEL_ID=LOCALPIXEL", "TIKTOK_ACCESS_TOKEN=local-token"}
	if status, out := doctored(t, nil, good...); status != 0 || !strings.Contains(out, "warn  NATS: consumer worker") || !strings.Contains(out, "warn  TikTok: live access") {
		t.Errorf("before ingest was there: %d\n%s", status, out)
	}
	if err := js.Provision(t.Context(), queue.StreamConfig{Replicas: 1, MaxBytes: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	if status, out := doctored(t, []string{"--code", "TEST1"}, good...); status != 0 || !strings.Contains(out, "0 to look at, 0 to mend.") || !strings.Contains(out, "pass  TikTok: live access") {
		t.Errorf("%d\n%s", status, out)
	}
	if status, out := doctored(t, []string{"--code", "TEST1"}, append(good, "TIKTOK_TEST_MODE=send", "TIKTOK_TEST_ACCESS_TOKEN=hunter2345")...); status != 3 ||
		!strings.Contains(out, "pass  TikTok: live access") || !strings.Contains(out, "fail  TikTok: test access") || strings.Contains(out, "hunter2345") {
		t.Errorf("a wrong test token: %d\n%s", status, out)
	}
	// All at once.
	status, out := doctored(t, nil, "NATS_URL=nats://127.0.0.1:1", "TIKTOK_API_URL=http://127.0.0.1:1/", "TIKTOK_ACCESS_TOKEN=whsec_hunter2", "BATCH_SIZE=0")
	for _, want := range []string{"TIKTOK_PIXEL_ID is required", "BATCH_SIZE", "fail  NATS ", "fail  TikTok: live token", "fail  TikTok: way"} {
		if !strings.Contains(out, want) {
			t.Errorf("it lacks %q", want)
		}
	}
	if status != 3 || strings.Contains(out, "hunter2") {
		t.Errorf("%d\n%s", status, out)
	}
	if status, out := doctored(t, nil, append(good[:2], "TIKTOK_ACCESS_TOKEN=")...); status != 0 || !strings.Contains(out, "warn  TikTok: live token") {
		t.Errorf("switched off: %d\n%s", status, out)
	}
}
