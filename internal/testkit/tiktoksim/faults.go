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
	"time"
)

// Fault is a failure to simulate. Of several active ones the first that matches a request applies. A fault of
// Latency or DuplicateCode alone leaves the rules and the store in place.
type Fault struct {
	// The answer. Without Code and Body it is plain text, as a gateway's.
	Status     int    `json:"status,omitempty"` // HTTP status; 0 is the usual one of the fields below
	Code       int    `json:"code,omitempty"`   // TikTok's code; write 0 as Body
	Message    string `json:"message,omitempty"`
	Body       string `json:"body,omitempty"`
	RetryAfter string `json:"retry_after,omitempty"` // header: seconds or an HTTP date

	// In place of that answer, at most one of:
	Hang        bool   `json:"hang,omitempty"`         // no answer until the client leaves or DELETE /faults
	Cut         bool   `json:"cut,omitempty"`          // the connection is dropped
	CutAfter    bool   `json:"cut_after,omitempty"`    // the same after the events were stored
	LyingLength bool   `json:"lying_length,omitempty"` // the answer ends before its Content-Length
	Endless     bool   `json:"endless,omitempty"`      // the answer comes fast and does not end
	Drip        bool   `json:"drip,omitempty"`         // the answer comes byte by byte and does not end
	HTML        bool   `json:"html,omitempty"`         // a gateway's page; status 502
	Redirect    string `json:"redirect,omitempty"`     // to this URL; status 307

	Latency       time.Duration `json:"-"`                        // before the answer; in JSON latency: "200ms"
	DuplicateCode int           `json:"duplicate_code,omitempty"` // if no event is new, such as 40050

	// The requests that it applies to.
	Rate       float64       `json:"rate,omitempty"`        // share of the matching requests; 0 is all
	For        time.Duration `json:"-"`                     // 0 is until cleared; in JSON for: "10s"
	Count      int           `json:"count,omitempty"`       // number of requests; 0 is no limit
	OnlyPixel  string        `json:"only_pixel,omitempty"`  // requests of this pixel
	MatchEvent string        `json:"match_event,omitempty"` // requests with this in an event_id
	MatchText  string        `json:"match_text,omitempty"`  // requests with this in any string of an event
	MinEvents  int           `json:"min_events,omitempty"`  // requests of this many events or more
	Stats      bool          `json:"stats,omitempty"`       // requests for counts, in place of events

	until time.Time // set from For by Inject
}

// wireFault is a Fault in JSON.
type wireFault struct {
	Fault
	Latency duration `json:"latency,omitzero"`
	For     duration `json:"for,omitzero"`
}

// duration is a time.Duration that is "200ms" in JSON.
type duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = duration(parsed)
	return err
}

// kind is a way to answer in place of the rules.
type kind struct {
	name   string // in JSON and in Stats.ByCode
	is     func(f Fault) bool
	status int // HTTP status, unless Fault.Status is set
	write  writer
}

// writer answers a request. The channel is closed when the faults are cleared.
type writer func(f Fault, w http.ResponseWriter, r *http.Request, cleared <-chan struct{})

// kinds exclude each other.
var kinds = []kind{
	{"hang", func(f Fault) bool { return f.Hang }, 200, hang},
	{"cut", func(f Fault) bool { return f.Cut }, 200, cut},
	{"cut_after", func(f Fault) bool { return f.CutAfter }, 200, cut},
	{"lying_length", func(f Fault) bool { return f.LyingLength }, 200, respond},
	{"endless", func(f Fault) bool { return f.Endless }, 200, stream(32<<10, 0)},
	{"drip", func(f Fault) bool { return f.Drip }, 200, stream(1, 50*time.Millisecond)},
	{"html", func(f Fault) bool { return f.HTML }, 502, respond},
	{"redirect", func(f Fault) bool { return f.Redirect != "" }, 307, respond},
}

// kind returns how the fault answers, nil if the rules give the answer.
func (f Fault) kind() *kind {
	if i := slices.IndexFunc(kinds, func(k kind) bool { return k.is(f) }); i >= 0 {
		return &kinds[i]
	}
	switch {
	case f.Code != 0 && f.Body == "":
		return &kind{name: strconv.Itoa(f.Code), status: 200, write: respond}
	case f.Status != 0 || f.Body != "":
		return &kind{name: "http_" + strconv.Itoa(cmp.Or(f.Status, 200)), status: 200, write: respond}
	}
	return nil
}

// validate rejects a fault without an effect, with two kinds or with a number out of range.
func (f Fault) validate() error {
	var set []string
	for _, k := range kinds {
		if k.is(f) {
			set = append(set, k.name)
		}
	}
	switch {
	case len(set) > 1:
		return fmt.Errorf("%s exclude each other", strings.Join(set, " and "))
	case f.kind() == nil && f.Latency == 0 && f.DuplicateCode == 0:
		return errors.New("neither an answer nor latency or duplicate_code")
	case f.Status != 0 && (f.Status < 200 || f.Status > 599):
		return errors.New("status must be between 200 and 599")
	case f.Rate < 0 || f.Rate > 1:
		return errors.New("rate must be between 0 and 1")
	}
	return nil
}

const gatewayPage = "<html>\r\n<head><title>%d %s</title></head>\r\n" +
	"<body><center><h1>%[1]d %[2]s</h1></center><hr><center>nginx</center></body>\r\n</html>\r\n"

// respond writes an answer. LyingLength promises more than it holds: net/http then closes the connection.
func respond(f Fault, w http.ResponseWriter, _ *http.Request, _ <-chan struct{}) {
	contentType, body := "text/plain; charset=utf-8", http.StatusText(f.Status)+"\n"
	switch {
	case f.HTML:
		contentType, body = "text/html", fmt.Sprintf(gatewayPage, f.Status, http.StatusText(f.Status))
	case f.Body != "":
		body = f.Body
		if json.Valid([]byte(body)) {
			contentType = "application/json"
		}
	case f.Code != 0 || f.LyingLength:
		text, _ := json.Marshal(newAnswer(f.Code, cmp.Or(f.Message, "Simulated fault")))
		contentType, body = "application/json", string(text)
	}
	header := w.Header()
	header.Set("Content-Type", contentType)
	for name, value := range map[string]string{"Retry-After": f.RetryAfter, "Location": f.Redirect} {
		if value != "" {
			header.Set(name, value)
		}
	}
	if f.LyingLength {
		header.Set("Content-Length", strconv.Itoa(len(body)+100))
	}
	w.WriteHeader(f.Status)
	_, _ = io.WriteString(w, body)
}

// hang waits for the client to disconnect or for the faults to be cleared.
func hang(_ Fault, _ http.ResponseWriter, r *http.Request, cleared <-chan struct{}) {
	select {
	case <-r.Context().Done():
	case <-cleared:
	}
	panic(http.ErrAbortHandler)
}

func cut(Fault, http.ResponseWriter, *http.Request, <-chan struct{}) { panic(http.ErrAbortHandler) }

// stream begins a good answer and adds chunks until the client disconnects or the faults are cleared.
func stream(chunk int, interval time.Duration) writer {
	return func(f Fault, w http.ResponseWriter, r *http.Request, cleared <-chan struct{}) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(f.Status)
		flush := http.NewResponseController(w).Flush
		_, err := io.WriteString(w, `{"code":0,"message":"`)
		for err == nil && flush() == nil {
			select {
			case <-r.Context().Done():
				return
			case <-cleared:
				return
			case <-time.After(interval):
				_, err = w.Write(bytes.Repeat([]byte("x"), chunk))
			}
		}
	}
}

// faults are the active ones, in the order of their injection. Simulator.mu guards them.
type faults struct {
	list    []Fault
	cleared chan struct{} // closed by Simulator.Clear
}

func (s *faults) expire() {
	now := time.Now()
	s.list = slices.DeleteFunc(s.list, func(f Fault) bool { return f.For > 0 && !now.Before(f.until) })
}

// next returns the fault that applies to a request.
func (s *faults) next(req request, random func() float64) (f Fault, found bool) {
	s.expire()
	i := slices.IndexFunc(s.list, func(f Fault) bool {
		return f.matches(req) && (f.Rate == 0 || random() < f.Rate)
	})
	if i < 0 {
		return Fault{}, false
	}
	f = s.list[i]
	switch f.Count {
	case 0: // no limit
	case 1:
		s.list = slices.Delete(s.list, i, i+1)
	default:
		s.list[i].Count--
	}
	return f, true
}

func (f Fault) matches(req request) bool {
	inID := func(e parsedEvent) bool { return strings.Contains(e.EventID, f.MatchEvent) }
	inText := func(e parsedEvent) bool {
		return anyString(e.fields, func(s string) bool { return strings.Contains(s, f.MatchText) })
	}
	return f.Stats == req.stats && len(req.events) >= f.MinEvents &&
		(f.OnlyPixel == "" || f.OnlyPixel == req.pixel) &&
		(f.MatchEvent == "" || slices.ContainsFunc(req.events, inID)) &&
		(f.MatchText == "" || slices.ContainsFunc(req.events, inText))
}
