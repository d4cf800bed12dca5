package tiktoksim

import (
	"bytes"
	"encoding/json"
	"slices"
	"time"
)

// dedupWindow is how long TikTok recognises a repeat, from the first arrival.
const dedupWindow = 48 * time.Hour

// Event is an accepted event with its repeats.
type Event struct {
	EventID       string          `json:"event_id"`
	Event         string          `json:"event"`
	Pixel         string          `json:"pixel"`
	EventTime     int64           `json:"event_time"`
	TestEventCode string          `json:"test_event_code"`
	Body          json.RawMessage `json:"body"` // as first received; in the older shape the whole request
	FirstAt       time.Time       `json:"first_at"`
	LastAt        time.Time       `json:"last_at"`
	Copies        int             `json:"copies"`   // arrivals, the first included
	Variants      int             `json:"variants"` // different bodies among them
}

// Stats are counts since the start or DELETE /events.
type Stats struct {
	Requests     int            `json:"requests"`      // to either path, with or without a fault
	Events       int            `json:"events"`        // in requests that reached the rules
	Accepted     int            `json:"accepted"`      // distinct events
	Duplicates   int            `json:"duplicates"`    // repeats within 48 hours
	Refused      int            `json:"refused"`       // requests that the rules refused
	Unreached    int            `json:"unreached"`     // requests that a fault answered in place of the rules
	LargestBatch int            `json:"largest_batch"` // events in one request that reached the rules
	Asked        int            `json:"asked"`         // requests for counts
	ByCode       map[string]int `json:"by_code"`       // answers by TikTok's code, "http_503" or fault: "cut"
}

// store holds the accepted events until it is reset. Simulator.mu guards it.
type store struct {
	order  []*record // by first arrival
	latest map[key]*record
	stats  Stats
}

// key identifies an event at TikTok.
type key struct{ pixel, event, id string }

type record struct {
	Event
	bodies [][]byte // the different ones
}

func newStore() store {
	return store{latest: map[key]*record{}, stats: Stats{ByCode: map[string]int{}}}
}

// accept stores an event. It reports whether the event is new.
func (s *store) accept(e Event, now time.Time) bool {
	k := key{e.Pixel, e.Event, e.EventID}
	r := s.latest[k]
	repeated := r != nil && now.Sub(r.FirstAt) < dedupWindow
	if repeated {
		s.stats.Duplicates++
	} else {
		s.stats.Accepted++
		e.FirstAt = now
		r = &record{Event: e}
		s.order, s.latest[k] = append(s.order, r), r
	}
	r.LastAt = now
	r.Copies++
	if !slices.ContainsFunc(r.bodies, func(b []byte) bool { return bytes.Equal(b, e.Body) }) {
		r.bodies = append(r.bodies, e.Body)
		r.Variants++
	}
	return !repeated
}
