package stripegen

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// retention is how long Stripe lists an event.
const retention = 30 * 24 * time.Hour

// API is a strict stand-in for Stripe's API:
//
//	GET  /v1/events                newest first; limit, starting_after, types[], created[gte], created[lte]
//	GET  <path>{id}                an object of objectTypes, as of the newest event about it
//	POST /v1/checkout/sessions     see Sessions
//	GET  /v1/webhook_endpoints     newest first; limit, starting_after
//	POST /v1/webhook_endpoints     url, enabled_events[], description, connect, api_version
//	GET  /v2/core/event_destinations  include[0], page; needs the header Stripe-Version
//	POST /events                   not Stripe's: adds the event in the body, without a key
//
// Other requests need a test key, sk_test_… or rk_test_…, which reads the events of both modes. Unknown
// parameters are rejected: a test of an ignored filter would pass. API is safe for concurrent use.
type API struct {
	PayURL string // prefix of a created session's url; the session's id follows

	mux       *http.ServeMux
	mu        sync.Mutex
	events    []storedEvent     // by time of creation, oldest first
	objects   map[string]object // by id, events too
	sessions  []Checkout
	endpoints []Endpoint // newest first
	file      *os.File   // nil: nothing is kept

	healthy, failing int // requests before the fault, requests with it
	fault            Fault
	share            float64       // of requests with a random fault
	random           *rand.Rand    // of these faults
	limiter          *rate.Limiter // nil: no limit
	limitedUntil     time.Time
	stats            Stats
}

// objectTypes are the paths under which objects are fetched by id, and the types of the objects.
var objectTypes = map[string]string{
	"/v1/events/":            "event",
	"/v1/checkout/sessions/": "checkout.session",
	"/v1/invoices/":          "invoice",
}

type storedEvent struct {
	ID      string
	Type    string
	Created int64
	Data    struct {
		Object json.RawMessage
	}
	body []byte
}

type object struct {
	ID      string
	Type    string `json:"object"`
	changed int64
	body    []byte
}

// NewAPI returns an API without events.
func NewAPI() *API {
	a := &API{mux: http.NewServeMux(), objects: map[string]object{}}
	a.mux.HandleFunc("GET /v1/events", a.handle(a.listEvents))
	for path, kind := range objectTypes {
		a.mux.HandleFunc("GET "+path+"{id}", a.handle(a.getObject(kind)))
	}
	a.mux.HandleFunc("POST /v1/checkout/sessions", a.handle(a.createSession))
	a.mux.HandleFunc("GET /v1/webhook_endpoints", a.handle(a.listEndpoints))
	a.mux.HandleFunc("POST /v1/webhook_endpoints", a.handle(a.createEndpoint))
	a.mux.HandleFunc("GET /v2/core/event_destinations", a.handle(a.listDestinations))
	a.mux.HandleFunc("/", a.handle(unknownURL))
	a.mux.HandleFunc("POST /events", a.postEvent)
	return a
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// Open returns an API that keeps its events in a file, one per line, for the next start. It must be closed.
// fresh reports whether the file is new. Events that Stripe would no longer list are left out.
func Open(path string, now time.Time) (a *API, fresh bool, err error) {
	lines, err := os.ReadFile(path) //nolint:gosec // the caller's own folder
	fresh = errors.Is(err, fs.ErrNotExist)
	if err != nil && !fresh {
		return nil, false, err
	}
	a = NewAPI()
	for line := range bytes.Lines(lines) {
		e, err := parseEvent(bytes.TrimSpace(line))
		if err == nil && now.Sub(time.Unix(e.Created, 0)) <= retention { // a crash may have cut a line
			a.add(e)
		}
	}
	a.file, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600) //nolint:gosec // the same
	return a, fresh, err
}

// Close closes the file.
func (a *API) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.file.Close()
}

// Add adds an event, unless its id is known. The body must not change afterwards.
func (a *API) Add(body []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file != nil {
		var line bytes.Buffer
		if err := json.Compact(&line, body); err != nil {
			return err
		}
		body = line.Bytes()
	}
	e, err := parseEvent(body)
	if err != nil || !a.add(e) || a.file == nil {
		return err
	}
	_, err = fmt.Fprintf(a.file, "\n%s\n", body) // not behind a line that a crash has cut
	return err
}

func parseEvent(body []byte) (e storedEvent, err error) {
	e.body = body
	if err := json.Unmarshal(body, &e); err != nil {
		return e, err
	}
	if e.ID == "" || e.Type == "" || e.Created <= 0 {
		return e, errors.New("an event needs id, type and created")
	}
	return e, nil
}

// add reports whether the event is new.
func (a *API) add(e storedEvent) bool {
	if _, known := a.objects[e.ID]; known {
		return false
	}
	a.objects[e.ID] = object{Type: "event", body: e.body}
	o := object{changed: e.Created, body: e.Data.Object}
	err := json.Unmarshal(e.Data.Object, &o)
	if err == nil && o.ID != "" && o.changed >= a.objects[o.ID].changed {
		a.objects[o.ID] = o
	}
	at := sort.Search(len(a.events), func(i int) bool { return a.events[i].Created > e.Created })
	a.events = slices.Insert(a.events, at, e)
	return true
}

func (a *API) postEvent(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err == nil {
		err = a.Add(body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// handle wraps a handler of Stripe's own API with the rate limit, the faults and the check of the key.
func (a *API) handle(respond func(*http.Request) answer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		limited, fault := a.admit(time.Now())
		if fault == Slow {
			_, _ = io.Copy(io.Discard, r.Body) // the server notices that a client left once the body is read
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		}
		response, faulty := faults[fault]
		switch {
		case limited:
			response = faults[http.StatusTooManyRequests]
		case faulty:
		case fault == Redirect:
			_, port, _ := strings.Cut(r.Host, ":")
			w.Header().Set("Location", "http://localhost:"+port+r.URL.Path)
			response.status = http.StatusTemporaryRedirect
		case !authorized(r):
			response = faults[http.StatusUnauthorized]
		default:
			response = respond(r)
		}
		if fault == Huge {
			response.body = append(slices.Clip(response.body), bytes.Repeat([]byte(" "), 17<<20)...)
		}
		if response.status == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", "1")
		}
		w.Header().Set("Content-Type", response.contentType)
		w.Header().Set("Request-Id", ID("req_", 14))
		w.Header().Set("Content-Length", strconv.Itoa(len(response.body)))
		w.WriteHeader(response.status)
		if fault == Cut {
			_, _ = w.Write(response.body[:len(response.body)/2])
			_ = http.NewResponseController(w).Flush() // else net/http sends nothing of a short answer
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(response.body) // an error means that the client left
	}
}

var testKey = regexp.MustCompile(`^[sr]k_test_.`)

func authorized(r *http.Request) bool {
	key, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !bearer {
		key, _, _ = r.BasicAuth()
	}
	return testKey.MatchString(key)
}

func unknownURL(r *http.Request) answer {
	return refuse(http.StatusNotFound, "", "", "Unrecognized request URL (%s: %s).", r.Method, r.URL.Path)
}

func (a *API) getObject(kind string) func(*http.Request) answer {
	return func(r *http.Request) answer {
		a.mu.Lock()
		defer a.mu.Unlock()
		id := r.PathValue("id")
		if a.objects[id].Type != kind {
			return refuse(http.StatusNotFound, "resource_missing", "id", "No such %s: '%s'", kind, id)
		}
		return ok(a.objects[id].body)
	}
}

func (a *API) listEvents(r *http.Request) answer {
	limit, since, until := int64(10), int64(0), int64(math.MaxInt64)
	numbers := map[string]func(n int64){
		"limit":        func(n int64) { limit = n },
		"created[gte]": func(n int64) { since = n },
		"created[lte]": func(n int64) { until = n },
	}
	query := r.URL.Query()
	var types []string
	for name, values := range query {
		set, isNumber := numbers[name]
		switch {
		case isNumber:
			n, err := strconv.ParseInt(values[0], 10, 64)
			if err != nil || name == "limit" && (n < 1 || n > 100) {
				return badRequest("parameter_invalid_integer", name, "Invalid integer: %s", values[0])
			}
			set(n)
		case strings.HasPrefix(name, "types["):
			types = append(types, values...)
		case name != "starting_after":
			return badRequest("parameter_unknown", name, "Received unknown parameter: %s", name)
		}
	}
	if len(types) > 20 {
		return badRequest("", "types", "You may pass up to 20 types.")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	older := a.events
	if query.Has("starting_after") {
		id := query.Get("starting_after")
		at := slices.IndexFunc(a.events, func(e storedEvent) bool { return e.ID == id })
		if at < 0 {
			return badRequest("resource_missing", "starting_after", "No such event: '%s'", id)
		}
		older = a.events[:at]
	}
	var page [][]byte
	more := false
	for _, e := range slices.Backward(older) {
		if e.Created < since || e.Created > until || types != nil && !slices.Contains(types, e.Type) {
			continue
		}
		if more = int64(len(page)) == limit; more {
			break
		}
		page = append(page, e.body)
	}
	// encoding/json would change the white space of the events and escape their < > &.
	return ok(fmt.Appendf(nil, `{"object":"list","data":[%s],"has_more":%t,"url":"/v1/events"}`,
		bytes.Join(page, []byte(",")), more))
}
