package notify

import (
	"maps"
	"slices"
	"time"
)

// retryInterval lies between two tries to send what the receiver certainly did not take.
const retryInterval = time.Minute

// entry is the state of one reason.
type entry struct {
	trouble Trouble
	due     time.Time // of the next message; zero: none
	open    bool      // a message about its beginning was sent, or may have been, and none about its end
	sent    time.Time // time of that message; zero: not lately
	latest  time.Time // the trouble's Latest in that message
	hold    time.Time // after a failure: no message before
}

// schedule decides which messages are due. Its methods are functions of their arguments.
type schedule struct {
	began   time.Time // another process may have sent messages about what began before
	entries map[string]*entry
}

func newSchedule(now time.Time) *schedule {
	return &schedule{began: now, entries: map[string]*entry{}}
}

// due takes the present troubles and returns the messages that are due.
func (s *schedule) due(seen []Trouble, now time.Time) (list []Message) {
	present, unknown := map[string]bool{}, map[string]bool{}
	for _, t := range seen {
		switch e := s.entries[t.Reason]; {
		case t.Unknown:
			unknown[t.Reason] = true
		case t.Count > 0:
			present[t.Reason] = true
			s.observe(t, now)
		case e != nil:
			e.trouble.Over = t.Over
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(s.entries)) {
		e := s.entries[reason]
		switch {
		case unknown[reason], now.Before(e.hold):
		case present[reason]:
			if !e.due.IsZero() && !now.Before(e.due) {
				list = append(list, e.message(StateFiring))
			}
		case e.open:
			list = append(list, e.message(StateResolved))
		case now.Sub(e.sent) >= quiet: // over, and no message lately
			delete(s.entries, reason)
		}
	}
	return list
}

// observe records a present trouble and decides when a message about it is due.
func (s *schedule) observe(t Trouble, now time.Time) {
	e := s.entries[t.Reason]
	switch {
	case e == nil && t.Since.Before(s.began):
		e = &entry{open: true, sent: s.began, due: s.began.Add(quiet)}
	case e == nil:
		e = &entry{due: now.Add(gather)}
	case e.due.IsZero() && (!e.open || t.Latest.After(e.latest)): // again, or worse
		e.due = later(now.Add(gather), e.sent.Add(quiet))
	}
	e.trouble = t
	s.entries[t.Reason] = e
}

// record takes the result of sending a message.
func (s *schedule) record(m Message, err error, now time.Time) {
	e := s.entries[m.Reason]
	switch {
	case again(err):
		e.hold = now.Add(retryInterval)
	case err != nil && m.State == StateFiring: // it may have been taken
		e.open, e.sent, e.due = true, now, now.Add(quiet)
	case err != nil:
		e.hold = now.Add(quiet)
	case m.State == StateFiring:
		e.open, e.sent, e.due, e.latest = true, now, time.Time{}, m.latest
	default:
		e.open, e.due, e.latest = false, time.Time{}, time.Time{}
	}
}

func (e *entry) message(state string) Message {
	t := e.trouble
	m := Message{
		Reason: t.Reason, State: state, Since: t.Since, Count: t.Count, IDs: t.IDs,
		What: t.What, Remedy: t.Remedy, latest: t.Latest,
	}
	if state == StateResolved {
		m.What, m.Remedy = t.Over, ""
	}
	return m
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
