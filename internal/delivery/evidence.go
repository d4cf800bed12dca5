package delivery

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"purchase-relay/internal/purchase"
)

// How much evidence tells one event's fault from the destination's.
const (
	refusalRow  = 10 // single events rejected with one wording and none delivered: a fault of the settings
	doubtAfter  = 3  // rejections of such a row after which single events are tried instead of batches
	pageRow     = 3  // pages for single events, nothing passed in between: a fault of the destination
	pagesAlone  = 3  // pages for one event alone that condemn it while others pass
	passRatio   = 3  // events per other suspect that must pass before pagesAlone condemn
	pageRounds  = 5  // pages for one event alone, with a pass between any two, that condemn it in any case
	maxSuspects = 1000
	maxWordings = 100
)

// TikTok's codes about a part of a request.
const (
	codePartial   = 20001 // some events were rejected, and TikTok does not report which
	codeDuplicate = 40050 // at least one event is a duplicate
)

// finding is what an answer shows about its destination.
type finding int

const (
	unclear finding = iota // nothing yet
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

// requested is what evidence uses of a request.
type requested struct {
	seq    uint64 // number of the request; higher than of any request answered before this one was sent
	ids    []string
	first  bool // the first request with these events, and nothing was split off
	passed int  // events that passed since a larger request with this event met a page
}

// evidence tells one event's fault from the destination's by comparing the answers to different events. It is
// a pure state machine of the answers in their order.
//
// A rejection by TikTok is the event's fault, until a row of single events was rejected with the same wording
// and none delivered: then the settings are at fault. A page in place of TikTok's answer (a firewall's) is
// ambiguous: an event that meets pages alone while others pass is condemned; if nothing passes, the
// destination is at fault.
type evidence struct {
	refusals map[string]int // single events rejected since the last delivery, by wording
	started  uint64         // a delivery by a later request ends the row
	fault    string         // the wording of a full row; "": none

	suspects map[string]*suspicion // by event id
	row      []string              // events that met a page alone while nothing passed
	rowSince uint64                // a pass of a later request ends the row
}

// suspicion is the evidence against one event that met a page alone.
type suspicion struct {
	alone  int    // pages that are not the destination's fault
	since  uint64 // request of the first page; passes of later requests count
	passed int    // other events, since then
	rounds int    // pages with a pass between any two
	last   uint64 // request of the last page
	other  bool   // something passed since
}

func newEvidence() evidence {
	return evidence{refusals: map[string]int{}, suspects: map[string]*suspicion{}}
}

// weigh takes the answer to a request; now is the latest request's seq.
func (e *evidence) weigh(a purchase.Answer, r requested, now uint64) (finding, fate) {
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
		case r.first && hasCode(a, codePartial): // inconclusive about a single event
			return e.judged(), fateRetry
		}
		return e.refuse(wordingOf(a, r.ids[0]), now)
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

// judged is the finding of TikTok's own answer: it does not end a fault that a row of rejections showed.
func (e *evidence) judged() finding {
	if e.fault != "" {
		return denied
	}
	return healthy
}

// doubtful reports whether the next rejections may be the settings' fault: then single events are sent.
func (e *evidence) doubtful() bool {
	for _, n := range e.refusals {
		if n >= doubtAfter {
			return true
		}
	}
	return false
}

// pages returns how many pages an event met alone; 0: it is no suspect.
func (e *evidence) pages(id string) int {
	if s := e.suspects[id]; s != nil {
		return max(1, s.alone)
	}
	return 0
}

// refuse takes the rejection of a single event. The last event of a row is dead like the others; later ones
// are retried, with any wording, until something is delivered.
func (e *evidence) refuse(wording string, now uint64) (finding, fate) {
	if e.fault != "" {
		return denied, fateRetry
	}
	if len(e.refusals) == 0 {
		e.started = now
	}
	e.refusals[wording]++
	if e.refusals[wording] < refusalRow && len(e.refusals) < maxWordings {
		return healthy, fateDead
	}
	e.fault, e.started = wording, now
	return denied, fateDead
}

// pass takes an answer of TikTok itself: no page rejected these events.
func (e *evidence) pass(r requested) {
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

// page takes a page for a single event.
func (e *evidence) page(r requested, now uint64) (finding, fate) {
	id := r.ids[0]
	s := e.suspects[id]
	if s == nil {
		if len(e.suspects) >= maxSuspects {
			clear(e.suspects) // real suspects meet pages again
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
		e.row = slices.Delete(e.row, 1, 2) // the first stays, to show whether the events differ
	}
	e.row = append(e.row, id)
	if len(e.row) < pageRow {
		return unclear, fateRetry
	}
	e.excuse()
	return denied, fateRetry
}

// excuse drops the pages of a full row from the suspicions where different events met them: they are the
// destination's fault.
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

// variable matches what differs between the same rejections of two events: quoted values, and words with a
// digit.
var variable = regexp.MustCompile(
	`"[^"]*"|` + "`[^`]*`" + `|(^|[\s:(\[=])'[^']*'|\[redacted\]|[\p{L}\p{N}_-]*\p{N}[\p{L}\p{N}_-]*`,
)

// wordingOf returns a rejection without the parts that belong to the event.
func wordingOf(a purchase.Answer, id string) string {
	text := variable.ReplaceAllString(strings.ReplaceAll(a.Message, id, "#"), "${1}#")
	code := ""
	if a.Code != nil {
		code = strconv.Itoa(*a.Code)
	}
	return strings.ToLower(strings.Join(append([]string{code}, strings.Fields(text)...), " "))
}
