package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
	"purchase-relay/internal/stripe"
)

// doctorCommand is its place in the command line.
type doctorCommand struct{}

// Help is the command's own page.
func (doctorCommand) Help() string {
	return `Each look passes, warns or fails; what does not pass says what to do. Nothing is changed. Run it with ingest's own environment, best beside a running one, which is asked at ADMIN_ADDR
what Stripe sends it.

Exit status 0: nothing has to be mended; 3: something has to be.`
}

// doctor looks at everything that ingest needs, and changes nothing. problems are those of the configuration; what they are not about is
// looked at all the same.
func runDoctor(ctx context.Context, c *config, problems []string, out io.Writer) error {
	checks := service.Configuration(problems)
	checks = append(checks, signingSecrets(c.StripeWebhookSecret)...)
	if c.StripeAPIKey != "" {
		checks = append(checks, judgeAPIKey(c.StripeAPIKey, ledger.LiveEvents(ctx, c.DatabaseURL)), listedEvents(ctx, c.api()))
	}
	if c.DatabaseURL != "" {
		checks = append(checks, ledger.Examine(ctx, c.DatabaseURL)...)
	}
	if c.MigrateDatabaseURL != "" {
		checks = append(checks, ledger.ExamineTLS("ledger: owner's TLS", c.MigrateDatabaseURL))
	}
	if c.MigrateDatabaseURL != "" && c.MigrateDatabaseURL == c.DatabaseURL {
		checks = append(checks, doctor.Warned("ledger: owner", "MIGRATE_DATABASE_URL is DATABASE_URL: ingest owns what it only has to use", "give it a role of its own (docs/operations.md, Two roles in Postgres)"))
	}
	if len(c.Problems()) == 0 {
		checks = append(checks, queue.Examine(ctx, c.Config, queue.RoleIngest, queue.StreamConfig{Replicas: c.NATSReplicas, MaxBytes: int64(c.NATSMaxBytes)})...)
	}
	return service.Concluded(out, append(checks, running(ctx, c.AdminAddr)...))
}

// Stripe's signing secrets have 32 characters or more behind whsec_; one that is shorter was cut when it was copied, and one that is there
// twice is not the second one that was meant.
const secretLength = 32

func signingSecrets(list secret.Text) (checks []doctor.Check) {
	const what = "Stripe: signing secrets"
	if list == "" {
		return nil // a problem of the configuration
	}
	secrets, wrong := stripe.ParseSecrets(list)
	seen := make(map[secret.Text]bool)
	short, twice := 0, 0
	for _, s := range secrets {
		if len(strings.TrimPrefix(s.Reveal(), "whsec_")) < secretLength {
			short++
		}
		if seen[s] {
			twice++
		}
		seen[s] = true
	}
	copyAgain := "copy it again from the endpoint's page in Stripe (Reveal signing secret)"
	switch {
	case len(wrong) > 0:
		checks = append(checks, doctor.Failed(what, strings.Join(wrong, "; "), copyAgain))
	case short > 0:
		checks = append(checks, doctor.Warned(what, fmt.Sprintf("%d of %d are shorter than Stripe's", short, len(secrets)), copyAgain))
	case twice > 0:
		checks = append(checks, doctor.Warned(what, "one is there twice", "live and test endpoints have different ones; while one is rotated, the old and the new one differ, too"))
	default:
		checks = append(checks, doctor.Passed(what, "%d of the form that Stripe gives", len(secrets)))
	}
	return checks
}

// judgeAPIKey looks at the key that asks Stripe what webhooks missed; live: live checkouts come.
func judgeAPIKey(key secret.Text, live bool) doctor.Check {
	const what, remedy = "Stripe: API key", "in Stripe, make a restricted key (rk_live_…) that may read events and checkout sessions, and nothing else"
	text := key.Reveal()
	switch {
	case strings.HasPrefix(text, "rk_test_") && live, strings.HasPrefix(text, "sk_test_") && live:
		return doctor.Failed(what, "is of test mode, and live checkouts come: it does not see them", remedy)
	case strings.HasPrefix(text, "sk_live_"), strings.HasPrefix(text, "sk_test_"):
		return doctor.Warned(what, "is a secret key, which may do everything", remedy)
	case strings.HasPrefix(text, "rk_live_"), strings.HasPrefix(text, "rk_test_"):
		return doctor.Passed(what, "is a restricted one of %s mode", strings.TrimSuffix(strings.TrimPrefix(text[:8], "rk_"), "_"))
	}
	return doctor.Failed(what, "does not look like rk_live_… or rk_test_…", remedy)
}

// listedEvents asks Stripe for the first of its events, as a catch-up would.
func listedEvents(ctx context.Context, c stripe.APIConfig) doctor.Check {
	const what = "Stripe: list of events"
	if len(c.Problems()) > 0 {
		return doctor.Warned(what, "cannot be asked for with this configuration", "mend it first")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	now := time.Now()
	for _, err := range stripe.NewAPI(c).Events(ctx, now.Add(-time.Hour), now, "") {
		if err == nil {
			break // one is enough
		}
		if refused := new(stripe.Refusal); errors.As(err, &refused) {
			if _, passing := refused.Passing(); !passing {
				return doctor.Failed(what, err.Error(), "a restricted key that may read events and checkout sessions is enough")
			}
		}
		return doctor.Warned(what, err.Error(), "ask again; look at the way to Stripe's API if it stays so")
	}
	return doctor.Passed(what, "may be read")
}

// running asks the ingest that runs here what Stripe sends it.
func running(ctx context.Context, adminAddr string) []doctor.Check {
	status, body, err := service.Ask(ctx, adminAddr, "/metrics")
	if err != nil || status != http.StatusOK {
		return []doctor.Check{doctor.Warned("ingest", "none is running at "+adminAddr+": what Stripe sends it cannot be looked at", "start it, and ask again beside it (ADMIN_ADDR as its own)")}
	}
	counts := webhookCounts(body)
	return []doctor.Check{doctor.Passed("ingest", "runs at %s", adminAddr), judgeSignatures(counts), judgeThin(counts)}
}

// counts are webhooks by type and result, as purchase_relay_webhooks_total tells.
type counts struct {
	signed, wronglySigned float64
	thin                  float64 // thin events of our types, refused because there is no STRIPE_API_KEY
}

func webhookCounts(metrics []byte) (c counts) {
	lines := bufio.NewScanner(bytes.NewReader(metrics))
	for lines.Scan() {
		labels, ok := strings.CutPrefix(lines.Text(), "purchase_relay_webhooks_total{")
		if !ok {
			continue
		}
		labels, number, _ := strings.Cut(labels, "} ")
		n, err := strconv.ParseFloat(number, 64)
		switch {
		case err != nil:
		case strings.Contains(labels, `result="invalid_signature"`):
			c.wronglySigned += n
		case strings.Contains(labels, `result="no_api_key"`):
			c.thin += n
			c.signed += n
		case !strings.Contains(labels, `type="none"`):
			c.signed += n
		}
	}
	return c
}

func judgeSignatures(c counts) doctor.Check {
	const what = "Stripe: signatures"
	found := fmt.Sprintf("since its start %.0f webhooks were signed by Stripe, %.0f by nobody that we know", c.signed, c.wronglySigned)
	if c.wronglySigned > 0 && c.signed == 0 {
		return doctor.Failed(what, found, "compare STRIPE_WEBHOOK_SECRET with the endpoint's signing secret (live and test endpoints differ), and this machine's clock")
	}
	return doctor.Passed(what, "%s", found)
}

func judgeThin(c counts) doctor.Check {
	const what = "Stripe: snapshot events"
	if c.thin > 0 {
		return doctor.Failed(what, fmt.Sprintf("%.0f thin events were refused: they carry no checkout", c.thin),
			"in Stripe, create the destination again with snapshot events (payload style: snapshot), or set STRIPE_API_KEY")
	}
	return doctor.Passed(what, "no thin event was refused since its start")
}
