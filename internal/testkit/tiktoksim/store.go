package tiktoksim

import (
	"encoding/json"
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// maxEvents bounds the memory: the oldest event is forgotten for one more than this.
	maxEvents = 1_000_000
	// dedupWindow is how long a repeat is known as one, from the first arrival on.
	dedupWindow = 48 * time.Hour
)

// Event is an accepted event with all its repeats.
type Event struct {
	EventID       string          `json:"event_id"`
	Event         string          `json:"event"`
	Pixel         string          `json:"pixel"`
	EventTime     int64           `json:"event_time"`
	TestEventCode string          `json:"test_event_code"`
	Body          json.RawMessage `json:"body"` // the event as it first came; in the older shape, the whole request
	FirstAt       time.Time       `json:"first_at"`
	LastAt        time.Time       `json:"last_at"`
	Copies        int             `json:"copies"`   // arrivals, the first included
	Variants      int             `json:"variants"` // different bodies among them: 1 for a sender that repeats what it said
}

// Stats are counts since the start or DELETE /events.
type Stats struct {
	Requests     int            `json:"requests"`      // that brought events, in either shape, faults included
	Events       int            `json:"events"`        // in all requests that the rules saw, refused ones included
	Accepted     int            `json:"accepted"`      // distinct events
	Duplicates   int            `json:"duplicates"`    // accepted again within 48 hours
	Refused      int            `json:"refused"`       // requests that the rules refused
	Unreached    int            `json:"unreached"`     // requests that a fault answered, or did not, in place of the rules
	Forgotten    int            `json:"forgotten"`     // events dropped, oldest first, to bound the memory
	LargestBatch int            `json:"largest_batch"` // events in one request that the rules saw
	ByCode       map[string]int `json:"by_code"`       // answers: TikTok's code, "http_503" without one, or what came instead ("cut", "hang" …)
}

// key is what TikTok recognises a repeat by.
type key struct{ pixel, event, id string }

type record struct {
	Event
	hashes []uint64 // of the different bodies
}

// store keeps what was accepted, and counts.
type store struct {
	limit int
	seed  maphash.Seed

	mu     sync.Mutex
	order  []*record
	latest map[key]*record
	count  Stats
}

func newStore(limit int) *store {
	s := &store{limit: limit, seed: maphash.MakeSeed()}
	s.reset()
	return s
}

func (s *store) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order, s.latest, s.count = nil, map[key]*record{}, Stats{ByCode: map[string]int{}}
}

// unreached counts a request that a fault took.
func (s *store) unreached(label string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count.Requests++
	s.count.Unreached++
	s.count.ByCode[label]++
}

// refused counts a request that the rules refused.
func (s *store) refused(sub submission, label string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reached(sub)
	s.count.Refused++
	s.count.ByCode[label]++
}

// accept stores a request's events. It asks say for the answer and its label, which depend on whether all were repeats.
func (s *store) accept(sub submission, now time.Time, say func(allKnown bool) (verdict, string)) verdict {
	hashes := make([]uint64, len(sub.events))
	for i, e := range sub.events {
		hashes[i] = maphash.Bytes(s.seed, e.raw)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reached(sub)
	allKnown := true
	for i, e := range sub.events {
		if !s.add(sub, e, hashes[i], now) {
			allKnown = false
		}
	}
	said, label := say(allKnown)
	s.count.ByCode[label]++
	return said
}

func (s *store) reached(sub submission) {
	s.count.Requests++
	s.count.Events += len(sub.events)
	s.count.LargestBatch = max(s.count.LargestBatch, len(sub.events))
}

// add stores one event and says whether it was known.
func (s *store) add(sub submission, e offered, hash uint64, now time.Time) (known bool) {
	k := key{sub.pixel, e.text("event"), e.text("event_id")}
	if r := s.latest[k]; r != nil && now.Sub(r.FirstAt) < dedupWindow {
		s.count.Duplicates++
		r.Copies++
		r.LastAt = now
		if !slices.Contains(r.hashes, hash) {
			r.hashes = append(r.hashes, hash)
			r.Variants++
		}
		return true
	}
	r := &record{hashes: []uint64{hash}, Event: Event{
		EventID: k.id, Event: k.event, Pixel: k.pixel, EventTime: e.at(), TestEventCode: sub.testCode, Body: e.raw,
		FirstAt: now, LastAt: now, Copies: 1, Variants: 1,
	}}
	if len(s.order) == s.limit {
		old := s.order[0]
		s.order[0], s.order = nil, s.order[1:]
		s.count.Forgotten++
		if k := (key{old.Pixel, old.Event.Event, old.EventID}); s.latest[k] == old {
			delete(s.latest, k)
		}
	}
	s.order, s.latest[k] = append(s.order, r), r
	s.count.Accepted++
	return false
}

// received returns the events in order of first arrival; with an id, only those that have it.
func (s *store) received(id string) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	events := []Event{}
	if id == "" {
		events = make([]Event, 0, len(s.order))
	}
	for _, r := range s.order {
		if id == "" || r.EventID == id {
			events = append(events, r.Event)
		}
	}
	return events
}

func (s *store) stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.count
	c.ByCode = maps.Clone(c.ByCode)
	return c
}
