package stripe

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

const (
	// The shop shares Stripe's limits of 100 requests per second in live mode and 25 in test mode.
	maxRequestsPerSecond = 5
	pageSize             = 100      // objects; Stripe's maximum
	maxList              = 16 << 20 // bytes of a page
	apiTimeout           = 30 * time.Second
)

// APIConfig configures an API.
type APIConfig struct {
	Key   secret.String // rk_live_… or rk_test_… with read access to events and checkout sessions; or sk_…
	URL   string        // "": Stripe's
	Types []string      // event types to list; at most 20
}

// Problems returns the problems of a configuration. They do not contain the key.
func (c APIConfig) Problems() (list []string) {
	if !hasPrefix(c.Key, "rk_", "sk_") {
		list = append(list, "STRIPE_API_KEY does not look like rk_live_… or rk_test_…")
	}
	if c.URL == "" {
		return list
	}
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http":
		list = append(list, "STRIPE_API_URL is not an http(s) URL")
	case u.Scheme == "http" && c.Livemode():
		list = append(list, "STRIPE_API_URL is not https: a live key is not sent in the clear")
	}
	return list
}

// Livemode reports whether the key is of live mode.
func (c APIConfig) Livemode() bool { return hasPrefix(c.Key, "rk_live_", "sk_live_") }

// Unrestricted reports whether the key has write access.
func (c APIConfig) Unrestricted() bool { return hasPrefix(c.Key, "sk_") }

// hasPrefix reports whether the key is one of the prefixes and more.
func hasPrefix(key secret.String, prefixes ...string) bool {
	for _, p := range prefixes {
		if rest, ok := strings.CutPrefix(key.Reveal(), p); ok && rest != "" {
			return true
		}
	}
	return false
}

// API lists events and endpoints, creates endpoints and fetches the objects of thin events. It is safe for
// concurrent use. All requests but those for objects share one rate limit.
type API struct {
	key     string
	types   []string
	backend stripe.Backend
	url     string       // without a final slash
	objects *http.Client // for thin events' objects: the buyer waits
	lists   *http.Client // also the backend's
}

// NewAPI returns an API. It does not use the library's global key, backends, logger and telemetry.
func NewAPI(c APIConfig) *API {
	lists := newClient(&listTransport{rate.NewLimiter(maxRequestsPerSecond, 1), newTransport()})
	config := &stripe.BackendConfig{
		// The caller retries: the library would sleep without regard to the context.
		MaxNetworkRetries: stripe.Int64(0), EnableTelemetry: new(false),
		LeveledLogger: &stripe.LeveledLogger{}, // the default logs responses to stderr
		HTTPClient:    lists,
	}
	if c.URL != "" {
		config.URL = new(strings.TrimSuffix(c.URL, "/"))
	}
	return &API{
		key: c.Key.Reveal(), types: c.Types, backend: stripe.GetBackendWithConfig(stripe.APIBackend, config),
		url:     cmp.Or(strings.TrimSuffix(c.URL, "/"), stripe.APIURL),
		objects: newClient(newTransport()), lists: lists,
	}
}

// errRedirect is returned for a redirect, which would send the key to another URL.
var errRedirect = errors.New("redirect rejected: STRIPE_API_URL is not Stripe's API")

func newClient(transport http.RoundTripper) *http.Client {
	reject := func(*http.Request, []*http.Request) error { return errRedirect }
	return &http.Client{Timeout: apiTimeout, Transport: transport, CheckRedirect: reject}
}

func newTransport() http.RoundTripper {
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout: 90 * time.Second, MaxIdleConnsPerHost: 16,
	}
}

// listTransport is a rate-limited transport with bounded responses. It returns a redirect as an error: the
// library would decode its body as a list.
type listTransport struct {
	limiter *rate.Limiter
	next    http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *listTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := t.limiter.Wait(r.Context()); err != nil {
		return nil, err
	}
	resp, err := t.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 3 {
		_ = resp.Body.Close()
		return nil, errRedirect
	}
	resp.Body = &boundedBody{resp.Body, maxList}
	return resp, nil
}

var errTooLarge = errors.New("larger than 16 MiB")

// boundedBody returns errTooLarge once more than left bytes were read. The library reads bodies to their end.
type boundedBody struct {
	io.ReadCloser
	left int
}

// Read implements io.Reader.
func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}

// listed is one undecoded object of a page. The library's types reject old accounts' events, and with them
// the page.
type listed struct {
	ID  string // the library's paging cursor
	raw json.RawMessage
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *listed) UnmarshalJSON(raw []byte) error {
	var object struct{ ID string }
	if err := json.Unmarshal(raw, &object); err != nil || object.ID == "" {
		return errors.New("listed object has no id")
	}
	l.ID, l.raw = object.ID, bytes.Clone(raw)
	return nil
}

type page struct {
	stripe.APIResource
	stripe.ListMeta
	Object string    `json:"object"`
	Data   []*listed `json:"data"`
}

// A task names a kind of request in errors. Its permission is that of a restricted key in Stripe.
type task struct{ name, permission string }

// list fetches the list at path page by page. An error ends it; it is an *APIError unless ctx ended.
func (a *API) list(
	ctx context.Context, t task, path string, params stripe.ListParamsContainer,
) iter.Seq2[*listed, error] {
	return func(yield func(*listed, error) bool) {
		params.GetListParams().Context, params.GetListParams().Limit = ctx, stripe.Int64(pageSize)
		fetch := func(p *stripe.Params, query *form.Values) ([]any, stripe.ListContainer, error) {
			page := &page{}
			err := a.backend.CallRaw(http.MethodGet, path, a.key, query, p, page)
			if err == nil && page.Object != "list" {
				err = errUnreadable()
			}
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
		pages := stripe.GetIter(params, fetch)
		for pages.Next() {
			entry, ok := pages.Current().(*listed)
			if ok && !yield(entry, nil) { // always ok: fetch returns no other type
				return
			}
		}
		if err := pages.Err(); err != nil {
			yield(nil, t.failed(ctx, err))
		}
	}
}

// Events lists the events of the configured types created from since to until (inclusive), newest first, and
// fetches pages as needed. The list starts after the event with the id after; "": with the newest. An
// undecodable event has only an ID. An error ends the list; it is an *APIError unless ctx ended. Stripe lists
// the last 30 days.
func (a *API) Events(
	ctx context.Context, since, until time.Time, after string,
) iter.Seq2[purchase.Event, error] {
	return func(yield func(purchase.Event, error) bool) {
		params := &stripe.EventListParams{
			Types:        stripe.StringSlice(a.types),
			CreatedRange: &stripe.RangeQueryParams{GreaterThanOrEqual: since.Unix(), LesserThanOrEqual: until.Unix()},
		}
		if after != "" {
			params.StartingAfter = new(after)
		}
		for entry, err := range a.list(ctx, task{"list Stripe's events", "Events: Read"}, "/v1/events", params) {
			if err != nil {
				yield(purchase.Event{}, err)
				return
			}
			event, err := decode(entry.raw)
			if err != nil {
				event = purchase.Event{ID: entry.ID}
			}
			if !yield(event, nil) {
				return
			}
		}
	}
}

// APIError is an error of Stripe's API or of the network. It contains neither the key nor personal data.
type APIError struct {
	Status     int // 0: no usable response
	message    string
	retryAfter time.Duration
	cursorGone bool
	err        error // network error; nil: Stripe responded
}

// Error implements error.
func (e *APIError) Error() string { return e.message }

// Unwrap returns the network error.
func (e *APIError) Unwrap() error { return e.err }

// Retryable reports whether the same request may succeed later, and the minimum wait.
func (e *APIError) Retryable() (wait time.Duration, retryable bool) {
	switch e.Status {
	case 0:
		return e.retryAfter, !errors.Is(e.err, errRedirect)
	case http.StatusTooManyRequests, http.StatusConflict:
		return e.retryAfter, true
	}
	return e.retryAfter, e.Status >= 500
}

// CursorGone reports that Stripe no longer lists the event to start after.
func (e *APIError) CursorGone() bool { return e.cursorGone }

// statusError returns the error of a response. Its body is left out: it may contain personal data.
func statusError(status int, cause, permission, requestID string) *APIError {
	switch status {
	case http.StatusUnauthorized:
		cause = "STRIPE_API_KEY is unknown"
	case http.StatusForbidden:
		_, right, _ := strings.Cut(permission, ": ")
		cause = fmt.Sprintf("STRIPE_API_KEY lacks %s permission (%s)", strings.ToLower(right), permission)
	case http.StatusTooManyRequests:
		cause = "rate limit exceeded"
	}
	if cause != "" {
		cause = ": " + cause
	}
	message := fmt.Sprintf("Stripe's API returned %d%s (request %s)", status, cause, purchase.LogSafe(requestID))
	return &APIError{Status: status, message: message}
}

// failed converts an error of the library, which may contain a response, to one that is safe to log.
func (t task) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", t.name, ctx.Err())
	}
	response := new(stripe.Error)
	if !errors.As(err, &response) {
		switch {
		case errors.As(err, new(*url.Error)):
			return callError(err)
		case errors.Is(err, errTooLarge), errors.Is(err, io.ErrUnexpectedEOF):
			return &APIError{message: "read Stripe's response: " + err.Error(), err: err}
		}
		return errUnreadable()
	}
	cause := ""
	if response.HTTPStatusCode < 500 {
		cause = fmt.Sprintf("code %s, parameter %s",
			purchase.LogSafe(string(response.Code)), purchase.LogSafe(response.Param))
	}
	failure := statusError(response.HTTPStatusCode, cause, t.permission, response.RequestID)
	failure.cursorGone = response.Param == "starting_after" && response.Code == stripe.ErrorCodeResourceMissing
	if response.LastResponse != nil {
		seconds, err := strconv.Atoi(response.LastResponse.Header.Get("Retry-After"))
		if err == nil && seconds > 0 {
			failure.retryAfter = time.Duration(seconds) * time.Second
		}
	}
	return failure
}
