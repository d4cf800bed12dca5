// Package tiktoksim is a strict stand-in for TikTok's Events API 2.0. It answers over real HTTP, refuses what TikTok
// refuses with TikTok's codes, keeps what it accepted, and fails on demand:
//
//	POST   /open_api/v1.3/event/track/   a batch of 1 to 1,000 events
//	POST   /open_api/v1.3/pixel/track/   the older shape, one event
//	GET    /events[?event_id=…]          what was accepted, in order of first arrival
//	DELETE /events                       forget it, and count from zero
//	GET    /stats                        counts
//	POST   /faults                       fail from now on, see Fault
//	GET    /faults                       what stands
//	DELETE /faults                       behave again
//	GET    /healthz
//
// It shares no code with the product: a simulator that did would share its misunderstandings and agree with it about
// anything.
package tiktoksim

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"mime"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Where TikTok takes events. It knows neither path without its last slash.
const (
	eventsPath = "/open_api/v1.3/event/track/"
	pixelPath  = "/open_api/v1.3/pixel/track/"
)

// maxBody is the largest request body that is read, in bytes.
const maxBody = 10 << 20

// TikTok's codes, as far as the simulator gives them by itself.
const (
	codeOK           = 0
	codeMalformed    = 40000
	codeNoPermission = 40001
	codeInvalid      = 40002
	codeNoToken      = 40104
	codeWrongToken   = 40105
	codeInternal     = 50000
)

// Config says whom the simulator lets in and how well it behaves. The zero value is well-behaved.
type Config struct {
	Token string // the Access-Token that is accepted; "": "local-token"
	Pixel string // the event_source_id that is accepted; "": "LOCALPIXEL"

	// TestToken and TestPixel are a second destination. With one of them left empty, it shares the first one's; with both
	// empty there is none.
	TestToken, TestPixel string

	Misbehave     float64          // share of requests, 0 to 1, answered with a harmless fault picked at random
	Latency       time.Duration    // added to every answer, give or take half of it
	DuplicateCode int              // the answer to a request that holds nothing new; 0: OK. TikTok also has 40050
	Seed          uint64           // for the randomness; 0: random, and Simulator.Seed tells it
	Now           func() time.Time // nil: time.Now
}

// Simulator is TikTok. It is safe for concurrent use.
type Simulator struct {
	config Config
	routes map[string]map[string]http.HandlerFunc // by path, then by method
	rules  rules
	store  *store
	faults *faults
	dice   *dice

	mu    sync.RWMutex
	token string
}

// New returns a simulator that has received nothing yet.
func New(c Config) *Simulator {
	c.Token, c.Pixel = cmp.Or(c.Token, "local-token"), cmp.Or(c.Pixel, "LOCALPIXEL")
	if c.Now == nil {
		c.Now = time.Now
	}
	for c.Seed == 0 {
		c.Seed = mathrand.Uint64() //nolint:gosec // a seed to play with, no secret
	}
	d := newDice(c.Seed)
	s := &Simulator{
		config: c, token: c.Token, rules: newRules(c.Now), store: newStore(maxEvents), dice: d,
		faults: newFaults(c.Now, d, c.Misbehave),
	}
	s.routes = map[string]map[string]http.HandlerFunc{
		eventsPath: {http.MethodPost: s.track(openEvents)},
		pixelPath:  {http.MethodPost: s.track(openPixel)},
		"/events":  {http.MethodGet: s.getEvents, http.MethodDelete: s.deleteEvents},
		"/stats":   {http.MethodGet: s.getStats},
		"/faults":  {http.MethodGet: s.getFaults, http.MethodPost: s.postFaults, http.MethodDelete: s.deleteFaults},
		"/healthz": {http.MethodGet: s.getHealth},
	}
	return s
}

// Received returns every accepted event in order of first arrival. The bodies are shared with the simulator: only read
// them.
func (s *Simulator) Received() []Event { return s.store.received("") }

// Stats returns what was counted so far.
func (s *Simulator) Stats() Stats { return s.store.stats() }

// Inject makes a fault stand, behind those that already do; the same as POST /faults. It panics on a fault that POST
// /faults would refuse.
func (s *Simulator) Inject(f Fault) {
	if err := f.check(); err != nil {
		panic("tiktoksim: " + err.Error())
	}
	s.faults.add(f)
}

// Clear removes every fault and ends the requests that hang in one, without an answer; the same as DELETE /faults. Call it
// before closing an httptest.Server, which waits for its requests.
func (s *Simulator) Clear() { s.faults.clear() }

// SetToken makes another Access-Token the accepted one, as after a rotation.
func (s *Simulator) SetToken(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token = token
}

// Seed tells what the randomness was started with.
func (s *Simulator) Seed() uint64 { return s.config.Seed }

// ServeHTTP implements http.Handler. It does not use http.ServeMux, whose redirects to a cleaner path TikTok does not give.
func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	methods, known := s.routes[r.URL.Path]
	if !known {
		http.Error(w, "404 page not found", http.StatusNotFound)
		return
	}
	handle, known := methods[r.Method]
	if !known {
		http.Error(w, "405 method not allowed", http.StatusMethodNotAllowed)
		return
	}
	handle(w, r)
}

// track takes events in the shape that open understands.
func (s *Simulator) track(open func([]byte) submission) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		// The body is read to its end first: only then does net/http notice, and tell the context, that the client went.
		body, err := readBody(w, r)
		var sub submission
		var tooLarge *http.MaxBytesError
		switch {
		case errors.As(err, &tooLarge):
			sub.refused = &verdict{codeMalformed, "The request body is larger than 10 MiB"}
		case err != nil:
			panic(http.ErrAbortHandler) // the client went in the middle of its request
		default:
			sub = open(body)
		}
		fault, released := s.faults.choose(sub)
		if fault.replaces() {
			s.store.unreached(fault.label())
			if !pause(r.Context(), s.latency()+fault.Latency) {
				panic(http.ErrAbortHandler)
			}
			fault.answer(w, r, released, s.config.Now())
			return
		}
		reply := s.process(r, sub, cmp.Or(fault.DuplicateCode, s.config.DuplicateCode), fault)
		// Stored first, answered later: to a client that does not wait long enough, the failure is an ambiguous one.
		if !pause(r.Context(), s.latency()+fault.Latency) || fault.CutAfter {
			panic(http.ErrAbortHandler)
		}
		writeAnswer(w, http.StatusOK, reply, s.config.Now())
	}
}

// process judges a submission, stores it when it is good, counts it, and returns what to say.
func (s *Simulator) process(r *http.Request, sub submission, duplicateCode int, fault Fault) verdict {
	now := s.config.Now()
	reply := s.judge(r, sub)
	if reply != nil {
		s.store.refused(sub, cmp.Or(fault.label(), strconv.Itoa(reply.code)))
		return *reply
	}
	return s.store.accept(sub, now, func(allKnown bool) (verdict, string) {
		said := verdict{codeOK, "OK"}
		if allKnown && duplicateCode != 0 {
			said = verdict{duplicateCode, "Duplicated request"}
		}
		return said, cmp.Or(fault.label(), strconv.Itoa(said.code))
	})
}

// judge returns why a request is refused, or nil. TikTok looks at the token before it looks at the body.
func (s *Simulator) judge(r *http.Request, sub submission) *verdict {
	token := r.Header.Get("Access-Token")
	known, permitted := s.access(token, sub.pixel)
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case token == "":
		return &verdict{codeNoToken, "Access token is missing: the request needs an Access-Token header"}
	case !known:
		return &verdict{codeWrongToken, "Access token is incorrect or has been revoked"}
	case err != nil || media != "application/json":
		return &verdict{codeMalformed, "Content-Type must be application/json"}
	case r.Header.Get("Content-Encoding") != "":
		return &verdict{codeMalformed, "Content-Encoding is not supported"}
	case sub.refused != nil:
		return sub.refused
	case !permitted || sub.source != sourceWeb: // what we grant are pixels, and a pixel is a source of web events alone
		return &verdict{codeNoPermission, "No permission to operate " + sub.source + " event source " + strconv.Quote(sub.pixel)}
	}
	return s.rules.judge(sub)
}

// access says whether a token is known at all, and whether it may write to a pixel.
func (s *Simulator) access(token, pixel string) (known, permitted bool) {
	s.mu.RLock()
	first := s.token
	s.mu.RUnlock()
	known = token == first
	permitted = known && pixel == s.config.Pixel
	if (s.config.TestToken != "" || s.config.TestPixel != "") && token == cmp.Or(s.config.TestToken, first) {
		known = true
		permitted = permitted || pixel == cmp.Or(s.config.TestPixel, s.config.Pixel)
	}
	return known, permitted
}

// latency is the configured one, give or take half of it.
func (s *Simulator) latency() time.Duration {
	if s.config.Latency <= 0 {
		return 0
	}
	return time.Duration(float64(s.config.Latency) * (0.5 + s.dice.roll()))
}

func (s *Simulator) getEvents(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, s.store.received(r.URL.Query().Get("event_id")))
}

func (s *Simulator) deleteEvents(w http.ResponseWriter, _ *http.Request) {
	s.store.reset()
	w.WriteHeader(http.StatusNoContent)
}

func (s *Simulator) getStats(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.store.stats())
}

func (s *Simulator) getFaults(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.faults.standing())
}

func (s *Simulator) postFaults(w http.ResponseWriter, r *http.Request) {
	body, err := readBody(w, r)
	var f Fault
	if err == nil {
		err = json.Unmarshal(body, &f)
	}
	if err == nil {
		err = f.check()
	}
	if err != nil {
		http.Error(w, "This is no fault: "+err.Error()+".", http.StatusBadRequest)
		return
	}
	s.faults.add(f)
	writeJSON(w, http.StatusOK, s.faults.standing())
}

func (s *Simulator) deleteFaults(w http.ResponseWriter, _ *http.Request) {
	s.faults.clear()
	w.WriteHeader(http.StatusNoContent)
}

func (s *Simulator) getHealth(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, "ok\n")
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	var b bytes.Buffer
	b.Grow(int(min(max(r.ContentLength, 0), maxBody)) + bytes.MinRead)
	_, err := b.ReadFrom(http.MaxBytesReader(w, r.Body, maxBody))
	return b.Bytes(), err
}

// writeAnswer writes what TikTok writes, errors included.
func writeAnswer(w http.ResponseWriter, status int, said verdict, now time.Time) {
	writeJSON(w, status, newAnswer(said, now))
}

// answer is TikTok's answer.
type answer struct {
	Code      int      `json:"code"`
	Message   string   `json:"message"`
	RequestID string   `json:"request_id"`
	Data      struct{} `json:"data"`
}

func newAnswer(said verdict, now time.Time) answer {
	// As TikTok's: the second, then what makes it unique.
	return answer{Code: said.code, Message: said.message, RequestID: now.UTC().Format("20060102150405") + rand.Text()}
}

// writeJSON ignores the writer's errors: they mean that the client went, and there is nobody to tell.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// pause waits and says whether the client is still there.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// dice are the one source of randomness, so that a seed repeats a run's choices.
type dice struct {
	mu  sync.Mutex
	rng *mathrand.Rand
}

func newDice(seed uint64) *dice {
	return &dice{rng: mathrand.New(mathrand.NewPCG(seed, 0))} //nolint:gosec // a simulator's whims, no secret
}

// roll returns a number from 0 up to 1.
func (d *dice) roll() float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.Float64()
}
