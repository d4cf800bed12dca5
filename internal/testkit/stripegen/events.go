package stripegen

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const eventsPath = "/v1/events"

// EventList is a strict stand-in for the part of Stripe's API that lists events, newest first:
//
//	GET /v1/events        limit (1 to 100, else 10), starting_after, ending_before, type (may hold *), types[] (20 at most),
//	                      created, created[gt], created[gte], created[lt], created[lte]; in Unix seconds
//	GET /v1/events/{id}
//	GET /v1/checkout/sessions/{id}, GET /v1/invoices/{id}    the object as the newest event about it has it
//
// It wants a test key, sk_test_… or rk_test_…, as bearer or as the user of basic authentication, and shows it the events
// of both modes, however old. It refuses every parameter that it does not know: a filter that was passed over would test
// nothing. The zero value is empty and ready. It is safe for concurrent use.
type EventList struct {
	mu      sync.Mutex
	events  []listed          // oldest first
	created map[string]int64  // by id
	objects map[string]object // by id

	healthy, failures, failWith int // requests until the next failure, how many fail then, and with what
	perSecond, inSecond         int
	second, closed              time.Time // when the second began that is counted; until when nothing is answered
	stats                       Stats
}

// Stats are the requests that came.
type Stats struct {
	Requests  int // all
	Limited   int // of these, refused for the rate
	Impatient int // of these, before the time that the refusal before it had named
	Failed    int // failed on demand
}

// Stats returns the counts so far.
func (l *EventList) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// Limit refuses what comes above so many requests a second, and then everything for a second, which Retry-After names; 0: no limit.
func (l *EventList) Limit(perSecond int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.perSecond = perSecond
}

type listed struct {
	ID      string
	Type    string
	Created int64
	Data    struct {
		Object json.RawMessage `json:"object"`
	} `json:"data"`
	body []byte
}

// object is a session or an invoice.
type object struct {
	ID   string `json:"id"`
	Kind string `json:"object"`
	at   int64  // of the event
	body []byte
}

// Add lists an event. It keeps the body itself, which must not change any more. An event whose id is listed already stays
// as it is. It returns an error for what is no event with an id, a type and a time.
func (l *EventList) Add(body []byte) error {
	e := listed{body: body}
	if err := json.Unmarshal(body, &e); err != nil {
		return err
	}
	if e.ID == "" || e.Type == "" || e.Created <= 0 {
		return errors.New("an event has an id, a type and a time at which it was created")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.created[e.ID]; known {
		return nil
	}
	if l.created == nil {
		l.created = make(map[string]int64)
	}
	l.created[e.ID] = e.Created
	l.keep(&e)
	l.events = slices.Insert(l.events, l.newerThan(e.Created), e)
	return nil
}

// keep keeps an event's object, where it is the newest.
func (l *EventList) keep(e *listed) {
	o := object{at: e.Created, body: e.Data.Object}
	if err := json.Unmarshal(e.Data.Object, &o); err != nil || o.ID == "" || l.objects[o.ID].at > o.at {
		return // another object's event, or an older one
	}
	if l.objects == nil {
		l.objects = make(map[string]object)
	}
	l.objects[o.ID] = o
	e.Data.Object = nil // the body has it
}

// Cut is a status to fail with: it breaks an answer off in its middle.
const Cut = -1

// Fail answers the next n requests, right or wrong, with a status: 429 for Stripe's rate limit, 500 to 599, or Cut. It
// replaces what is left of an earlier call.
func (l *EventList) Fail(n, status int) { l.FailLater(0, n, status) }

// FailLater does it after so many more requests: in the middle of a list that is read page by page.
func (l *EventList) FailLater(after, n, status int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.healthy, l.failures, l.failWith = after, n, status
}

// ServeHTTP implements http.Handler.
func (l *EventList) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	status := http.StatusOK
	answer, cut, refused := l.answer(r)
	if refused != nil {
		status, answer = refused.status, refused.body()
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Request-Id", ID("req_", 14))
	if refused != nil && refused.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(refused.retryAfter))
	}
	if cut {
		w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
		answer = answer[:len(answer)/2]
	}
	w.WriteHeader(status)
	_, _ = w.Write(answer) //nolint:gosec // it is JSON and says so; an error means that the client went
	if cut {
		panic(http.ErrAbortHandler)
	}
}

// refusal is one of Stripe's errors.
type refusal struct {
	status     int
	retryAfter int // seconds; 0: it does not say

	Type    string `json:"type"`
	Code    string `json:"code,omitempty"`
	Param   string `json:"param,omitempty"`
	Message string `json:"message"`
}

func (r *refusal) body() []byte {
	body, err := json.Marshal(map[string]*refusal{"error": r})
	if err != nil {
		panic(err) // strings alone: cannot happen
	}
	return body
}

func invalid(status int, code, param, format string, args ...any) *refusal {
	return &refusal{status: status, Type: "invalid_request_error", Code: code, Param: param, Message: fmt.Sprintf(format, args...)}
}

// answer makes the answer to a request; cut says that it is to be broken off.
func (l *EventList) answer(r *http.Request) (body []byte, cut bool, refused *refusal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Requests++
	if refused := l.tooMany(time.Now()); refused != nil {
		return nil, false, refused
	}
	if l.healthy > 0 {
		l.healthy--
	} else if l.failures > 0 {
		l.failures--
		l.stats.Failed++
		switch l.failWith {
		case Cut:
			cut = true
		case http.StatusTooManyRequests:
			return nil, false, invalid(l.failWith, "rate_limit", "", "Request rate limit exceeded.")
		default:
			return nil, false, &refusal{status: l.failWith, Type: "api_error", Message: "An unknown error occurred."}
		}
	}
	body, refused = l.asked(r)
	return body, cut && refused == nil, refused
}

// tooMany refuses what comes too fast.
func (l *EventList) tooMany(now time.Time) *refusal {
	if now.Sub(l.second) >= time.Second {
		l.second, l.inSecond = now, 0
	}
	l.inSecond++
	early := now.Before(l.closed)
	if l.perSecond == 0 || l.inSecond <= l.perSecond && !early {
		return nil
	}
	l.stats.Limited++
	if early {
		l.stats.Impatient++
	} else {
		l.closed = now.Add(time.Second)
	}
	refused := invalid(http.StatusTooManyRequests, "rate_limit", "", "Request rate limit exceeded.")
	refused.retryAfter = 1
	return refused
}

// asked answers what a request asks for.
func (l *EventList) asked(r *http.Request) ([]byte, *refusal) {
	if !authorized(r) {
		return nil, invalid(http.StatusUnauthorized, "", "", "Invalid API key: give a test key, sk_test_… or rk_test_…, as bearer.")
	}
	for path, kind := range map[string]string{sessionsPath: "checkout.session", invoicesPath: "invoice"} {
		if id, is := strings.CutPrefix(r.URL.Path, path); is && r.Method == http.MethodGet {
			o := l.objects[id]
			if o.Kind != kind {
				return nil, invalid(http.StatusNotFound, "resource_missing", "id", "No such %s: '%s'", kind, id)
			}
			return o.body, nil
		}
	}
	id, one := strings.CutPrefix(r.URL.Path, eventsPath+"/")
	switch {
	case r.Method != http.MethodGet || !one && r.URL.Path != eventsPath:
		return nil, invalid(http.StatusNotFound, "", "", "Unrecognized request URL (%s: %s).", r.Method, r.URL.Path)
	case one:
		at, refused := l.index(http.StatusNotFound, "id", id)
		if refused != nil {
			return nil, refused
		}
		return l.events[at].body, nil
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, invalid(http.StatusBadRequest, "", "", "Invalid query string.")
	}
	return l.page(query)
}

func authorized(r *http.Request) bool {
	key, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !bearer {
		key, _, _ = r.BasicAuth()
	}
	return len(key) > len("sk_test_") && (strings.HasPrefix(key, "sk_test_") || strings.HasPrefix(key, "rk_test_"))
}

// newerThan is the position of the first event that was created after a time.
func (l *EventList) newerThan(created int64) int {
	at, _ := slices.BinarySearchFunc(l.events, created, func(e listed, created int64) int {
		if e.Created > created {
			return 1
		}
		return -1
	})
	return at
}

// index is the position of an event that a parameter names.
func (l *EventList) index(status int, param, id string) (int, *refusal) {
	created, known := l.created[id]
	if !known {
		return 0, invalid(status, "resource_missing", param, "No such notification: '%s'", id)
	}
	at := l.newerThan(created) - 1
	for l.events[at].ID != id {
		at--
	}
	return at, nil
}

var (
	typesName   = regexp.MustCompile(`^types\[\d*\]$`)
	comparisons = map[string]func(created, bound int64) bool{
		"created":      func(created, bound int64) bool { return created == bound },
		"created[gt]":  func(created, bound int64) bool { return created > bound },
		"created[gte]": func(created, bound int64) bool { return created >= bound },
		"created[lt]":  func(created, bound int64) bool { return created < bound },
		"created[lte]": func(created, bound int64) bool { return created <= bound },
	}
)

// page answers a request for a part of the list.
func (l *EventList) page(query url.Values) ([]byte, *refusal) {
	limit, types, filters := 10, []string(nil), []func(listed) bool(nil)
	for _, name := range slices.Sorted(maps.Keys(query)) {
		value := query.Get(name)
		number, err := strconv.ParseInt(value, 10, 64)
		compare, isTime := comparisons[name]
		if err != nil && (isTime || name == "limit") {
			return nil, invalid(http.StatusBadRequest, "parameter_invalid_integer", name, "Invalid integer: %s", value)
		}
		switch {
		case isTime:
			filters = append(filters, func(e listed) bool { return compare(e.Created, number) })
		case name == "limit":
			if number < 1 || number > 100 {
				return nil, invalid(http.StatusBadRequest, "parameter_invalid_integer", name, "The limit is from 1 to 100.")
			}
			limit = int(number)
		case name == "type":
			filters = append(filters, func(e listed) bool {
				matches, err := path.Match(value, e.Type)
				return matches && err == nil
			})
		case typesName.MatchString(name):
			types = append(types, query[name]...)
		case name != "starting_after" && name != "ending_before":
			return nil, invalid(http.StatusBadRequest, "parameter_unknown", name, "Received unknown parameter: %s", name)
		}
	}
	switch {
	case query.Has("type") && types != nil:
		return nil, invalid(http.StatusBadRequest, "", "types", "You may pass either type or types, but not both.")
	case len(types) > 20:
		return nil, invalid(http.StatusBadRequest, "", "types", "You may pass up to 20 types.")
	case types != nil:
		filters = append(filters, func(e listed) bool { return slices.Contains(types, e.Type) })
	}
	events, backwards, refused := l.from(query)
	if refused != nil {
		return nil, refused
	}
	var bodies [][]byte
	more := false
	for _, e := range events {
		if slices.ContainsFunc(filters, func(passes func(listed) bool) bool { return !passes(e) }) {
			continue
		}
		if more = len(bodies) == limit; more {
			break
		}
		bodies = append(bodies, e.body)
	}
	if backwards {
		slices.Reverse(bodies)
	}
	// Put together by hand: encoding/json would rewrite the events' white space and their < > &.
	return fmt.Appendf(nil, `{"object":"list","data":[%s],"has_more":%t,"url":"%s"}`, bytes.Join(bodies, []byte(",")), more, eventsPath), nil
}

// from returns the events on the asked side of the cursor, the nearest to it first, and whether that is backwards: from
// the older to the newer ones. The cursor itself need not pass the filters.
func (l *EventList) from(query url.Values) (events iter.Seq2[int, listed], backwards bool, refused *refusal) {
	at := len(l.events)
	switch {
	case query.Has("starting_after") && query.Has("ending_before"):
		return nil, false, invalid(http.StatusBadRequest, "", "", "You may pass either starting_after or ending_before, but not both.")
	case query.Has("ending_before"):
		if at, refused = l.index(http.StatusBadRequest, "ending_before", query.Get("ending_before")); refused != nil {
			return nil, false, refused
		}
		return slices.All(l.events[at+1:]), true, nil
	case query.Has("starting_after"):
		if at, refused = l.index(http.StatusBadRequest, "starting_after", query.Get("starting_after")); refused != nil {
			return nil, false, refused
		}
	}
	return slices.Backward(l.events[:at]), false, nil
}
