package stripegen

import (
	"cmp"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
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

var endpointParams = regexp.MustCompile(`^(limit|starting_after)$`)

func (a *API) webhookEndpoints() (all []listed) {
	for _, e := range a.endpoints {
		if !e.Destination {
			all = append(all, listed{id: e.ID, body: encode(e.fields(true))})
		}
	}
	return all
}

func (a *API) listEndpoints(r *http.Request) answer {
	return list(r, endpointParams, a.webhookEndpoints())
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
	from, withURL := 0, r.Form.Get("include[0]") == "webhook_endpoint.url"
	for name, values := range r.Form {
		var err error
		if name == "page" {
			from, err = strconv.Atoi(values[0])
		}
		if err != nil || from < 0 || name != "page" && (name != "include[0]" || !withURL) {
			return badRequest("unknown_field", name, "Unknown field or value: "+name)
		}
	}
	all := []fields{}
	for _, e := range slices.Backward(a.endpoints) {
		if e.Destination {
			all = append(all, e.fields(withURL))
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

var eventType = regexp.MustCompile(`^(\*|[a-uw-z]\w*(\.\w+)+)$`) // no thin one

func (a *API) createEndpoint(r *http.Request) answer {
	e := Endpoint{ID: ID("we_", 24), URL: r.PostForm.Get("url"), Secret: ID("whsec_", 32)}
	for name, values := range r.PostForm {
		switch {
		case strings.HasPrefix(name, "enabled_events["):
			e.Types = append(e.Types, values...)
		case name == "api_version":
			e.APIVersion = values[0]
		case !slices.Contains([]string{"url", "description", "connect"}, name):
			return badRequest("", name, "Received unknown parameter: "+name)
		}
	}
	slices.Sort(e.Types)
	u, err := url.Parse(e.URL)
	switch invalid := func(t string) bool { return !eventType.MatchString(t) }; {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return badRequest("", "url", "Invalid URL: it must begin with https://.")
	case len(e.Types) == 0 || slices.ContainsFunc(e.Types, invalid):
		return badRequest("", "enabled_events", "Missing required param, or invalid event type.")
	case len(a.webhookEndpoints()) >= maxEndpoints:
		return badRequest("", "", "You have reached the maximum of webhook endpoints.")
	}
	a.endpoints = append(a.endpoints, e)
	created := e.fields(true)
	created["secret"] = e.Secret // in this response only
	return ok(encode(created))
}

var (
	metadataParam = regexp.MustCompile(`^metadata\[([^\[\]]{1,40})\]$`)
	reference     = regexp.MustCompile(`^[A-Za-z0-9_-]{0,200}$`)
)

func (a *API) createSession(r *http.Request) answer {
	form := r.PostForm
	for _, name := range []string{"mode", "line_items[0][price]", "line_items[0][quantity]", "success_url"} {
		if form.Get(name) == "" {
			return badRequest("", name, "Missing required param: "+name)
		}
	}
	c := NewCheckout()
	c.Mode, c.SuccessURL, c.Metadata = form.Get("mode"), form.Get("success_url"), map[string]string{}
	c.Reference = form.Get("client_reference_id")
	if !reference.MatchString(c.Reference) {
		return badRequest("", "client_reference_id", "Only letters, digits, dashes and underscores, 200 at most.")
	}
	for name, values := range form {
		if !strings.HasPrefix(name, "metadata") {
			continue
		}
		key := metadataParam.FindStringSubmatch(name)
		if key == nil || utf8.RuneCountInString(values[0]) > 500 {
			return badRequest("", name, "Metadata keys have 1 to 40 characters without brackets, values 500 at most.")
		}
		c.Metadata[key[1]] = values[0]
	}
	if len(c.Metadata) > 50 {
		return badRequest("", "metadata", "Metadata can have up to 50 keys.")
	}
	a.sessions = append(a.sessions, c)
	return ok(encode(fields{
		"id": c.SessionID, "object": "checkout.session", "url": a.PayURL + c.SessionID, "metadata": c.Metadata,
	}))
}
