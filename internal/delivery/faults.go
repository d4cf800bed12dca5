package delivery

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"purchase-relay/internal/purchase"
)

// Thresholds that separate one event's fault from the destination's.
const (
	rejectionStreak = 10 // single events rejected with one wording and none delivered: a fault of the settings
	singlesAfter    = 3  // rejections of such a streak after which events are sent one by one
	blockStreak     = 3  // block pages for single events, none passed in between: a fault of the destination
	deadAfterBlocks = 3  // block pages for one event alone that make it dead while others pass
	passRatio       = 3  // events per other suspect that must pass before deadAfterBlocks applies
	maxBlockRounds  = 5  // block pages for one event alone, each after a pass, that always make it dead
	maxSuspects     = 1000
	maxWordings     = 100
)

// TikTok's codes about a part of a request.
const (
	codePartial   = 20001 // some events were rejected; TikTok does not report which
	codeDuplicate = 40050 // at least one event is a duplicate
)

// finding is what an answer shows about its destination.
type finding int

const (
	unclear finding = iota // nothing yet
	healthy                // TikTok processed the request
	failing                // no usable answer
	denied                 // every other event would get the same answer
)

// action is what happens to the events of a request.
type action int

const (
	actionRetry    action = iota
	actionComplete        // accepted
	actionSplit           // each part needs an answer of its own
	actionDead            // this one event is at fault
)

// sentRequest is what faults uses of a request.
type sentRequest struct {
	seq    uint64 // number of the request; higher than of any request answered before this one was sent
	ids    []string
	first  bool // the first request with these events, and nothing was split off
	passed int  // events that passed since a larger request with this event got a block page
}

// faults distinguishes one event's fault from the destination's by comparing the answers to different events.
// It is a pure state machine of the answers in their order.
//
// A rejection by TikTok is the event's fault, until a streak of single events was rejected with the same
// wording and none delivered: then the settings are at fault. A block page (a firewall's, in place of
// TikTok's answer) is ambiguous. An event that gets block pages alone while others pass is dead; if nothing
// passes, the destination is at fault.
type faults struct {
	rejections  map[string]int // single events rejected since the last delivery, by wording
	rejectSince uint64         // a delivery by a later request ends the streak
	settings    string         // the wording of a full streak; "": no fault of the settings

	suspects   map[string]*suspect // by event ID
	blocked    []string            // events that got a block page alone while nothing passed
	blockSince uint64              // a pass of a later request ends the streak
}

// suspect is an event that got a block page alone.
type suspect struct {
	blocks int    // block pages that are not the destination's fault
	since  uint64 // request of the first block page; passes of later requests count
	passed int    // other events, since then
	rounds int    // block pages, each after a pass
	last   uint64 // request of the last block page
	other  bool   // another event passed since then
}

func newFaults() faults {
	return faults{rejections: map[string]int{}, suspects: map[string]*suspect{}}
}

// observe evaluates the answer to a request; latest is the latest request's seq.
func (f *faults) observe(a purchase.Answer, r sentRequest, latest uint64) (finding, action) {
	single := len(r.ids) == 1
	switch a.Class {
	case purchase.ClassDelivered:
		f.pass(r)
		if !single && hasCode(a, codeDuplicate) {
			return f.reachable(), actionSplit
		}
		if r.seq > f.rejectSince {
			clear(f.rejections)
			f.settings = ""
		}
		return f.reachable(), actionComplete
	case purchase.ClassRefused:
		f.pass(r)
		switch {
		case !single:
			return f.reachable(), actionSplit
		case r.first && hasCode(a, codePartial): // inconclusive about a single event
			return f.reachable(), actionRetry
		}
		return f.reject(wordingOf(a, r.ids[0]), latest)
	case purchase.ClassBlocked:
		if !single {
			return unclear, actionSplit
		}
		return f.block(r, latest)
	case purchase.ClassAccess:
		return denied, actionRetry
	case purchase.ClassRate:
		return unclear, actionRetry
	default:
		return failing, actionRetry
	}
}

func hasCode(a purchase.Answer, code int) bool { return a.Code != nil && *a.Code == code }

// reachable is the finding of an answer by TikTok itself: it does not end a fault of the settings.
func (f *faults) reachable() finding {
	if f.settings != "" {
		return denied
	}
	return healthy
}

// singlesOnly reports whether the next rejections may be the settings' fault: then events are sent one by
// one, so that few are dead by the time a streak is full.
func (f *faults) singlesOnly() bool {
	for _, n := range f.rejections {
		if n >= singlesAfter {
			return true
		}
	}
	return false
}

// blocks returns how many block pages an event got alone; 0: it is no suspect.
func (f *faults) blocks(id string) int {
	if s := f.suspects[id]; s != nil {
		return max(1, s.blocks)
	}
	return 0
}

// reject records the rejection of a single event. The last event of a streak is dead like the others; later
// ones are retried, with any wording, until something is delivered.
func (f *faults) reject(wording string, latest uint64) (finding, action) {
	if f.settings != "" {
		return denied, actionRetry
	}
	if len(f.rejections) == 0 {
		f.rejectSince = latest
	}
	f.rejections[wording]++
	if f.rejections[wording] < rejectionStreak && len(f.rejections) < maxWordings {
		return healthy, actionDead
	}
	f.settings, f.rejectSince = wording, latest
	return denied, actionDead
}

// pass records an answer by TikTok itself: no firewall blocked these events.
func (f *faults) pass(r sentRequest) {
	for _, id := range r.ids {
		delete(f.suspects, id)
	}
	for _, s := range f.suspects {
		if r.seq > s.since {
			s.passed += len(r.ids)
		}
		s.other = s.other || r.seq > s.last
	}
	if r.seq > f.blockSince {
		f.blocked = nil
	}
}

// block records a block page for a single event.
func (f *faults) block(r sentRequest, latest uint64) (finding, action) {
	id := r.ids[0]
	s := f.suspects[id]
	if s == nil {
		if len(f.suspects) >= maxSuspects {
			clear(f.suspects) // real suspects are blocked again
		}
		s = &suspect{other: true}
		f.suspects[id] = s
	}
	if s.blocks == 0 {
		s.since, s.passed = latest, r.passed
	}
	if s.other {
		s.rounds++
	}
	s.blocks, s.last, s.other = s.blocks+1, latest, false
	if s.rounds >= maxBlockRounds {
		delete(f.suspects, id)
		return unclear, actionDead
	}
	others := 0
	for _, other := range f.suspects {
		if other != s && other.blocks > 0 {
			others++
		}
	}
	if s.passed > passRatio*others && len(f.blocked) == 0 {
		if s.blocks < deadAfterBlocks {
			return unclear, actionRetry
		}
		delete(f.suspects, id)
		return unclear, actionDead
	}
	if len(f.blocked) == 0 {
		f.blockSince = latest
	}
	if len(f.blocked) == blockStreak {
		f.blocked = slices.Delete(f.blocked, 1, 2) // the first stays, to show whether the events differ
	}
	f.blocked = append(f.blocked, id)
	if len(f.blocked) < blockStreak {
		return unclear, actionRetry
	}
	f.discountStreak()
	return denied, actionRetry
}

// discountStreak subtracts a full streak of block pages from its suspects if their events differ: then the
// destination is at fault.
func (f *faults) discountStreak() {
	kept := 1
	if slices.ContainsFunc(f.blocked, func(id string) bool { return id != f.blocked[0] }) {
		kept = 0
	}
	for _, id := range f.blocked {
		if s := f.suspects[id]; s != nil {
			s.blocks = min(s.blocks, kept)
		}
	}
}

// variable matches what differs between the same rejections of two events: quoted values, and words with a
// digit.
var variable = regexp.MustCompile(
	`"[^"]*"|` + "`[^`]*`" + `|(^|[\s:(\[=])'[^']*'|\[redacted\]|[\p{L}\p{N}_-]*\p{N}[\p{L}\p{N}_-]*`,
)

// wordingOf returns a rejection's text without the parts that belong to the event.
func wordingOf(a purchase.Answer, id string) string {
	text := variable.ReplaceAllString(strings.ReplaceAll(a.Message, id, "#"), "${1}#")
	code := ""
	if a.Code != nil {
		code = strconv.Itoa(*a.Code)
	}
	return strings.ToLower(strings.Join(append([]string{code}, strings.Fields(text)...), " "))
}
