package delivery

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"purchase-relay/internal/purchase"
)

// How much it takes to tell one event's fault from the destination's.
const (
	refusalRow  = 10 // single events refused in the same words, none delivered between: the settings are at fault
	doubtAfter  = 3  // refusals of such a row after which single events are tried instead of batches
	pageRow     = 3  // pages for single events, nothing passed between: the destination is at fault
	pagesAlone  = 3  // pages for one event alone that condemn it while others pass
	passRatio   = 3  // events that must pass for each other suspect before those condemn it
	pageRounds  = 5  // pages for one event alone, with a pass between any two, that condemn it whatever else happens
	maxSuspects = 1000
	maxWordings = 100
)

// TikTok's codes that speak of part of a request.
const (
	codePartial   = 20001 // some events were not taken, and TikTok does not report which
	codeDuplicate = 40050 // at least one event was known already
)

// finding is what an answer shows about its destination.
type finding int

const (
	unclear finding = iota // nothing, or not yet
	healthy                // TikTok judged the request
	failing                // no usable answer
	denied                 // every other event would meet the same answer
)

// fate is what an answer means for the events of its request.
type fate int

const (
	fateRetry     fate = iota
	fateDelivered      // accepted
	fateSplit          // each part needs an answer of its own
	fateDead           // this one event is at fault
)

// request is what evidence needs to know of a request.
type request struct {
	seq    uint64 // counts the requests to this destination; it is later than every answer that came before it was sent
	ids    []string
	first  bool // the first request about these events, and nothing was split off
	passed int  // events that passed since a larger request with this event met a page
}

// evidence tells one event's fault from the destination's by comparing the answers to different events. It is
// a pure state machine of the answers in the order in which they come.
//
// A refusal in TikTok's own words is the event's fault, until a row of single events was refused in the same
// words and none delivered. A page in place of TikTok's answer (a firewall's) is nobody's fault at first: an
// event that meets pages alone while others pass is condemned; if nothing passes, it is the destination.
type evidence struct {
	refusals map[string]int // single events refused since the last delivery, by wording
	started  uint64         // a delivery by a later request ends the row
	fault    string         // the wording that filled its row; "": none did

	suspects map[string]*suspicion // by event id
	row      []string              // events that met a page alone, and nothing passed since
	rowSince uint64                // a pass of a later request ends the row
}

// suspicion is what is known against one event that met a page alone.
type suspicion struct {
	alone  int    // pages, as far as they are not the destination's
	since  uint64 // the first of them; passes of later requests count
	passed int    // other events, since then
	rounds int    // pages with a pass between any two
	last   uint64 // the last page
	other  bool   // something passed since
}

func newEvidence() evidence {
	return evidence{refusals: map[string]int{}, suspects: map[string]*suspicion{}}
}

// weigh takes in an answer; now is the latest request's seq.
func (e *evidence) weigh(a purchase.Answer, r request, now uint64) (finding, fate) {
	single := len(r.ids) == 1
	switch a.Class {
	case purchase.ClassDelivered:
		e.pass(r)
		if !single && hasCode(a, codeDuplicate) {
			return e.judged(), fateSplit
		}
		if r.seq > e.started {
			clear(e.refusals)
			e.fault = ""
		}
		return e.judged(), fateDelivered
	case purchase.ClassRefused:
		e.pass(r)
		switch {
		case !single:
			return e.judged(), fateSplit
		case r.first && hasCode(a, codePartial): // about a single event it says nothing for sure
			return e.judged(), fateRetry
		}
		return e.refuse(wording(a, r.ids[0]), now)
	case purchase.ClassBlocked:
		if !single {
			return unclear, fateSplit
		}
		return e.page(r, now)
	case purchase.ClassAccess:
		return denied, fateRetry
	case purchase.ClassRate:
		return unclear, fateRetry
	default:
		return failing, fateRetry
	}
}

func hasCode(a purchase.Answer, code int) bool { return a.Code != nil && *a.Code == code }

// judged is the finding of an answer in TikTok's words: it opens no gate that a row of refusals closed.
func (e *evidence) judged() finding {
	if e.fault != "" {
		return denied
	}
	return healthy
}

// doubtful reports whether the next refusals may be the settings' fault: then one event is sent before many.
func (e *evidence) doubtful() bool {
	for _, n := range e.refusals {
		if n >= doubtAfter {
			return true
		}
	}
	return false
}

// pages returns how many pages an event met alone, lately; 0: it is no suspect.
func (e *evidence) pages(id string) int {
	if s := e.suspects[id]; s != nil {
		return max(1, s.alone)
	}
	return 0
}

// refuse takes in the refusal of a single event. The last one of a row dies with the others; later ones are
// spared, whatever their words, until something is delivered.
func (e *evidence) refuse(words string, now uint64) (finding, fate) {
	if e.fault != "" {
		return denied, fateRetry
	}
	if len(e.refusals) == 0 {
		e.started = now
	}
	e.refusals[words]++
	if e.refusals[words] < refusalRow && len(e.refusals) < maxWordings {
		return healthy, fateDead
	}
	e.fault, e.started = words, now
	return denied, fateDead
}

// pass takes in that TikTok itself answered about these events: nothing in between refused them.
func (e *evidence) pass(r request) {
	for _, id := range r.ids {
		delete(e.suspects, id)
	}
	for _, s := range e.suspects {
		if r.seq > s.since {
			s.passed += len(r.ids)
		}
		s.other = s.other || r.seq > s.last
	}
	if r.seq > e.rowSince {
		e.row = nil
	}
}

// page takes in a page for a single event.
func (e *evidence) page(r request, now uint64) (finding, fate) {
	id := r.ids[0]
	s := e.suspects[id]
	if s == nil {
		if len(e.suspects) >= maxSuspects {
			clear(e.suspects) // they are found again
		}
		s = &suspicion{other: true}
		e.suspects[id] = s
	}
	if s.alone == 0 {
		s.since, s.passed = now, r.passed
	}
	if s.other {
		s.rounds++
	}
	s.alone, s.last, s.other = s.alone+1, now, false
	if s.rounds >= pageRounds {
		delete(e.suspects, id)
		return unclear, fateDead
	}
	others := 0
	for _, other := range e.suspects {
		if other != s && other.alone > 0 {
			others++
		}
	}
	if s.passed > passRatio*others && len(e.row) == 0 {
		if s.alone < pagesAlone {
			return unclear, fateRetry
		}
		delete(e.suspects, id)
		return unclear, fateDead
	}
	if len(e.row) == 0 {
		e.rowSince = now
	}
	if len(e.row) == pageRow {
		e.row = slices.Delete(e.row, 1, 2) // the first stays, to see whether there are others
	}
	e.row = append(e.row, id)
	if len(e.row) < pageRow {
		return unclear, fateRetry
	}
	e.excuse()
	return denied, fateRetry
}

// excuse takes the pages of a full row for the destination's, where more than one event met them: then they
// count against none of these.
func (e *evidence) excuse() {
	counts := 1
	if slices.ContainsFunc(e.row, func(id string) bool { return id != e.row[0] }) {
		counts = 0
	}
	for _, id := range e.row {
		if s := e.suspects[id]; s != nil {
			s.alone = min(s.alone, counts)
		}
	}
}

// variable is what differs in the same refusal of two events: values in quotes, and every word with a digit.
var variable = regexp.MustCompile(
	`"[^"]*"|` + "`[^`]*`" + `|(^|[\s:(\[=])'[^']*'|\[redacted\]|[\p{L}\p{N}_-]*\p{N}[\p{L}\p{N}_-]*`,
)

// wording is a refusal without what belongs to the one event.
func wording(a purchase.Answer, id string) string {
	text := variable.ReplaceAllString(strings.ReplaceAll(a.Message, id, "#"), "${1}#")
	code := ""
	if a.Code != nil {
		code = strconv.Itoa(*a.Code)
	}
	return strings.ToLower(strings.Join(append([]string{code}, strings.Fields(text)...), " "))
}
