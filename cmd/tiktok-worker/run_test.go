package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"purchase-relay/internal/process"
)

func env(pairs ...string) func(string) string {
	m := make(map[string]string)
	for _, p := range pairs {
		name, value, _ := strings.Cut(p, "=")
		m[name] = value
	}
	return func(name string) string { return m[name] }
}

func TestConfiguration(t *testing.T) {
	for name, tc := range map[string]struct {
		pairs []string
		want  string
	}{
		"a token without a pixel":  {[]string{"TIKTOK_ACCESS_TOKEN=hunter2"}, "TIKTOK_PIXEL_ID"},
		"send without a safeguard": {[]string{"TIKTOK_TEST_MODE=send"}, "TIKTOK_TEST_EVENT_CODE"},
		"a mode unheard of":        {[]string{"TIKTOK_TEST_MODE=maybe"}, "TIKTOK_TEST_MODE"},
		"a body unheard of":        {[]string{"TIKTOK_PAYLOAD=xml"}, "TIKTOK_PAYLOAD"},
		"no address":               {[]string{"TIKTOK_API_URL=business-api"}, "TIKTOK_API_URL"},
		"no page":                  {[]string{"TIKTOK_PAGE_URL=/shop"}, "TIKTOK_PAGE_URL"},
		"a page with a password":   {[]string{"TIKTOK_PAGE_URL=https://shop:hunter2@shop.example/"}, "TIKTOK_PAGE_URL"},
		"a page without an end":    {[]string{"TIKTOK_PAGE_URL=https://shop.example/" + strings.Repeat("x", 2048)}, "TIKTOK_PAGE_URL"},
		"no rate":                  {[]string{"TIKTOK_MAX_RPS=0"}, "TIKTOK_MAX_RPS"},
		"no concurrency":           {[]string{"WORKER_CONCURRENCY=0"}, "WORKER_CONCURRENCY"},
		"an age past the window":   {[]string{"RETRY_MAX_AGE=49h"}, "48h"},
		"a falling retry":          {[]string{"RETRY_MAX=1ms"}, "RETRY_MAX"},
		"several at once":          {[]string{"TIKTOK_TIMEOUT=soon", "TIKTOK_ACCESS_TOKEN=hunter2"}, "TIKTOK_TIMEOUT"},
	} {
		var usage *process.UsageError
		err := run(t.Context(), nil, env(tc.pairs...), &bytes.Buffer{})
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDestinations(t *testing.T) {
	if live, test := newPixels(&config{TestMode: "send", TestEventCode: "T", PixelID: "p"}).destinations(); live != nil || test != nil {
		t.Error("without the live token something could be sent")
	}
	if live, test := newPixels(&config{TestMode: "skip", AccessToken: "t", PixelID: "p"}).destinations(); live == nil || test != nil {
		t.Error("test purchases have somewhere to go")
	}
	if live, test := newPixels(&config{TestMode: "send", AccessToken: "t", PixelID: "p", TestEventCode: "T"}).destinations(); live == nil || test == nil {
		t.Error("a destination is missing")
	}
}
