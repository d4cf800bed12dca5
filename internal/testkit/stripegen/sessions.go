package stripegen

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Sessions returns the sessions that were created through the API, oldest first, as paid.
func (a *API) Sessions() []Checkout {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.sessions)
}

func (a *API) createSession(r *http.Request) answer {
	if kind := r.Header.Get("Content-Type"); !strings.HasPrefix(kind, "application/x-www-form-urlencoded") {
		return badRequest("", "", "The content type is %q, not that of a form.", kind)
	}
	if err := r.ParseForm(); err != nil {
		return badRequest("", "", "Invalid form.")
	}
	form := r.PostForm
	metadata, param, problem := checkSession(form)
	if problem != "" {
		return badRequest("", param, "%s", problem)
	}
	c := NewCheckout()
	c.Mode, c.SuccessURL = form.Get("mode"), form.Get("success_url")
	c.Reference, c.Metadata = form.Get("client_reference_id"), metadata
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sessions = append(a.sessions, c)
	return encode(map[string]any{
		"id": c.SessionID, "object": "checkout.session", "url": a.PayURL + c.SessionID, "metadata": metadata,
	})
}

var (
	metadataParam = regexp.MustCompile(`^metadata\[([^\[\]]{1,40})\]$`)
	reference     = regexp.MustCompile(`^[A-Za-z0-9_-]{0,200}$`)
)

// checkSession returns the metadata of a form, or the first problem that Stripe reports, and its parameter.
func checkSession(form url.Values) (metadata map[string]string, param, problem string) {
	for _, name := range []string{"mode", "line_items[0][price]", "line_items[0][quantity]", "success_url"} {
		if form.Get(name) == "" {
			return nil, name, "Missing required param: " + name + "."
		}
	}
	if !reference.MatchString(form.Get("client_reference_id")) {
		return nil, "client_reference_id", "Only letters, digits, dashes and underscores, 200 at most."
	}
	metadata = map[string]string{}
	for name, values := range form {
		key := metadataParam.FindStringSubmatch(name)
		switch {
		case !strings.HasPrefix(name, "metadata"):
		case key == nil:
			return nil, name, "Metadata keys have 1 to 40 characters, without brackets."
		case utf8.RuneCountInString(values[0]) > 500:
			return nil, name, "Metadata values can have up to 500 characters."
		default:
			metadata[key[1]] = values[0]
		}
	}
	if len(metadata) > 50 {
		return nil, "metadata", "Metadata can have up to 50 keys."
	}
	return metadata, "", ""
}
