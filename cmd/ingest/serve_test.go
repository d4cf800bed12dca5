package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
)

// A list with a malformed, short or published secret changes nothing. The log has the number of secrets, and
// nothing else of them.
func TestFollowSigningSecrets(t *testing.T) {
	const first, second = "whsec_hunter2-0123456789", "whsec_hunter3-0123456789"
	for name, tc := range map[string]struct {
		content string
		local   bool
		want    string // secrets in force
		problem string
	}{
		"overlap":          {first + "," + second + "\n", false, first + "," + second, ""},
		"blanks":           {" " + second + " , " + first, false, second + "," + first, ""},
		"old one removed":  {second, false, second, ""},
		"cut list":         {first + ",whsec_", false, first, "does not look like whsec_…"},
		"comma at the end": {first + ",", false, first, "a signing secret is empty"},
		"lines":            {first + "\n" + second, false, first, "does not look like whsec_…"},
		"byte order mark":  {"\ufeff" + second, false, first, "does not look like whsec_…"},
		"an API key":       {"sk_live_hunter4-0123456789", false, first, "does not look like whsec_…"},
		"short":            {"whsec_hunter5", false, first, "fewer than 16 characters"},
		"one short":        {second + ",whsec_hunter5", false, first, "fewer than 16 characters"},
		"published":        {"whsec_local-only-0123456789", false, first, "published"},
		"short, local":     {"whsec_hunter5", true, "whsec_hunter5", ""},
		"empty":            {"\n", false, first, "the file is empty"},
		"malformed, weak":  {"x,whsec_hunter5", false, first, "whsec_…; a secret is published"},
		"unchanged":        {first + "\r\n", false, first, ""},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "signing")
			if err := os.WriteFile(file, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				core, lines := observer.New(zapcore.DebugLevel)
				c := &config{StripeWebhookSecret: first, LocalStack: tc.local}
				ctx, cancel := context.WithCancel(t.Context())
				var got string
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					set := func(secrets []secret.String) {
						var plain []string
						for _, s := range secrets {
							plain = append(plain, s.Reveal())
						}
						got = strings.Join(plain, ",")
					}
					_ = followSigningSecrets(ctx, c, env("STRIPE_WEBHOOK_SECRET_FILE="+file), set, zap.New(core))
				}()
				<-time.After(5 * service.FollowInterval)
				cancel()
				<-ended
				if got == "" {
					got = first
				}
				if got != tc.want {
					t.Errorf("secrets = %q, want %q", got, tc.want)
				}
				log := ""
				for _, line := range lines.All() {
					log += line.Message + fmt.Sprint(line.ContextMap()) + "\n"
				}
				problems := strings.Count(log, "Secret file unusable; keeping the old secret")
				if (problems == 1) != (tc.problem != "") || !strings.Contains(log, tc.problem) ||
					problems != strings.Count(log, "remedy:") {
					t.Errorf("log = %s, want %q once with a remedy", log, tc.problem)
				}
				if strings.Contains(log, "hunter") {
					t.Errorf("log = %s, want no secret", log)
				}
				changed := lines.FilterField(zap.Int("secrets", strings.Count(tc.want, ",")+1)).Len()
				if want := strings.TrimSpace(tc.content) != first && tc.problem == ""; (changed == 1) != want {
					t.Errorf("%d lines with the number of secrets, want one: %t", changed, want)
				}
			})
		})
	}
}
