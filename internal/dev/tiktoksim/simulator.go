// Package tiktoksim plays TikTok's Events API over real HTTP: it refuses what TikTok refuses, with its codes, remembers what
// it took, and fails on demand. It shares no code with what it answers; its rules are written from the outside's facts a
// second time, so that a misunderstanding on one side shows.
package tiktoksim

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Config is what the simulator accepts and how it behaves. The zero value is a well-behaved one.
type Config struct {
	Token, Pixel         string        // accepted; default "local-token", "LOCALPIXEL"
	TestToken, TestPixel string        // a second destination; "": none
	Misbehave            float64       // share of requests answered with a fault that passes by itself
	Latency              time.Duration // of every answer, half of it random
	Now                  func() time.Time
}

// Paths of the Events API: the current one and the older one.
const (
	EventPath = "/open_api/v1.3/event/track/"
	PixelPath = "/open_api/v1.3/pixel/track/"
)

const (
	window     = 48 * time.Hour // of the de-duplication, counted from the first
	maxBody    = 10 << 20
	maxEvents  = 1_000_000 // remembered
	maxBatch   = 1000
	endlessMax = 64 << 20
)

// Event is one event that was accepted, and how often it came.
type Event struct {
	EventID       string          `json:"event_id"`
	Event         string          `json:"event"`
	Pixel         string          `json:"pixel"`
	EventTime     int64           `json:"event_time"`
	TestEventCode string          `json:"test_event_code,omitempty"`
	Body          json.RawMessage `json:"body"` // as it came first
	FirstAt       time.Time       `json:"first_at"`
	LastAt        time.Time       `json:"last_at"`
	Copies        int             `json:"copies"`   // 1 when it came once
	Variants      int             `json:"variants"` // distinct bodies under this id: 1 for a correct sender
	Counted       int             `json:"counted"`  // how often TikTok would count it: 2 when it came again after 48 h
}

// Stats sums up.
type Stats struct {
	Requests     int            `json:"requests"`
	Events       int            `json:"events"`     // in requests that were accepted
	Accepted     int            `json:"accepted"`   // distinct
	Duplicates   int            `json:"duplicates"` // recognised as such
	LargestBatch int            `json:"largest_batch"`
	ByCode       map[string]int `json:"by_code"` // answers by body code, or "http_503" and the like
}

// Simulator is an http.Handler; it is safe for concurrent use.
type Simulator struct {
	mux http.Handler

	mu       sync.Mutex
	config   Config
	faults   []*Fault
	order    []string
	events   map[string]*Event
	variants map[string]map[string]bool
	counted  map[string]time.Time
	stats    Stats
}

// New returns a Simulator.
func New(c Config) *Simulator {
	if c.Token == "" {
		c.Token = "local-token"
	}
	if c.Pixel == "" {
		c.Pixel = "LOCALPIXEL"
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Simulator{config: c}
	s.Forget()
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+EventPath+"{$}", s.track)
	mux.HandleFunc("POST "+PixelPath+"{$}", s.track)
	mux.HandleFunc("GET /events", s.getEvents)
	mux.HandleFunc("DELETE /events", func(w http.ResponseWriter, _ *http.Request) { s.Forget(); w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.Stats()) })
	mux.HandleFunc("POST /faults", s.postFault)
	mux.HandleFunc("GET /faults", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.Faults()) })
	mux.HandleFunc("DELETE /faults", func(w http.ResponseWriter, _ *http.Request) { s.Clear(); w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	s.mux = mux
	return s
}

// ServeHTTP implements http.Handler.
func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// SetToken rotates the token that is accepted.
func (s *Simulator) SetToken(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config.Token = token
}

// Received returns the accepted events in the order of their first arrival.
func (s *Simulator) Received() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Event, len(s.order))
	for i, id := range s.order {
		list[i] = *s.events[id]
	}
	return list
}

// Stats returns the counts so far.
func (s *Simulator) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.ByCode = maps.Clone(s.stats.ByCode)
	return stats
}

// Forget drops all events and counts.
func (s *Simulator) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order, s.events, s.variants, s.counted = nil, make(map[string]*Event), make(map[string]map[string]bool), make(map[string]time.Time)
	s.stats = Stats{ByCode: make(map[string]int)}
}

func (s *Simulator) getEvents(w http.ResponseWriter, r *http.Request) {
	id := r.FormValue("event_id")
	list := []Event{}
	for _, e := range s.Received() {
		if id == "" || e.EventID == id {
			list = append(list, e)
		}
	}
	writeJSON(w, http.StatusOK, list)
}

// reply is TikTok's answer. Errors come with HTTP 200.
type reply struct {
	Code      int      `json:"code"`
	Message   string   `json:"message"`
	RequestID string   `json:"request_id"`
	Data      struct{} `json:"data"`
}

func (s *Simulator) answer(w http.ResponseWriter, status, code int, message string) {
	s.count(fmt.Sprint(code))
	writeJSON(w, status, reply{Code: code, Message: message, RequestID: time.Now().UTC().Format("20060102150405") + rand.Text()[:18]})
}

func (s *Simulator) count(code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.ByCode[code]++
}

// track takes a request in either shape.
func (s *Simulator) track(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.stats.Requests++
	config := s.config
	s.mu.Unlock()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		s.answer(w, http.StatusOK, 40000, "The request body is too large")
		return
	} else if err != nil {
		return // the sender is gone
	}
	if fault := s.nextFault(body); fault != nil {
		s.misbehave(w, r, fault, body)
		return
	}
	if !sleep(r, config.Latency) {
		return
	}
	code, message := s.take(r, body)
	s.answer(w, http.StatusOK, code, message)
}

// take judges a request and, where it is good, keeps its events.
func (s *Simulator) take(r *http.Request, body []byte) (code int, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.config.Now()
	token := r.Header.Get("Access-Token")
	switch {
	case token == "":
		return 40104, "Access token is empty"
	case token != s.config.Token && (s.config.TestToken == "" || token != s.config.TestToken):
		return 40105, "Access token is incorrect or has been revoked."
	case !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json"):
		return 40000, "Content-Type must be application/json"
	}
	req, refused := read(body, strings.HasPrefix(r.URL.Path, PixelPath), now)
	if refused.code != 0 {
		return refused.code, refused.message
	}
	if mine := s.pixelOf(token); !mine[req.pixel] {
		return 40001, "No permission to operate pixel " + req.pixel
	}
	s.stats.LargestBatch = max(s.stats.LargestBatch, len(req.events))
	for _, e := range req.events {
		s.keep(req, e, now)
	}
	return 0, "OK"
}

// pixelOf says which pixels a token may write to.
func (s *Simulator) pixelOf(token string) map[string]bool {
	mine := make(map[string]bool)
	if token == s.config.Token {
		mine[s.config.Pixel] = true
		if s.config.TestToken == "" && s.config.TestPixel != "" {
			mine[s.config.TestPixel] = true
		}
	}
	if s.config.TestToken != "" && token == s.config.TestToken {
		mine[s.config.Pixel] = mine[s.config.Pixel] || s.config.TestPixel == ""
		mine[s.config.TestPixel] = true
	}
	delete(mine, "")
	return mine
}

func (s *Simulator) keep(req request, e parsed, now time.Time) {
	s.stats.Events++
	key := req.pixel + "\x00" + e.name + "\x00" + e.id
	known := s.events[key]
	if known == nil {
		if len(s.order) >= maxEvents {
			return
		}
		s.stats.Accepted++
		s.order = append(s.order, key)
		s.events[key] = &Event{
			EventID: e.id, Event: e.name, Pixel: req.pixel, EventTime: e.time, TestEventCode: req.testCode, Body: e.body,
			FirstAt: now, LastAt: now, Copies: 1, Variants: 1, Counted: 1,
		}
		s.variants[key] = map[string]bool{string(e.body): true}
		s.counted[key] = now
		return
	}
	known.Copies++
	known.LastAt = now
	if now.Sub(s.counted[key]) > window {
		known.Counted++
		s.counted[key] = now
	} else {
		s.stats.Duplicates++
	}
	if len(s.variants[key]) < 100 {
		s.variants[key][string(e.body)] = true
	}
	known.Variants = len(s.variants[key])
}

// sleep waits for a time, half of it random, or until the sender is gone.
func sleep(r *http.Request, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d/2 + time.Duration(mathrand.Int64N(int64(d)))) //nolint:gosec // jitter
	defer t.Stop()
	select {
	case <-r.Context().Done():
		return false
	case <-t.C:
		return true
	}
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the reader is gone
}
