// Package tiktoksim simulates TikTok's Events API 2.0 over HTTP. It refuses what TikTok refuses, with its
// codes, stores the events that it accepts and fails on demand:
//
//	POST   /open_api/v1.3/event/track/   a batch of 1 to 1,000 events
//	POST   /open_api/v1.3/pixel/track/   the older shape, one event
//	GET    /open_api/v1.3/pixel/event/stats/  how many events it counts, see Counting
//	PUT    /counting                     how it counts
//	GET    /events                       accepted events in order of arrival
//	GET    /stats                        counts, see Stats
//	POST   /faults                       add a fault, see Fault
//	DELETE /faults                       end all faults
//	GET    /healthz
//
// It shares no code with the product: it would share its misunderstandings, too.
package tiktoksim

import (
	"bytes"
	"cmp"
	cryptorand "crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxBody     = 10 << 20       // bytes; a larger body is malformed: only so much of it is read
	dedupWindow = 48 * time.Hour // how long TikTok recognises a repeat, from the first arrival
	maxDays     = 30             // of date_range
)

// AdvertiserID owns the pixels.
const AdvertiserID = "7000000000000000001"

// Config is the simulator's configuration. The zero value has one token and behaves well.
type Config struct {
	Token      string        // accepted Access-Token; "" is local-token
	TestToken  string        // another one; "" is none
	Pixel      string        // accepted event_source_id; "" is LOCALPIXEL
	StatsToken string        // the only token that may read counts; "" is any
	Misbehave  float64       // share of requests, 0 to 1, that get one of dailyFaults
	Latency    time.Duration // of every answer, plus or minus half of it
	Seed       uint64        // of the random choices; 0 picks one
}

// dailyFaults are what a sender must survive every day without a loss or a duplicate.
var dailyFaults = []Fault{
	{Code: 50000, Message: "Internal service error, please try again later"},
	{Status: http.StatusServiceUnavailable, HTML: true},
	{CutAfter: true},
}

// Event is an accepted event with its repeats.
type Event struct {
	EventID       string          `json:"event_id"`
	Event         string          `json:"event"`
	Pixel         string          `json:"pixel"`
	EventTime     int64           `json:"event_time"`
	TestEventCode string          `json:"test_event_code"`
	Body          json.RawMessage `json:"body"` // as first received; in the older shape the whole request
	FirstAt       time.Time       `json:"first_at"`
	Copies        int             `json:"copies"`   // arrivals, the first included
	Variants      int             `json:"variants"` // different bodies among them

	variants [][]byte // the bodies
}

// Stats are counts since the start, without requests for counts.
type Stats struct {
	Requests   int            `json:"requests"`   // with or without a fault
	Events     int            `json:"events"`     // in requests that reached the rules
	Accepted   int            `json:"accepted"`   // distinct events
	Duplicates int            `json:"duplicates"` // repeats within 48 hours
	ByCode     map[string]int `json:"by_code"`    // answers by TikTok's code, "http_503" or fault: "cut"
}

// Counting is how pixel/event/stats counts the accepted events. The zero value has no browser pixel.
type Counting struct {
	NoScope    bool    `json:"no_scope"`   // the token may not read counts: 40001
	Browser    float64 `json:"browser"`    // browser events per server event
	Attributed float64 `json:"attributed"` // share of all counted events, 0 to 1
}

// Simulator is an http.Handler that answers as TikTok does.
type Simulator struct {
	mu       sync.Mutex
	config   Config
	random   *rand.Rand
	faults   []Fault       // active ones, in the order of their injection
	cleared  chan struct{} // closed by Clear
	counting Counting
	stats    Stats
	events   []*Event // by first arrival
	latest   map[key]*Event
}

// key identifies an event at TikTok.
type key struct{ pixel, event, id string }

// New returns a simulator without events and faults.
func New(c Config) *Simulator {
	c.Token, c.Pixel = cmp.Or(c.Token, "local-token"), cmp.Or(c.Pixel, "LOCALPIXEL")
	random := rand.New(rand.NewPCG(cmp.Or(c.Seed, rand.Uint64()), 0)) //nolint:gosec // no secret
	return &Simulator{
		config: c, random: random, cleared: make(chan struct{}),
		stats: Stats{ByCode: map[string]int{}}, latest: map[key]*Event{},
	}
}

// ServeHTTP implements http.Handler. http.ServeMux would redirect to a cleaned path, which TikTok does not.
func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method + " " + r.URL.Path {
	case "POST /open_api/v1.3/event/track/":
		s.track(w, r, batchShape)
	case "POST /open_api/v1.3/pixel/track/":
		s.track(w, r, pixelShape)
	case "GET /open_api/v1.3/pixel/event/stats/":
		s.answer(w, r, request{stats: true}, func(Fault) answer { return s.count(r) })
	case "PUT /counting":
		var c Counting
		if accepted(w, decode(r.Body, &c)) {
			s.SetCounting(c)
		}
	case "POST /faults":
		if f, err := readFault(r.Body); accepted(w, err) {
			s.Inject(f)
		}
	case "DELETE /faults":
		s.Clear()
	case "GET /events":
		writeJSON(w, s.Received())
	case "GET /stats":
		writeJSON(w, s.Stats())
	case "GET /healthz":
		_, _ = io.WriteString(w, "ok\n")
	default:
		http.NotFound(w, r)
	}
}

// accepted reports whether there is no error, and answers 400 where there is one.
func accepted(w http.ResponseWriter, err error) bool {
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
	return err == nil
}

// decode rejects unknown fields: a misspelt fault would test nothing.
func decode(body io.Reader, v any) error {
	decoder := json.NewDecoder(body)
	decoder.DisallowUnknownFields()
	return decoder.Decode(v)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // fails only if the client disconnected
}

// Received returns every accepted event in order of arrival.
func (s *Simulator) Received() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	events := make([]Event, len(s.events))
	for i, e := range s.events {
		events[i] = *e
	}
	return events
}

// Stats returns the counts.
func (s *Simulator) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.ByCode = maps.Clone(stats.ByCode)
	return stats
}

// Inject adds a fault, as POST /faults does. It panics on one that POST /faults rejects.
func (s *Simulator) Inject(f Fault) {
	if err := f.validate(); err != nil {
		panic("tiktoksim: inject a fault: " + err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f.until = time.Now().Add(f.For)
	s.faults = append(s.faults, f)
}

// Clear ends all faults and the requests that hang in one, as DELETE /faults does. Without it
// httptest.Server.Close waits for those.
func (s *Simulator) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.cleared)
	s.faults, s.cleared = nil, make(chan struct{})
}

// SetToken replaces the accepted Access-Token, as a rotation does.
func (s *Simulator) SetToken(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config.Token = token
}

// SetCounting replaces how events are counted, as PUT /counting does.
func (s *Simulator) SetCounting(c Counting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counting = c
}

func (s *Simulator) track(w http.ResponseWriter, r *http.Request, shape shape) {
	// net/http cancels the context of a disconnected client only after the whole body was read.
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		panic(http.ErrAbortHandler) // the client disconnected
	}
	req := shape.parse(body)
	s.answer(w, r, req, func(f Fault) answer { return s.judge(r.Header, req, f.DuplicateCode) })
}

// answer answers a request with the fault that applies, or as judge does. The events are stored before the
// delay: a client's timeout is an ambiguous failure.
func (s *Simulator) answer(w http.ResponseWriter, r *http.Request, req request, judge func(Fault) answer) {
	s.mu.Lock()
	fault, cleared := s.fault(req), s.cleared
	name, delay := fault.name(), fault.Latency+time.Duration(float64(s.config.Latency)*(0.5+s.random.Float64()))
	write := func() { fault.write(w, r, cleared) }
	if name == "" || fault.CutAfter {
		reply := judge(fault)
		if name == "" {
			name, write = strconv.Itoa(reply.Code), func() { writeJSON(w, reply) }
		}
	}
	if !req.stats {
		s.stats.Requests++
		s.stats.ByCode[name]++
	}
	s.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-r.Context().Done():
		panic(http.ErrAbortHandler)
	}
	write()
}

// fault returns the fault that applies to a request.
func (s *Simulator) fault(req request) (f Fault) {
	now := time.Now()
	s.faults = slices.DeleteFunc(s.faults, func(f Fault) bool { return f.For > 0 && !now.Before(f.until) })
	i := slices.IndexFunc(s.faults, func(f Fault) bool {
		return f.matches(req) && (f.Rate == 0 || s.random.Float64() < f.Rate)
	})
	switch {
	case i >= 0:
		f = s.faults[i]
		if s.faults[i].Count--; f.Count == 1 {
			s.faults = slices.Delete(s.faults, i, i+1)
		}
	case !req.stats && s.random.Float64() < s.config.Misbehave:
		f = dailyFaults[s.random.IntN(len(dailyFaults))]
	}
	return f
}

// judge refuses a request or stores its events. TikTok checks the token before the body.
func (s *Simulator) judge(header http.Header, req request, duplicateCode int) answer {
	s.stats.Events += len(req.events)
	media, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	refusal := tokenRefusal(header.Get("Access-Token"), s.config.Token, s.config.TestToken)
	switch {
	case refusal.Code != 0:
		return refusal
	case err != nil || media != "application/json":
		return newAnswer(40000, "Content-Type must be application/json")
	case header.Get("Content-Encoding") != "":
		return newAnswer(40000, "Content-Encoding is not supported")
	case req.violation.Code != 0:
		return req.violation
	case req.pixel != s.config.Pixel || req.source != "web": // a pixel is a source of web events only
		message := fmt.Sprintf("No permission to operate %s event source %q", req.source, req.pixel)
		return newAnswer(40001, message)
	}
	allKnown := true
	for _, e := range req.events {
		allKnown = !s.accept(e, time.Now()) && allKnown
	}
	if allKnown && duplicateCode != 0 {
		return newAnswer(duplicateCode, "Duplicated request")
	}
	return newAnswer(0, "OK")
}

// accept stores an event. It reports whether the event is new.
func (s *Simulator) accept(e Event, now time.Time) bool {
	k := key{e.Pixel, e.Event, e.EventID}
	known := s.latest[k]
	repeated := known != nil && now.Sub(known.FirstAt) < dedupWindow
	if repeated {
		s.stats.Duplicates++
	} else {
		s.stats.Accepted++
		e.FirstAt, known = now, &e
		s.events, s.latest[k] = append(s.events, known), known
	}
	known.Copies++
	if !slices.ContainsFunc(known.variants, func(b []byte) bool { return bytes.Equal(b, e.Body) }) {
		known.variants = append(known.variants, e.Body)
		known.Variants++
	}
	return !repeated
}

// tokenRefusal returns an answer with Code 0 for one of the known tokens.
func tokenRefusal(token string, known ...string) (a answer) {
	switch {
	case token == "":
		a = newAnswer(40104, "Access token is missing: the request needs an Access-Token header")
	case !slices.Contains(known, token):
		a = newAnswer(40105, "Access token is incorrect or has been revoked")
	}
	return a
}

// count answers pixel/event/stats. An event belongs to the UTC day of its event_time.
func (s *Simulator) count(r *http.Request) answer {
	token, query := r.Header.Get("Access-Token"), r.URL.Query()
	if a := tokenRefusal(token, s.config.Token, s.config.TestToken, s.config.StatsToken); a.Code != 0 {
		return a
	}
	if s.counting.NoScope || s.config.StatsToken != "" && token != s.config.StatsToken {
		return newAnswer(40001, "No permission to operate: the access token lacks the scope of pixel/event/stats")
	}
	var pixels []string
	var dates struct {
		Start string `json:"start_date"`
		End   string `json:"end_date"`
	}
	id, pixelErr := query.Get("advertiser_id"), json.Unmarshal([]byte(query.Get("pixel_ids")), &pixels)
	dateErr := decode(strings.NewReader(query.Get("date_range")), &dates)
	start, startErr := time.Parse(time.DateOnly, dates.Start)
	end, endErr := time.Parse(time.DateOnly, dates.End)
	foreign := slices.IndexFunc(pixels, func(pixel string) bool { return pixel != s.config.Pixel })
	switch {
	case strings.Trim(id, "0123456789") != "" || id == "":
		return newAnswer(40002, "advertiser_id: Missing data for required field.")
	case id != AdvertiserID:
		return newAnswer(40001, "No permission to operate advertiser "+id)
	case pixelErr != nil || len(pixels) < 1 || len(pixels) > 10:
		return newAnswer(40002, "pixel_ids: Not a list of 1 to 10.")
	case errors.Join(dateErr, startErr, endErr) != nil:
		return newAnswer(40002, "date_range: Not a valid date range.")
	case end.Before(start) || end.Sub(start) >= maxDays*24*time.Hour:
		return newAnswer(40002, fmt.Sprintf("date_range: Must be 1 to %d days.", maxDays))
	case len(query) > 3:
		return newAnswer(40002, "Unknown field.")
	case foreign >= 0:
		return newAnswer(40001, fmt.Sprintf("No permission to operate pixel %q", pixels[foreign]))
	}
	server := map[string]int{} // events by type
	for _, e := range s.events {
		if at := time.Unix(e.EventTime, 0); !at.Before(start) && at.Before(end.AddDate(0, 0, 1)) {
			name := strings.ToUpper(e.Event)
			if e.Event == "CompletePayment" || e.Event == "Purchase" {
				name = "SHOPPING"
			}
			server[name]++
		}
	}
	type row = map[string]any
	rows := []row{}
	for _, name := range slices.Sorted(maps.Keys(server)) {
		browser := int(float64(server[name])*s.counting.Browser + 0.5)
		total := server[name] + browser
		rows = append(rows, row{
			"pixel_event_type": name, "total_count": total, "browser_event_total_count": browser,
			"server_event_total_count": server[name], "preview_count": 0,
			"attributed_count": int(float64(total)*s.counting.Attributed + 0.5),
		})
	}
	a := newAnswer(0, "OK")
	list := []row{}
	for _, pixel := range pixels {
		list = append(list, row{"pixel_id": pixel, "statistics": rows})
	}
	a.Data = row{"list": list}
	return a
}

// answer is TikTok's answer, errors included.
type answer struct {
	Code      int            `json:"code"`
	Message   string         `json:"message"`
	RequestID string         `json:"request_id"`
	Data      map[string]any `json:"data"`
}

// newAnswer returns an answer whose request_id begins with the second, as TikTok's does.
func newAnswer(code int, message string) answer {
	id := time.Now().UTC().Format("20060102150405") + cryptorand.Text()
	return answer{Code: code, Message: message, RequestID: id, Data: map[string]any{}}
}
