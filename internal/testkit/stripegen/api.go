package stripegen

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/gjson"
	"golang.org/x/time/rate"
)

// API is a strict stand-in for the paths of Stripe's API in routes. A request needs a test key, sk_test_… or
// rk_test_…, which reads the events of both modes. Parameters that a route does not name are rejected: a test
// of an ignored filter would pass. POST /events is not Stripe's: it adds the event in the body, without key.
// API is safe for concurrent use.
type API struct {
	PayURL string // prefix of a created session's url; the session's id follows

	mux       http.ServeMux
	mu        sync.Mutex
	events    []listed          // oldest first
	objects   map[string]listed // by id, events too
	sessions  []Checkout        // oldest first
	endpoints []Endpoint        // oldest first

	healthy, failing int // requests before the fault, requests with it
	fault            Fault
	share            float64    // of requests with a random fault
	random           *rand.Rand // of these faults
	limiter          *rate.Limiter
	limitedUntil     time.Time
	stats            Stats
}

// listed is an element of a list, or an object.
type listed struct {
	id, kind string // kind: the type of an event, or of an object
	created  int64  // of an object: the time of the newest event about it
	body     []byte
}

// route is a path of Stripe's.
type route struct {
	pattern  string
	required string // names of parameters, separated by blanks
	params   string // expression for each parameter, as name=value
	respond  func(*API, *http.Request) answer
}

const pageParams = `limit=([1-9]\d?|100)|starting_after=.+`

// routes lists events and endpoints newest first. An object is as of the newest event about it.
var routes = []route{
	{"GET /v1/events", "", pageParams + `|types\[\d*]=.+|created\[[gl]te]=\d{1,18}`, (*API).listEvents},
	{"GET /v1/events/{id}", "", "", get("event")},
	{"GET /v1/checkout/sessions/{id}", "", "", get("checkout.session")},
	{"GET /v1/invoices/{id}", "", "", get("invoice")},
	{
		"POST /v1/checkout/sessions", "mode line_items[0][price] line_items[0][quantity] success_url",
		`(mode|line_items\[\d+]\[(price|quantity)]|success_url|cancel_url)=.+|client_reference_id=[\w-]{0,200}|` +
			`phone_number_collection\[enabled]=(true|false)|billing_address_collection=(auto|required)|` +
			`metadata\[[^][]{1,40}]=.{0,500}`, (*API).createSession,
	},
	{"GET /v1/webhook_endpoints", "", pageParams, (*API).listEndpoints},
	{
		"POST /v1/webhook_endpoints", "url enabled_events[0]",
		`url=https?://[^/]+.*|(description|api_version)=.*|connect=(true|false)|` +
			`enabled_events\[\d*]=(\*|[a-uw-z]\w*(\.\w+)+)`, // no thin event: v1.…
		(*API).createEndpoint,
	},
	{
		"GET /v2/core/event_destinations", "",
		`include\[0]=webhook_endpoint\.url|page=\d+`, (*API).listDestinations,
	},
	{"/", "", ".*", func(_ *API, r *http.Request) answer {
		return refuse(http.StatusNotFound, "", "", "Unrecognized request URL: "+r.Method+" "+r.URL.Path)
	}},
}

// NewAPI returns an API without events.
func NewAPI() *API {
	a := &API{objects: map[string]listed{}, limiter: rate.NewLimiter(rate.Inf, 1)}
	for _, route := range routes {
		a.mux.HandleFunc(route.pattern, a.handle(route))
	}
	a.mux.HandleFunc("POST /events", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err == nil {
			err = a.Add(body)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	return a
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// Add adds an event, unless its id is known. The body must not change afterwards.
func (a *API) Add(body []byte) error {
	e := gjson.ParseBytes(body)
	id, kind, created := e.Get("id").String(), e.Get("type").String(), e.Get("created").Int()
	if !gjson.ValidBytes(body) || id == "" || kind == "" || created <= 0 {
		return errors.New("an event is JSON with id, type and created")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.objects[id]; known {
		return nil
	}
	a.objects[id] = listed{kind: "event", body: body}
	object := e.Get("data.object")
	if about := object.Get("id").String(); about != "" && created >= a.objects[about].created {
		a.objects[about] = listed{about, object.Get("object").String(), created, []byte(object.Raw)}
	}
	at := sort.Search(len(a.events), func(i int) bool { return a.events[i].created > created })
	a.events = slices.Insert(a.events, at, listed{id, kind, created, body})
	return nil
}

// handle wraps a handler of Stripe's own API with the rate limit, the faults and the check of the key.
func (a *API) handle(route route) http.HandlerFunc {
	params := regexp.MustCompile("^(?s:" + route.params + ")$")
	return func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm() // of a bad form the valid fields count
		a.mu.Lock()
		fault := a.admit(time.Now())
		response := faults[fault]
		switch {
		case fault != 0 && fault != Cut && fault != Huge:
		case !testKey.MatchString(r.Header.Get("Authorization")):
			response = faults[http.StatusUnauthorized]
		default:
			if response = route.check(params, r.Form); response.status == 0 {
				response = route.respond(a, r)
			}
		}
		a.mu.Unlock()
		header := w.Header()
		if fault == Slow {
			_, _ = io.Copy(io.Discard, r.Body) // the server notices that a client left once the body is read
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		}
		if fault == Huge {
			response.body = append(slices.Clip(response.body), bytes.Repeat([]byte(" "), 17<<20)...)
		}
		if fault == Redirect {
			_, port, _ := strings.Cut(r.Host, ":")
			header.Set("Location", "http://localhost:"+port+r.URL.Path)
		}
		if response.status == http.StatusTooManyRequests {
			header.Set("Retry-After", "1")
		}
		header.Set("Content-Type", response.contentType)
		header.Set("Request-Id", ID("req_", 14))
		header.Set("Content-Length", strconv.Itoa(len(response.body)))
		w.WriteHeader(response.status)
		if fault == Cut {
			_, _ = w.Write(response.body[:len(response.body)/2])
			_ = http.NewResponseController(w).Flush() // else net/http sends nothing of a short answer
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(response.body) // an error means that the client left
	}
}

var testKey = regexp.MustCompile(`^Bearer [sr]k_test_.`)

// check returns an error about the parameters, if there is one.
func (r route) check(params *regexp.Regexp, form url.Values) (problem answer) {
	for name := range strings.FieldsSeq(r.required) {
		if form.Get(name) == "" {
			return badRequest("parameter_missing", name, "Missing required param.")
		}
	}
	for name, values := range form {
		if !params.MatchString(name + "=" + values[0]) {
			return badRequest("parameter_unknown", name, "Received unknown parameter, or an invalid value.")
		}
	}
	return problem
}

func get(kind string) func(*API, *http.Request) answer {
	return func(a *API, r *http.Request) answer {
		o := a.objects[r.PathValue("id")]
		if o.kind != kind {
			return refuse(http.StatusNotFound, "resource_missing", "id", "No such "+kind)
		}
		return ok(o.body)
	}
}

func (a *API) listEvents(r *http.Request) answer { return list(r, a.events) }

// list answers with a page of what matches the query, newest first. elements is in the opposite order.
func list(r *http.Request, elements []listed) answer {
	number := func(name string) int64 {
		n, _ := strconv.ParseInt(r.Form.Get(name), 10, 64)
		return n
	}
	limit, since := cmp.Or(number("limit"), 10), number("created[gte]")
	until := cmp.Or(number("created[lte]"), math.MaxInt64)
	var types []string
	for name, values := range r.Form {
		if strings.HasPrefix(name, "types[") {
			types = append(types, values...)
		}
	}
	if len(types) > 20 {
		return badRequest("", "types", "You may pass up to 20 types.")
	}
	if id := r.Form.Get("starting_after"); id != "" {
		at := slices.IndexFunc(elements, func(l listed) bool { return l.id == id })
		if at < 0 {
			return badRequest("resource_missing", "starting_after", "No such object: "+id)
		}
		elements = elements[:at]
	}
	var page [][]byte
	more := false
	for _, l := range slices.Backward(elements) {
		if l.created < since || l.created > until || types != nil && !slices.Contains(types, l.kind) {
			continue
		}
		if more = int64(len(page)) == limit; more {
			break
		}
		page = append(page, l.body)
	}
	// encoding/json would change the white space of the events and escape their < > &.
	return ok(fmt.Appendf(nil, `{"object":"list","data":[%s],"has_more":%t,"url":%q}`,
		bytes.Join(page, []byte(",")), more, r.URL.Path))
}
