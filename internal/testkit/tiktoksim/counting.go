package tiktoksim

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Counting is how the simulator counts the accepted events in pixel/event/stats, and how it lies about them.
// The zero value counts each event at once and has no browser pixel.
type Counting struct {
	NoScope    bool     `json:"no_scope,omitempty"`   // the token may not read counts: 40001
	Late       duration `json:"late,omitempty"`       // an event is counted this long after its acceptance
	Lose       float64  `json:"lose,omitempty"`       // share of each day's events that is not counted, 0 to 1
	LoseDay    string   `json:"lose_day,omitempty"`   // a day of which no event is counted, YYYY-MM-DD
	As         string   `json:"as,omitempty"`         // event type of purchases; "" is SHOPPING
	Browser    float64  `json:"browser,omitempty"`    // browser events per server event
	Attributed float64  `json:"attributed,omitempty"` // share of all counted events, 0 to 1
}

func (c Counting) validate() error {
	_, err := time.Parse(time.DateOnly, cmp.Or(c.LoseDay, "2026-01-01"))
	switch {
	case c.Late < 0, c.Browser < 0, c.Browser > 1000:
		return errors.New("late and browser must not be negative, browser at most 1000")
	case c.Lose < 0, c.Lose > 1, c.Attributed < 0, c.Attributed > 1:
		return errors.New("lose and attributed must be between 0 and 1")
	case err != nil:
		return errors.New("lose_day must be YYYY-MM-DD")
	}
	return nil
}

// SetCounting replaces how events are counted, as PUT /counting does. It panics on what that rejects.
func (s *Simulator) SetCounting(c Counting) {
	if err := c.validate(); err != nil {
		panic("tiktoksim: set counting: " + err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counting = c
}

// putCounting rejects unknown fields: a misspelt lie would test nothing.
func (s *Simulator) putCounting(w http.ResponseWriter, r *http.Request) {
	var c Counting
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := cmp.Or(decoder.Decode(&c), c.validate()); err != nil {
		http.Error(w, "invalid counting: "+err.Error(), http.StatusBadRequest)
		return
	}
	s.SetCounting(c)
	writeJSON(w, c)
}

// statsAnswer is the answer of pixel/event/stats.
type statsAnswer struct {
	Code      int       `json:"code"`
	Message   string    `json:"message"`
	RequestID string    `json:"request_id"`
	Data      statsData `json:"data"`
}

type statsData struct {
	List []pixelStats `json:"list"`
}

type pixelStats struct {
	PixelID    string      `json:"pixel_id"`
	Statistics []statistic `json:"statistics"`
}

type statistic struct {
	EventType  string `json:"pixel_event_type"`
	Total      int    `json:"total_count"`
	Browser    int    `json:"browser_event_total_count"`
	Server     int    `json:"server_event_total_count"`
	Attributed int    `json:"attributed_count"`
	Preview    int    `json:"preview_count"`
}

// statsRequest is a parsed query.
type statsRequest struct {
	pixels     []string
	start, end time.Time // first and last UTC day
}

const maxDays = 30 // of date_range

var advertiserForm = regexp.MustCompile(`^[0-9]{1,32}$`)

// parseStats decodes a query. The refusal is nil if every rule is met.
func parseStats(query url.Values, advertiser string) (r statsRequest, refusal *answer) {
	invalid := func(field, why string) (statsRequest, *answer) {
		return r, newAnswer(40002, field+": "+why)
	}
	for name, values := range query {
		if !slices.Contains([]string{"advertiser_id", "pixel_ids", "date_range"}, name) {
			return invalid(name, "Unknown field.")
		}
		if len(values) != 1 {
			return invalid(name, "Not a single value.")
		}
	}
	id := query.Get("advertiser_id")
	if !advertiserForm.MatchString(id) {
		return invalid("advertiser_id", "Missing data for required field.")
	}
	if id != advertiser {
		return r, newAnswer(40001, "No permission to operate advertiser "+id)
	}
	if json.Unmarshal([]byte(query.Get("pixel_ids")), &r.pixels) != nil || len(r.pixels) == 0 {
		return invalid("pixel_ids", "Not a valid list.")
	}
	if len(r.pixels) > 10 {
		return invalid("pixel_ids", "Longer than maximum length 10.")
	}
	var dates struct {
		Start string `json:"start_date"`
		End   string `json:"end_date"`
	}
	decoder := json.NewDecoder(strings.NewReader(query.Get("date_range")))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&dates)
	var startErr, endErr error
	r.start, startErr = time.Parse(time.DateOnly, dates.Start)
	r.end, endErr = time.Parse(time.DateOnly, dates.End)
	switch {
	case cmp.Or(err, startErr, endErr) != nil:
		return invalid("date_range", "Not a valid date range.")
	case r.end.Before(r.start) || r.end.Sub(r.start) >= maxDays*24*time.Hour:
		return invalid("date_range", fmt.Sprintf("Must be 1 to %d days.", maxDays))
	}
	return r, nil
}

// pixelStats answers pixel/event/stats. Faults apply that are meant for it.
func (s *Simulator) pixelStats(w http.ResponseWriter, r *http.Request) {
	delay, write := s.decideStats(r)
	select {
	case <-time.After(delay):
	case <-r.Context().Done():
		panic(http.ErrAbortHandler)
	}
	write(w, r)
}

func (s *Simulator) decideStats(r *http.Request) (delay time.Duration, write http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store.stats.Asked++
	fault, _ := s.faults.next(request{stats: true}, s.random.Float64)
	if k := fault.kind(); k != nil {
		fault.Status = cmp.Or(fault.Status, k.status)
		cleared := s.faults.cleared
		return fault.Latency, func(w http.ResponseWriter, r *http.Request) { k.write(fault, w, r, cleared) }
	}
	now := time.Now()
	token := r.Header.Get("Access-Token")
	query, refusal := parseStats(r.URL.Query(), s.config.AdvertiserID)
	known, _ := s.access(token, s.config.Pixel)
	var reply any = refusal
	switch {
	case token == "":
		reply = newAnswer(40104, "Access token is missing: the request needs an Access-Token header")
	case !known && token != s.config.StatsToken:
		reply = newAnswer(40105, "Access token is incorrect or has been revoked")
	case s.counting.NoScope, s.config.StatsToken != "" && token != s.config.StatsToken:
		reply = newAnswer(40001, "No permission to operate: the access token lacks the scope of pixel/event/stats")
	case refusal != nil:
	default:
		ok := newAnswer(0, "OK")
		data := statsData{List: []pixelStats{}}
		for _, pixel := range query.pixels {
			if pixel == "" || pixel != s.config.Pixel && pixel != s.config.TestPixel {
				reply = newAnswer(40001, fmt.Sprintf("No permission to operate pixel %q", pixel))
				return fault.Latency, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, reply) }
			}
			data.List = append(data.List, pixelStats{pixel, s.store.count(s.counting, pixel, query, now)})
		}
		reply = statsAnswer{ok.Code, ok.Message, ok.RequestID, data}
	}
	return fault.Latency, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, reply) }
}

// count counts a pixel's events by type. An event belongs to the UTC day of its event_time.
func (s *store) count(c Counting, pixel string, r statsRequest, now time.Time) []statistic {
	byDay := map[string]map[string]int{} // events by type and day
	for _, e := range s.order {
		at := time.Unix(e.EventTime, 0).UTC()
		if e.Pixel != pixel || at.Before(r.start) || !at.Before(r.end.AddDate(0, 0, 1)) ||
			now.Sub(e.FirstAt) < time.Duration(c.Late) {
			continue
		}
		name := strings.ToUpper(e.Event.Event)
		if e.Event.Event == "CompletePayment" || e.Event.Event == "Purchase" {
			name = cmp.Or(c.As, "SHOPPING")
		}
		if byDay[name] == nil {
			byDay[name] = map[string]int{}
		}
		byDay[name][at.Format(time.DateOnly)]++
	}
	list := []statistic{}
	for name, days := range byDay {
		t := statistic{EventType: name}
		for day, n := range days {
			t.Browser += int(float64(n)*c.Browser + 0.5)
			if day != c.LoseDay {
				t.Server += n - int(float64(n)*c.Lose+0.5)
			}
		}
		t.Total = t.Browser + t.Server
		t.Attributed = int(float64(t.Total)*c.Attributed + 0.5)
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b statistic) int { return strings.Compare(a.EventType, b.EventType) })
	return list
}
