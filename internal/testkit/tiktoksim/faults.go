package tiktoksim

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Fault is a way to fail. Several may stand at once: the first that applies to a request wins, and Config.Misbehave has a
// say only where none does. A request that a fault answers is not stored, with the exception of CutAfter. A fault of
// Latency or DuplicateCode alone answers nothing itself: the request is judged and stored as always.
type Fault struct {
	// The answer. Without Code and Body it is plain text, as a gateway's; a code of 0 can be written as Body.
	Status     int    `json:"status,omitempty"`      // HTTP status; 0: what is usual for the rest
	Code       int    `json:"code,omitempty"`        // TikTok's code, in TikTok's JSON
	Message    string `json:"message,omitempty"`     // beside Code
	Body       string `json:"body,omitempty"`        // the body, as it stands here
	RetryAfter string `json:"retry_after,omitempty"` // the Retry-After header: seconds or an HTTP date

	// Instead of an answer: one of these at most.
	Hang        bool   `json:"hang,omitempty"`         // none comes until the client goes or the faults are cleared
	Cut         bool   `json:"cut,omitempty"`          // the connection is dropped
	CutAfter    bool   `json:"cut_after,omitempty"`    // what is good is stored, then the connection is dropped: the ambiguous failure
	LyingLength bool   `json:"lying_length,omitempty"` // the answer breaks off before its Content-Length
	Endless     bool   `json:"endless,omitempty"`      // the body does not end until the client goes (or after 64 MiB)
	Drip        bool   `json:"drip,omitempty"`         // the body comes a byte at a time and stays incomplete until the client goes or the faults are cleared
	HTML        bool   `json:"html,omitempty"`         // a gateway's page, with Status 502 unless there is another
	Redirect    string `json:"redirect,omitempty"`     // to this address, with Status 307 unless there is another

	Latency       time.Duration `json:"latency,omitempty"`        // before the answer, added to Config.Latency; in JSON "200ms"
	DuplicateCode int           `json:"duplicate_code,omitempty"` // the code for a request that holds nothing new, for example 40050

	// Whom it hits, and how long it stands.
	Rate       float64       `json:"rate,omitempty"`        // share of the requests that it could hit; 0: all
	For        time.Duration `json:"for,omitempty"`         // from now on; 0: until cleared; in JSON "10s"
	Count      int           `json:"count,omitempty"`       // requests, then it is gone; 0: any number
	OnlyPixel  string        `json:"only_pixel,omitempty"`  // requests for this pixel
	MatchEvent string        `json:"match_event,omitempty"` // requests that hold an event_id with this in it
	MatchText  string        `json:"match_text,omitempty"`  // requests that hold an event with this in one of its texts, as a firewall reads them
	MinEvents  int           `json:"min_events,omitempty"`  // requests of at least so many events: 2 hits batches alone
}

// maxEndless bounds an endless body, in bytes.
const maxEndless = 64 << 20

// duration is a time.Duration that reads and writes itself as "200ms".
type duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = duration(parsed)
	return err
}

type plainFault Fault

// wireFault is a Fault in JSON: its two durations hide the plain ones.
type wireFault struct {
	plainFault
	Latency duration `json:"latency,omitzero"`
	For     duration `json:"for,omitzero"`
}

// MarshalJSON implements json.Marshaler.
func (f Fault) MarshalJSON() ([]byte, error) {
	return json.Marshal(wireFault{plainFault(f), duration(f.Latency), duration(f.For)})
}

// UnmarshalJSON implements json.Unmarshaler. It refuses a field that it does not know: a misspelt fault would test nothing.
func (f *Fault) UnmarshalJSON(data []byte) error {
	var w wireFault
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&w); err != nil {
		return err
	}
	*f = Fault(w.plainFault)
	f.Latency, f.For = time.Duration(w.Latency), time.Duration(w.For)
	return nil
}

// check says what is wrong with a fault.
func (f Fault) check() error {
	instead := 0
	for _, is := range []bool{f.Hang, f.Cut, f.CutAfter, f.LyingLength, f.Endless, f.Drip, f.HTML, f.Redirect != ""} {
		if is {
			instead++
		}
	}
	switch {
	case instead > 1:
		return errors.New("hang, cut, cut_after, lying_length, endless, drip, html and redirect exclude each other")
	case f.CutAfter && f.replaces():
		return errors.New("cut_after drops the connection in place of an answer: leave out status, code and body")
	case !f.replaces() && !f.CutAfter && f.Latency == 0 && f.DuplicateCode == 0:
		return errors.New("it says nothing of the answer: give a status, a code, a body, a latency, a duplicate_code, or one of hang, cut, cut_after, lying_length, endless, drip, html, redirect")
	case f.Status != 0 && (f.Status < 200 || f.Status > 599):
		return errors.New("status is a number from 200 to 599")
	case f.Rate < 0 || f.Rate > 1:
		return errors.New("rate is a share from 0 to 1")
	case f.Count < 0 || f.For < 0 || f.Latency < 0 || f.MinEvents < 0:
		return errors.New("count, for, latency and min_events are not negative")
	case strings.ContainsAny(f.RetryAfter+f.Redirect, "\r\n"):
		return errors.New("retry_after and redirect are each one line")
	}
	return nil
}

// replaces says whether the fault answers in place of the rules.
func (f Fault) replaces() bool {
	return f.Status != 0 || f.Code != 0 || f.Body != "" || f.Hang || f.Cut || f.LyingLength || f.Endless || f.Drip || f.HTML || f.Redirect != ""
}

// status is the HTTP status, with the usual one where the fault has none of its own.
func (f Fault) status() int {
	usual := http.StatusOK
	switch {
	case f.HTML:
		usual = http.StatusBadGateway
	case f.Redirect != "":
		usual = http.StatusTemporaryRedirect
	}
	return cmp.Or(f.Status, usual)
}

// label names what the client gets in Stats.ByCode; "" when the rules decide.
func (f Fault) label() string {
	switch {
	case f.Hang:
		return "hang"
	case f.Cut, f.CutAfter:
		return "cut"
	case f.LyingLength:
		return "lying_length"
	case f.Endless:
		return "endless"
	case f.Drip:
		return "drip"
	case f.Code != 0 && !f.HTML && f.Redirect == "" && f.Body == "":
		return strconv.Itoa(f.Code)
	case f.replaces():
		return "http_" + strconv.Itoa(f.status())
	}
	return ""
}

const gatewayPage = "<html>\r\n<head><title>%d %s</title></head>\r\n<body>\r\n<center><h1>%[1]d %[2]s</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"

// answer gives the client what the fault has for it. released ends a hang.
func (f Fault) answer(w http.ResponseWriter, r *http.Request, released <-chan struct{}, now time.Time) {
	if f.RetryAfter != "" {
		w.Header().Set("Retry-After", f.RetryAfter)
	}
	said := verdict{f.Code, cmp.Or(f.Message, "OK")}
	if f.Code != codeOK && f.Message == "" {
		said.message = "A fault that the simulator was asked for"
	}
	switch {
	case f.Cut:
		panic(http.ErrAbortHandler)
	case f.Hang:
		select {
		case <-r.Context().Done():
		case <-released:
		}
		panic(http.ErrAbortHandler)
	case f.Endless:
		f.writeEndless(w)
	case f.Drip:
		f.writeDrip(w, r, released)
	case f.LyingLength:
		body := f.Body
		if body == "" {
			body = mustJSON(newAnswer(said, now))
		}
		// net/http closes the connection when a handler returns before it wrote what it promised.
		w.Header().Set("Content-Length", strconv.Itoa(len(body)+100))
		f.write(w, "application/json", body)
	case f.Redirect != "":
		w.Header().Set("Location", f.Redirect)
		f.write(w, "text/plain; charset=utf-8", http.StatusText(f.status())+"\n")
	case f.HTML:
		f.write(w, "text/html", fmt.Sprintf(gatewayPage, f.status(), http.StatusText(f.status())))
	case f.Body != "":
		kind := "text/plain; charset=utf-8"
		if json.Valid([]byte(f.Body)) {
			kind = "application/json"
		}
		f.write(w, kind, f.Body)
	case f.Code != 0:
		writeAnswer(w, f.status(), said, now)
	default:
		f.write(w, "text/plain; charset=utf-8", http.StatusText(f.status())+"\n")
	}
}

func (f Fault) write(w http.ResponseWriter, kind, body string) {
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(f.status())
	_, _ = io.WriteString(w, body)
}

// dripEvery is the time from one byte to the next.
const dripEvery = 50 * time.Millisecond

// writeDrip begins like an answer that says OK, a byte at a time, and never gets to its last one.
func (f Fault) writeDrip(w http.ResponseWriter, r *http.Request, released <-chan struct{}) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.status())
	tick := time.NewTicker(dripEvery)
	defer tick.Stop()
	for next := `{"code":0,"message":"OK",`; ; next += " " {
		if _, err := io.WriteString(w, next[:1]); err != nil || http.NewResponseController(w).Flush() != nil {
			return
		}
		next = next[1:]
		select {
		case <-r.Context().Done():
			return
		case <-released:
			return
		case <-tick.C:
		}
	}
}

// writeEndless begins like an answer that says OK, and goes on.
func (f Fault) writeEndless(w http.ResponseWriter) {
	f.write(w, "application/json", `{"code":0,"message":"`)
	chunk := bytes.Repeat([]byte("x"), 32<<10)
	for n := 0; n < maxEndless; n += len(chunk) {
		if _, err := w.Write(chunk); err != nil {
			break
		}
	}
	panic(http.ErrAbortHandler) // it shall not end well, either
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// faults are those that stand.
type faults struct {
	now       func() time.Time
	dice      *dice
	misbehave float64

	mu       sync.Mutex
	list     []*standingFault
	released chan struct{} // closed by clear: it ends what hangs
}

type standingFault struct {
	Fault
	until time.Time // zero: until cleared
}

func newFaults(now func() time.Time, d *dice, misbehave float64) *faults {
	return &faults{now: now, dice: d, misbehave: misbehave, released: make(chan struct{})}
}

func (s *faults) add(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stands := &standingFault{Fault: f}
	if f.For > 0 {
		stands.until = s.now().Add(f.For)
	}
	s.list = append(s.list, stands)
}

func (s *faults) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = nil
	close(s.released)
	s.released = make(chan struct{})
}

// standing returns the faults with what is left of their count and their time.
func (s *faults) standing() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.expire(now)
	left := make([]Fault, len(s.list))
	for i, f := range s.list {
		left[i] = f.Fault
		if !f.until.IsZero() {
			left[i].For = f.until.Sub(now)
		}
	}
	return left
}

func (s *faults) expire(now time.Time) {
	s.list = slices.DeleteFunc(s.list, func(f *standingFault) bool { return !f.until.IsZero() && !now.Before(f.until) })
}

// choose returns the fault for a request, the zero Fault when there is none, and the channel that ends a hang.
func (s *faults) choose(sub submission) (Fault, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(s.now())
	for i, f := range s.list {
		if !f.hits(sub) || f.Rate > 0 && s.dice.roll() >= f.Rate {
			continue
		}
		chosen := f.Fault
		if f.Count == 1 {
			s.list = slices.Delete(s.list, i, i+1)
		} else if f.Count > 1 {
			f.Count--
		}
		return chosen, s.released
	}
	if s.misbehave > 0 && s.dice.roll() < s.misbehave {
		return s.whim(), s.released
	}
	return Fault{}, s.released
}

// hits says whether a request is one of those that the fault is for.
func (f Fault) hits(sub submission) bool {
	return (f.OnlyPixel == "" || f.OnlyPixel == sub.pixel) && len(sub.events) >= f.MinEvents &&
		(f.MatchEvent == "" || slices.ContainsFunc(sub.events, func(e offered) bool {
			return strings.Contains(e.text("event_id"), f.MatchEvent)
		})) &&
		(f.MatchText == "" || slices.ContainsFunc(sub.events, func(e offered) bool { return holds(e.fields, f.MatchText) }))
}

// holds reports whether one of the strings in a decoded JSON value has a text in it.
func holds(v any, text string) bool {
	switch v := v.(type) {
	case string:
		return strings.Contains(v, text)
	case []any:
		return slices.ContainsFunc(v, func(e any) bool { return holds(e, text) })
	case map[string]any:
		for _, e := range v {
			if holds(e, text) {
				return true
			}
		}
	}
	return false
}

// whim is one of the faults that a sender must survive every day without losing or doubling anything.
func (s *faults) whim() Fault {
	whims := []Fault{
		{Code: codeInternal, Message: "Internal service error, please try again later"},
		{Status: http.StatusServiceUnavailable, HTML: true},
		{CutAfter: true},
	}
	return whims[int(s.dice.roll()*float64(len(whims)))]
}
