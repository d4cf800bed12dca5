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
	"purchase-relay/internal/purchase"
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
		remedy = "create a restricted key (rk_live_…) in Stripe that may only read events, checkout sessions and " +
			"webhook endpoints"
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

const (
	stripeTimeout = 10 * time.Second // for each list
	maxRecent     = 1000             // events
	// onTheWay is the age at which an event should have arrived. Stripe repeats failed webhooks for days.
	onTheWay = 5 * time.Minute
)

// stripe checks what the key reads: the events of the last day, as a backfill would, and the endpoints.
// recent are the checkouts' events that should be on the ledger by now.
func (i Ingest) stripe(ctx context.Context, now time.Time) (checks []doctor.Check, recent []purchase.Event) {
	if len(i.API.Problems()) > 0 {
		return []doctor.Check{doctor.Warned(eventList, "not checked", "correct the configuration")}, nil
	}
	api := stripe.NewAPI(i.API)
	recent, err := recentEvents(ctx, api, i.Rules, now)
	checks = append(checks, judgeEventList(err))
	ctx, cancel := context.WithTimeout(ctx, stripeTimeout)
	defer cancel()
	found, err := api.Endpoints(ctx)
	return append(checks, i.Endpoint.Checks(found, err)...), recent
}

func recentEvents(
	ctx context.Context, api *stripe.API, rules purchase.Rules, now time.Time,
) (recent []purchase.Event, err error) {
	ctx, cancel := context.WithTimeout(ctx, stripeTimeout)
	defer cancel()
	read := 0
	for event, err := range api.Events(ctx, now.Add(-24*time.Hour), now.Add(-onTheWay), "") {
		if read++; err != nil || read > maxRecent {
			return recent, err
		}
		_, decision, err := purchase.FromEvent(event, rules, now)
		// The ledger ignores most invoices: they are renewals.
		if err == nil && decision == purchase.DecisionRecord && event.Checkout != nil {
			recent = append(recent, event)
		}
	}
	return recent, nil
}

const eventList = "Stripe: list of events"

func judgeEventList(err error) doctor.Check {
	if err == nil {
		return doctor.Passed(eventList, "readable")
	}
	if refused, ok := errors.AsType[*stripe.APIError](err); ok {
		if _, retryable := refused.Retryable(); !retryable {
			return doctor.Failed(eventList, err.Error(), "use a key that may read events and checkout sessions")
		}
	}
	return doctor.Warned(eventList, err.Error(), "retry; if it persists, check the connection to Stripe's API")
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
