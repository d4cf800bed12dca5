// Package launch builds the production binaries and gives each its environment, for tests and tools that run
// them.
package launch

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"time"

	"purchase-relay/internal/testkit/freeport"
)

const (
	// SigningSecret is the webhook secret of an Ingest. ingest refuses a secret that begins with whsec_local.
	SigningSecret = "whsec_launch-0123456789abcdef" //nolint:gosec // guards nothing

	// EventPath is the path of TikTok's Events API.
	EventPath = "/open_api/v1.3/event/track/"
	// statsPath is the path of TikTok's counts.
	statsPath = "/open_api/v1.3/pixel/event/stats/"
)

// Build compiles into a folder. args are flags such as -race, then import paths.
func Build(ctx context.Context, dir string, args ...string) error {
	args = append([]string{"build", "-o", dir + "/"}, args...)
	build := exec.CommandContext(ctx, "go", args...) //nolint:gosec // the caller's packages
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// Ingest is what one ingest needs to know of its surroundings.
type Ingest struct {
	Public, Admin  string // listeners, host:port
	Database, NATS string // URLs
}

// NewIngest returns an Ingest on free ports.
func NewIngest(database, nats string) (Ingest, error) {
	addrs, err := freeport.Addrs(2)
	if err != nil {
		return Ingest{}, err
	}
	return Ingest{Public: addrs[0], Admin: addrs[1], Database: database, NATS: nats}, nil
}

// Env returns the whole environment. Of a variable that occurs twice, the last value counts, thus that in
// more.
func (i Ingest) Env(more ...string) []string {
	return append([]string{
		"STRIPE_WEBHOOK_SECRET=" + SigningSecret, "DATABASE_URL=" + i.Database, "NATS_URL=" + i.NATS,
		"NATS_MAX_BYTES=1GiB", "INGEST_ADDR=" + i.Public, "ADMIN_ADDR=" + i.Admin,
	}, more...)
}

// Webhook is the URL that Stripe posts to.
func (i Ingest) Webhook() string { return "http://" + i.Public + "/webhooks/stripe" }

// Worker is what one tiktok-worker needs to know of its surroundings.
type Worker struct {
	Admin  string // listener, host:port
	TikTok string // URL of TikTok or its simulator, without a path
	NATS   string // URL
}

// NewWorker returns a Worker on a free port.
func NewWorker(tiktok, nats string) (Worker, error) {
	addr, err := freeport.Addr()
	return Worker{Admin: addr, TikTok: tiktok, NATS: nats}, err
}

// Env is like Ingest.Env. The token and the pixel are the simulator's.
func (w Worker) Env(more ...string) []string {
	return append([]string{
		"TIKTOK_ACCESS_TOKEN=local-token", "TIKTOK_PIXEL_ID=LOCALPIXEL",
		"TIKTOK_API_URL=" + w.TikTok + EventPath, "TIKTOK_STATS_URL=" + w.TikTok + statsPath,
		"NATS_URL=" + w.NATS, "ADMIN_ADDR=" + w.Admin,
	}, more...)
}

// Get requests a URL on this machine within half a minute, see Do.
func Get(ctx context.Context, url string) (status int, body string) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return Do(ctx, http.MethodGet, url, "")
}

// Do sends a request. The status is 0 without a response, the answer is then the error.
func Do(ctx context.Context, method, url, body string) (status int, answer string) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	const maxAnswer = 64 << 20 // of a profile
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(data)
}
