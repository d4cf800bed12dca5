package ingestdoctor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
	"purchase-relay/internal/stripe"
)

// signingSecretLength is the minimum length of Stripe's signing secrets after whsec_.
const signingSecretLength = 32

// signingSecrets checks the secrets' form. A missing secret is reported as configuration.
func signingSecrets(list secret.String) []doctor.Check {
	const (
		what      = "Stripe: signing secrets"
		copyAgain = "copy it again from the endpoint's page in Stripe (Reveal signing secret)"
	)
	if list == "" {
		return nil
	}
	secrets, wrong := stripe.ParseSecrets(list)
	seen := make(map[secret.String]bool)
	short, duplicates := 0, 0
	for _, s := range secrets {
		if len(strings.TrimPrefix(s.Reveal(), "whsec_")) < signingSecretLength {
			short++
		}
		if seen[s] {
			duplicates++
		}
		seen[s] = true
	}
	switch {
	case len(wrong) > 0:
		return []doctor.Check{doctor.Failed(what, strings.Join(wrong, "; "), copyAgain)}
	case short > 0:
		found := fmt.Sprintf("%d of %d are too short", short, len(secrets))
		return []doctor.Check{doctor.Warned(what, found, copyAgain)}
	case duplicates > 0:
		return []doctor.Check{doctor.Warned(what, "duplicate",
			"list the secrets of the live and the test endpoint; during a rotation, the old and the new one")}
	}
	return []doctor.Check{doctor.Passed(what, "%d well formed", len(secrets))}
}

// judgeAPIKey checks the key's kind. live reports whether live checkouts are received.
func judgeAPIKey(key secret.String, live bool) doctor.Check {
	const (
		what   = "Stripe: API key"
		remedy = "create a restricted key (rk_live_…) in Stripe that may only read events and checkout sessions"
	)
	kind, mode := "", ""
	if parts := strings.SplitN(key.Reveal(), "_", 3); len(parts) == 3 {
		kind, mode = parts[0], parts[1]
	}
	known := (kind == "rk" || kind == "sk") && (mode == "live" || mode == "test")
	switch {
	case !known:
		return doctor.Failed(what, "does not look like rk_live_… or rk_test_…", remedy)
	case mode == "test" && live:
		return doctor.Failed(what, "is a test key: it cannot read live checkouts", remedy)
	case kind == "sk":
		return doctor.Warned(what, "is unrestricted", remedy)
	}
	return doctor.Passed(what, "restricted, %s mode", mode)
}

// listEvents requests one of Stripe's events, as a backfill would.
func listEvents(ctx context.Context, c stripe.APIConfig) doctor.Check {
	const what = "Stripe: list of events"
	if len(c.Problems()) > 0 {
		return doctor.Warned(what, "not checked", "correct the configuration")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	now := time.Now()
	for _, err := range stripe.NewAPI(c).Events(ctx, now.Add(-time.Hour), now, "") {
		if err == nil {
			break
		}
		if refused, ok := errors.AsType[*stripe.APIError](err); ok {
			if _, retryable := refused.Retryable(); !retryable {
				return doctor.Failed(what, err.Error(), "use a key that may read events and checkout sessions")
			}
		}
		return doctor.Warned(what, err.Error(), "retry; if it persists, check the connection to Stripe's API")
	}
	return doctor.Passed(what, "readable")
}

// running checks the webhook metrics of the ingest at an admin address.
func running(ctx context.Context, adminAddr string) []doctor.Check {
	status, body, err := service.GetAdmin(ctx, adminAddr, "/metrics")
	if err != nil || status != http.StatusOK {
		return []doctor.Check{doctor.Warned("ingest", "not running at "+adminAddr+": its webhooks were not checked",
			"start ingest, then run doctor again with the same ADMIN_ADDR")}
	}
	counts := countWebhooks(body)
	up := doctor.Passed("ingest", "running at %s", adminAddr)
	return []doctor.Check{up, judgeSignatures(counts), judgeThin(counts)}
}

// webhookCounts sums up an ingest's purchase_relay_webhooks_total.
type webhookCounts struct {
	validSignature, invalidSignature float64
	thin                             float64 // rejected without STRIPE_API_KEY; also in validSignature
}

func countWebhooks(metrics []byte) (c webhookCounts) {
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
			c.invalidSignature += n
		case strings.Contains(labels, `result="no_api_key"`):
			c.thin += n
			c.validSignature += n
		case !strings.Contains(labels, `type="none"`):
			c.validSignature += n
		}
	}
	return c
}

func judgeSignatures(c webhookCounts) doctor.Check {
	const what = "Stripe: signatures"
	found := fmt.Sprintf("%.0f valid, %.0f invalid since ingest's start", c.validSignature, c.invalidSignature)
	if c.invalidSignature > 0 && c.validSignature == 0 {
		return doctor.Failed(what, found, "compare STRIPE_WEBHOOK_SECRET with the endpoint's signing secret "+
			"(live and test endpoints differ); check this machine's clock")
	}
	return doctor.Passed(what, "%s", found)
}

func judgeThin(c webhookCounts) doctor.Check {
	const what = "Stripe: snapshot events"
	if c.thin > 0 {
		return doctor.Failed(what, fmt.Sprintf("%.0f thin events were rejected: they contain no checkout", c.thin),
			"set STRIPE_API_KEY, or recreate the destination in Stripe with payload style snapshot")
	}
	return doctor.Passed(what, "no thin event rejected since ingest's start")
}
