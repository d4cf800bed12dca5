package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // for DISPLAY_TIMEZONE in an image without zones

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/dashboard"
	"purchase-relay/internal/ops/notify"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
	"purchase-relay/internal/stripe"
)

// config is ingest's configuration, by flag or by environment. A field's help and comment are its manual:
// `go generate ./...` writes both into docs/configuration.md and .env.example.
type config struct {
	Serve     struct{}       `cmd:"" default:"1" help:"Record webhooks, publish purchases (the default)."`
	Migrate   struct{}       `cmd:"" help:"Bring the ledger's schema up to date and exit."`
	Provision provisionFlags `cmd:"" help:"Create and repair the streams and consumers in NATS."`
	Replay    replayFlags    `cmd:"" help:"Send dead or skipped purchases again."`
	Backfill  backfillFlags  `cmd:"" help:"Fetch and record the events whose webhooks were missed."`
	Reconcile reconcileFlags `cmd:"" help:"Compare Stripe, ledger and TikTok by day and currency."`
	Show      showFlags      `cmd:"" help:"Print one purchase's history, or what is wrong now."`
	Prune     pruneFlags     `cmd:"" help:"Delete old, finished rows from the ledger, in small steps."`
	Forget    forgetFlags    `cmd:"" help:"Erase one customer from the ledger and the queue."`
	Endpoint  endpointFlags  `cmd:"" name:"stripe-endpoint" help:"Check or create the endpoint in Stripe."`
	Doctor    doctorCommand  `cmd:"" help:"Check configuration, Postgres, NATS and Stripe."`
	Health    struct{}       `cmd:"" help:"Check a running ingest at ADMIN_ADDR, for containers without curl."`

	// Stripe: Developers > Webhooks > the endpoint > Signing secret. Test and live mode have one each; any of
	// several may match, as a rotation needs. At least 16 characters follow whsec_. A changed file is read again
	// without a restart.
	StripeWebhookSecret secret.String `example:"whsec_…" help:"Signing secrets, comma-separated. Required."`

	// The role that ingest runs as (deploy/postgres/roles.sh), with ?sslmode=verify-full over a network.
	DatabaseURL secret.String `name:"database-url" example:"postgres://…" help:"Postgres. Required."`

	// For `ingest migrate`, where the runtime role may not run DDL. Empty: DATABASE_URL.
	MigrateDatabaseURL secret.String `name:"migrate-database-url" example:"postgres://…" help:"Owner's URL."`

	// Comma-separated: subscription, payment or both.
	CheckoutModes []string `default:"subscription" help:"Checkout modes that count as purchases."`

	// Any value other than yes skips the purchase (no_consent), without match keys. Empty: consent is not
	// checked. Decide before live checkouts: under the GDPR the buyer's prior consent is needed.
	ConsentKey string `example:"consent" help:"Metadata key of the buyer's consent."`

	ConsentRequired bool `example:"true" help:"With CONSENT_KEY: a missing value skips the purchase, too."`

	// Comma-separated; subdomains are included. Their purchases end skipped (internal).
	SkipEmailDomains []string `example:"example.com" help:"E-mail domains of your staff."`

	// Empty: trials are skipped (no_payment).
	TrialEventName string `example:"StartTrial" help:"Event name for trials."`

	// The endpoint must receive invoice.paid.
	FirstPayment bool `example:"true" help:"The first invoice with money after a trial is a purchase."`

	// total is the amount paid; net leaves out tax and shipping as far as Stripe names them.
	Value string `default:"total" enum:"total,net" help:"A purchase's value: total or net."`

	// The click-through window, 1d to 28d: TikTok Ads Manager > Tools > Attribution Manager. Older click ids are
	// sent, too, and counted as late.
	ClickWindow days `default:"7d" help:"Age after which a click id counts as late."`

	// Comma-separated, or all: Stripe > Connect > Accounts. Empty: other accounts' events are ignored.
	ConnectAccounts []string `example:"acct_…" help:"Connected accounts whose sales count."`

	// Where Stripe reaches the webhook, with or without /webhooks/stripe: `ingest doctor` and `ingest
	// stripe-endpoint` compare the endpoint in Stripe with it, and the notification of NOTIFY_SILENCE names its
	// state. Needs STRIPE_API_KEY.
	PublicURL string `name:"public-url" example:"https://shop.example" help:"Public address of the webhook."`

	// A restricted key that may read events, checkout sessions and webhook endpoints (with FIRST_PAYMENT
	// invoices, too; with thin events, event destinations), for thin events, backfill, reconcile and doctor.
	// Stripe: Developers > API keys > Create restricted key. The key sees the purchases of its mode.
	StripeAPIKey secret.String `name:"stripe-api-key" example:"rk_live_…" help:"Key for Stripe's API."`

	// For a simulator. Empty: Stripe's own.
	StripeAPIURL string `name:"stripe-api-url" example:"https://…" help:"Base URL of Stripe's API."`

	// Fetches the events whose webhooks were missed. Needs STRIPE_API_KEY. Empty: never.
	BackfillInterval time.Duration `example:"1h" help:"Interval of automatic backfills."`

	// At least 16 characters; `openssl rand -hex 16` makes one. Sent as Bearer, or as the password of Basic with
	// any user name. Required unless ADMIN_ADDR is a loopback address.
	AdminToken secret.String `example:"…" help:"Token for dashboard and API."`

	// At least 16 characters each. The log names the holder whose token replayed or exported; ADMIN_TOKEN's is
	// named admin.
	AdminTokens secret.String `example:"anna:…,bob:…" help:"More tokens, name:token, comma-separated."`

	// Comma-separated, besides loopback names and IP addresses.
	AdminHosts []string `example:"relay.internal" help:"Host names that the admin listener accepts."`

	// An IANA name such as Europe/Berlin. Days begin at its midnight on pages, in the API and in their filters;
	// pages show its times. Reconciliations keep UTC days, as TikTok counts. All replicas need the same.
	DisplayTimezone string `default:"UTC" example:"Europe/Berlin" help:"Time zone of days and times."`

	// A Slack (Incoming webhooks), Mattermost, Discord (…/slack) or generic JSON webhook. It gets one message
	// when a problem starts and one when it ends.
	NotifyURL secret.String `name:"notify-url" example:"https://hooks.slack.com/…" help:"Alert webhook."`

	// Longer than your longest time without sales. Needs NOTIFY_URL. Empty: never.
	NotifySilence time.Duration `example:"24h" help:"Time without webhooks after which to notify."`

	SweepInterval time.Duration `default:"1m" help:"Interval of the search for lost purchases."`

	// A purchase without an outcome for so long is looked up in the queue, and published again if it is missing.
	// Keep it well above 30s, after which the queue redelivers the messages of a killed process.
	SweepGrace time.Duration `default:"10m" help:"Age at which a purchase may be lost."`

	// 1, 3 or 5; 3 with three servers.
	NATSReplicas int `name:"nats-replicas" default:"1" help:"Replicas of the streams."`

	// JetStream reserves it. The two other streams take 1 GiB each; all must fit under max_file_store.
	NATSMaxBytes byteSize `name:"nats-max-bytes" default:"4GiB" help:"Size of the stream PURCHASES."`

	IngestAddr string `default:":8080" help:"Public listener: POST /webhooks/stripe, GET /healthz."`
	AdminAddr  string `default:"127.0.0.1:8081" help:"Private listener: dashboard, API, metrics, health."`

	// For TikTok's counts on the page Reconciliation. The same in both binaries.
	TikTokEventName string `name:"tiktok-event-name" default:"CompletePayment" help:"Event name of a purchase."`

	// The event type under which TikTok lists purchases in its counts, case and underscores apart. Empty:
	// SHOPPING, COMPLETE_PAYMENT, PURCHASE or TIKTOK_EVENT_NAME, if TikTok lists one of them.
	TikTokStatsEvent string `name:"tiktok-stats-event" example:"SHOPPING" help:"Purchases in TikTok's counts."`

	// Under TikTok's 48 hours of de-duplication, counted from the first publish that may have been stored. An
	// older purchase ends dead (expired). The same in both binaries.
	RetryMaxAge time.Duration `default:"47h" help:"Age limit for sending a purchase."`

	ShutdownGrace time.Duration `default:"8s" help:"Time limit for in-flight work after SIGTERM."`

	// Set by `make run` and the containers' defaults: ingest accepts short and published secrets, but not beside
	// a live STRIPE_API_KEY. Leave it alone elsewhere.
	LocalStack bool `help:"Run as a part of the local stack."`

	queue.Config
	service.LogConfig
}

// Settings implements service.Scoped: problems looks at no others for a command.
func (*config) Settings(command string) []string {
	stripeAndRules := []string{
		"database-url", "stripe-api-*", "checkout-modes", "consent-*", "skip-email-domains", "trial-event-name",
		"first-payment", "value", "click-window", "connect-accounts",
	}
	return map[string][]string{
		"migrate":   {"database-url", "migrate-database-url", "log-*"},
		"provision": {"nats-*", "log-*"},
		"replay":    {"database-url"},
		"backfill":  stripeAndRules,
		"reconcile": append(stripeAndRules, "tiktok-event-name", "tiktok-stats-event"),
		"show":      {"database-url", "nats-url", "nats-*-file", "notify-silence"},
		"prune":     {"database-url", "log-*"},
		"forget":    {"database-url", "nats-url", "nats-*-file"},

		"stripe-endpoint": {"public-url", "stripe-api-*", "first-payment", "connect-accounts"},

		"health":     {"admin-addr"},
		"completion": {},
	}[command]
}

// problems lists everything that is wrong for a command.
func (c *config) problems(command string) (list []string) {
	switch command {
	case "health":
		return nil
	case "provision":
		return append(c.streamProblems(), c.Problems()...)
	case "stripe-endpoint":
		return append(c.endpointProblems(), c.apiProblems(command)...)
	}
	list = c.ledgerProblems()
	switch command {
	case "migrate", "replay":
		return list
	case "show":
		if c.Show.Problems {
			list = append(list, c.Problems()...)
		}
		return list
	case "prune":
		if c.Prune.Every < 0 || c.Prune.Every > 0 && !c.Prune.Yes {
			list = append(list, "--every must be greater than 0 and needs --yes")
		}
		return list
	case "forget":
		return append(list, c.Problems()...)
	}
	list = append(list, c.apiProblems(command)...)
	if command == "backfill" || command == "reconcile" {
		return append(list, c.ruleProblems()...)
	}
	if c.StripeWebhookSecret == "" {
		list = append(list, "STRIPE_WEBHOOK_SECRET is required: the signing secret of the endpoint, whsec_…")
	} else {
		_, wrong := c.signingSecrets(c.StripeWebhookSecret)
		for _, w := range wrong {
			list = append(list, "STRIPE_WEBHOOK_SECRET: "+w)
		}
	}
	if _, err := c.publicURL(); err != nil {
		list = append(list, err.Error())
	}
	list = append(list, c.adminProblems()...)
	list = append(list, c.secretProblems()...)
	if _, err := c.zone(); err != nil {
		list = append(list, "DISPLAY_TIMEZONE: "+err.Error())
	}
	list = append(list, c.ruleProblems()...)
	list = append(list, c.streamProblems()...)
	if c.ShutdownGrace <= 0 || c.SweepInterval <= 0 || c.SweepGrace <= 0 || c.RetryMaxAge <= 0 {
		list = append(list, "SHUTDOWN_GRACE, SWEEP_INTERVAL, SWEEP_GRACE and RETRY_MAX_AGE must be greater than 0")
	}
	if c.NotifyURL != "" {
		if err := notify.CheckURL(c.NotifyURL); err != nil {
			list = append(list, "NOTIFY_URL "+err.Error())
		}
	}
	if c.NotifySilence < 0 || c.NotifySilence > 0 && c.NotifyURL == "" {
		list = append(list, "NOTIFY_SILENCE must be a duration such as 24h and needs NOTIFY_URL")
	}
	if c.RetryMaxAge >= 48*time.Hour {
		list = append(list, "RETRY_MAX_AGE must be under 48h, TikTok's de-duplication window")
	}
	return append(list, c.Problems()...)
}

func (c *config) ledgerProblems() (list []string) {
	if c.DatabaseURL == "" {
		list = append(list, "DATABASE_URL is required: the connection string of Postgres")
	} else if err := ledger.CheckURL(c.DatabaseURL); err != nil {
		list = append(list, "DATABASE_URL: "+err.Error())
	}
	if c.MigrateDatabaseURL != "" {
		if err := ledger.CheckURL(c.MigrateDatabaseURL); err != nil {
			list = append(list, "MIGRATE_DATABASE_URL: "+err.Error())
		}
	}
	return list
}

// minSecretLength is in characters; a signing secret's prefix whsec_ does not count.
const minSecretLength = 16

// isWeak reports whether a secret, without its prefix, is short or one of those in this project's own files.
func isWeak(s secret.String, prefix string) bool {
	text := strings.TrimPrefix(s.Reveal(), prefix)
	return len(text) < minSecretLength || strings.HasPrefix(text, "local")
}

func anyWeak(signing []secret.String) bool {
	return slices.ContainsFunc(signing, func(s secret.String) bool { return isWeak(s, "whsec_") })
}

// weakAllowed reports whether short and published secrets are accepted: by the local stack.
func (c *config) weakAllowed() bool { return c.LocalStack && !c.api().Livemode() }

// signingSecrets splits a list of signing secrets and lists its problems, without any value. With a short or
// published secret anybody can forge webhooks.
func (c *config) signingSecrets(list secret.String) (secrets []secret.String, problems []string) {
	secrets, problems = stripe.ParseSecrets(list)
	if !c.weakAllowed() && anyWeak(secrets) {
		problems = append(problems, fmt.Sprintf("a secret is published in this project or has fewer than %d "+
			"characters after whsec_", minSecretLength))
	}
	return secrets, problems
}

// secretProblems lists a weak ADMIN_TOKEN, and why LOCAL_STACK does not permit weak secrets.
func (c *config) secretProblems() (list []string) {
	if c.weakAllowed() {
		return nil
	}
	if c.AdminToken != "" && isWeak(c.AdminToken, "") {
		list = append(list, fmt.Sprintf("ADMIN_TOKEN is published in this project or has fewer than %d "+
			"characters: `openssl rand -hex 16` makes one", minSecretLength))
	}
	signing, _ := stripe.ParseSecrets(c.StripeWebhookSecret)
	if c.LocalStack && (len(list) > 0 || anyWeak(signing)) {
		list = append(list, "LOCAL_STACK cannot be combined with a live STRIPE_API_KEY")
	}
	return list
}

func (c *config) streamProblems() (list []string) {
	if c.NATSReplicas != 1 && c.NATSReplicas != 3 && c.NATSReplicas != 5 {
		list = append(list, "NATS_REPLICAS must be 1, 3 or 5")
	}
	if c.Provision.Every < 0 {
		list = append(list, "--every must be greater than 0")
	}
	return list
}

func (c *config) adminProblems() (list []string) {
	tokens, err := dashboard.ParseTokens(c.AdminToken, c.AdminTokens)
	switch {
	case err != nil:
		list = append(list, "ADMIN_TOKENS: "+err.Error())
	case len(tokens) == 0 && !service.Loopback(c.AdminAddr):
		list = append(list, "ADMIN_TOKEN is required: ADMIN_ADDR "+c.AdminAddr+" is not a loopback address")
	}
	if _, err := service.ParseHosts(c.AdminHosts, c.AdminAddr); err != nil {
		list = append(list, "ADMIN_HOSTS: "+err.Error())
	}
	return list
}

func (c *config) ruleProblems() (list []string) {
	modes, err := purchase.ParseModes(c.CheckoutModes)
	switch {
	case err != nil:
		list = append(list, "CHECKOUT_MODES: "+err.Error())
	case c.FirstPayment && !modes["subscription"]:
		list = append(list, "FIRST_PAYMENT needs subscription in CHECKOUT_MODES: only subscriptions have trials")
	}
	if _, err := purchase.ParseAccounts(c.ConnectAccounts); err != nil {
		list = append(list, "CONNECT_ACCOUNTS: "+err.Error())
	}
	if c.ConsentRequired && c.ConsentKey == "" {
		list = append(list, "CONSENT_REQUIRED needs CONSENT_KEY, a key of the checkout's metadata")
	}
	if _, err := purchase.ParseDomains(c.SkipEmailDomains); err != nil {
		list = append(list, "SKIP_EMAIL_DOMAINS: "+err.Error())
	}
	if c.ClickWindow < 1*day || c.ClickWindow > 28*day {
		list = append(list, "CLICK_WINDOW must be 1d to 28d, as in TikTok's Attribution Manager")
	}
	switch name := c.TrialEventName; {
	case name == "":
	case !message.ValidEventName(name):
		list = append(list, "TRIAL_EVENT_NAME must be a TikTok event name such as StartTrial")
	case strings.EqualFold(name, "CompletePayment"), strings.EqualFold(name, "Purchase"),
		strings.EqualFold(name, c.TikTokEventName):
		list = append(list, "TRIAL_EVENT_NAME must not be a purchase event: a trial would count as a sale")
	}
	return list
}

func (c *config) apiProblems(command string) (list []string) {
	if c.StripeAPIKey != "" {
		list = c.api().Problems()
	} else if command == "backfill" || command == "reconcile" {
		list = append(list, "STRIPE_API_KEY is required: a restricted key, rk_live_… or rk_test_…")
	}
	if c.BackfillInterval < 0 {
		list = append(list, "BACKFILL_INTERVAL must be a duration such as 1h, or empty")
	}
	return list
}

// publicURL returns the normal form of PUBLIC_URL; "": not set.
func (c *config) publicURL() (string, error) {
	if c.PublicURL == "" {
		return "", nil
	}
	address, err := stripe.EndpointURL(c.PublicURL)
	if err != nil {
		return "", fmt.Errorf("PUBLIC_URL %w", err)
	}
	return address, nil
}

func (c *config) rules() (purchase.Rules, error) {
	modes, err := purchase.ParseModes(c.CheckoutModes)
	if err != nil {
		return purchase.Rules{}, err
	}
	accounts, err := purchase.ParseAccounts(c.ConnectAccounts)
	if err != nil {
		return purchase.Rules{}, err
	}
	staff, err := purchase.ParseDomains(c.SkipEmailDomains)
	return purchase.Rules{
		Modes: modes, Accounts: accounts, Staff: staff,
		Consent:    purchase.Consent{Key: c.ConsentKey, Required: c.ConsentRequired},
		TrialEvent: c.TrialEventName, FirstPayment: c.FirstPayment,
		Value: purchase.ValueBasis(c.Value), ClickWindow: time.Duration(c.ClickWindow),
	}, err
}

// zone returns the time zone of the pages. The zone database is embedded: an image has none.
func (c *config) zone() (*time.Location, error) {
	const local = "Local" // the machine's own zone, under no name
	zone, err := time.LoadLocation(c.DisplayTimezone)
	if err != nil || c.DisplayTimezone == local {
		return nil, fmt.Errorf("unknown time zone %q; use an IANA name such as Europe/Berlin", c.DisplayTimezone)
	}
	return zone, nil
}

// countNames returns the names of purchases in TikTok's counts.
func (c *config) countNames() report.EventNames {
	return report.EventNames{Setting: c.TikTokStatsEvent, Sent: c.TikTokEventName}
}

func (c *config) streams() queue.StreamConfig {
	return queue.StreamConfig{Replicas: c.NATSReplicas, MaxBytes: int64(c.NATSMaxBytes)}
}

func (c *config) api() stripe.APIConfig {
	types := purchase.Rules{FirstPayment: c.FirstPayment}.Types()
	return stripe.APIConfig{Key: c.StripeAPIKey, URL: c.StripeAPIURL, Types: types}
}

// days is a duration, in days (7d) or in Go's form (168h).
type days time.Duration

const day = days(24 * time.Hour)

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *days) UnmarshalText(text []byte) error {
	if n, ok := strings.CutSuffix(string(text), "d"); ok {
		whole, err := strconv.ParseUint(n, 10, 15)
		*d = days(whole) * day
		if err == nil {
			return nil
		}
	} else if parsed, err := time.ParseDuration(string(text)); err == nil {
		*d = days(parsed)
		return nil
	}
	return fmt.Errorf("%q is not a duration such as 7d or 168h", text)
}

// byteSize is a number of bytes with a binary, a decimal or no unit: 4GiB, 500MB, 1073741824.
type byteSize int64

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *byteSize) UnmarshalText(text []byte) error {
	unit := strings.TrimLeft(string(text), "0123456789")
	n, err := strconv.ParseInt(strings.TrimSuffix(string(text), unit), 10, 64)
	factor, known := map[string]int64{
		"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9,
		"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
	}[strings.TrimSpace(unit)]
	if err != nil || !known || n <= 0 || n > (1<<62)/factor {
		return fmt.Errorf("%q is not a size such as 4GiB or 500MB", text)
	}
	*b = byteSize(n * factor)
	return nil
}
