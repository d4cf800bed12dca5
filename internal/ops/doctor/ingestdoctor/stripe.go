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

// signingSecretLength is the least length of Stripe's signing secrets, behind whsec_: a shorter one was cut off.
const signingSecretLength = 32

// signingSecrets checks the secrets' form. Without any there is no check: the configuration's reports it.
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
	short, twice := 0, 0
	for _, s := range secrets {
		if len(strings.TrimPrefix(s.Reveal(), "whsec_")) < signingSecretLength {
			short++
		}
		if seen[s] {
			twice++
		}
		seen[s] = true
	}
	switch {
	case len(wrong) > 0:
		return []doctor.Check{doctor.Failed(what, strings.Join(wrong, "; "), copyAgain)}
	case short > 0:
		found := fmt.Sprintf("%d of %d are shorter than Stripe's", short, len(secrets))
		return []doctor.Check{doctor.Warned(what, found, copyAgain)}
	case twice > 0:
		return []doctor.Check{doctor.Warned(what, "one is there twice", "live and test endpoints have different ones; "+
			"while one is rotated, the old and the new one differ, too")}
	}
	return []doctor.Check{doctor.Passed(what, "%d of the form that Stripe gives", len(secrets))}
}

// judgeAPIKey checks the key's kind; live: live checkouts are received.
func judgeAPIKey(key secret.String, live bool) doctor.Check {
	const (
		what   = "Stripe: API key"
		remedy = "in Stripe, make a restricted key (rk_live_…) that may read events and checkout sessions, " +
			"and nothing else"
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
		return doctor.Failed(what, "is of test mode, and live checkouts come: it does not see them", remedy)
	case kind == "sk":
		return doctor.Warned(what, "is a secret key, which may do everything", remedy)
	}
	return doctor.Passed(what, "is a restricted one of %s mode", mode)
}

// listEvents requests the first of Stripe's events, as a backfill would.
func listEvents(ctx context.Context, c stripe.APIConfig) doctor.Check {
	const what = "Stripe: list of events"
	if len(c.Problems()) > 0 {
		return doctor.Warned(what, "cannot be asked for with this configuration", "fix it first")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	now := time.Now()
	for _, err := range stripe.NewAPI(c).Events(ctx, now.Add(-time.Hour), now, "") {
		if err == nil {
			break // one is enough
		}
		if refused, ok := errors.AsType[*stripe.APIError](err); ok {
			if _, passing := refused.Retryable(); !passing {
				return doctor.Failed(what, err.Error(), "a restricted key that may read events and checkout sessions is enough")
			}
		}
		return doctor.Warned(what, err.Error(), "ask again; look at the way to Stripe's API if it stays so")
	}
	return doctor.Passed(what, "may be read")
}

// running asks the ingest at an admin address what Stripe sends it.
func running(ctx context.Context, adminAddr string) []doctor.Check {
	status, body, err := service.Ask(ctx, adminAddr, "/metrics")
	if err != nil || status != http.StatusOK {
		return []doctor.Check{doctor.Warned("ingest",
			"none is running at "+adminAddr+": what Stripe sends it cannot be looked at",
			"start it, and ask again beside it (ADMIN_ADDR as its own)")}
	}
	counts := countWebhooks(body)
	return []doctor.Check{doctor.Passed("ingest", "runs at %s", adminAddr), judgeSignatures(counts), judgeThin(counts)}
}

// webhookCounts are an ingest's purchase_relay_webhooks_total since its start.
type webhookCounts struct {
	signed, wronglySigned float64
	thin                  float64 // refused for lack of STRIPE_API_KEY; counted in signed, too
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

func judgeSignatures(c webhookCounts) doctor.Check {
	const what = "Stripe: signatures"
	found := fmt.Sprintf("since its start %.0f webhooks had a good signature, %.0f a wrong one",
		c.signed, c.wronglySigned)
	if c.wronglySigned > 0 && c.signed == 0 {
		return doctor.Failed(what, found, "compare STRIPE_WEBHOOK_SECRET with the endpoint's signing secret "+
			"(live and test endpoints differ), and this machine's clock")
	}
	return doctor.Passed(what, "%s", found)
}

func judgeThin(c webhookCounts) doctor.Check {
	const what = "Stripe: snapshot events"
	if c.thin > 0 {
		return doctor.Failed(what, fmt.Sprintf("%.0f thin events were refused: they carry no checkout", c.thin),
			"in Stripe, create the destination again with snapshot events (payload style: snapshot), "+
				"or set STRIPE_API_KEY")
	}
	return doctor.Passed(what, "no thin event was refused since its start")
}
