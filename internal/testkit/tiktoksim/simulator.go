// Package tiktoksim simulates TikTok's Events API 2.0 over HTTP. It refuses what TikTok refuses, with its
// codes, stores the events that it accepts and fails on demand:
//
//	POST   /open_api/v1.3/event/track/   a batch of 1 to 1,000 events
//	POST   /open_api/v1.3/pixel/track/   the older shape, one event
//	GET    /open_api/v1.3/pixel/event/stats/  how many events it counts, see Counting
//	PUT    /counting                     how it counts
//	GET    /events[?event_id=…]          accepted events in order of arrival
//	DELETE /events                       delete them and reset the counts
//	GET    /stats                        counts, see Stats
//	POST   /faults                       add a fault, see Fault
//	GET    /faults                       active faults
//	DELETE /faults                       end all faults
//	GET    /healthz
//
// It shares no code with the product: it would share its misunderstandings, too.
package tiktoksim

import (
	"cmp"
	cryptorand "crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// maxBody is the limit of a body, in bytes. A larger one is malformed: only so much of it is read.
const maxBody = 10 << 20

// Config is the simulator's configuration. The zero value has one destination and behaves well.
type Config struct {
	Token string // accepted Access-Token; "" is local-token
	Pixel string // accepted event_source_id; "" is LOCALPIXEL

	// TestToken and TestPixel are a second destination; one that is empty is the first one's.
	TestToken, TestPixel string

	AdvertiserID string // owner of the pixels; "" is 7000000000000000001
	StatsToken   string // the only token that may read counts; "" is any

	Misbehave float64       // share of requests, 0 to 1, that get one of dailyFaults
	Latency   time.Duration // of every answer, plus or minus half of it
	Seed      uint64        // of the random choices; 0 picks one
}

// dailyFaults are what a sender must survive every day without a loss or a duplicate.
var dailyFaults = []Fault{
	{Code: 50000, Message: "Internal service error, please try again later"},
	{Status: http.StatusServiceUnavailable, HTML: true},
	{CutAfter: true},
}

// Simulator is an http.Handler that answers as TikTok does.
type Simulator struct {
	config Config

	mu     sync.Mutex
	token  string
	random *rand.Rand
	faults faults
	store  store

	counting Counting
}

// New returns a simulator without events and faults.
func New(c Config) *Simulator {
	c.Token, c.Pixel = cmp.Or(c.Token, "local-token"), cmp.Or(c.Pixel, "LOCALPIXEL")
	c.AdvertiserID = cmp.Or(c.AdvertiserID, "7000000000000000001")
	c.Seed = cmp.Or(c.Seed, rand.Uint64()) //nolint:gosec // no secret
	return &Simulator{
		config: c, token: c.Token, faults: faults{cleared: make(chan struct{})}, store: newStore(),
		random: rand.New(rand.NewPCG(c.Seed, 0)), //nolint:gosec // no secret
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
		s.pixelStats(w, r)
	case "PUT /counting":
		s.putCounting(w, r)
	case "GET /events":
		id := r.URL.Query().Get("event_id")
		writeJSON(w, slices.DeleteFunc(s.Received(), func(e Event) bool { return id != "" && e.EventID != id }))
	case "DELETE /events":
		s.mu.Lock()
		s.store = newStore()
		s.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	case "GET /stats":
		writeJSON(w, s.Stats())
	case "POST /faults":
		s.postFault(w, r)
	case "GET /faults":
		writeJSON(w, s.activeFaults())
	case "DELETE /faults":
		s.Clear()
		w.WriteHeader(http.StatusNoContent)
	case "GET /healthz":
		_, _ = io.WriteString(w, "ok\n")
	default:
		http.NotFound(w, r)
	}
}

// Received returns every accepted event in order of arrival.
func (s *Simulator) Received() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	events := make([]Event, len(s.store.order))
	for i, r := range s.store.order {
		events[i] = r.Event
	}
	return events
}

// Stats returns the counts.
func (s *Simulator) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.store.stats
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
	s.faults.list = append(s.faults.list, f)
}

// Clear ends all faults and the requests that hang in one, as DELETE /faults does. Without it
// httptest.Server.Close waits for those.
func (s *Simulator) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.faults.cleared)
	s.faults = faults{cleared: make(chan struct{})}
}

// SetToken replaces the accepted Access-Token, as a rotation does.
func (s *Simulator) SetToken(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token = token
}

// Seed returns the seed of the random choices.
func (s *Simulator) Seed() uint64 { return s.config.Seed }

// activeFaults returns the faults with what is left of their count and their time.
func (s *Simulator) activeFaults() []wireFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults.expire()
	list := []wireFault{}
	for _, f := range s.faults.list {
		wire := wireFault{f, duration(f.Latency), 0}
		if f.For > 0 {
			wire.For = duration(time.Until(f.until))
		}
		list = append(list, wire)
	}
	return list
}

// postFault rejects unknown fields: a misspelt fault would test nothing.
func (s *Simulator) postFault(w http.ResponseWriter, r *http.Request) {
	var wire wireFault
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&wire)
	f := wire.Fault
	f.Latency, f.For = time.Duration(wire.Latency), time.Duration(wire.For)
	if err := cmp.Or(err, f.validate()); err != nil {
		http.Error(w, "invalid fault: "+err.Error(), http.StatusBadRequest)
		return
	}
	s.Inject(f)
	writeJSON(w, s.activeFaults())
}

func (s *Simulator) track(w http.ResponseWriter, r *http.Request, shape shape) {
	// net/http cancels the context of a disconnected client only after the whole body was read.
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		panic(http.ErrAbortHandler) // the client disconnected
	}
	// The events are stored before the delay: a client's timeout is an ambiguous failure.
	delay, write := s.decide(r.Header, shape.parse(body))
	select {
	case <-time.After(delay):
	case <-r.Context().Done():
		panic(http.ErrAbortHandler)
	}
	write(w, r)
}

// decide stores and counts a request. It returns the answer and its delay.
func (s *Simulator) decide(header http.Header, req request) (delay time.Duration, write http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fault, found := s.faults.next(req, s.random.Float64)
	if !found && s.random.Float64() < s.config.Misbehave {
		fault = dailyFaults[s.random.IntN(len(dailyFaults))]
	}
	delay = fault.Latency + time.Duration(float64(s.config.Latency)*(0.5+s.random.Float64()))

	stats, k := &s.store.stats, fault.kind()
	stats.Requests++
	switch {
	case k == nil:
		reply := s.judge(header, req, fault.DuplicateCode)
		stats.ByCode[strconv.Itoa(reply.Code)]++
		return delay, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, reply) }
	case fault.CutAfter:
		s.judge(header, req, 0)
	default:
		stats.Unreached++
	}
	stats.ByCode[k.name]++
	fault.Status = cmp.Or(fault.Status, k.status)
	cleared := s.faults.cleared
	return delay, func(w http.ResponseWriter, r *http.Request) { k.write(fault, w, r, cleared) }
}

// judge refuses a request or stores its events.
func (s *Simulator) judge(header http.Header, req request, duplicateCode int) *answer {
	stats := &s.store.stats
	stats.Events += len(req.events)
	stats.LargestBatch = max(stats.LargestBatch, len(req.events))
	if refusal := s.refusal(header, req); refusal != nil {
		stats.Refused++
		return refusal
	}
	now, allKnown := time.Now(), true
	for _, e := range req.events {
		if s.store.accept(e.Event, now) {
			allKnown = false
		}
	}
	if allKnown && duplicateCode != 0 {
		return newAnswer(duplicateCode, "Duplicated request")
	}
	return newAnswer(0, "OK")
}

// refusal returns why a request is refused, nil if it is good. TikTok checks the token before the body.
func (s *Simulator) refusal(header http.Header, req request) *answer {
	token := header.Get("Access-Token")
	known, permitted := s.access(token, req.pixel)
	media, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	switch {
	case token == "":
		return newAnswer(40104, "Access token is missing: the request needs an Access-Token header")
	case !known:
		return newAnswer(40105, "Access token is incorrect or has been revoked")
	case err != nil || media != "application/json":
		return newAnswer(40000, "Content-Type must be application/json")
	case header.Get("Content-Encoding") != "":
		return newAnswer(40000, "Content-Encoding is not supported")
	case req.refusal != nil:
		return req.refusal
	case !permitted || req.source != "web": // a pixel is a source of web events only
		message := fmt.Sprintf("No permission to operate %s event source %q", req.source, req.pixel)
		return newAnswer(40001, message)
	}
	return nil
}

// access reports whether a token is known and whether it may write to a pixel.
func (s *Simulator) access(token, pixel string) (known, permitted bool) {
	c := s.config
	testToken, testPixel := cmp.Or(c.TestToken, s.token), cmp.Or(c.TestPixel, c.Pixel)
	known = token == s.token || token == testToken
	permitted = token == s.token && pixel == c.Pixel || token == testToken && pixel == testPixel
	return known, permitted
}

// answer is TikTok's answer, errors included.
type answer struct {
	Code      int      `json:"code"`
	Message   string   `json:"message"`
	RequestID string   `json:"request_id"`
	Data      struct{} `json:"data"`
}

// newAnswer returns an answer whose request_id begins with the second, as TikTok's does.
func newAnswer(code int, message string) *answer {
	id := time.Now().UTC().Format("20060102150405") + cryptorand.Text()
	return &answer{Code: code, Message: message, RequestID: id}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // fails only if the client disconnected
}
