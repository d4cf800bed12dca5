package main

import (
	"bytes"
	"errors"
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

// problems runs the program with a configuration and returns what it complains of.
func problems(t *testing.T, args []string, pairs ...string) string {
	t.Helper()
	var usage *service.UsageError
	if err := run(t.Context(), args, env(pairs...), strings.NewReader(""), &bytes.Buffer{}); !errors.As(err, &usage) {
		t.Fatalf("error: %v", err)
	}
	return strings.Join(usage.Problems, "\n")
}

func TestConfiguration(t *testing.T) {
	good := []string{"STRIPE_WEBHOOK_SECRET=" + goodSecret, "DATABASE_URL=postgres://h/d"}
	for name, tc := range map[string]struct {
		pairs []string
		want  string
	}{
		"nothing":                 {nil, "DATABASE_URL"},
		"no secret":               {good[1:], "STRIPE_WEBHOOK_SECRET is required"},
		"an empty second secret":  {append(good[1:], "STRIPE_WEBHOOK_SECRET="+goodSecret+","), "is empty"},
		"another key's form":      {append(good[1:], "STRIPE_WEBHOOK_SECRET=hunter2"), "does not look like whsec_"},
		"a public admin":          {append(good, "ADMIN_ADDR=0.0.0.0:8081"), "ADMIN_TOKEN is required"},
		"a mode unheard of":       {append(good, "CHECKOUT_MODES=subscription,setup"), "CHECKOUT_MODES"},
		"consent without a key":   {append(good, "CONSENT_REQUIRED=true"), "CONSENT_REQUIRED needs CONSENT_KEY"},
		"no domain":               {append(good, "SKIP_EMAIL_DOMAINS=example.com,staff"), "SKIP_EMAIL_DOMAINS"},
		"a trial as a sale":       {append(good, "TRIAL_EVENT_NAME=CompletePayment"), "would count as a sale"},
		"an event of two words":   {append(good, "TRIAL_EVENT_NAME=Start Trial"), "TRIAL_EVENT_NAME"},
		"payments have no trial":  {append(good, "CHECKOUT_MODES=payment", "FIRST_PAYMENT=true"), "FIRST_PAYMENT needs subscription"},
		"a click window of 0":     {append(good, "CLICK_WINDOW=0d"), "CLICK_WINDOW is 1d to 28d"},
		"a month of clicks":       {append(good, "CLICK_WINDOW=29d"), "CLICK_WINDOW is 1d to 28d"},
		"an hour of clicks":       {append(good, "CLICK_WINDOW=1h"), "CLICK_WINDOW is 1d to 28d"},
		"half a day of clicks":    {append(good, "CLICK_WINDOW=1.5d"), "CLICK_WINDOW"},
		"a week of clicks":        {append(good, "CLICK_WINDOW=week"), "CLICK_WINDOW"},
		"no account":              {append(good, "CONNECT_ACCOUNTS=acct_1,cus_2"), "CONNECT_ACCOUNTS"},
		"all accounts and one":    {append(good, "CONNECT_ACCOUNTS=acct_1,all"), "CONNECT_ACCOUNTS"},
		"another value":           {append(good, "VALUE=gross"), "VALUE"},
		"48 hours":                {append(good, "RETRY_MAX_AGE=48h"), "RETRY_MAX_AGE must stay under 48h"},
		"more than 48 hours":      {append(good, "RETRY_MAX_AGE=72h"), "RETRY_MAX_AGE must stay under 48h"},
		"two replicas":            {append(good, "NATS_REPLICAS=2"), "NATS_REPLICAS"},
		"a size without a unit":   {append(good, "NATS_MAX_BYTES=lots"), "NATS_MAX_BYTES"},
		"a negative grace":        {append(good, "SHUTDOWN_GRACE=-1s"), "SHUTDOWN_GRACE"},
		"a relative receiver":     {append(good, "NOTIFY_URL=/hook/hunter2"), "NOTIFY_URL is not"},
		"silence told to nobody":  {append(good, "NOTIFY_SILENCE=24h"), "NOTIFY_SILENCE"},
		"another kind of key":     {append(good, "STRIPE_API_KEY=pk_live_hunter2"), "STRIPE_API_KEY does not look like"},
		"a key in the clear":      {append(good, "STRIPE_API_KEY=rk_live_hunter2", "STRIPE_API_URL=http://stripe.example"), "STRIPE_API_URL is not https"},
		"a check back in time":    {append(good, "BACKFILL_INTERVAL=-1h"), "BACKFILL_INTERVAL"},
		"another scheme":          {append(good, "NATS_URL=http://x"), "NATS_URL"},
		"a short named token":     {append(good, "ADMIN_TOKENS=anna:hunter2"), "ADMIN_TOKENS: the token of anna has fewer than 16 characters"},
		"a token without a name":  {append(good, "ADMIN_TOKENS=hunter2-hunter2-hunter2"), "ADMIN_TOKENS: entry 1 is not name:token"},
		"a name that is there":    {append(good, "ADMIN_TOKEN=hunter2", "ADMIN_TOKENS=admin:hunter2-hunter2-hunter2"), "that of ADMIN_TOKEN"},
		"a host with a scheme":    {append(good, "ADMIN_HOSTS=ingest.internal,http://x"), "ADMIN_HOSTS"},
		"a receiver in the clear": {append(good, "NOTIFY_URL=http://hooks.example/hunter2"), "NOTIFY_URL is plain http"},
	} {
		if got := problems(t, nil, tc.pairs...); !strings.Contains(got, tc.want) || strings.Contains(got, "hunter2") {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := problems(t, []string{"migrate"}); !strings.Contains(got, "DATABASE_URL") || strings.Contains(got, "STRIPE") {
		t.Errorf("migrate: %s", got)
	}
}

// Short and published secrets end the start, unless everything is the local stack.
func TestConfig_RefusesWeakSecrets(t *testing.T) {
	const strong, bound = "0123456789abcdef0123456789abcdef", "0123456789abcdef"
	for name, tc := range map[string]struct {
		signing, token string
		more           []string
		want           string // "": nothing is wrong
	}{
		"strong ones":                   {"whsec_" + strong, strong, nil, ""},
		"just long enough":              {"whsec_" + bound, bound, nil, ""},
		"the published signing secret":  {"whsec_local", strong, nil, "STRIPE_WEBHOOK_SECRET"},
		"a published one, made longer":  {"whsec_local-only-0123456789", strong, nil, "STRIPE_WEBHOOK_SECRET"},
		"a short signing secret":        {"whsec_" + bound[1:], strong, nil, "STRIPE_WEBHOOK_SECRET"},
		"a short second signing secret": {"whsec_" + strong + ",whsec_test", strong, nil, "STRIPE_WEBHOOK_SECRET"},
		"the published token":           {"whsec_" + strong, "local-only", nil, "ADMIN_TOKEN"},
		"another published password":    {"whsec_" + strong, "local-only-ingest", nil, "ADMIN_TOKEN"},
		"a short token":                 {"whsec_" + strong, bound[1:], nil, "ADMIN_TOKEN"},
		"a short token on loopback":     {"whsec_" + strong, "hunter2", []string{"INGEST_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0"}, "ADMIN_TOKEN"},
		"the local stack":               {"whsec_local", "local-only", []string{"LOCAL_STACK=true"}, ""},
		"the local stack, off":          {"whsec_local", strong, []string{"LOCAL_STACK=false"}, "STRIPE_WEBHOOK_SECRET"},
		"a live key beside it":          {"whsec_local", strong, []string{"LOCAL_STACK=true", "STRIPE_API_KEY=rk_live_0123456789"}, "LOCAL_STACK does not go with"},
		"a live key, strong secrets":    {"whsec_" + strong, strong, []string{"LOCAL_STACK=true", "STRIPE_API_KEY=rk_live_0123456789"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			pairs := append([]string{"STRIPE_WEBHOOK_SECRET=" + tc.signing, "ADMIN_TOKEN=" + tc.token, "DATABASE_URL=postgres://h/d", "NATS_REPLICAS=2"}, tc.more...)
			got := problems(t, nil, pairs...) // the replicas are always wrong: nothing is started
			weak := strings.Contains(got, "STRIPE_WEBHOOK_SECRET") || strings.Contains(got, "ADMIN_TOKEN") || strings.Contains(got, "LOCAL_STACK")
			if weak != (tc.want != "") || !strings.Contains(got, tc.want) {
				t.Errorf("problems = %q, want %q", got, tc.want)
			}
			for _, value := range append(strings.Split(tc.signing, ","), tc.token) {
				if strings.Contains(got, value) {
					t.Errorf("problems show a secret: %q", got)
				}
			}
		})
	}
}

// Provisioning needs NATS alone: neither a database nor Stripe's secret.
func TestConfig_ProvisionNeedsNATSAlone(t *testing.T) {
	got := problems(t, []string{"provision", "--every=-1s"}, "NATS_REPLICAS=2", "NATS_URL=http://x")
	if strings.Contains(got, "DATABASE_URL") || strings.Contains(got, "STRIPE") {
		t.Errorf("problems = %q, want none of the database's", got)
	}
	for _, want := range []string{"NATS_REPLICAS", "NATS_URL", "--every"} {
		if !strings.Contains(got, want) {
			t.Errorf("problems = %q, want %s", got, want)
		}
	}
}

func TestBackfillsConfiguration(t *testing.T) {
	good := []string{"DATABASE_URL=postgres://h/d", "STRIPE_API_KEY=rk_test_x"}
	for name, tc := range map[string]struct {
		args  []string
		pairs []string
		want  string
	}{
		"no key":             {[]string{"backfill"}, good[:1], "STRIPE_API_KEY is required"},
		"no key either":      {[]string{"reconcile"}, good[:1], "STRIPE_API_KEY is required"},
		"no ledger":          {[]string{"backfill"}, good[1:], "DATABASE_URL is required"},
		"a mode unheard of":  {[]string{"reconcile"}, append(good, "CHECKOUT_MODES=setup"), "CHECKOUT_MODES"},
		"no time":            {[]string{"backfill", "--since", "lately"}, good, "--since"},
		"a time in the end":  {[]string{"reconcile", "--since", "2999-01-01T00:00:00Z"}, good, "--since"},
		"a flag unheard of":  {[]string{"backfill", "--until", "now"}, good, "--until"},
		"an address as flag": {[]string{"backfill", "buyer@example.com"}, good, "unexpected argument"},
	} {
		if got := problems(t, tc.args, tc.pairs...); !strings.Contains(got, tc.want) || strings.Contains(got, "@") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestTimeLeft(t *testing.T) {
	for _, tc := range []struct {
		walked, took, left time.Duration
		known              bool
	}{
		{0, time.Minute, 0, false}, {time.Hour, time.Second, 0, false}, {18 * time.Hour, time.Minute, 3 * time.Minute, true}, {72 * time.Hour, time.Minute, 0, true},
	} {
		if left, known := timeLeft(tc.walked, 72*time.Hour, tc.took); left != tc.left || known != tc.known {
			t.Errorf("%s walked in %s: %s, %v", tc.walked, tc.took, left, known)
		}
	}
}

func TestByteSize(t *testing.T) {
	for text, want := range map[string]int64{"4GiB": 4 << 30, "500MB": 500e6, "1048576": 1 << 20, "1048576B": 1 << 20, "2KiB": 2048, "1TiB": 1 << 40} {
		var b byteSize
		if err := b.UnmarshalText([]byte(text)); err != nil || int64(b) != want {
			t.Errorf("%s = %d, %v", text, b, err)
		}
	}
	for _, text := range []string{"", "GiB", "0", "-1GiB", "1.5GiB", "4 potatoes", "9999999TiB"} {
		var b byteSize
		if err := b.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%s = %d", text, b)
		}
	}
}

// The manual is read from the source, the help from the parser's model: they list the same variables.
func TestHelp_ListsVariablesOfManual(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, env(), strings.NewReader(""), &out); !errors.Is(err, service.ErrHelp) {
		t.Fatal(err)
	}
	manual.CheckHelp(t, "../..", "ingest", out.String())
}

// Each command has a page that begins with what is its own.
func TestEveryCommandHasAPage(t *testing.T) {
	for command, want := range map[string]string{
		"serve": "Settings:", "migrate": "Settings:", "replay": "48 hours", "show": "cs_live_", "prune": "--dry-run", "forget": "operator", "doctor": "Exit status 0", "health": "Settings:",
		"completion": "bash_completion.d",
	} {
		var out bytes.Buffer
		if err := run(t.Context(), []string{command, "--help"}, env(), strings.NewReader(""), &out); !errors.Is(err, service.ErrHelp) || !strings.Contains(out.String(), want) {
			t.Errorf("%s: %v\n%s", command, err, &out)
		}
		if at := strings.Index(out.String(), want); at > strings.Index(out.String(), "Settings:") {
			t.Errorf("%s: what is its own comes late", command)
		}
	}
}
