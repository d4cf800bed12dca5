package notify

import (
	"maps"
	"slices"
	"time"

	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/ops/report"
)

const (
	// retryInterval is the time between two attempts to send a message that was certainly not accepted.
	retryInterval = time.Minute
	// memory is how long before its start a process expects that another one notified of dead purchases. Older
	// ones get no message: an operator who leaves them would get one at each restart.
	memory = time.Hour
)

// entry is the state of one kind of problem.
type entry struct {
	problem   *problem
	due       time.Time // of the next firing message; zero: none
	firing    bool      // a firing message was, or may have been, sent, and no resolved one since
	sent      time.Time // when that was; zero: never
	latest    time.Time // the problem's latest in that message
	notBefore time.Time // of any message, after a failure
}

// schedule decides which messages are due.
type schedule struct {
	started time.Time // another process may have sent messages about older problems
	entries map[string]*entry
}

func newSchedule(now time.Time) *schedule {
	return &schedule{started: now, entries: map[string]*entry{}}
}

// due records the current problems and returns the messages that are due.
func (s *schedule) due(problems report.Problems, now time.Time) (list []Message) {
	present := byKind(problems.List)
	for _, p := range present {
		s.observe(p, now)
	}
	for _, kind := range slices.Sorted(maps.Keys(s.entries)) {
		e := s.entries[kind]
		switch {
		case now.Before(e.notBefore):
		case present[kind] != nil:
			if !e.due.IsZero() && !now.Before(e.due) {
				list = append(list, e.problem.message(StateFiring))
			}
		case problems.Unknown(kind): // it may or may not be over
		case e.firing:
			list = append(list, e.problem.message(StateResolved))
		case now.Sub(e.sent) >= repeatInterval: // resolved
			delete(s.entries, kind)
		}
	}
	return list
}

// observe records a problem and sets when its firing message is due.
func (s *schedule) observe(p *problem, now time.Time) {
	e := s.entries[p.kind]
	first := now.Add(groupWait)
	if !p.since.IsZero() {
		first = later(first, p.since.Add(guide.Problem(p.kind).Patience))
	}
	switch {
	case e == nil && p.past && p.latest.Before(s.started.Add(-memory)):
		e = &entry{firing: true, sent: s.started, latest: p.latest}
	case e == nil && s.sentBefore(p):
		e = &entry{firing: true, sent: s.started, due: s.started.Add(repeatInterval)}
	case e == nil:
		e = &entry{due: first}
	case e.due.IsZero() && (!e.firing || p.latest.After(e.latest)): // again, or worse
		e.due = later(first, e.sent.Add(repeatInterval))
	}
	e.problem = p
	s.entries[p.kind] = e
}

// sentBefore reports whether another process may have sent a message about a problem.
func (s *schedule) sentBefore(p *problem) bool {
	return !p.since.IsZero() && p.since.Add(guide.Problem(p.kind).Patience).Before(s.started)
}

// record records the result of sending a message.
func (s *schedule) record(m Message, err error, now time.Time) {
	e := s.entries[m.Reason]
	switch {
	case retryable(err):
		e.notBefore = now.Add(retryInterval)
	case err != nil && m.State == StateFiring: // it may have been accepted
		e.firing, e.sent, e.due = true, now, now.Add(repeatInterval)
	case err != nil:
		e.notBefore = now.Add(repeatInterval)
	case m.State == StateFiring:
		e.firing, e.sent, e.due, e.latest = true, now, time.Time{}, m.latest
	default:
		e.firing, e.due, e.latest = false, time.Time{}, time.Time{}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
