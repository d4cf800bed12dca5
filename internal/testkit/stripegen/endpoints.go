package stripegen

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Endpoint is a webhook endpoint or an event destination of the API.
type Endpoint struct {
	ID          string // "": a new one
	Destination bool   // listed as an event destination, else as a webhook endpoint
	Type        string // of a destination; "": webhook_endpoint
	URL         string // of a webhook
	Disabled    bool
	Types       []string // with the prefix v1. for thin events
	Thin        bool     // a destination's payload
	APIVersion  string   // "": none
	Livemode    bool
	Secret      string // of a created endpoint
}

const (
	maxEndpoints    = 16
	destinationPage = 20 // destinations
)

// AddEndpoint adds an endpoint as the newest one.
func (a *API) AddEndpoint(e Endpoint) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e.ID == "" {
		e.ID = ID("we_", 24)
	}
	a.endpoints = slices.Insert(a.endpoints, 0, e)
}

// Endpoints returns all endpoints, newest first.
func (a *API) Endpoints() []Endpoint {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.endpoints)
}

// listed returns the webhook endpoints or the event destinations.
func (a *API) listed(destinations bool) (list []Endpoint) {
	for _, e := range a.endpoints {
		if e.Destination == destinations {
			list = append(list, e)
		}
	}
	return list
}

func (a *API) listEndpoints(r *http.Request) answer {
	limit, after := 10, ""
	for name, values := range r.URL.Query() {
		switch name {
		case "limit":
			n, err := strconv.Atoi(values[0])
			if err != nil || n < 1 || n > 100 {
				return badRequest("parameter_invalid_integer", name, "Invalid integer: %s", values[0])
			}
			limit = n
		case "starting_after":
			after = values[0]
		default:
			return badRequest("parameter_unknown", name, "Received unknown parameter: %s", name)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	list := a.listed(false)
	if after != "" {
		at := slices.IndexFunc(list, func(e Endpoint) bool { return e.ID == after })
		if at < 0 {
			return badRequest("resource_missing", "starting_after", "No such webhook endpoint: '%s'", after)
		}
		list = list[at+1:]
	}
	page := []map[string]any{}
	for _, e := range list[:min(limit, len(list))] {
		page = append(page, e.webhookEndpoint())
	}
	return encode(map[string]any{
		"object": "list", "url": "/v1/webhook_endpoints", "data": page, "has_more": len(list) > limit,
	})
}

func (a *API) listDestinations(r *http.Request) answer {
	if r.Header.Get("Stripe-Version") == "" {
		return badRequest("", "", "Pass an API version in the header Stripe-Version.")
	}
	from, withURL := 0, false
	for name, values := range r.URL.Query() {
		switch {
		case name == "include[0]" && values[0] == "webhook_endpoint.url":
			withURL = true
		case name == "page":
			n, err := strconv.Atoi(values[0])
			if err != nil || n < 0 {
				return badRequest("invalid_fields", name, "Invalid page.")
			}
			from = n
		default:
			return badRequest("unknown_field", name, "Unknown field or value: %s", name)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	list := a.listed(true)
	list = list[min(from, len(list)):]
	page := []map[string]any{}
	for _, e := range list[:min(destinationPage, len(list))] {
		page = append(page, e.eventDestination(withURL))
	}
	var next any
	if len(list) > destinationPage {
		query := r.URL.Query()
		query.Set("page", strconv.Itoa(from+destinationPage))
		next = r.URL.Path + "?" + query.Encode()
	}
	return encode(map[string]any{"data": page, "next_page_url": next, "previous_page_url": nil})
}

func (a *API) createEndpoint(r *http.Request) answer {
	if kind := r.Header.Get("Content-Type"); !strings.HasPrefix(kind, "application/x-www-form-urlencoded") {
		return badRequest("", "", "The content type is %q, not that of a form.", kind)
	}
	if err := r.ParseForm(); err != nil {
		return badRequest("", "", "Invalid form.")
	}
	e, param, problem := newEndpoint(r.PostForm)
	if problem != "" {
		return badRequest("", param, "%s", problem)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.listed(false)) >= maxEndpoints {
		return badRequest("", "", "You have reached the maximum of %d webhook endpoints.", maxEndpoints)
	}
	a.endpoints = slices.Insert(a.endpoints, 0, e)
	created := e.webhookEndpoint()
	created["secret"] = e.Secret // in this response only
	return encode(created)
}

// newEndpoint returns the endpoint of a form, or the first problem that Stripe reports, and its parameter.
func newEndpoint(form url.Values) (e Endpoint, param, problem string) {
	e = Endpoint{ID: ID("we_", 24), URL: form.Get("url"), Secret: ID("whsec_", 32)}
	for name, values := range form {
		switch {
		case strings.HasPrefix(name, "enabled_events["):
			e.Types = append(e.Types, values...)
		case name == "api_version":
			e.APIVersion = values[0]
		case !slices.Contains([]string{"url", "description", "connect"}, name):
			return e, name, "Received unknown parameter: " + name
		}
	}
	slices.Sort(e.Types)
	u, err := url.Parse(e.URL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return e, "url", "Invalid URL: it must begin with https://."
	case len(e.Types) == 0:
		return e, "enabled_events", "Missing required param: enabled_events."
	}
	for _, t := range e.Types {
		if t != "*" && (strings.HasPrefix(t, "v1.") || strings.Count(t, ".") == 0) {
			return e, "enabled_events", "Invalid event type: " + t
		}
	}
	return e, "", ""
}

func (e Endpoint) status() string {
	if e.Disabled {
		return "disabled"
	}
	return "enabled"
}

// nullable returns a string, or null for the empty one.
func nullable(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func (e Endpoint) webhookEndpoint() map[string]any {
	return map[string]any{
		"id": e.ID, "object": "webhook_endpoint", "api_version": nullable(e.APIVersion), "application": nil,
		"created": 1_750_000_000, "description": nil, "enabled_events": e.Types, "livemode": e.Livemode,
		"metadata": map[string]string{}, "status": e.status(), "url": e.URL,
	}
}

// eventDestination leaves the URL out unless it was asked for, as Stripe does.
func (e Endpoint) eventDestination(withURL bool) map[string]any {
	kind, payload := e.Type, "snapshot"
	if kind == "" {
		kind = "webhook_endpoint"
	}
	if e.Thin {
		payload = "thin"
	}
	d := map[string]any{
		"id": e.ID, "object": "v2.core.event_destination", "created": "2026-11-01T10:00:00.000Z",
		"description": "", "enabled_events": e.Types, "event_payload": payload, "events_from": []string{"self"},
		"livemode": e.Livemode, "metadata": map[string]string{}, "name": "purchases", "status": e.status(),
		"snapshot_api_version": nullable(e.APIVersion), "type": kind, "updated": "2026-11-01T10:00:00.000Z",
	}
	if kind == "webhook_endpoint" {
		webhook := map[string]any{"signing_secret": nil, "url": nil}
		if withURL {
			webhook["url"] = e.URL
		}
		d["webhook_endpoint"] = webhook
	} else {
		d[kind] = map[string]any{}
	}
	return d
}

func encode(v any) answer {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings, booleans and maps of them: cannot happen
	}
	return ok(body)
}
