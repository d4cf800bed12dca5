package stripe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/stripe/stripe-go/v76"
	"github.com/tidwall/gjson"

	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
)

const (
	// WebhookPath is the path of ingest's webhook.
	WebhookPath = "/webhooks/stripe"

	maxEndpoints     = 1000 // an account has 16
	maxPages         = 20   // of event destinations
	endpointsPath    = "/v1/webhook_endpoints"
	destinationsPath = "/v2/core/event_destinations"
	// apiVersion is required by Stripe's v2 API, whose objects depend on it.
	apiVersion = "2026-08-26.dahlia"
)

// The kinds of endpoints.
const (
	KindWebhook     = "webhook"
	KindEventBridge = "Amazon EventBridge"
	KindEventGrid   = "Azure Event Grid"
	KindOther       = "other"
)

// Endpoint is a webhook endpoint or an event destination in Stripe.
type Endpoint struct {
	ID         string
	Kind       string
	URL        string // of a webhook; foreign text; "": unknown
	Disabled   bool
	Types      []string // event types, without the prefix v1. of thin ones; "*": all
	Thin       bool     // events without their object
	APIVersion string   // of the events; "": the account's
	Livemode   bool
}

// Endpoints are the endpoints of an API key's account and mode.
type Endpoints struct {
	List []Endpoint
	// DestinationsErr is why event destinations are missing in the list; nil: they are in it. It is
	// ErrNoDestinations where the key or the account has no access to them.
	DestinationsErr error
}

// ErrNoDestinations is returned for a key that may not read event destinations, or an account without them.
var ErrNoDestinations = errors.New("event destinations are not available to this key or account " +
	"(Event Destinations: Read)")

// At returns the endpoints that send to a URL as EndpointURL returns it.
func (e Endpoints) At(address string) (at []Endpoint) {
	for i := range e.List {
		if u, err := url.Parse(e.List[i].URL); err == nil && e.List[i].URL != "" && normalURL(u) == address {
			at = append(at, e.List[i])
		}
	}
	return at
}

// Host returns the host of a webhook's URL in lower case; "": unknown.
func (e Endpoint) Host() string {
	u, err := url.Parse(e.URL)
	if err != nil {
		return ""
	}
	return strings.ToLower(u.Hostname())
}

// EndpointURL returns the normal form of the URL at which Stripe reaches the webhook. A missing path is
// added.
func EndpointURL(address string) (string, error) {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http":
		return "", errors.New("is not an http(s) URL such as https://shop.example")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", errors.New("must have no user, query or fragment")
	case strings.Trim(u.Path, "/") == "":
		u.Path = WebhookPath
	case !strings.HasSuffix(strings.TrimSuffix(u.Path, "/"), WebhookPath):
		return "", errors.New("must end with " + WebhookPath + ", or have no path")
	}
	return normalURL(u), nil
}

// normalURL returns scheme, host and path of a URL in one form for all that reach the same webhook.
func normalURL(u *url.URL) string {
	host, port := strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")), u.Port()
	switch {
	case port != "" && port != map[string]string{"https": "443", "http": "80"}[u.Scheme]:
		host = net.JoinHostPort(host, port)
	case strings.Contains(host, ":"):
		host = "[" + host + "]"
	}
	return u.Scheme + "://" + host + strings.TrimSuffix(u.EscapedPath(), "/")
}

// Endpoints reads the webhook endpoints and event destinations. An error is an *APIError unless ctx ended.
func (a *API) Endpoints(ctx context.Context) (Endpoints, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	var found Endpoints
	t := task{"list Stripe's webhook endpoints", "Webhook Endpoints: Read"}
	for entry, err := range a.list(ctx, t, endpointsPath, &stripe.WebhookEndpointListParams{}) {
		switch {
		case err == nil && len(found.List) == maxEndpoints:
			err = t.tooMany()
		case err == nil && !shallow(entry.raw):
			err = errUnreadable()
		}
		if err != nil {
			return Endpoints{}, err
		}
		found.List = append(found.List, webhookEndpoint(gjson.ParseBytes(entry.raw)))
	}
	destinations, err := a.destinations(ctx)
	if err != nil {
		found.DestinationsErr = err
		return found, nil
	}
	for _, d := range destinations {
		if !slices.ContainsFunc(found.List, func(e Endpoint) bool { return e.ID == d.ID }) {
			found.List = append(found.List, d)
		}
	}
	return found, nil
}

func (t task) tooMany() error {
	return &APIError{message: fmt.Sprintf("%s: more than %d", t.name, maxEndpoints)}
}

// destinations reads the event destinations. Their list has next_page_url instead of a cursor.
func (a *API) destinations(ctx context.Context) (list []Endpoint, err error) {
	t := task{"list Stripe's event destinations", "Event Destinations: Read"}
	next := destinationsPath + "?include%5B0%5D=webhook_endpoint.url"
	for range maxPages {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url+next, http.NoBody)
		if err != nil {
			return nil, errUnreadable()
		}
		req.Header.Set("Authorization", "Bearer "+a.key)
		req.Header.Set("Stripe-Version", apiVersion)
		page, failure := fetch(a.lists, req, t.permission, "")
		switch {
		case failure == nil:
		case failure.Status == http.StatusBadRequest, failure.Status == http.StatusForbidden,
			failure.Status == http.StatusNotFound:
			return nil, ErrNoDestinations
		default:
			return nil, fmt.Errorf("%s: %w", t.name, failure)
		}
		if !page.Get("data").IsArray() {
			return nil, fmt.Errorf("%s: %w", t.name, errUnreadable())
		}
		for _, d := range page.Get("data").Array() {
			if text(d.Get("id")) != "" {
				list = append(list, eventDestination(d))
			}
		}
		next = text(page.Get("next_page_url"))
		switch {
		case next == "":
			return list, nil
		case !strings.HasPrefix(next, destinationsPath+"?") || len(next) > maxPath:
			return nil, fmt.Errorf("%s: rejected next_page_url", t.name) // the key must not go elsewhere
		case len(list) > maxEndpoints:
			return nil, t.tooMany()
		}
	}
	return nil, fmt.Errorf("%s: more than %d pages", t.name, maxPages)
}

// webhookEndpoint decodes an object of /v1/webhook_endpoints. A field of an unexpected JSON type counts as
// missing.
func webhookEndpoint(v gjson.Result) Endpoint {
	return Endpoint{
		ID: purchase.LogSafe(text(v.Get("id"))), Kind: KindWebhook, URL: text(v.Get("url")),
		Disabled: text(v.Get("status")) == "disabled", Types: eventTypes(v.Get("enabled_events")),
		APIVersion: version(v.Get("api_version")), Livemode: v.Get("livemode").Type == gjson.True,
	}
}

// eventDestination decodes an object of /v2/core/event_destinations.
func eventDestination(v gjson.Result) Endpoint {
	kind, known := map[string]string{
		"webhook_endpoint": KindWebhook, "amazon_eventbridge": KindEventBridge, "azure_event_grid": KindEventGrid,
	}[text(v.Get("type"))]
	if !known {
		kind = KindOther
	}
	return Endpoint{
		ID: purchase.LogSafe(text(v.Get("id"))), Kind: kind, URL: text(v.Get("webhook_endpoint.url")),
		Disabled: text(v.Get("status")) == "disabled", Types: eventTypes(v.Get("enabled_events")),
		Thin: text(v.Get("event_payload")) == "thin", APIVersion: version(v.Get("snapshot_api_version")),
		Livemode: v.Get("livemode").Type == gjson.True,
	}
}

func eventTypes(v gjson.Result) (list []string) {
	if !v.IsArray() {
		return nil
	}
	for _, t := range v.Array() {
		switch name := strings.TrimPrefix(text(t), "v1."); name {
		case "":
		case "*":
			list = append(list, name)
		default:
			list = append(list, purchase.LogSafe(name))
		}
	}
	return list
}

func version(v gjson.Result) string {
	if text(v) == "" {
		return ""
	}
	return purchase.LogSafe(text(v))
}

// endpoint is a created endpoint, undecoded: its secret must not pass through the library's types, which log.
type endpoint struct {
	stripe.APIResource
	raw json.RawMessage
}

// UnmarshalJSON implements json.Unmarshaler.
func (e *endpoint) UnmarshalJSON(raw []byte) error {
	e.raw = bytes.Clone(raw)
	return nil
}

// ErrMaybeCreated is part of a creation's error if Stripe may have created the endpoint. Its signing secret
// is then only shown on its page in Stripe.
var ErrMaybeCreated = errors.New("the endpoint may have been created")

// CreateEndpoint creates a webhook endpoint for events with snapshots and returns its id and signing secret.
// An error is an *APIError unless ctx ended.
func (a *API) CreateEndpoint(
	ctx context.Context, address string, types []string,
) (id string, key secret.String, err error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	t := task{"create a webhook endpoint in Stripe", "Webhook Endpoints: Write"}
	params := &stripe.WebhookEndpointParams{
		URL: new(address), EnabledEvents: stripe.StringSlice(types), Description: new("purchase-relay"),
	}
	params.Context = ctx
	created := &endpoint{}
	err = a.backend.Call(http.MethodPost, endpointsPath, a.key, params, created)
	if err != nil {
		err = t.failed(ctx, err)
		if failure, ok := errors.AsType[*APIError](err); !ok || failure.Status == 0 || failure.Status >= 500 {
			err = fmt.Errorf("%w; %w", err, ErrMaybeCreated)
		}
		return "", "", err
	}
	object := gjson.ParseBytes(created.raw)
	id, key = text(object.Get("id")), secret.String(text(object.Get("secret")))
	if text(object.Get("object")) != "webhook_endpoint" || !purchase.ValidID(id) || !hasPrefix(key, "whsec_") {
		return "", "", fmt.Errorf("%w; %w", errUnreadable(), ErrMaybeCreated)
	}
	return id, key, nil
}
