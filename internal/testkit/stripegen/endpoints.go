package stripegen

import (
	"cmp"
	"net/http"
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
	e.ID = cmp.Or(e.ID, ID("we_", 24))
	a.endpoints = append(a.endpoints, e)
}

// Endpoints returns all endpoints, newest first.
func (a *API) Endpoints() (list []Endpoint) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range slices.Backward(a.endpoints) {
		list = append(list, e)
	}
	return list
}

// Sessions returns the sessions that were created through the API, oldest first, as paid.
func (a *API) Sessions() []Checkout {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.sessions)
}

func (a *API) webhookEndpoints() (all []listed) {
	for _, e := range a.endpoints {
		if !e.Destination {
			all = append(all, listed{id: e.ID, body: encode(e.fields(true))})
		}
	}
	return all
}

func (a *API) listEndpoints(r *http.Request) answer {
	return list(r, a.webhookEndpoints())
}

// fields returns the object. A destination has no URL unless it was asked for, as Stripe's.
func (e Endpoint) fields(withURL bool) fields {
	status, payload, shown := "enabled", "snapshot", ""
	if e.Disabled {
		status = "disabled"
	}
	if e.Thin {
		payload = "thin"
	}
	if withURL {
		shown = e.URL
	}
	f := fields{
		"id": e.ID, "object": "webhook_endpoint", "api_version": orNull(e.APIVersion), "description": nil,
		"enabled_events": e.Types, "livemode": e.Livemode, "status": status, "url": shown,
	}
	if e.Destination {
		kind := cmp.Or(e.Type, "webhook_endpoint")
		delete(f, "api_version")
		delete(f, "url")
		f["object"], f["type"], f[kind] = "v2.core.event_destination", kind, fields{"url": orNull(shown)}
		f["event_payload"], f["snapshot_api_version"] = payload, orNull(e.APIVersion)
	}
	return f
}

func (a *API) listDestinations(r *http.Request) answer {
	if r.Header.Get("Stripe-Version") == "" {
		return badRequest("", "", "Pass an API version in the header Stripe-Version.")
	}
	from, _ := strconv.Atoi(r.Form.Get("page"))
	all := []fields{}
	for _, e := range slices.Backward(a.endpoints) {
		if e.Destination {
			all = append(all, e.fields(r.Form.Has("include[0]")))
		}
	}
	all = all[min(from, len(all)):]
	var next any
	if len(all) > destinationPage {
		r.Form.Set("page", strconv.Itoa(from+destinationPage))
		next = r.URL.Path + "?" + r.Form.Encode()
	}
	page := all[:min(destinationPage, len(all))]
	return ok(encode(fields{"data": page, "next_page_url": next, "previous_page_url": nil}))
}

func (a *API) createEndpoint(r *http.Request) answer {
	if len(a.webhookEndpoints()) >= maxEndpoints {
		return badRequest("", "", "You have reached the maximum of webhook endpoints.")
	}
	e := Endpoint{
		ID: ID("we_", 24), URL: r.Form.Get("url"), APIVersion: r.Form.Get("api_version"), Secret: ID("whsec_", 32),
	}
	for name, values := range r.Form {
		if strings.HasPrefix(name, "enabled_events[") {
			e.Types = append(e.Types, values...)
		}
	}
	slices.Sort(e.Types)
	a.endpoints = append(a.endpoints, e)
	created := e.fields(true)
	created["secret"] = e.Secret // in this response only
	return ok(encode(created))
}

func (a *API) createSession(r *http.Request) answer {
	c := NewCheckout()
	c.Mode, c.SuccessURL, c.Metadata = r.Form.Get("mode"), r.Form.Get("success_url"), map[string]string{}
	c.Reference = r.Form.Get("client_reference_id")
	for name, values := range r.Form {
		if key, ok := strings.CutPrefix(name, "metadata["); ok {
			c.Metadata[strings.TrimSuffix(key, "]")] = values[0]
		}
	}
	if len(c.Metadata) > 50 {
		return badRequest("", "metadata", "Metadata can have up to 50 keys.")
	}
	a.sessions = append(a.sessions, c)
	return ok(encode(fields{
		"id": c.SessionID, "object": "checkout.session", "url": a.PayURL + c.SessionID, "metadata": c.Metadata,
	}))
}
