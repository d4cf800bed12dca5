package main

import (
	"io"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/queue"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
	"purchase-relay/internal/testkit/natslocal"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/testkit/wait"
)

func TestDoctor(t *testing.T) {
	server, err := natslocal.Start(natslocal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	nats := queue.Config{NATSURL: secret.String(server.URL())}
	js, err := queue.Connect(nats, queue.RoleIngest, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = js.Close(t.Context()) }()
	tiktok := httptest.NewServer(tiktoksim.New(tiktoksim.Config{StatsToken: "stats-token"}))
	defer tiktok.Close()
	good := []string{
		"NATS_URL=" + server.URL(), "TIKTOK_API_URL=" + tiktok.URL + "/open_api/v1.3/event/track/",
		"TIKTOK_PIXEL_ID=LOCALPIXEL", "TIKTOK_ACCESS_TOKEN=local-token",
	}
	expect := func(name string, args, pairs []string, status int, want ...string) {
		t.Helper()
		var got int
		var out string
		missing := func(line string) bool { return !strings.Contains(out, line) }
		// A busy machine exceeds the few seconds that doctor gives each check: then it runs again.
		wait.Until(t.Context(), time.Minute, 100*time.Millisecond, func() bool {
			var printed strings.Builder
			err := run(t.Context(), append([]string{"doctor"}, args...), env(pairs...), &printed)
			got, out = service.ExitCode(err, io.Discard), printed.String()
			return got == status && !slices.ContainsFunc(want, missing)
		})
		if got != status || strings.Contains(out, "hunter2") {
			t.Errorf("%s: status = %d, want %d and no secret:\n%s", name, got, status, out)
		}
		for _, line := range want {
			if missing(line) {
				t.Errorf("%s: %q is missing:\n%s", name, line, out)
			}
		}
	}
	code := []string{"--code", "TEST1"}

	expect("before ingest started", nil, good, 0, "warn  NATS: consumer worker", "warn  TikTok: live access")
	if !wait.Until(t.Context(), time.Minute, 100*time.Millisecond, func() bool {
		err = js.Provision(t.Context(), queue.StreamConfig{Replicas: 1, MaxBytes: 64 << 20})
		return err == nil
	}) {
		t.Fatal(err)
	}
	expect("good", code, good, 0, "0 warnings, 0 failed.", "pass  TikTok: live access")
	wrongToken := append(slices.Clone(good), "TIKTOK_TEST_MODE=send", "TIKTOK_TEST_ACCESS_TOKEN=hunter2345")
	expect("wrong test token", code, wrongToken, 3, "pass  TikTok: live access", "fail  TikTok: test access")
	asking := append(slices.Clone(good), "TIKTOK_ADVERTISER_ID=7000000000000000001",
		"TIKTOK_STATS_URL="+tiktok.URL+"/open_api/v1.3/pixel/event/stats/")
	expect("counts without the scope", code, asking, 3, "pass  TikTok: live access", "fail  TikTok: counts",
		"40001", "deliveries do not depend on it", "TIKTOK_STATS_TOKEN")
	asking = append(asking, "TIKTOK_STATS_TOKEN=stats-token")
	expect("counts", code, asking, 0, "pass  TikTok: counts", "yesterday: CompletePayment", "0 failed")
	asking = append(asking, "TIKTOK_ADVERTISER_ID=act_7", "TIKTOK_STATS_TOKEN=hunter2 hunter2")
	expect("malformed counts", code, asking, 3, "TIKTOK_ADVERTISER_ID must be digits",
		"TIKTOK_STATS_TOKEN must be")
	expect("everything is wrong", nil, []string{
		"NATS_URL=nats://127.0.0.1:1", "TIKTOK_API_URL=http://127.0.0.1:1/", "TIKTOK_ACCESS_TOKEN=whsec_hunter2",
		"BATCH_SIZE=0",
	}, 3, "TIKTOK_PIXEL_ID is required", "BATCH_SIZE", "fail  NATS ", "fail  TikTok: live token",
		"fail  TikTok: connection")
	expect("no token", nil, good[:2], 0, "warn  TikTok: live token")
}
