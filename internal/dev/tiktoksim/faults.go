package tiktoksim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

// Fault is one way to fail, for a while, for a share of the requests. A faulted request leaves nothing, except with
// CutAfter.
type Fault struct {
	Status     int      `json:"status,omitempty"`      // HTTP status; with Code its body is TikTok's, else Body's
	Code       int      `json:"code,omitempty"`        // TikTok's code, with HTTP 200 unless Status says otherwise
	Message    string   `json:"message,omitempty"`     // TikTok's words
	Body       string   `json:"body,omitempty"`        // as it is
	RetryAfter string   `json:"retry_after,omitempty"` // the header, seconds or a date
	Redirect   string   `json:"redirect,omitempty"`    // 307 to this address
	HTML       bool     `json:"html,omitempty"`        // a gateway's page, 502
	Latency    Duration `json:"latency,omitempty"`     // before whatever follows; alone: before the usual answer
	Hang       bool     `json:"hang,omitempty"`        // no answer until the sender goes
	Cut        bool     `json:"cut,omitempty"`         // the connection drops without an answer
	CutAfter   bool     `json:"cut_after,omitempty"`   // likewise, after the events were taken: the ambiguous one
	LyingLen   bool     `json:"lying_length,omitempty"`
	Endless    bool     `json:"endless,omitempty"` // a body without end

	Rate       float64  `json:"rate,omitempty"`        // share of requests, 0 or 1: all
	For        Duration `json:"for,omitempty"`         // 0: until cleared
	Count      int      `json:"count,omitempty"`       // so many requests, then gone; 0: no limit
	MatchEvent string   `json:"match_event,omitempty"` // only requests that hold this text

	until time.Time
	left  int
}

// Duration is a time.Duration that JSON writes as "10s".
type Duration time.Duration

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return errors.New(`a time is written as text, for instance "10s"`)
	}
	parsed, err := time.ParseDuration(s)
	*d = Duration(parsed)
	return err
}

// Inject adds a fault. The first one that applies to a request wins.
func (s *Simulator) Inject(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.For > 0 {
		f.until = s.config.Now().Add(time.Duration(f.For))
	}
	f.left = f.Count
	s.faults = append(s.faults, &f)
}

// Clear ends all faults.
func (s *Simulator) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// Faults returns the faults that stand.
func (s *Simulator) Faults() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []Fault{}
	for _, f := range s.faults {
		if s.stands(f) {
			list = append(list, *f)
		}
	}
	return list
}

func (s *Simulator) stands(f *Fault) bool {
	return (f.until.IsZero() || s.config.Now().Before(f.until)) && (f.Count == 0 || f.left > 0)
}

func (s *Simulator) postFault(w http.ResponseWriter, r *http.Request) {
	var f Fault
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&f); err != nil {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": "not a fault: " + err.Error()})
		return
	}
	s.Inject(f)
	writeJSON(w, http.StatusCreated, f)
}

// passing are the small faults of everyday, for Misbehave.
var passing = []Fault{
	{Code: 50000, Message: "System error, please try again"},
	{HTML: true},
	{CutAfter: true},
}

// nextFault returns the fault of a request, or nil.
func (s *Simulator) nextFault(body []byte) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		if !s.stands(f) || f.MatchEvent != "" && !bytes.Contains(body, []byte(f.MatchEvent)) {
			continue
		}
		if f.Rate > 0 && f.Rate < 1 && mathrand.Float64() >= f.Rate { //nolint:gosec // a simulator's dice
			continue
		}
		f.left--
		return f
	}
	if s.config.Misbehave > 0 && mathrand.Float64() < s.config.Misbehave { //nolint:gosec // a simulator's dice
		return &passing[mathrand.IntN(len(passing))] //nolint:gosec // a simulator's dice
	}
	return nil
}

// misbehave answers a request as a fault says.
func (s *Simulator) misbehave(w http.ResponseWriter, r *http.Request, f *Fault, body []byte) {
	if !sleep(r, time.Duration(f.Latency)) {
		return
	}
	if f.RetryAfter != "" {
		w.Header().Set("Retry-After", f.RetryAfter)
	}
	switch {
	case f.Hang:
		s.count("hang")
		<-r.Context().Done()
	case f.Cut:
		s.count("cut")
		panic(http.ErrAbortHandler)
	case f.CutAfter:
		s.take(r, body)
		s.count("cut_after")
		panic(http.ErrAbortHandler)
	case f.LyingLen:
		s.count("lying_length")
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, `{"code":0,"message":"OK"`)
	case f.Endless:
		s.count("endless")
		s.endless(w, r)
	case f.Redirect != "":
		s.count("http_307")
		http.Redirect(w, r, f.Redirect, http.StatusTemporaryRedirect)
	case f.HTML:
		s.count("http_502")
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusBadGateway)
		_, _ = io.WriteString(w, "<html><head><title>502 Bad Gateway</title></head><body><center><h1>502 Bad Gateway</h1></center></body></html>\n")
	case f.Body != "":
		s.count("http_" + strconv.Itoa(max(f.Status, http.StatusOK)))
		w.WriteHeader(max(f.Status, http.StatusOK))
		_, _ = io.WriteString(w, f.Body)
	case f.Code != 0:
		s.answer(w, max(f.Status, http.StatusOK), f.Code, f.Message)
	case f.Status != 0:
		s.count("http_" + strconv.Itoa(f.Status))
		w.WriteHeader(f.Status)
		_, _ = fmt.Fprintln(w, http.StatusText(f.Status))
	default: // latency alone
		code, message := s.take(r, body)
		s.answer(w, http.StatusOK, code, message)
	}
}

// endless writes until the sender goes; bounded all the same.
func (s *Simulator) endless(w http.ResponseWriter, r *http.Request) {
	chunk := bytes.Repeat([]byte(" "), 64<<10)
	for sent := 0; sent < endlessMax && r.Context().Err() == nil; sent += len(chunk) {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}
