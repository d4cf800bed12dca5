package notify

import (
	"maps"
	"slices"
	"time"
)

// retryLater lies between two tries to tell what the receiver did not take for certain.
const retryLater = time.Minute

// entry is what is known of one reason.
type entry struct {
	trouble Trouble
	due     time.Time // when its beginning, or that it got worse, is to be told; zero: nothing is
	open    bool      // its beginning was told, or may have been, and its end not yet
	told    time.Time // when; zero: not lately
	latest  time.Time // the newest of it that was told of
	hold    time.Time // after a failure: nothing before
}

// book remembers what was told. Its methods are functions of what they are given.
type book struct {
	began   time.Time // what stood before may have been told by another
	entries map[string]*entry
}

func newBook(now time.Time) *book { return &book{began: now, entries: map[string]*entry{}} }

// due takes what was seen and returns what is to be told now.
func (b *book) due(seen []Trouble, now time.Time) (list []Message) {
	standing, unknown := map[string]bool{}, map[string]bool{}
	for _, t := range seen {
		switch e := b.entries[t.Reason]; {
		case t.Unknown:
			unknown[t.Reason] = true
		case t.Count > 0:
			standing[t.Reason] = true
			b.stands(t, now)
		case e != nil:
			e.trouble.Over = t.Over
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(b.entries)) {
		e := b.entries[reason]
		switch {
		case unknown[reason], now.Before(e.hold):
		case standing[reason]:
			if !e.due.IsZero() && !now.Before(e.due) {
				list = append(list, e.message(StateFiring))
			}
		case e.open:
			list = append(list, e.message(StateResolved))
		case now.Sub(e.told) >= quiet: // over, and not told lately
			delete(b.entries, reason)
		}
	}
	return list
}

// stands books a trouble that stands and decides when it is to be told.
func (b *book) stands(t Trouble, now time.Time) {
	e := b.entries[t.Reason]
	switch {
	case e == nil && t.Since.Before(b.began):
		e = &entry{open: true, told: b.began, due: b.began.Add(quiet)}
	case e == nil:
		e = &entry{due: now.Add(gather)}
	case e.due.IsZero() && (!e.open || t.Latest.After(e.latest)): // once more, or worse
		e.due = latest(now.Add(gather), e.told.Add(quiet))
	}
	e.trouble = t
	b.entries[t.Reason] = e
}

// done books what came of a message.
func (b *book) done(m Message, err error, now time.Time) {
	e := b.entries[m.Reason]
	switch {
	case again(err):
		e.hold = now.Add(retryLater)
	case err != nil && m.State == StateFiring: // it may have been taken
		e.open, e.told, e.due = true, now, now.Add(quiet)
	case err != nil:
		e.hold = now.Add(quiet)
	case m.State == StateFiring:
		e.open, e.told, e.due, e.latest = true, now, time.Time{}, m.latest
	default:
		e.open, e.due, e.latest = false, time.Time{}, time.Time{}
	}
}

func (e *entry) message(state string) Message {
	t := e.trouble
	m := Message{Reason: t.Reason, State: state, Since: t.Since, Count: t.Count, IDs: t.IDs, What: t.What, Remedy: t.Remedy, latest: t.Latest}
	if state == StateResolved {
		m.What, m.Remedy = t.Over, ""
	}
	return m
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
