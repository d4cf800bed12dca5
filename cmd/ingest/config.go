package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/dashboard"
	"purchase-relay/internal/ops/notify"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
	"purchase-relay/internal/stripe"
)

// config is ingest's configuration, by flag or by environment. The help texts are the manual.
type config struct {
	Serve     struct{}       `cmd:"" default:"1" help:"Take webhooks, relay purchases, record outcomes (the default)."`
	Migrate   struct{}       `cmd:"" help:"Bring the ledger's schema up to date and exit."`
	Provision provisionFlags `cmd:"" help:"Create and repair the streams and consumers in NATS, as a user that may. Ingest itself needs no such right then."`
	Replay    replayFlags    `cmd:"" help:"Send dead or skipped purchases again."`
	Backfill  backfillFlags  `cmd:"" help:"Catch up with what webhooks missed: ask Stripe for its events and take them in. Goes on where a run was broken off. Exit status 3: something is left."`
	Reconcile reconcileFlags `cmd:"" help:"Hold Stripe's paid checkouts against the ledger against TikTok's acceptances, by day and currency. Exit status 3: they differ."`
	Show      showFlags      `cmd:"" help:"Print one purchase's way: by its checkout session, a Stripe event, or the customer's e-mail address."`
	Prune     pruneFlags     `cmd:"" help:"Remove what has ended long ago from the ledger, in small steps."`
	Forget    forgetFlags    `cmd:"" help:"Remove one customer, by the e-mail address, from the ledger and the queue; NATS_URL needs an operator's user."`
	Doctor    doctorCommand  `cmd:"" help:"Check configuration, Postgres, NATS and what Stripe sends."`
	Health    struct{}       `cmd:"" help:"Ask the running ingest's admin listener whether it lives; for containers without curl."`

	StripeWebhookSecret secret.Text   `help:"One or more signing secrets (whsec_…), comma-separated; any may match. Required."`
	DatabaseURL         secret.Text   `name:"database-url" help:"Postgres, for instance postgres://user:password@host:5432/database. Required."`
	MigrateDatabaseURL  secret.Text   `name:"migrate-database-url" help:"The schema owner's URL, when the runtime role may not run DDL. Default: DATABASE_URL."`
	IngestAddr          string        `default:":8080" help:"Public listener: POST /webhooks/stripe and GET /healthz, nothing else."`
	AdminAddr           string        `default:"127.0.0.1:8081" help:"Private listener: the dashboard, /api/v1, /metrics, /healthz, /readyz."`
	AdminToken          secret.Text   `help:"Needed for dashboard and API (Bearer, or the password of Basic). May be empty on a loopback ADMIN_ADDR only."`
	AdminTokens         secret.Text   `help:"More of them, name:token,… (16 characters at least): the log names whose token replayed or exported. ADMIN_TOKEN is named admin."`
	AdminHosts          []string      `help:"Host names that the admin listener answers to besides its own and loopback names, comma-separated, for instance ingest.internal."`
	CheckoutModes       []string      `default:"subscription" help:"Which checkout modes count: subscription, payment or both, comma-separated."`
	ConsentKey          string        `help:"The key of the checkout's metadata that holds the buyer's consent. Any value other than yes skips the purchase (no_consent), without match keys. Default: no purchase is checked."`
	ConsentRequired     bool          `help:"With CONSENT_KEY: a missing value skips the purchase, too."`
	SkipEmailDomains    []string      `help:"Domains of your own staff, comma-separated, those below them included: their purchases end skipped (internal)."`
	TrialEventName      string        `help:"The event that a trial is sent as, for instance StartTrial. Default: trials are skipped (no_payment)."`
	Value               string        `default:"total" enum:"total,net" help:"A purchase's value: total, what was paid; net, less tax and shipping as far as Stripe names them."`
	ConnectAccounts     []string      `help:"Connected accounts whose sales count, acct_… comma-separated, or all. Default: events of other accounts are ignored."`
	FirstPayment        bool          `help:"The first invoice.paid with money after a trial is a purchase. Stripe must send invoice.paid to this endpoint."`
	ClickWindow         days          `default:"7d" help:"Age after which a click id counts as late: the click-through window of TikTok's Attribution Manager, 1d to 28d."`
	NATSReplicas        int           `name:"nats-replicas" default:"1" help:"Replicas of the streams that ingest creates: 1, 3 or 5."`
	NATSMaxBytes        byteSize      `name:"nats-max-bytes" default:"4GiB" help:"Size of the stream PURCHASES; JetStream reserves it. The others take 1 GiB each."`
	SweepInterval       time.Duration `default:"1m" help:"How often to look for purchases that the queue has lost."`
	SweepGrace          time.Duration `default:"10m" help:"Without a word for so long, the queue is asked for a purchase. Keep it well above 30s, after which the queue delivers again what a killed process held."`
	RetryMaxAge         time.Duration `default:"47h" help:"Counted from the first publish; a lost purchase past it becomes dead (expired). As the workers' own."`
	NotifyURL           secret.Text   `name:"notify-url" help:"A Slack-shaped or generic JSON webhook that gets a message when purchases die or a worker pauses, and one when it is over."`
	NotifySilence       time.Duration `help:"A message as well when no webhook of Stripe came for so long, for instance 24h. Default: never."`
	StripeAPIKey        secret.Text   `name:"stripe-api-key" help:"A restricted key (rk_live_…, rk_test_…) that may read events and checkout sessions, for thin events, backfill and reconcile; it sees the purchases of its mode."`
	StripeAPIURL        string        `name:"stripe-api-url" help:"Base address of Stripe's API, for a stand-in. Default: Stripe's own."`
	BackfillInterval    time.Duration `help:"With STRIPE_API_KEY: look this often for what webhooks missed and catch up with it, for instance 1h. Default: never."`
	ShutdownGrace       time.Duration `default:"8s" help:"How long what is in flight may take after SIGTERM."`
	LocalStack          bool          `help:"Set by make run and the containers' defaults: short and published secrets are accepted. Never with a live STRIPE_API_KEY."`

	queue.Config
	service.LogConfig
}

// problems lists what is wrong for a command, all at once.
func (c *config) problems(command string) (list []string) {
	switch command {
	case "health":
		return nil
	case "provision":
		return append(c.streamProblems(), c.Problems()...)
	}
	if c.DatabaseURL == "" {
		list = append(list, "DATABASE_URL is required: the connection string of Postgres")
	}
	list = append(list, c.apiProblems(command)...)
	switch command {
	case "migrate", "replay", "show":
		return list
	case "prune":
		if c.Prune.Every < 0 || c.Prune.Every > 0 && !c.Prune.Yes {
			list = append(list, "--every must be greater than 0, and needs --yes")
		}
		return list
	case "backfill", "reconcile":
		return append(list, c.ruleProblems()...)
	case "forget":
		return append(list, c.Problems()...)
	}
	if c.StripeWebhookSecret == "" {
		list = append(list, "STRIPE_WEBHOOK_SECRET is required: the signing secret of the endpoint, whsec_…")
	} else {
		_, wrong := stripe.ParseSecrets(c.StripeWebhookSecret)
		for _, w := range wrong {
			list = append(list, "STRIPE_WEBHOOK_SECRET: "+w)
		}
	}
	list = append(list, c.adminProblems()...)
	list = append(list, c.secretProblems()...)
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
		list = append(list, "NOTIFY_SILENCE is a time such as 24h, and needs NOTIFY_URL")
	}
	if c.RetryMaxAge >= 48*time.Hour {
		list = append(list, "RETRY_MAX_AGE must stay under 48h, TikTok's de-duplication window, or a late resend may count twice")
	}
	return append(list, c.Problems()...)
}

// minSecret is the least length of a secret, in characters; of a signing secret, behind whsec_.
const minSecret = 16

// weak reports whether a secret, without its prefix, is short or begins as those do that this project's own
// files hold.
func weak(s secret.Text, prefix string) bool {
	text := strings.TrimPrefix(s.Reveal(), prefix)
	return len(text) < minSecret || strings.HasPrefix(text, "local")
}

// secretProblems lists secrets that are short or published. With such a signing secret anybody forges
// webhooks. The local stack, which sells nothing, may use them.
func (c *config) secretProblems() (list []string) {
	if c.LocalStack && !c.api().Livemode() {
		return nil
	}
	secrets, _ := stripe.ParseSecrets(c.StripeWebhookSecret) // what is malformed was listed before
	if slices.ContainsFunc(secrets, func(s secret.Text) bool { return weak(s, "whsec_") }) {
		list = append(list, fmt.Sprintf("STRIPE_WEBHOOK_SECRET: a secret is published in this project or has fewer than "+
			"%d characters after whsec_: copy the endpoint's own from Stripe's dashboard", minSecret))
	}
	if c.AdminToken != "" && weak(c.AdminToken, "") {
		list = append(list, fmt.Sprintf("ADMIN_TOKEN is published in this project or has fewer than %d characters: "+
			"`openssl rand -hex 16` makes one", minSecret))
	}
	if len(list) > 0 && c.LocalStack {
		list = append(list, "LOCAL_STACK does not go with a live STRIPE_API_KEY")
	}
	return list
}

// streamProblems lists what is wrong with the streams' settings.
func (c *config) streamProblems() (list []string) {
	if c.NATSReplicas != 1 && c.NATSReplicas != 3 && c.NATSReplicas != 5 {
		list = append(list, "NATS_REPLICAS is 1, 3 or 5")
	}
	if c.Provision.Every < 0 {
		list = append(list, "--every must be greater than 0")
	}
	return list
}

// adminProblems lists what is wrong with the access to the admin listener.
func (c *config) adminProblems() (list []string) {
	tokens, err := dashboard.ParseTokens(c.AdminToken, c.AdminTokens)
	switch {
	case err != nil:
		list = append(list, "ADMIN_TOKENS: "+err.Error())
	case len(tokens) == 0 && !service.Loopback(c.AdminAddr):
		list = append(list, fmt.Sprintf("ADMIN_TOKEN is required because ADMIN_ADDR %s can be reached from other machines", c.AdminAddr))
	}
	if _, err := service.ParseHosts(c.AdminHosts, c.AdminAddr); err != nil {
		list = append(list, "ADMIN_HOSTS: "+err.Error())
	}
	return list
}

// ruleProblems lists what is wrong with the rules about checkouts.
func (c *config) ruleProblems() (list []string) {
	modes, err := purchase.ParseModes(c.CheckoutModes)
	switch {
	case err != nil:
		list = append(list, "CHECKOUT_MODES: "+err.Error())
	case c.FirstPayment && !modes["subscription"]:
		list = append(list, "FIRST_PAYMENT needs subscription among the CHECKOUT_MODES: a payment has no trial")
	}
	if _, err := purchase.ParseAccounts(c.ConnectAccounts); err != nil {
		list = append(list, "CONNECT_ACCOUNTS: "+err.Error())
	}
	if c.ConsentRequired && c.ConsentKey == "" {
		list = append(list, "CONSENT_REQUIRED needs CONSENT_KEY, the key of the checkout's metadata to look at")
	}
	if _, err := purchase.ParseDomains(c.SkipEmailDomains); err != nil {
		list = append(list, "SKIP_EMAIL_DOMAINS: "+err.Error())
	}
	if c.ClickWindow < 1*day || c.ClickWindow > 28*day {
		list = append(list, "CLICK_WINDOW is 1d to 28d, as set in TikTok's Attribution Manager")
	}
	switch name := c.TrialEventName; {
	case name == "":
	case !message.ValidEventName(name):
		list = append(list, "TRIAL_EVENT_NAME is one of TikTok's names, such as StartTrial")
	case strings.EqualFold(name, "CompletePayment") || strings.EqualFold(name, "Purchase"):
		list = append(list, "TRIAL_EVENT_NAME is a purchase's name: a trial would count as a sale")
	}
	return list
}

// apiProblems lists what is wrong with the access to Stripe's API.
func (c *config) apiProblems(command string) (list []string) {
	if c.StripeAPIKey != "" {
		list = c.api().Problems()
	} else if command == "backfill" || command == "reconcile" {
		list = append(list, "STRIPE_API_KEY is required: a restricted key that may read events and checkout sessions, rk_live_… or rk_test_…")
	}
	if c.BackfillInterval < 0 {
		list = append(list, "BACKFILL_INTERVAL is a time such as 1h, or empty")
	}
	return list
}

// rules returns the rules for events. problems has checked them.
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

// streams are the settings of the streams that ingest creates.
func (c *config) streams() queue.StreamConfig {
	return queue.StreamConfig{Replicas: c.NATSReplicas, MaxBytes: int64(c.NATSMaxBytes)}
}

func (c *config) api() stripe.APIConfig {
	types := purchase.Rules{FirstPayment: c.FirstPayment}.Types()
	return stripe.APIConfig{Key: c.StripeAPIKey, URL: c.StripeAPIURL, Types: types}
}

// days is a duration in days or in Go's form: 7d, 168h.
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

// byteSize is a number of bytes, written with a binary or decimal unit: 4GiB, 500MB, 1073741824.
type byteSize int64

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *byteSize) UnmarshalText(text []byte) error {
	var n int64
	var unit string
	if _, err := fmt.Sscanf(string(text)+"B", "%d%s", &n, &unit); err != nil || n <= 0 {
		return fmt.Errorf("%q is no size such as 4GiB or 500MB", text)
	}
	factor, ok := map[string]int64{
		"B": 1, "BB": 1, "KBB": 1e3, "MBB": 1e6, "GBB": 1e9, "KiBB": 1 << 10, "MiBB": 1 << 20, "GiBB": 1 << 30, "TiBB": 1 << 40,
	}[unit]
	if !ok || n > (1<<62)/factor {
		return fmt.Errorf("%q is no size such as 4GiB or 500MB", text)
	}
	*b = byteSize(n * factor)
	return nil
}
