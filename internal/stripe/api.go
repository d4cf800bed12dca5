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

// What one account may ask of Stripe's API, 100 requests a second in live mode and 25 in test mode, it shares with the shop itself: we
// take a fifth of the lower figure. A page holds as many events as Stripe gives.
const (
	apiRequests = 5 // a second
	apiPage     = 100
	apiTimeout  = 30 * time.Second
)

// APIConfig is how Stripe's API is asked.
type APIConfig struct {
	Key secret.Text // rk_live_… or rk_test_…, with the right to read events and checkout sessions; an sk_… may far too much
	URL string      // "": Stripe's own

	Types []string // of the events that are listed, 20 at most
}

// Problems says what is wrong with a configuration, without the key.
func (c APIConfig) Problems() (list []string) {
	if !hasForm(c.Key, "rk_", "sk_") {
		list = append(list, "STRIPE_API_KEY does not look like rk_live_… or rk_test_…: make a restricted key in Stripe's dashboard that may read events and checkout sessions")
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

// Livemode says whether the key sees real purchases. Each key sees one mode.
func (c APIConfig) Livemode() bool { return hasForm(c.Key, "rk_live_", "sk_live_") }

// Unrestricted says that the key may do far more than we need.
func (c APIConfig) Unrestricted() bool { return hasForm(c.Key, "sk_") }

func hasForm(key secret.Text, prefixes ...string) bool {
	for _, p := range prefixes {
		if rest, ok := strings.CutPrefix(key.Reveal(), p); ok && rest != "" {
			return true
		}
	}
	return false
}

// API reads Stripe's list of events, and the objects of thin events. It is safe for concurrent use; all who
// list share one pace.
type API struct {
	key     string
	types   []string
	backend stripe.Backend
	url     string // without a slash at its end
	objects *http.Client
	decode  *Webhook
}

// NewAPI returns a client with a backend of its own: the library's global key, backends, logger and telemetry are not used.
func NewAPI(c APIConfig) *API {
	config := &stripe.BackendConfig{
		// The caller waits as long as it was told to, and may be interrupted; the library would sleep for a time of its own.
		MaxNetworkRetries: stripe.Int64(0), EnableTelemetry: new(false),
		LeveledLogger: &stripe.LeveledLogger{}, // it would write Stripe's answers to the standard error
		HTTPClient:    newClient(&paced{rate.NewLimiter(apiRequests, 1), newTransport()}),
	}
	if c.URL != "" {
		config.URL = new(strings.TrimSuffix(c.URL, "/"))
	}
	return &API{
		key: c.Key.Reveal(), types: c.Types, backend: stripe.GetBackendWithConfig(stripe.APIBackend, config),
		url: cmp.Or(strings.TrimSuffix(c.URL, "/"), stripe.APIURL), objects: newClient(newTransport()), decode: &Webhook{},
	}
}

// newClient returns a client for requests that bear the key.
func newClient(transport http.RoundTripper) *http.Client {
	return &http.Client{Timeout: apiTimeout, Transport: transport, CheckRedirect: noRedirect}
}

// newTransport is the library's usual one, apart from the pool that everybody shares.
func newTransport() http.RoundTripper {
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 90 * time.Second,
		MaxIdleConnsPerHost: 16,
	}
}

// errRedirect is an answer that names another address. Following it would carry the key there.
var errRedirect = errors.New("it redirects, which is not followed: STRIPE_API_URL names another address than Stripe's API")

// paced keeps requests apart, and takes a redirect for an error: the client never sees one.
type paced struct {
	limit *rate.Limiter
	next  http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (p *paced) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := p.limit.Wait(r.Context()); err != nil {
		return nil, err
	}
	resp, err := p.next.RoundTrip(r)
	if err == nil && resp.StatusCode/100 == 3 {
		_ = resp.Body.Close()
		return nil, errRedirect
	}
	return resp, err
}

// listed is one event of a page, as it was sent: the library's own type refuses old accounts' events, and a page with one of them.
type listed struct {
	ID  string // the library turns pages by it
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

// Events lists the events of our types that were created in a time, both ends included, the newest first, page by page as they are
// asked for; after, unless it is "", is the event after which to begin. An event that cannot be read has an id and nothing else. An
// error ends the list; it is a *Refusal where Stripe, or the way there, is to blame. Stripe lists the last 30 days.
func (a *API) Events(ctx context.Context, since, until time.Time, after string) iter.Seq2[purchase.Event, error] {
	return func(yield func(purchase.Event, error) bool) {
		params := &stripe.EventListParams{
			Types:        stripe.StringSlice(a.types),
			CreatedRange: &stripe.RangeQueryParams{GreaterThanOrEqual: since.Unix(), LesserThanOrEqual: until.Unix()},
		}
		params.Context, params.Limit = ctx, stripe.Int64(apiPage)
		if after != "" {
			params.StartingAfter = new(after)
		}
		list := stripe.GetIter(params, func(p *stripe.Params, query *form.Values) ([]any, stripe.ListContainer, error) {
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
		})
		for list.Next() {
			entry, ok := list.Current().(*listed)
			if !ok {
				continue // cannot be: the query above returns nothing else
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
			yield(purchase.Event{}, refusal(ctx, err))
		}
	}
}

// Refusal is why Stripe's API gave no list. It holds nothing of the key, and nothing of an event.
type Refusal struct {
	Status int // 0: no usable answer
	told   string
	wait   time.Duration
	gone   bool
	err    error // of the way there; nil: Stripe answered
}

// Error implements error.
func (r *Refusal) Error() string { return r.told }

// Unwrap returns what was wrong on the way.
func (r *Refusal) Unwrap() error { return r.err }

// Passing says whether the same question may be answered later, and how long Stripe asked to wait at least.
func (r *Refusal) Passing() (wait time.Duration, passing bool) {
	return r.wait, r.Status == 0 && !errors.Is(r.err, errRedirect) || r.Status == http.StatusTooManyRequests || r.Status == http.StatusConflict || r.Status >= 500
}

// Gone says that Stripe does not know the event after which the list was to begin.
func (r *Refusal) Gone() bool { return r.gone }

// refusal puts an error of the library into words that may be told.
func refusal(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("list Stripe's events: %w", ctx.Err())
	}
	answer := new(stripe.Error)
	if !errors.As(err, &answer) {
		if failed := new(url.Error); errors.As(err, &failed) {
			return &Refusal{told: "Stripe's API cannot be reached: " + failed.Err.Error(), err: failed.Err}
		}
		// A page that was cut off, or is none: the library's error would repeat what was sent.
		return &Refusal{told: "Stripe's API sent an answer that cannot be read"}
	}
	r := &Refusal{Status: answer.HTTPStatusCode, gone: answer.Param == "starting_after" && answer.Code == stripe.ErrorCodeResourceMissing}
	if answer.LastResponse != nil {
		if seconds, err := strconv.Atoi(answer.LastResponse.Header.Get("Retry-After")); err == nil && seconds > 0 {
			r.wait = time.Duration(seconds) * time.Second
		}
	}
	remedy := ""
	switch r.Status {
	case http.StatusUnauthorized:
		remedy = ": STRIPE_API_KEY is not known to Stripe; make a restricted key there that may read events and checkout sessions"
	case http.StatusForbidden:
		remedy = ": STRIPE_API_KEY may not do this; give the restricted key the right to read events and checkout sessions"
	case http.StatusTooManyRequests:
		remedy = ": too many requests of this account at once"
	}
	r.told = fmt.Sprintf("Stripe's API answered %d%s (request %s)", r.Status, remedy, purchase.Tellable(answer.RequestID))
	if remedy == "" && r.Status < 500 {
		r.told = fmt.Sprintf("Stripe's API answered %d, code %s about %s (request %s)", r.Status,
			purchase.Tellable(string(answer.Code)), purchase.Tellable(answer.Param), purchase.Tellable(answer.RequestID))
	}
	return r
}
