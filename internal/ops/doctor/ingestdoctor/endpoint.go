package ingestdoctor

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/stripe"
)

// Endpoint is what ingest needs of its endpoint in Stripe.
type Endpoint struct {
	URL     string   // as stripe.EndpointURL returns it; "": unknown
	Types   []string // event types
	APIKey  bool     // ingest can fetch the objects of thin events
	Live    bool     // mode of the key that reads the endpoints
	Connect bool     // sales of connected accounts count: Stripe sends them to an endpoint of their own
}

// Checks compares the endpoints in Stripe, or the error of reading them, with what ingest needs.
func (e Endpoint) Checks(found stripe.Endpoints, err error) (checks []doctor.Check) {
	if err != nil {
		return []doctor.Check{judgeReadable(err)}
	}
	if e.URL == "" {
		found := "not checked without PUBLIC_URL; " + describe(found, "")
		return []doctor.Check{doctor.Warned("Stripe: endpoint", found,
			"set PUBLIC_URL to the address at which Stripe reaches the webhook, such as https://shop.example")}
	}
	at := found.At(e.URL)
	checks = append(checks, judgePublicURL(e.URL), e.judgeExists(found, at))
	if len(at) > 0 {
		checks = append(checks, judgeEnabled(at), e.judgeTypes(at), e.judgePayload(at), judgeAPIVersion(at),
			e.judgeMode(), e.judgeDuplicates(at))
	}
	if found.DestinationsErr != nil {
		checks = append(checks, judgeDestinations(found.DestinationsErr))
	}
	return checks
}

// judgeReadable judges an error of reading the endpoints. They are not needed for sales: it is a warning.
func judgeReadable(err error) doctor.Check {
	remedy := "retry; if it persists, check the connection to Stripe's API"
	if refused, ok := errors.AsType[*stripe.APIError](err); ok {
		if _, retryable := refused.Retryable(); !retryable {
			remedy = `give STRIPE_API_KEY the permission "Webhook Endpoints: Read" in Stripe ` +
				"(Developers > API keys), or check the endpoint there by hand"
		}
	}
	return doctor.Warned("Stripe: endpoint", "unreadable: "+err.Error(), remedy)
}

func judgeDestinations(err error) doctor.Check {
	return doctor.Warned("Stripe: event destinations", err.Error(),
		`if you use event destinations, give STRIPE_API_KEY the permission "Event Destinations: Read"`)
}

func judgePublicURL(address string) doctor.Check {
	const what = "Stripe: PUBLIC_URL"
	u, err := url.Parse(address)
	if err != nil { // impossible: it has its normal form
		return doctor.Failed(what, "is no URL", "correct PUBLIC_URL")
	}
	ip, err := netip.ParseAddr(u.Hostname())
	private := err == nil && (ip.IsLoopback() || ip.IsPrivate() || ip.IsUnspecified() || ip.IsLinkLocalUnicast())
	switch {
	case private || u.Hostname() == "localhost":
		return doctor.Warned(what, address+" is not reachable from the internet",
			"set PUBLIC_URL to the public address of your load balancer or proxy")
	case u.Scheme == "http":
		return doctor.Warned(what, address+" is plain http: customers' data are readable on the way, and "+
			"Stripe's live mode requires https", "use https")
	}
	return doctor.Passed(what, "%s", address)
}

func (e Endpoint) judgeExists(found stripe.Endpoints, at []stripe.Endpoint) doctor.Check {
	const what = "Stripe: endpoint"
	u, _ := url.Parse(e.URL) // in its normal form
	list := describe(found, u.Hostname())
	switch {
	case len(at) == 0 && found.DestinationsErr != nil:
		return doctor.Warned(what, "no webhook endpoint at "+e.URL+", and event destinations are unreadable; "+list,
			"look for the endpoint in Stripe (Developers > Webhooks); `ingest stripe-endpoint --create` creates one")
	case len(at) == 0:
		return doctor.Failed(what, "none at "+e.URL+" in "+mode(e.Live)+" mode; "+list,
			"correct PUBLIC_URL or the endpoint's URL, or run `ingest stripe-endpoint --create`")
	}
	return doctor.Passed(what, "%s", strings.Join(ids(at), ", "))
}

func judgeEnabled(at []stripe.Endpoint) doctor.Check {
	const what = "Stripe: endpoint enabled"
	if on := enabled(at); len(on) > 0 {
		return doctor.Passed(what, "%d of %d", len(on), len(at))
	}
	return doctor.Failed(what, strings.Join(ids(at), ", ")+" disabled: Stripe sends no webhook",
		"enable it in Stripe (Developers > Webhooks), then run `ingest backfill --since 72h`")
}

// judgeTypes judges the event types that all endpoints together send.
func (e Endpoint) judgeTypes(at []stripe.Endpoint) doctor.Check {
	const what = "Stripe: event types"
	var sent []string
	for _, endpoint := range relevant(at) {
		sent = append(sent, endpoint.Types...)
	}
	all := slices.Contains(sent, "*")
	var missing, needless []string
	for _, t := range e.Types {
		if !all && !slices.Contains(sent, t) {
			missing = append(missing, t)
		}
	}
	for _, t := range sent {
		if t != "*" && !slices.Contains(e.Types, t) && !slices.Contains(needless, t) {
			needless = append(needless, t)
		}
	}
	switch {
	case len(missing) > 0:
		return doctor.Failed(what, "not sent: "+strings.Join(missing, ", "),
			"add them to the endpoint in Stripe (Developers > Webhooks), then run `ingest backfill`")
	case all:
		return doctor.Warned(what, "all types are sent: most webhooks are ignored",
			"select only "+strings.Join(e.Types, ", "))
	case len(needless) > 0:
		return doctor.Warned(what, "sent and ignored: "+bounded(needless),
			"remove them from the endpoint in Stripe")
	}
	return doctor.Passed(what, "%s", strings.Join(e.Types, ", "))
}

func (e Endpoint) judgePayload(at []stripe.Endpoint) doctor.Check {
	const what = "Stripe: payload"
	thin := slices.ContainsFunc(relevant(at), func(e stripe.Endpoint) bool { return e.Thin })
	switch {
	case thin && !e.APIKey:
		return doctor.Failed(what, "thin, without STRIPE_API_KEY: every sale is rejected",
			"choose snapshot payloads for the destination in Stripe, or set STRIPE_API_KEY")
	case thin:
		return doctor.Passed(what, "thin: the checkout is fetched with STRIPE_API_KEY while the buyer waits")
	}
	return doctor.Passed(what, "snapshot")
}

// judgeAPIVersion only notes the API version: ingest reads every one.
func judgeAPIVersion(at []stripe.Endpoint) doctor.Check {
	var versions []string
	for _, e := range relevant(at) {
		v := e.APIVersion
		if v == "" {
			v = "the account's default"
		}
		if !slices.Contains(versions, v) {
			versions = append(versions, v)
		}
	}
	return doctor.Passed("Stripe: API version", "%s", strings.Join(versions, ", "))
}

func (e Endpoint) judgeMode() doctor.Check {
	const what = "Stripe: endpoint's mode"
	if !e.Live {
		return doctor.Warned(what, "test: STRIPE_API_KEY does not see live endpoints",
			"for live sales use a live key (rk_live_…): live mode has an endpoint and a signing secret of its own")
	}
	return doctor.Passed(what, "live; test mode has an endpoint and a signing secret of its own")
}

// judgeDuplicates judges event types that several endpoints send to one URL.
func (e Endpoint) judgeDuplicates(at []stripe.Endpoint) doctor.Check {
	const what = "Stripe: duplicates"
	on := enabled(at)
	for _, t := range e.Types {
		sending := slices.DeleteFunc(slices.Clone(on), func(e stripe.Endpoint) bool {
			return !slices.Contains(e.Types, t) && !slices.Contains(e.Types, "*")
		})
		if len(sending) < 2 {
			continue
		}
		if e.Connect && len(sending) == 2 {
			return doctor.Passed(what, "two endpoints, as CONNECT_ACCOUNTS needs: %s",
				strings.Join(ids(sending), ", "))
		}
		return doctor.Warned(what, strings.Join(ids(sending), ", ")+" send the same events to this URL: "+
			"each sale costs several webhooks",
			"delete all but one in Stripe, and their secrets in STRIPE_WEBHOOK_SECRET")
	}
	return doctor.Passed(what, "none")
}

// SilenceCause explains why no webhook came. pending reports whether Stripe lists newer events of ingest's
// types. The remedy is "" if there is no other than the usual one.
func (e Endpoint) SilenceCause(found stripe.Endpoints, pending bool) (what, remedy string) {
	at := found.At(e.URL)
	switch {
	case len(at) == 0 && found.DestinationsErr != nil:
		what = "Stripe has no webhook endpoint at " + e.URL + " (event destinations are unreadable)."
	case len(at) == 0:
		return "Stripe has no endpoint at " + e.URL + ".",
			"Correct the endpoint's URL in Stripe, or run `ingest stripe-endpoint --create`; then `ingest backfill`."
	case len(enabled(at)) == 0:
		return "The endpoint is disabled in Stripe (" + strings.Join(ids(at), ", ") + "): no webhook is sent.",
			"Enable the endpoint in Stripe (Developers > Webhooks), then run `ingest backfill`."
	default:
		what = "The endpoint is enabled in Stripe."
	}
	if pending {
		return what + " Stripe has events since then: its webhooks do not arrive.", ""
	}
	return what + " Stripe has no events since then: it sends nothing.", ""
}

// enabled returns the endpoints that Stripe sends to.
func enabled(at []stripe.Endpoint) []stripe.Endpoint {
	return slices.DeleteFunc(slices.Clone(at), func(e stripe.Endpoint) bool { return e.Disabled })
}

// relevant returns the enabled endpoints, or all if none is.
func relevant(at []stripe.Endpoint) []stripe.Endpoint {
	if on := enabled(at); len(on) > 0 {
		return on
	}
	return at
}

func ids(list []stripe.Endpoint) []string {
	var ids []string
	for _, e := range list {
		ids = append(ids, e.ID)
	}
	return ids
}

const maxListed = 5

// bounded joins at most maxListed texts.
func bounded(list []string) string {
	if n := len(list) - maxListed; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:maxListed], ", "), n)
	}
	return strings.Join(list, ", ")
}

// describe lists the endpoints for the operator, those at host first. Of URLs elsewhere only the host is
// shown: a path may be a secret.
func describe(found stripe.Endpoints, host string) string {
	if len(found.List) == 0 {
		return "Stripe has no endpoints"
	}
	var near, far []string
	for _, e := range found.List {
		place := e.Kind
		if u, err := url.Parse(e.URL); err == nil && e.Kind == stripe.KindWebhook && u.Host != "" {
			path := "/…"
			own := strings.HasSuffix(strings.TrimSuffix(u.Path, "/"), stripe.WebhookPath)
			if e.Host() == host || own {
				path = u.Path
			}
			place = logsafe.Text(u.Scheme+"://"+u.Host+path, 100)
		}
		if e.Disabled {
			place += " (disabled)"
		}
		if host != "" && e.Host() == host {
			near = append(near, place)
		} else {
			far = append(far, place)
		}
	}
	return "Stripe has " + bounded(append(near, far...))
}

func mode(live bool) string {
	if live {
		return "live"
	}
	return "test"
}
