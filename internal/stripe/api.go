package stripe

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/stripe/stripe-go/v76"
	"github.com/stripe/stripe-go/v76/form"
	"golang.org/x/time/rate"

	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
)

// Stripe's rate limit, 100 requests a second in live mode and 25 in test mode, is shared with the shop
// itself: we use a fifth of the lower one. A page has the most events that Stripe returns.
const (
	apiRequests = 5 // a second
	apiPage     = 100
	apiTimeout  = 30 * time.Second
)

// APIConfig configures an API.
type APIConfig struct {
	// Key is rk_live_… or rk_test_…, with the right to read events and checkout sessions. An sk_… works,
	// but may do far too much.
	Key secret.String
	URL string // "": Stripe's own

	Types []string // of the events that are listed, 20 at most
}

// Problems lists what is wrong with a configuration, without the key.
func (c APIConfig) Problems() (list []string) {
	if !hasForm(c.Key, "rk_", "sk_") {
		list = append(list, "STRIPE_API_KEY does not look like rk_live_… or rk_test_…: make a restricted key "+
			"in Stripe's dashboard that may read events and checkout sessions")
	}
	if c.URL == "" {
		return list
	}
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http":
		list = append(list, "STRIPE_API_URL is no address such as http://127.0.0.1:8086")
	case u.Scheme == "http" && c.Livemode():
		list = append(list, "STRIPE_API_URL is not https: a live key is not sent in the clear")
	}
	return list
}

// Livemode reports whether the key reads live purchases. Each key reads one mode.
func (c APIConfig) Livemode() bool { return hasForm(c.Key, "rk_live_", "sk_live_") }

// Unrestricted reports whether the key may do far more than reading.
func (c APIConfig) Unrestricted() bool { return hasForm(c.Key, "sk_") }

func hasForm(key secret.String, prefixes ...string) bool {
	for _, p := range prefixes {
		if rest, ok := strings.CutPrefix(key.Reveal(), p); ok && rest != "" {
			return true
		}
	}
	return false
}

// API lists Stripe's events and fetches the objects of thin ones. It is safe for concurrent use; all lists
// share one rate limit.
type API struct {
	key     string
	types   []string
	backend stripe.Backend
	url     string // without a slash at its end
	objects *http.Client
	decode  *Webhook
}

// NewAPI returns an API with a backend of its own: the library's global key, backends, logger and telemetry
// are not used.
func NewAPI(c APIConfig) *API {
	config := &stripe.BackendConfig{
		// The caller retries after Retry-After and can be interrupted; the library would sleep.
		MaxNetworkRetries: stripe.Int64(0), EnableTelemetry: new(false),
		LeveledLogger: &stripe.LeveledLogger{}, // the default writes Stripe's answers to stderr
		HTTPClient:    newClient(&limited{rate.NewLimiter(apiRequests, 1), newTransport()}),
	}
	if c.URL != "" {
		config.URL = new(strings.TrimSuffix(c.URL, "/"))
	}
	return &API{
		key: c.Key.Reveal(), types: c.Types, backend: stripe.GetBackendWithConfig(stripe.APIBackend, config),
		url:     cmp.Or(strings.TrimSuffix(c.URL, "/"), stripe.APIURL),
		objects: newClient(newTransport()), decode: &Webhook{},
	}
}

// newClient returns a client for requests with the key.
func newClient(transport http.RoundTripper) *http.Client {
	return &http.Client{Timeout: apiTimeout, Transport: transport, CheckRedirect: noRedirect}
}

// newTransport returns a transport with a connection pool of its own.
func newTransport() http.RoundTripper {
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout: 90 * time.Second, MaxIdleConnsPerHost: 16,
	}
}

// errRedirect refuses a redirect: following it would send the key to another address.
var errRedirect = errors.New("redirect not followed: STRIPE_API_URL names another address than Stripe's API")

// limited is a rate-limited transport that returns a redirect as an error.
type limited struct {
	limit *rate.Limiter
	next  http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (l *limited) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := l.limit.Wait(r.Context()); err != nil {
		return nil, err
	}
	resp, err := l.next.RoundTrip(r)
	if err == nil && resp.StatusCode/100 == 3 {
		_ = resp.Body.Close()
		return nil, errRedirect
	}
	return resp, err
}

// listed is one undecoded event of a page. The library's own type refuses old accounts' events, and the whole
// page with them.
type listed struct {
	ID  string // the library's paging cursor
	raw json.RawMessage
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *listed) UnmarshalJSON(raw []byte) error {
	var e struct{ ID string }
	if err := json.Unmarshal(raw, &e); err != nil || e.ID == "" {
		return errors.New("an entry of the list has no id")
	}
	l.ID, l.raw = e.ID, bytes.Clone(raw)
	return nil
}

type page struct {
	stripe.APIResource
	stripe.ListMeta
	Data []*listed `json:"data"`
}

// Events lists the events of the configured types that were created in a time, both ends included, the newest
// first; pages are fetched as needed. after is the event behind which to begin, "" the newest. An event that
// cannot be decoded has an id and nothing else. An error ends the list; it is a *Refusal where Stripe, or the
// network, is the cause. Stripe lists the last 30 days.
func (a *API) Events(
	ctx context.Context, since, until time.Time, after string,
) iter.Seq2[purchase.Event, error] {
	return func(yield func(purchase.Event, error) bool) {
		params := &stripe.EventListParams{
			Types:        stripe.StringSlice(a.types),
			CreatedRange: &stripe.RangeQueryParams{GreaterThanOrEqual: since.Unix(), LesserThanOrEqual: until.Unix()},
		}
		params.Context, params.Limit = ctx, stripe.Int64(apiPage)
		if after != "" {
			params.StartingAfter = new(after)
		}
		fetch := func(p *stripe.Params, query *form.Values) ([]any, stripe.ListContainer, error) {
			page := &page{}
			err := a.backend.CallRaw(http.MethodGet, "/v1/events", a.key, query, p, page)
			if err != nil {
				page.Data, page.HasMore = nil, false
			}
			entries := make([]any, 0, len(page.Data))
			for _, e := range page.Data {
				if e != nil {
					entries = append(entries, e)
				}
			}
			return entries, page, err
		}
		list := stripe.GetIter(params, fetch)
		for list.Next() {
			entry, ok := list.Current().(*listed)
			if !ok {
				continue // impossible: the query above returns nothing else
			}
			event, err := a.decode.Decode(entry.raw)
			if err != nil {
				event = purchase.Event{ID: entry.ID}
			}
			if !yield(event, nil) {
				return
			}
		}
		if err := list.Err(); err != nil {
			yield(purchase.Event{}, listError(ctx, err))
		}
	}
}

// Refusal is an error of Stripe's API. It holds neither the key nor data of an event.
type Refusal struct {
	Status  int // 0: no usable answer
	message string
	wait    time.Duration
	gone    bool
	err     error // of the network; nil: Stripe answered
}

// Error implements error.
func (r *Refusal) Error() string { return r.message }

// Unwrap returns the network's error.
func (r *Refusal) Unwrap() error { return r.err }

// Passing reports whether the same request may succeed later, and the least time to wait.
func (r *Refusal) Passing() (wait time.Duration, passing bool) {
	switch r.Status {
	case 0:
		return r.wait, !errors.Is(r.err, errRedirect)
	case http.StatusTooManyRequests, http.StatusConflict:
		return r.wait, true
	}
	return r.wait, r.Status >= 500
}

// Gone reports that Stripe does not list the event after which to begin.
func (r *Refusal) Gone() bool { return r.gone }

// listError returns an error of the library as one that may be logged.
func listError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("list Stripe's events: %w", ctx.Err())
	}
	answer := new(stripe.Error)
	if !errors.As(err, &answer) {
		if failed := new(url.Error); errors.As(err, &failed) {
			return &Refusal{message: "Stripe's API cannot be reached: " + failed.Err.Error(), err: failed.Err}
		}
		// A truncated or invalid page: the library's error would repeat its text.
		return &Refusal{message: "Stripe's API sent an answer that cannot be read"}
	}
	r := &Refusal{
		Status: answer.HTTPStatusCode,
		gone:   answer.Param == "starting_after" && answer.Code == stripe.ErrorCodeResourceMissing,
	}
	if answer.LastResponse != nil {
		if seconds, err := strconv.Atoi(answer.LastResponse.Header.Get("Retry-After")); err == nil && seconds > 0 {
			r.wait = time.Duration(seconds) * time.Second
		}
	}
	remedy := ""
	switch r.Status {
	case http.StatusUnauthorized:
		remedy = ": STRIPE_API_KEY is not known to Stripe; make a restricted key there that may read events " +
			"and checkout sessions"
	case http.StatusForbidden:
		remedy = ": STRIPE_API_KEY may not do this; give the restricted key the right to read events and " +
			"checkout sessions"
	case http.StatusTooManyRequests:
		remedy = ": too many requests of this account at once"
	}
	request := purchase.LogSafe(answer.RequestID)
	r.message = fmt.Sprintf("Stripe's API answered %d%s (request %s)", r.Status, remedy, request)
	if remedy == "" && r.Status < 500 {
		r.message = fmt.Sprintf("Stripe's API answered %d, code %s about %s (request %s)", r.Status,
			purchase.LogSafe(string(answer.Code)), purchase.LogSafe(answer.Param), request)
	}
	return r
}
