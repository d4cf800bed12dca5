package main

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
	"purchase-relay/internal/testkit/manual"
)

func env(pairs ...string) func(string) string {
	m := make(map[string]string)
	for _, p := range pairs {
		name, value, _ := strings.Cut(p, "=")
		m[name] = value
	}
	return func(name string) string { return m[name] }
}

// usageError runs the program with an invalid configuration and returns its error.
func usageError(t *testing.T, pairs ...string) string {
	t.Helper()
	err := run(t.Context(), nil, env(pairs...), &bytes.Buffer{})
	if _, ok := errors.AsType[*service.UsageError](err); !ok {
		t.Fatalf("%v: run = %v, want a usage error", pairs, err)
	}
	return err.Error()
}

func TestConfig_Problems(t *testing.T) {
	for _, tc := range []struct{ settings, want string }{
		{"ADMIN_HOSTS=http://worker", "ADMIN_HOSTS"},
		{"LOCAL_STACK=true; TIKTOK_ACCESS_TOKEN=hunter2; TIKTOK_PIXEL_ID=p", "LOCAL_STACK"},
		{
			"LOCAL_STACK=true; TIKTOK_ACCESS_TOKEN=hunter2; TIKTOK_PIXEL_ID=p; " +
				"TIKTOK_API_URL=https://Business-API.TikTok.com./x",
			"LOCAL_STACK",
		},
		{"RETRY_MAX=1ms", "RETRY_MAX"},
		{"RETRY_MAX_AGE=48h", "48h"},
		{"RETRY_MAX_AGE=49h", "48h"},
		{"TIKTOK_ACCESS_TOKEN=hunter2", "TIKTOK_PIXEL_ID"},
		{
			"TIKTOK_ACCESS_TOKEN=hunter2; TIKTOK_PIXEL_ID=C1; TIKTOK_API_URL=http://proxy.internal/track/",
			"TIKTOK_API_URL is plain http",
		},
		{
			"TIKTOK_ACCESS_TOKEN=local-token; TIKTOK_PIXEL_ID=C1; TIKTOK_TEST_ACCESS_TOKEN=hunter2; " +
				"TIKTOK_API_URL=http://10.0.0.1/track/",
			"TIKTOK_API_URL is plain http",
		},
		{
			"TIKTOK_ADVERTISER_ID=act_7; TIKTOK_STATS_TOKEN=t; TIKTOK_PIXEL_ID=p",
			"TIKTOK_ADVERTISER_ID must be digits",
		},
		{"TIKTOK_ADVERTISER_ID=7; TIKTOK_STATS_TOKEN=t", "TIKTOK_PIXEL_ID is required with TIKTOK_ADVERTISER_ID"},
		{
			"TIKTOK_ADVERTISER_ID=7; TIKTOK_STATS_TOKEN=hunter2; TIKTOK_PIXEL_ID=p; " +
				"TIKTOK_STATS_URL=http://proxy.internal/stats/",
			"TIKTOK_STATS_URL is plain http",
		},
		{
			"LOCAL_STACK=true; TIKTOK_ACCESS_TOKEN=hunter2; TIKTOK_PIXEL_ID=p; TIKTOK_ADVERTISER_ID=7; " +
				"TIKTOK_API_URL=http://127.0.0.1/",
			"LOCAL_STACK needs a simulator's address in TIKTOK_STATS_URL",
		},
		{"TIKTOK_STATS_INTERVAL=999ms", "TIKTOK_STATS_INTERVAL"},
		{"TIKTOK_STATS_TOKEN=hunter2 hunter2", "TIKTOK_STATS_TOKEN must be printable ASCII"},
		{"TIKTOK_STATS_URL=stats", "TIKTOK_STATS_URL"},
		{"TIKTOK_API_URL=business-api", "TIKTOK_API_URL"},
		{"TIKTOK_MAX_RPS=0", "TIKTOK_MAX_RPS"},
		{"TIKTOK_PAGE_URL=/shop", "TIKTOK_PAGE_URL"},
		{"TIKTOK_PAGE_URL=https://shop.example/" + strings.Repeat("x", 2048), "TIKTOK_PAGE_URL"},
		{"TIKTOK_PAGE_URL=https://shop:hunter2@shop.example/", "TIKTOK_PAGE_URL"},
		{"TIKTOK_PAYLOAD=xml", "TIKTOK_PAYLOAD"},
		{
			"TIKTOK_PIXEL_ID=https://ads.example/p; TIKTOK_ACCESS_TOKEN=t",
			"TIKTOK_PIXEL_ID must be letters and digits",
		},
		{"TIKTOK_PIXEL_ID=p; TIKTOK_ACCESS_TOKEN= \r\n", "TIKTOK_ACCESS_TOKEN must be printable ASCII"},
		{
			"TIKTOK_PIXEL_ID=p; TIKTOK_ACCESS_TOKEN=hunter2 hunter2",
			"TIKTOK_ACCESS_TOKEN must be printable ASCII",
		},
		{
			"TIKTOK_PIXEL_ID=p; TIKTOK_ACCESS_TOKEN=t; TIKTOK_TEST_ACCESS_TOKEN=Bearer hunter2",
			"TIKTOK_TEST_ACCESS_TOKEN must be",
		},
		{"TIKTOK_TEST_EVENT_CODE='T1'", "TIKTOK_TEST_EVENT_CODE must be letters"},
		{"TIKTOK_TEST_MODE=maybe", "TIKTOK_TEST_MODE"},
		{"TIKTOK_TEST_MODE=send", "TIKTOK_TEST_EVENT_CODE"},
		{
			"TIKTOK_ACCESS_TOKEN=t; TIKTOK_PIXEL_ID=P; TIKTOK_TEST_MODE=send; TIKTOK_TEST_ACCESS_TOKEN=t",
			"TIKTOK_TEST_EVENT_CODE",
		},
		{"TIKTOK_TEST_PIXEL_ID=P 1", "TIKTOK_TEST_PIXEL_ID must be letters and digits"},
		{"TIKTOK_TIMEOUT=soon; TIKTOK_ACCESS_TOKEN=hunter2", "TIKTOK_TIMEOUT"},
		{"WORKER_CONCURRENCY=0", "WORKER_CONCURRENCY"},
		{`TIKTOK_PIXEL_ID=p; TIKTOK_ACCESS_TOKEN="hunter2"`, "TIKTOK_ACCESS_TOKEN must be printable ASCII"},
	} {
		t.Run(tc.settings, func(t *testing.T) {
			got := usageError(t, strings.Split(tc.settings, "; ")...)
			if !strings.Contains(got, tc.want) || strings.Contains(got, "hunter2") {
				t.Errorf("error = %q, want %q and no secret", got, tc.want)
			}
		})
	}
}

func TestConfig_ReportsEveryInvalidSetting(t *testing.T) {
	got := usageError(t, "TIKTOK_PIXEL_ID=p-1", "TIKTOK_ACCESS_TOKEN=hunter2 x", "TIKTOK_TEST_PIXEL_ID=p 2",
		"TIKTOK_TEST_EVENT_CODE=a b")
	for _, want := range []string{
		"TIKTOK_PIXEL_ID must be", "TIKTOK_ACCESS_TOKEN must be", "TIKTOK_TEST_PIXEL_ID must be",
		"TIKTOK_TEST_EVENT_CODE must be",
	} {
		if !strings.Contains(got, want) || strings.Contains(got, "hunter2") {
			t.Errorf("error = %q, want %q and no secret", got, want)
		}
	}
}

// The manual is generated from the source, the help from kong's model.
func TestHelp_ListsVariablesOfManual(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, env(), &out); !errors.Is(err, service.ErrHelp) {
		t.Fatal(err)
	}
	manual.CheckHelp(t, "../..", "tiktok-worker", out.String())
}

func TestConfig_TrimsWhiteSpace(t *testing.T) {
	got := config{
		PixelID: "\ufeffC1\r\n", AccessToken: " token\n", TestPixelID: "\tC2", TestAccessToken: "\u200bother ",
		TestEventCode: "TEST1\u00a0", AdvertiserID: "7\n", StatsToken: "stats\r\n",
	}
	got.trim()
	want := config{
		PixelID: "C1", AccessToken: "token", TestPixelID: "C2", TestAccessToken: "other", TestEventCode: "TEST1",
		AdvertiserID: "7", StatsToken: "stats",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("trimmed = %+v, want %+v", got, want)
	}
}

// The simulator's token may be sent to any host, such as Compose's, and every token over loopback.
func TestConfig_Unencrypted(t *testing.T) {
	t.Parallel()
	const simulator = "http://tiktok-simulator:8083/open_api/v1.3/event/track/"
	for _, tc := range []struct {
		url   string
		token secret.String
		want  bool
	}{
		{simulator, "local-token", false},
		{simulator, "", false},
		{simulator, "0123456789abcdef", true},
		{"http://127.0.0.1:8083/x", "0123456789abcdef", false},
		{"https://business-api.tiktok.com/x", "0123456789abcdef", false},
	} {
		if got := (&config{APIURL: tc.url}).unencrypted(tc.token); got != tc.want {
			t.Errorf("unencrypted(%s) to %s = %t, want %t", tc.token.Reveal(), tc.url, got, tc.want)
		}
	}
}
