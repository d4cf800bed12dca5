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

	"github.com/tidwall/gjson"
)

// Fault is a failure to simulate. Of several active ones the first that matches a request applies. A fault of
// Latency or DuplicateCode alone leaves the rules and the store in place.
type Fault struct {
	// The answer. Without Code and Body it is plain text, as a gateway's.
	Status     int    `json:"status"` // HTTP status; 0 is the usual one of the fields below
	Code       int    `json:"code"`   // TikTok's code; write 0 as Body
	Message    string `json:"message"`
	Body       string `json:"body"`
	RetryAfter string `json:"retry_after"` // header: seconds or an HTTP date

	// In place of that answer, the first of:
	Hang        bool   `json:"hang"`         // no answer until the client leaves or DELETE /faults
	Cut         bool   `json:"cut"`          // the connection is dropped
	CutAfter    bool   `json:"cut_after"`    // the same after the events were stored
	LyingLength bool   `json:"lying_length"` // the answer ends before its Content-Length
	Endless     bool   `json:"endless"`      // the answer comes fast and does not end
	Drip        bool   `json:"drip"`         // the answer comes byte by byte and does not end
	HTML        bool   `json:"html"`         // a gateway's page; status 502
	Redirect    string `json:"redirect"`     // to this URL; status 307

	Latency       time.Duration `json:"-"`              // before the answer; in JSON latency: "200ms"
	DuplicateCode int           `json:"duplicate_code"` // if no event is new, such as 40050

	// The requests that it applies to.
	Rate      float64       `json:"rate"`       // share of the matching requests; 0 is all
	For       time.Duration `json:"-"`          // 0 is until cleared; in JSON for: "10s"
	Count     int           `json:"count"`      // number of requests; 0 is no limit
	MatchText string        `json:"match_text"` // requests with this in any string of an event
	MinEvents int           `json:"min_events"` // requests of this many events or more
	Stats     bool          `json:"stats"`      // requests for counts, in place of events

	until time.Time // set from For by Inject
}

// readFault decodes a fault whose durations are text. It rejects unknown fields: a misspelt fault would test
// nothing.
func readFault(body io.Reader) (Fault, error) {
	wire := struct {
		Fault
		Latency string `json:"latency"`
		For     string `json:"for"`
	}{Latency: "0s", For: "0s"}
	err := decode(body, &wire)
	latency, latencyErr := time.ParseDuration(wire.Latency)
	span, spanErr := time.ParseDuration(wire.For)
	wire.Fault.Latency, wire.Fault.For = latency, span
	return wire.Fault, cmp.Or(err, latencyErr, spanErr, wire.validate())
}

// validate rejects a fault without an effect or with a number out of range.
func (f Fault) validate() error {
	switch {
	case f.name() == "" && f.Latency == 0 && f.DuplicateCode == 0:
		return errors.New("neither an answer nor latency or duplicate_code")
	case f.Status != 0 && (f.Status < 200 || f.Status > 599):
		return errors.New("status must be between 200 and 599")
	case f.Rate < 0 || f.Rate > 1:
		return errors.New("rate must be between 0 and 1")
	}
	return nil
}

// name returns what Stats.ByCode calls the answer, "" if the rules give it.
func (f Fault) name() string {
	for _, kind := range []struct {
		name string
		set  bool
	}{
		{"hang", f.Hang},
		{"cut", f.Cut},
		{"cut_after", f.CutAfter},
		{"lying_length", f.LyingLength},
		{"endless", f.Endless},
		{"drip", f.Drip},
		{"html", f.HTML},
		{"redirect", f.Redirect != ""},
		{strconv.Itoa(f.Code), f.Code != 0 && f.Body == ""},
		{"http_" + strconv.Itoa(cmp.Or(f.Status, 200)), f.Status != 0 || f.Body != ""},
	} {
		if kind.set {
			return kind.name
		}
	}
	return ""
}

func (f Fault) matches(req request) bool {
	hasText := func(e Event) bool {
		event := gjson.ParseBytes(e.Body)
		return anyString(event, func(s string) bool { return strings.Contains(s, f.MatchText) })
	}
	return f.Stats == req.stats && len(req.events) >= f.MinEvents &&
		(f.MatchText == "" || slices.ContainsFunc(req.events, hasText))
}

// write answers a request in place of the rules. cleared is closed when the faults are cleared.
func (f Fault) write(w http.ResponseWriter, r *http.Request, cleared <-chan struct{}) {
	switch {
	case f.Hang:
		select {
		case <-r.Context().Done():
		case <-cleared:
		}
		panic(http.ErrAbortHandler)
	case f.Cut, f.CutAfter:
		panic(http.ErrAbortHandler)
	case f.Endless:
		f.stream(w, r, cleared, 32<<10, 0)
	case f.Drip:
		f.stream(w, r, cleared, 1, 50*time.Millisecond)
	default:
		f.respond(w)
	}
}

const gatewayPage = "<html>\r\n<head><title>%d %s</title></head>\r\n" +
	"<body><center><h1>%[1]d %[2]s</h1></center><hr><center>nginx</center></body>\r\n</html>\r\n"

// respond writes an answer. LyingLength promises more than it holds: net/http then closes the connection.
func (f Fault) respond(w http.ResponseWriter) {
	status, header := cmp.Or(f.Status, http.StatusOK), w.Header()
	contentType, body := "text/plain; charset=utf-8", f.Body
	switch {
	case f.HTML:
		status = cmp.Or(f.Status, http.StatusBadGateway)
		contentType, body = "text/html", fmt.Sprintf(gatewayPage, status, http.StatusText(status))
	case f.Redirect != "":
		status = cmp.Or(f.Status, http.StatusTemporaryRedirect)
		header.Set("Location", f.Redirect)
	case f.Body == "" && (f.Code != 0 || f.LyingLength):
		answer, _ := json.Marshal(newAnswer(f.Code, cmp.Or(f.Message, "Simulated fault")))
		body = string(answer)
	}
	if json.Valid([]byte(body)) {
		contentType = "application/json"
	}
	body = cmp.Or(body, http.StatusText(status)+"\n")
	header.Set("Content-Type", contentType)
	if f.RetryAfter != "" {
		header.Set("Retry-After", f.RetryAfter)
	}
	if f.LyingLength {
		header.Set("Content-Length", strconv.Itoa(len(body)+100))
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// stream begins a good answer and adds chunks until the client disconnects or the faults are cleared.
func (f Fault) stream(
	w http.ResponseWriter, r *http.Request, cleared <-chan struct{}, chunk int, interval time.Duration,
) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(cmp.Or(f.Status, http.StatusOK))
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
