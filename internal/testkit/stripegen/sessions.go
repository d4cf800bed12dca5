package stripegen

import (
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"
)

// Sessions is a strict stand-in for the part of Stripe's API that creates Checkout Sessions:
//
//	POST /v1/checkout/sessions
//
// It wants a test key as EventList does, a mode, a line item and a success_url, and refuses metadata that Stripe refuses: more than
// 50 keys, a key of more than 40 characters or with brackets, a value of more than 500. The session's url leads to Pay, with the
// session's id behind it. It is safe for concurrent use.
type Sessions struct {
	Pay string // where a buyer is sent

	mu      sync.Mutex
	created []Session
}

// Session is one that was created, as it was asked for.
type Session struct {
	ID, Mode, SuccessURL, Reference string
	Metadata                        map[string]string
	Form                            url.Values
}

// Created lists them, oldest first.
func (s *Sessions) Created() []Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Session(nil), s.created...)
}

// Checkout is the session's paid event.
func (s *Session) Checkout() Checkout {
	c := NewCheckout()
	c.SessionID, c.Mode, c.Metadata, c.Reference = s.ID, s.Mode, s.Metadata, s.Reference
	return c
}

var (
	metadataName  = regexp.MustCompile(`^metadata\[([^\[\]]*)\]$`)
	referenceForm = regexp.MustCompile(`^[A-Za-z0-9_-]{0,200}$`)
)

// ServeHTTP implements http.Handler.
func (s *Sessions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	session, refused := newSession(r)
	if refused != nil {
		w.WriteHeader(refused.status)
		_, _ = w.Write(refused.body()) //nolint:gosec // it is JSON and says so; an error means that the client went
		return
	}
	s.mu.Lock()
	s.created = append(s.created, session)
	s.mu.Unlock()
	_ = json.NewEncoder(w).Encode(map[string]any{"id": session.ID, "object": "checkout.session", "url": s.Pay + session.ID, "metadata": session.Metadata})
}

func newSession(r *http.Request) (session Session, refused *refusal) {
	bad := func(param, format string, args ...any) (Session, *refusal) {
		return Session{}, invalid(http.StatusBadRequest, "", param, format, args...)
	}
	switch {
	case !authorized(r):
		return Session{}, invalid(http.StatusUnauthorized, "", "", "Invalid API key: give a test key, sk_test_… or rk_test_…, as bearer.")
	case r.Method != http.MethodPost || r.URL.Path != "/v1/checkout/sessions":
		return Session{}, invalid(http.StatusNotFound, "", "", "Unrecognized request URL (%s: %s).", r.Method, r.URL.Path)
	case !strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded"):
		return bad("", "Send a form, not %q.", r.Header.Get("Content-Type"))
	}
	if err := r.ParseForm(); err != nil {
		return bad("", "Invalid form.")
	}
	form := r.PostForm
	for _, name := range []string{"mode", "line_items[0][price]", "line_items[0][quantity]", "success_url"} {
		if form.Get(name) == "" {
			return bad(name, "Missing required param: %s.", name)
		}
	}
	session = Session{
		ID: ID("cs_test_a1", 56), Mode: form.Get("mode"), SuccessURL: form.Get("success_url"), Reference: form.Get("client_reference_id"),
		Metadata: map[string]string{}, Form: form,
	}
	if !referenceForm.MatchString(session.Reference) {
		return bad("client_reference_id", "Only letters, digits, dashes and underscores, 200 at most.")
	}
	for name, values := range form {
		if !strings.HasPrefix(name, "metadata") {
			continue
		}
		key := metadataName.FindStringSubmatch(name)
		switch {
		case key == nil || key[1] == "" || utf8.RuneCountInString(key[1]) > 40:
			return bad(name, "Metadata keys have 1 to 40 characters, without brackets.")
		case utf8.RuneCountInString(values[0]) > 500:
			return bad(name, "Metadata values can have up to 500 characters, but you passed in a value that is %d characters.", utf8.RuneCountInString(values[0]))
		}
		session.Metadata[key[1]] = values[0]
	}
	if len(session.Metadata) > 50 {
		return bad("metadata", "You can have up to 50 keys.")
	}
	return session, nil
}
