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

// Each of these settings ends the start with its problem, which repeats no secret.
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
		{"TIKTOK_TEST_PIXEL_ID=P 1", "TIKTOK_TEST_PIXEL_ID must be letters and digits"},
		{"TIKTOK_TIMEOUT=soon; TIKTOK_ACCESS_TOKEN=hunter2", "TIKTOK_TIMEOUT"},
		{"WORKER_CONCURRENCY=0", "WORKER_CONCURRENCY"},
		{`TIKTOK_PIXEL_ID=p; TIKTOK_ACCESS_TOKEN="hunter2"`, "TIKTOK_ACCESS_TOKEN must be printable ASCII"},
	} {
		t.Run(tc.settings, func(t *testing.T) {
			var usage *service.UsageError
			err := run(t.Context(), nil, env(strings.Split(tc.settings, "; ")...), &bytes.Buffer{})
			if !errors.As(err, &usage) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error = %v, want %q", err, tc.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error shows a secret: %v", err)
			}
		})
	}
}

// All unusable settings are listed at once, and no secret with them.
func TestConfig_ListsEveryUnusableSetting(t *testing.T) {
	var usage *service.UsageError
	err := run(t.Context(), nil, env("TIKTOK_PIXEL_ID=p-1", "TIKTOK_ACCESS_TOKEN=hunter2 x",
		"TIKTOK_TEST_PIXEL_ID=p 2", "TIKTOK_TEST_EVENT_CODE=a b"), &bytes.Buffer{})
	if !errors.As(err, &usage) || service.ExitCode(err, &bytes.Buffer{}) != 2 {
		t.Fatalf("error = %v, want a usage error", err)
	}
	for _, name := range []string{
		"TIKTOK_PIXEL_ID", "TIKTOK_ACCESS_TOKEN", "TIKTOK_TEST_PIXEL_ID", "TIKTOK_TEST_EVENT_CODE",
	} {
		if !strings.Contains(err.Error(), name+" must be") {
			t.Errorf("%s is missing in: %v", name, err)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a token is in: %v", err)
	}
}

// The manual is read from the source, the help from the parser's model: they list the same variables.
func TestHelp_ListsVariablesOfManual(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, env(), &out); !errors.Is(err, service.ErrHelp) {
		t.Fatal(err)
	}
	manual.CheckHelp(t, "../..", "tiktok-worker", out.String())
}

// What copying adds around a setting is removed.
func TestConfig_IsTrimmed(t *testing.T) {
	got := config{
		PixelID: "\ufeffC1\r\n", AccessToken: " token\n",
		TestPixelID: "\tC2", TestAccessToken: "\u200bother ", TestEventCode: "TEST1\u00a0",
	}
	want := config{
		PixelID: "C1", AccessToken: "token", TestPixelID: "C2", TestAccessToken: "other", TestEventCode: "TEST1",
	}
	if got.trim(); !reflect.DeepEqual(got, want) {
		t.Errorf("config = %+v, want %+v", got, want)
	}
}

// The rule lets the simulator's token go everywhere, in Compose to the container of that name, and any token
// over loopback.
func TestConfig_InClear(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		url   string
		token secret.String
		want  bool
	}{
		{"http://tiktok-simulator:8083/open_api/v1.3/event/track/", "local-token", false},
		{"http://tiktok-simulator:8083/open_api/v1.3/event/track/", "", false},
		{"http://tiktok-simulator:8083/open_api/v1.3/event/track/", "0123456789abcdef", true},
		{"http://127.0.0.1:8083/x", "0123456789abcdef", false},
		{"https://business-api.tiktok.com/x", "0123456789abcdef", false},
	} {
		if got := (&config{APIURL: tc.url}).inClear(tc.token); got != tc.want {
			t.Errorf("inClear to %s = %t, want %t", tc.url, got, tc.want)
		}
	}
}
