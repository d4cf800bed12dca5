package notify

import (
	"maps"
	"slices"
	"time"
)

// retryInterval is the time between two attempts to send a message that was certainly not accepted.
const retryInterval = time.Minute

// entry is the state of one reason.
type entry struct {
	problem   Problem
	due       time.Time // of the next firing message; zero: none
	firing    bool      // a firing message was, or may have been, sent, and no resolved one since
	sent      time.Time // when that was; zero: never
	latest    time.Time // the problem's Latest in that message
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
func (s *schedule) due(problems []Problem, now time.Time) (list []Message) {
	present, unknown := map[string]bool{}, map[string]bool{}
	for _, p := range problems {
		switch e := s.entries[p.Reason]; {
		case p.Unknown:
			unknown[p.Reason] = true
		case p.Count > 0:
			present[p.Reason] = true
			s.observe(p, now)
		case e != nil:
			e.problem.Resolved = p.Resolved
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(s.entries)) {
		e := s.entries[reason]
		switch {
		case unknown[reason], now.Before(e.notBefore):
		case present[reason]:
			if !e.due.IsZero() && !now.Before(e.due) {
				list = append(list, e.message(StateFiring))
			}
		case e.firing:
			list = append(list, e.message(StateResolved))
		case now.Sub(e.sent) >= repeatInterval: // resolved
			delete(s.entries, reason)
		}
	}
	return list
}

// observe records a problem and sets when its firing message is due.
func (s *schedule) observe(p Problem, now time.Time) {
	e := s.entries[p.Reason]
	switch {
	case e == nil && p.Since.Before(s.started):
		e = &entry{firing: true, sent: s.started, due: s.started.Add(repeatInterval)}
	case e == nil:
		e = &entry{due: now.Add(groupWait)}
	case e.due.IsZero() && (!e.firing || p.Latest.After(e.latest)): // again, or worse
		e.due = later(now.Add(groupWait), e.sent.Add(repeatInterval))
	}
	e.problem = p
	s.entries[p.Reason] = e
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

func (e *entry) message(state string) Message {
	p := e.problem
	m := Message{
		Reason: p.Reason, State: state, Since: p.Since, Count: p.Count, IDs: p.IDs,
		What: p.What, Remedy: p.Remedy, latest: p.Latest,
	}
	if state == StateResolved {
		m.What, m.Remedy = p.Resolved, ""
	}
	return m
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
