package main

import (
	"cmp"
	"net/url"
	"strings"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
	"purchase-relay/internal/tiktok"
)

// config is tiktok-worker's configuration, by flag or by environment. A field's help and comment are its
// manual: `go generate ./...` writes both into docs/configuration.md and .env.example.
type config struct {
	Run      struct{}      `cmd:"" default:"1" help:"Deliver purchases to TikTok (the default)."`
	SendTest sendTestFlags `cmd:"" help:"Send one test event to the pixel and explain TikTok's answer."`
	Doctor   doctorFlags   `cmd:"" help:"Check configuration, NATS and TikTok."`
	Health   struct{}      `cmd:"" help:"Check a running worker at ADMIN_ADDR, for containers without curl."`

	// TikTok Ads Manager > Tools > Events > Web events > the pixel > Settings > Events API > Generate access
	// token. Empty: delivery is off, and every purchase ends skipped (not_configured).
	AccessToken secret.String `name:"tiktok-access-token" example:"…" help:"Events API access token."`

	// Below its name on the same page. Required with a token. Surrounding white space is removed from tokens,
	// pixels and the test event code.
	PixelID string `name:"tiktok-pixel-id" example:"C…" help:"Pixel."`

	// The browser pixel must use the same name, or TikTok does not de-duplicate its events with these.
	EventName string `name:"tiktok-event-name" default:"CompletePayment" help:"Event name of a purchase."`

	// For checkouts without page_url in their metadata: your shop's address.
	PageURL string `name:"tiktok-page-url" example:"https://shop.example/" help:"Default of page.url."`

	// Test purchases have livemode=false. send needs TIKTOK_TEST_EVENT_CODE or TIKTOK_TEST_ACCESS_TOKEN, so that
	// a test never counts as a sale.
	TestMode string `name:"tiktok-test-mode" default:"skip" enum:"skip,send" help:"Test purchases: skip, send."`

	// Events Manager > the pixel > Test events.
	TestEventCode string `name:"tiktok-test-event-code" example:"TEST…" help:"Test event code."`

	// Empty: the live one.
	TestPixelID string `name:"tiktok-test-pixel-id" example:"C…" help:"Pixel for tests."`

	// Empty: the live one.
	TestAccessToken secret.String `name:"tiktok-test-access-token" example:"…" help:"Token for tests."`

	// For a proxy or a simulator.
	APIURL string `name:"tiktok-api-url" default:"https://business-api.tiktok.com/open_api/v1.3/event/track/" help:"URL of the Events API."`

	// events is Events API 2.0, in batches; pixel is the older body, one event per request.
	Payload string `name:"tiktok-payload" default:"events" enum:"events,pixel" help:"Request body's form."`

	// TikTok Ads Manager, in the address: aadvid=…. With it, one of the workers asks TikTok how many events it
	// counts and attributes, and the dashboard's page Reconciliation shows them. Deliveries do not depend on it.
	AdvertiserID string `name:"tiktok-advertiser-id" example:"7…" help:"Advertiser that owns the pixel."`

	// An app's token with the measurement scope, which an Events API token may lack. Empty: the access token.
	StatsToken secret.String `name:"tiktok-stats-token" example:"…" help:"Token that may read counts."`

	StatsInterval time.Duration `name:"tiktok-stats-interval" default:"1h" help:"Interval of asking for counts."`

	// For a proxy or a simulator.
	StatsURL string `name:"tiktok-stats-url" default:"https://business-api.tiktok.com/open_api/v1.3/pixel/event/stats/" help:"URL of TikTok's counts."`

	// TikTok's limit of 1,000 is the account's.
	MaxRPS float64 `name:"tiktok-max-rps" default:"10" help:"Requests per second of this process to TikTok."`

	BatchSize         int           `default:"500" help:"Events per request, at most 1,000."`
	WorkerConcurrency int           `default:"4" help:"Concurrent requests to TikTok."`
	Timeout           time.Duration `name:"tiktok-timeout" default:"10s" help:"Time limit of one request."`
	RetryInitial      time.Duration `default:"1s" help:"First delay before a retry, and first pause."`
	RetryMax          time.Duration `default:"15m" help:"Longest delay before a retry."`

	AdminAddr string `default:"127.0.0.1:8082" help:"Private listener: metrics and health."`

	// Comma-separated, besides loopback names and IP addresses.
	AdminHosts []string `example:"relay.internal" help:"Host names that the admin listener accepts."`

	// Under TikTok's 48 hours of de-duplication, counted from the first publish that may have been stored. An
	// older purchase ends dead (expired). The same in both binaries.
	RetryMaxAge time.Duration `default:"47h" help:"Age limit for sending a purchase."`

	ShutdownGrace time.Duration `default:"8s" help:"Time limit for in-flight work after SIGTERM."`

	// Set by `make run` and the containers' defaults: the worker sends nothing to TikTok itself. Leave it alone
	// elsewhere.
	LocalStack bool `help:"Run as a part of the local stack."`

	queue.Config
	service.LogConfig
}

// Settings implements service.Scoped: problems looks at no others for a command.
func (*config) Settings(command string) []string {
	return map[string][]string{
		"send-test": {
			"tiktok-access-token", "tiktok-pixel-id", "tiktok-event-name", "tiktok-page-url", "tiktok-test-event-code",
			"tiktok-test-pixel-id", "tiktok-test-access-token", "tiktok-api-url", "tiktok-payload", "tiktok-timeout",
		},
		"health":     {"admin-addr"},
		"completion": {},
	}[command]
}

// problems lists everything that is wrong for a command.
func (c *config) problems(command string) (list []string) {
	if command == "health" {
		return nil
	}
	if command == "send-test" {
		return c.sendTestProblems()
	}
	if c.AccessToken != "" && c.PixelID == "" {
		list = append(list, "TIKTOK_PIXEL_ID is required with TIKTOK_ACCESS_TOKEN")
	}
	list = append(list, c.destinationProblems()...)
	if c.TestMode == "send" && c.TestEventCode == "" &&
		(c.TestAccessToken == "" || c.AccessToken != "" && c.testTarget() == c.liveTarget()) {
		list = append(list, "TIKTOK_TEST_MODE=send needs TIKTOK_TEST_ACCESS_TOKEN or TIKTOK_TEST_EVENT_CODE, "+
			"or a test would count as a sale")
	}
	list = append(list, c.addressProblems()...)
	list = append(list, c.statsProblems()...)
	if c.LocalStack && c.AccessToken != "" && isTikTok(c.APIURL) {
		list = append(list, "LOCAL_STACK needs a simulator's address in TIKTOK_API_URL")
	}
	if c.PageURL != "" && !message.ValidPage(c.PageURL) {
		list = append(list, "TIKTOK_PAGE_URL must be an http(s) URL without a user, of at most 2048 bytes")
	}
	if _, err := service.ParseHosts(c.AdminHosts, c.AdminAddr); err != nil {
		list = append(list, "ADMIN_HOSTS: "+err.Error())
	}
	if c.EventName == "" {
		list = append(list, "TIKTOK_EVENT_NAME is empty")
	}
	if c.MaxRPS <= 0 || c.MaxRPS > 1000 {
		list = append(list, "TIKTOK_MAX_RPS must be greater than 0 and at most 1000, TikTok's limit")
	}
	if c.WorkerConcurrency < 1 || c.WorkerConcurrency > 256 {
		list = append(list, "WORKER_CONCURRENCY must be 1 to 256")
	}
	if c.BatchSize < 1 || c.BatchSize > 1000 {
		list = append(list, "BATCH_SIZE must be 1 to 1000, TikTok's limit")
	}
	if c.Timeout <= 0 || c.RetryInitial <= 0 || c.RetryMaxAge <= 0 || c.ShutdownGrace <= 0 {
		list = append(list,
			"TIKTOK_TIMEOUT, RETRY_INITIAL, RETRY_MAX_AGE and SHUTDOWN_GRACE must be greater than 0")
	}
	if c.RetryMax < c.RetryInitial {
		list = append(list, "RETRY_MAX must be at least RETRY_INITIAL")
	}
	if c.RetryMaxAge >= 48*time.Hour {
		list = append(list, "RETRY_MAX_AGE must be under 48h, TikTok's de-duplication window")
	}
	return append(list, c.Problems()...)
}

// statsProblems lists what is wrong with the requests for counts.
func (c *config) statsProblems() (list []string) {
	if c.StatsInterval < time.Second {
		list = append(list, "TIKTOK_STATS_INTERVAL must be at least 1s")
	}
	if !isAbsolute(c.StatsURL) {
		list = append(list, "TIKTOK_STATS_URL must be an absolute http(s) URL")
	}
	if !c.asksForStats() {
		return list
	}
	if err := tiktok.CheckAdvertiser(c.AdvertiserID); err != nil {
		list = append(list, "TIKTOK_ADVERTISER_ID "+err.Error())
	}
	if c.PixelID == "" && c.AccessToken == "" { // reported otherwise
		list = append(list, "TIKTOK_PIXEL_ID is required with TIKTOK_ADVERTISER_ID")
	}
	if unencrypted(c.StatsURL, c.statsToken()) {
		list = append(list, "TIKTOK_STATS_URL is plain http: the token would be sent unencrypted")
	}
	if c.LocalStack && isTikTok(c.StatsURL) {
		list = append(list, "LOCAL_STACK needs a simulator's address in TIKTOK_STATS_URL")
	}
	return list
}

// asksForStats reports whether the worker may ask for counts.
func (c *config) asksForStats() bool { return c.AdvertiserID != "" && c.statsToken() != "" }

func (c *config) statsToken() secret.String { return cmp.Or(c.StatsToken, c.AccessToken) }

// maxStatsTimeout bounds a request for counts, so that the lease is renewed during a round.
const maxStatsTimeout = 10 * time.Second

// stats returns the client of TikTok's counts.
func (c *config) stats() *tiktok.Stats {
	return tiktok.NewStats(tiktok.StatsConfig{
		URL: c.StatsURL, AdvertiserID: c.AdvertiserID, PixelID: c.PixelID, EventName: c.EventName,
		Timeout: min(c.Timeout, maxStatsTimeout), Now: time.Now,
	}, c.statsToken())
}

func (c *config) sendTestProblems() (list []string) {
	if c.AccessToken == "" && c.TestAccessToken == "" {
		list = append(list, "TIKTOK_ACCESS_TOKEN or TIKTOK_TEST_ACCESS_TOKEN is required")
	}
	if c.PixelID == "" && c.TestPixelID == "" {
		list = append(list, "TIKTOK_PIXEL_ID or TIKTOK_TEST_PIXEL_ID is required")
	}
	if c.SendTest.Code == "" && c.TestEventCode == "" {
		list = append(list, "--code or TIKTOK_TEST_EVENT_CODE is required: "+
			"Events Manager shows the code under Test events")
	}
	list = append(list, c.destinationProblems()...)
	list = append(list, c.addressProblems()...)
	if c.Timeout <= 0 {
		list = append(list, "TIKTOK_TIMEOUT must be greater than 0")
	}
	return list
}

// trim removes copied white space around the settings of a destination. A setting of nothing but white space
// is kept, because it is a mistake and must not count as unset.
func (c *config) trim() {
	for _, s := range []*string{
		&c.PixelID, &c.TestPixelID, &c.TestEventCode, &c.SendTest.Code, &c.Doctor.Code, &c.AdvertiserID,
		(*string)(&c.AccessToken), (*string)(&c.TestAccessToken), (*string)(&c.StatsToken),
	} {
		if trimmed := tiktok.Trim(*s); trimmed != "" {
			*s = trimmed
		}
	}
}

// destinationProblems lists the tokens, pixels and codes that cannot be sent in a request.
func (c *config) destinationProblems() (list []string) {
	check := func(name, value string, check func(string) error) {
		if value == "" {
			return
		}
		if err := check(value); err != nil {
			list = append(list, name+" "+err.Error()+": copy it again from Events Manager")
		}
	}
	token := func(value string) error { return tiktok.CheckToken(secret.String(value)) }
	check("TIKTOK_ACCESS_TOKEN", c.AccessToken.Reveal(), token)
	check("TIKTOK_PIXEL_ID", c.PixelID, tiktok.CheckPixel)
	check("TIKTOK_STATS_TOKEN", c.StatsToken.Reveal(), token)
	check("TIKTOK_TEST_ACCESS_TOKEN", c.TestAccessToken.Reveal(), token)
	check("TIKTOK_TEST_PIXEL_ID", c.TestPixelID, tiktok.CheckPixel)
	check("TIKTOK_TEST_EVENT_CODE", c.TestEventCode, tiktok.CheckTestCode)
	check("--code", cmp.Or(c.SendTest.Code, c.Doctor.Code), tiktok.CheckTestCode)
	return list
}

// isTikTok reports whether a URL has a host of TikTok.
func isTikTok(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil {
		return false
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	return host == "tiktok.com" || strings.HasSuffix(host, ".tiktok.com")
}

// simulatorToken is accepted by the TikTok simulator only.
const simulatorToken = "local-token"

// unencrypted reports whether a token would be sent unencrypted to another machine.
func (c *config) unencrypted(token secret.String) bool { return unencrypted(c.APIURL, token) }

func unencrypted(to string, token secret.String) bool {
	return token != "" && token != simulatorToken && secret.InClear(to)
}

func (c *config) addressProblems() (list []string) {
	switch {
	case !isAbsolute(c.APIURL):
		list = append(list, "TIKTOK_API_URL must be an absolute http(s) URL")
	case c.unencrypted(c.AccessToken) || c.unencrypted(c.TestAccessToken):
		list = append(list, "TIKTOK_API_URL is plain http: the token would be sent unencrypted")
	}
	return list
}

func isAbsolute(raw string) bool {
	u, err := url.Parse(raw)
	return err == nil && u.Host != "" && (u.Scheme == "https" || u.Scheme == "http")
}

// batchSize returns the number of purchases per request.
func (c *config) batchSize() int {
	if c.Payload == tiktok.PayloadPixel {
		return 1
	}
	return c.BatchSize
}

// target is a pixel and its credentials.
type target struct {
	pixel    string
	token    secret.String
	testCode string
}

func (c *config) liveTarget() target { return target{pixel: c.PixelID, token: c.AccessToken} }

// testTarget falls back to the live settings.
func (c *config) testTarget() target {
	return target{
		pixel:    cmp.Or(c.TestPixelID, c.PixelID),
		token:    cmp.Or(c.TestAccessToken, c.AccessToken),
		testCode: cmp.Or(c.SendTest.Code, c.TestEventCode),
	}
}

func (c *config) pixelFor(t target) *tiktok.Pixel {
	return tiktok.NewPixel(c.tiktok(), t.pixel, t.token, t.testCode)
}

// tiktok returns the settings that both targets share.
func (c *config) tiktok() tiktok.Config {
	return tiktok.Config{
		URL: c.APIURL, Payload: c.Payload, EventName: c.EventName, PageURL: c.PageURL,
		Timeout: c.Timeout, Now: time.Now,
	}
}
