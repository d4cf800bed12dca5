package main

import (
	"bytes"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/service"
	"purchase-relay/internal/testkit/manual"
)

const goodSecret = "whsec_0123456789abcdef0123456789abcdef"

func env(pairs ...string) func(string) string {
	m := make(map[string]string)
	for _, p := range pairs {
		name, value, _ := strings.Cut(p, "=")
		m[name] = value
	}
	return func(name string) string { return m[name] }
}

// problems runs the program with a configuration and returns the problems of its usage error.
func problems(t *testing.T, args []string, pairs ...string) string {
	t.Helper()
	var usage *service.UsageError
	err := run(t.Context(), args, env(pairs...), strings.NewReader(""), &bytes.Buffer{})
	if !errors.As(err, &usage) {
		t.Fatalf("error = %v, want a usage error", err)
	}
	return strings.Join(usage.Problems, "\n")
}

func TestConfig_Problems(t *testing.T) {
	for _, tc := range []struct{ settings, want string }{
		{"ADMIN_ADDR=0.0.0.0:8081", "ADMIN_TOKEN is required"},
		{"ADMIN_HOSTS=ingest.internal,http://x", "ADMIN_HOSTS"},
		{"ADMIN_TOKEN=hunter2; ADMIN_TOKENS=admin:hunter2-hunter2-hunter2", "reserved for ADMIN_TOKEN"},
		{"ADMIN_TOKENS=anna:hunter2", "ADMIN_TOKENS: the token of anna has fewer than 16 characters"},
		{"ADMIN_TOKENS=hunter2-hunter2-hunter2", "ADMIN_TOKENS: entry 1 is not name:token"},
		{"BACKFILL_INTERVAL=-1h", "BACKFILL_INTERVAL"},
		{"CHECKOUT_MODES=payment; FIRST_PAYMENT=true", "FIRST_PAYMENT needs subscription"},
		{"CHECKOUT_MODES=subscription,setup", "CHECKOUT_MODES"},
		{"CLICK_WINDOW=0d", "CLICK_WINDOW must be 1d to 28d"},
		{"CLICK_WINDOW=1.5d", "CLICK_WINDOW"},
		{"CLICK_WINDOW=1h", "CLICK_WINDOW must be 1d to 28d"},
		{"CLICK_WINDOW=29d", "CLICK_WINDOW must be 1d to 28d"},
		{"CLICK_WINDOW=week", "CLICK_WINDOW"},
		{"CONNECT_ACCOUNTS=acct_1,all", "CONNECT_ACCOUNTS"},
		{"CONNECT_ACCOUNTS=acct_1,cus_2", "CONNECT_ACCOUNTS"},
		{"CONSENT_REQUIRED=true", "CONSENT_REQUIRED needs CONSENT_KEY"},
		{"DATABASE_URL=", "DATABASE_URL is required"},
		{"DISPLAY_TIMEZONE=../etc/passwd", "DISPLAY_TIMEZONE: unknown time zone"},
		{"DISPLAY_TIMEZONE=Europe/Berlino", `DISPLAY_TIMEZONE: unknown time zone "Europe/Berlino"`},
		{"DISPLAY_TIMEZONE=Local", "DISPLAY_TIMEZONE: unknown time zone"},
		{"DATABASE_URL=mysql://u:hunter2@h/d", "DATABASE_URL: not a Postgres connection string"},
		{"DATABASE_URL=postgres://u:hunter2@h:port/d", "DATABASE_URL: not a Postgres connection string"},
		{"MIGRATE_DATABASE_URL=hunter2", "MIGRATE_DATABASE_URL: not a Postgres connection string"},
		{"NATS_MAX_BYTES=lots", "NATS_MAX_BYTES"},
		{"NATS_REPLICAS=2", "NATS_REPLICAS"},
		{"NATS_URL=http://x", "NATS_URL"},
		{"NOTIFY_SILENCE=24h", "NOTIFY_SILENCE"},
		{"NOTIFY_URL=/hook/hunter2", "NOTIFY_URL is not"},
		{"NOTIFY_URL=http://hooks.example/hunter2", "NOTIFY_URL is plain http"},
		{"PUBLIC_URL=shop.example", "PUBLIC_URL is not an http(s) URL"},
		{"PUBLIC_URL=https://shop.example/hook", "PUBLIC_URL must end with /webhooks/stripe"},
		{"PUBLIC_URL=https://u:hunter2@shop.example", "PUBLIC_URL must have no user"},
		{"RETRY_MAX_AGE=48h", "RETRY_MAX_AGE must be under 48h"},
		{"RETRY_MAX_AGE=72h", "RETRY_MAX_AGE must be under 48h"},
		{"SHUTDOWN_GRACE=-1s", "SHUTDOWN_GRACE"},
		{"SKIP_EMAIL_DOMAINS=example.com,staff", "SKIP_EMAIL_DOMAINS"},
		{"STRIPE_API_KEY=pk_live_hunter2", "STRIPE_API_KEY does not look like"},
		{
			"STRIPE_API_KEY=rk_live_hunter2; STRIPE_API_URL=http://stripe.example",
			"STRIPE_API_URL is not https",
		},
		{"STRIPE_WEBHOOK_SECRET=", "STRIPE_WEBHOOK_SECRET is required"},
		{"STRIPE_WEBHOOK_SECRET=" + goodSecret + ",", "is empty"},
		{"STRIPE_WEBHOOK_SECRET=hunter2", "does not look like whsec_"},
		{"TRIAL_EVENT_NAME=CompletePayment", "would count as a sale"},
		{"TRIAL_EVENT_NAME=Subscribe; TIKTOK_EVENT_NAME=subscribe", "would count as a sale"},
		{"TRIAL_EVENT_NAME=Start Trial", "TRIAL_EVENT_NAME"},
		{"VALUE=gross", "VALUE"},
	} {
		t.Run(tc.settings, func(t *testing.T) {
			good := []string{"STRIPE_WEBHOOK_SECRET=" + goodSecret, "DATABASE_URL=postgres://h/d"}
			got := problems(t, nil, append(good, strings.Split(tc.settings, "; ")...)...)
			if !strings.Contains(got, tc.want) || strings.Contains(got, "hunter2") {
				t.Errorf("problems = %q, want %q and no secret", got, tc.want)
			}
		})
	}
}

func TestConfig_ReportsOnlyWhatTheCommandNeeds(t *testing.T) {
	for _, tc := range []struct {
		args         []string
		want, reject string
	}{
		{[]string{"migrate"}, "DATABASE_URL is required", "STRIPE"},
		{[]string{"replay", "--session"}, "--session", "DATABASE_URL"},
		{[]string{"show", "cs_1"}, "DATABASE_URL is required", "STRIPE"},
		{[]string{"show"}, "--problems is required", "STRIPE"},
		{[]string{"show", "cs_1", "--problems"}, "--problems takes no session", "STRIPE"},
		{[]string{"srve"}, `unknown command "srve"; did you mean "serve"?`, "DATABASE_URL"},
	} {
		pairs := []string{}
		if !strings.Contains(tc.want+tc.reject, "DATABASE_URL") {
			pairs = append(pairs, "DATABASE_URL=postgres://h/d")
		}
		got := problems(t, tc.args, pairs...)
		if !strings.Contains(got, tc.want) || strings.Contains(got, tc.reject) {
			t.Errorf("%v: problems = %q, want %q and nothing of %s", tc.args, got, tc.want, tc.reject)
		}
	}
}

// Short and published secrets prevent the start, except in the local stack.
func TestConfig_RefusesWeakSecrets(t *testing.T) {
	const strong, shortest = "0123456789abcdef0123456789abcdef", "0123456789abcdef"
	loopback := []string{"INGEST_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0"}
	local, off, liveKey := "LOCAL_STACK=true", "LOCAL_STACK=false", "STRIPE_API_KEY=rk_live_0123456789"
	for name, tc := range map[string]struct {
		signing, token string
		more           []string
		want           string // "": no problem
	}{
		"strong":                   {"whsec_" + strong, strong, nil, ""},
		"shortest":                 {"whsec_" + shortest, shortest, nil, ""},
		"published signing secret": {"whsec_local", strong, nil, "STRIPE_WEBHOOK_SECRET"},
		"published, with a suffix": {"whsec_local-only-0123456789", strong, nil, "STRIPE_WEBHOOK_SECRET"},
		"short signing secret":     {"whsec_" + shortest[1:], strong, nil, "STRIPE_WEBHOOK_SECRET"},
		"short second secret":      {"whsec_" + strong + ",whsec_test", strong, nil, "STRIPE_WEBHOOK_SECRET"},
		"published token":          {"whsec_" + strong, "local-only", nil, "ADMIN_TOKEN"},
		"published password":       {"whsec_" + strong, "local-only-ingest", nil, "ADMIN_TOKEN"},
		"short token":              {"whsec_" + strong, shortest[1:], nil, "ADMIN_TOKEN"},
		"short token on loopback":  {"whsec_" + strong, "hunter2", loopback, "ADMIN_TOKEN"},
		"local stack":              {"whsec_local", "local-only", []string{local}, ""},
		"local stack off":          {"whsec_local", strong, []string{off}, "STRIPE_WEBHOOK_SECRET"},
		"local stack, live key":    {"whsec_local", strong, []string{local, liveKey}, "LOCAL_STACK cannot"},
		"strong, live key":         {"whsec_" + strong, strong, []string{local, liveKey}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			pairs := append([]string{
				"STRIPE_WEBHOOK_SECRET=" + tc.signing, "ADMIN_TOKEN=" + tc.token, "DATABASE_URL=postgres://h/d",
				"NATS_REPLICAS=2", // invalid, so that nothing is started
			}, tc.more...)
			got := problems(t, nil, pairs...)
			reported := regexp.MustCompile("STRIPE_WEBHOOK_SECRET|ADMIN_TOKEN|LOCAL_STACK").MatchString(got)
			if reported != (tc.want != "") || !strings.Contains(got, tc.want) {
				t.Errorf("problems = %q, want %q", got, tc.want)
			}
			for _, value := range append(strings.Split(tc.signing, ","), tc.token) {
				if strings.Contains(got, value) {
					t.Errorf("problems = %q, want no secret", got)
				}
			}
		})
	}
}

// Provisioning needs NATS alone: neither a database nor Stripe's secret.
func TestConfig_ProvisionNeedsNATSAlone(t *testing.T) {
	got := problems(t, []string{"provision", "--every=-1s"}, "NATS_REPLICAS=2", "NATS_URL=http://x")
	if strings.Contains(got, "DATABASE_URL") || strings.Contains(got, "STRIPE") {
		t.Errorf("problems = %q, want nothing of Postgres and Stripe", got)
	}
	for _, want := range []string{"NATS_REPLICAS", "NATS_URL", "--every"} {
		if !strings.Contains(got, want) {
			t.Errorf("problems = %q, want %s", got, want)
		}
	}
}

func TestConfig_BackfillProblems(t *testing.T) {
	key, ledger := "STRIPE_API_KEY=rk_test_x", "DATABASE_URL=postgres://h/d"
	for args, tc := range map[string]struct {
		settings []string
		want     string
	}{
		"backfill":                   {[]string{key}, "DATABASE_URL is required"},
		"reconcile":                  {[]string{ledger}, "STRIPE_API_KEY is required"},
		"backfill --since lately":    {[]string{key, ledger}, "--since"},
		"backfill --since 60d":       {[]string{key, ledger}, "--since: must be at most 30d"},
		"backfill --until now":       {[]string{key, ledger}, "--until"},
		"backfill buyer@example.com": {[]string{key, ledger}, "unexpected argument"},
		"backfill --dry-run":         {[]string{ledger}, "STRIPE_API_KEY is required"},
		"reconcile --since 30d":      {[]string{key, ledger, "CHECKOUT_MODES=setup"}, "CHECKOUT_MODES"},

		"reconcile --since 2999-01-01T00:00:00Z": {[]string{key, ledger}, "--since"},
		"reconcile --since 721h":                 {[]string{key, ledger}, "--since: must be at most 30d"},
	} {
		t.Run(args, func(t *testing.T) {
			got := problems(t, strings.Fields(args), tc.settings...)
			if !strings.Contains(got, tc.want) || strings.Contains(got, "@") {
				t.Errorf("problems = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestTimeLeft(t *testing.T) {
	for _, tc := range []struct {
		done, elapsed, left time.Duration
		ok                  bool
	}{
		{0, time.Minute, 0, false},
		{time.Hour, time.Second, 0, false},
		{18 * time.Hour, time.Minute, 3 * time.Minute, true},
		{72 * time.Hour, time.Minute, 0, true},
	} {
		if left, ok := timeLeft(tc.done, 72*time.Hour, tc.elapsed); left != tc.left || ok != tc.ok {
			t.Errorf("timeLeft(%s, 72h, %s) = %s, %t, want %s, %t", tc.done, tc.elapsed, left, ok, tc.left, tc.ok)
		}
	}
}

func TestByteSize_UnmarshalText(t *testing.T) {
	for text, want := range map[string]int64{
		"4GiB": 4 << 30, "500MB": 500e6, "1048576": 1 << 20, "1048576B": 1 << 20, "2KiB": 2048, "1TiB": 1 << 40,
		"4 GiB": 4 << 30,
	} {
		var b byteSize
		if err := b.UnmarshalText([]byte(text)); err != nil || int64(b) != want {
			t.Errorf("%q = %d, %v, want %d", text, b, err, want)
		}
	}
	for _, text := range []string{"", "GiB", "0", "-1GiB", "1.5GiB", "4 potatoes", "9999999TiB"} {
		var b byteSize
		if err := b.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q = %d, want an error", text, b)
		}
	}
}

// help returns what a command prints with --help.
func help(t *testing.T, command ...string) string {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), append(command, "--help"), env(), strings.NewReader(""), &out)
	if !errors.Is(err, service.ErrHelp) {
		t.Fatalf("%v --help = %v, want ErrHelp", command, err)
	}
	return out.String()
}

// The manual is generated from the source, the help from kong's model.
func TestHelp_ListsVariablesOfManual(t *testing.T) {
	manual.CheckHelp(t, "../..", "ingest", help(t))
}

func TestHelp_ExplainsEachCommandBeforeItsSettings(t *testing.T) {
	for command, want := range map[string]string{
		"serve": "Settings:", "migrate": "Settings:", "replay": "48 hours", "show": "cs_live_",
		"prune": "--dry-run", "forget": "operator", "doctor": "Exit status 0", "health": "Settings:",
		"stripe-endpoint": "--create",
		"completion":      "bash_completion.d",
	} {
		text := help(t, command)
		at, settings := strings.Index(text, want), strings.Index(text, "Settings:")
		if at < 0 || at > settings && command != "completion" { // it has none
			t.Errorf("%s: %q at %d, settings at %d, want it before them:\n%s", command, want, at, settings, text)
		}
	}
}

// A command's help lists the settings that it uses and no others.
func TestHelp_ListsOnlyUsedSettings(t *testing.T) {
	for command, want := range map[string]string{
		"serve":     "DATABASE_URL STRIPE_WEBHOOK_SECRET SWEEP_GRACE NATS_URL LOG_LEVEL",
		"migrate":   "DATABASE_URL MIGRATE_DATABASE_URL LOG_LEVEL",
		"provision": "NATS_URL NATS_CA_FILE NATS_REPLICAS LOG_LEVEL",
		"replay":    "DATABASE_URL", "show": "DATABASE_URL NATS_URL NATS_CA_FILE",
		"prune":    "DATABASE_URL LOG_LEVEL",
		"backfill": "DATABASE_URL STRIPE_API_KEY CHECKOUT_MODES", "forget": "DATABASE_URL NATS_URL NATS_CA_FILE",
		"reconcile": "DATABASE_URL STRIPE_API_KEY CHECKOUT_MODES TIKTOK_EVENT_NAME TIKTOK_STATS_EVENT",
		"health":    "ADMIN_ADDR", "completion": "",
		"stripe-endpoint": "PUBLIC_URL STRIPE_API_KEY FIRST_PAYMENT",
	} {
		text := help(t, command)
		for _, name := range []string{
			"DATABASE_URL", "MIGRATE_DATABASE_URL", "STRIPE_WEBHOOK_SECRET", "STRIPE_API_KEY", "CHECKOUT_MODES",
			"SWEEP_GRACE", "NATS_URL", "NATS_CA_FILE", "NATS_REPLICAS", "LOG_LEVEL", "ADMIN_ADDR", "PUBLIC_URL",
			"TIKTOK_EVENT_NAME", "TIKTOK_STATS_EVENT",
		} {
			used := command == "serve" || slices.Contains(strings.Fields(want), name)
			if got := strings.Contains(text, "$"+name); got != used {
				t.Errorf("help of %s lists %s = %t, want %t", command, name, got, used)
			}
		}
	}
}
