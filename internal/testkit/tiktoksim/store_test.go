package tiktoksim

import (
	"fmt"
	"testing"
	"time"
)

func arrive(s *store, id string, at time.Time) {
	raw := fmt.Appendf(nil, `{"event":"Purchase","event_time":1704067200,"event_id":%q}`, id)
	s.accept(submission{pixel: "P", events: []offered{{raw: raw, fields: decode(raw)}}}, at, func(bool) (verdict, string) {
		return verdict{}, "0"
	})
}

// TestStoreIsBounded: the oldest goes, and is no repeat when it comes again.
func TestStoreIsBounded(t *testing.T) {
	s, now := newStore(2), time.Unix(1704067200, 0)
	for _, id := range []string{"a", "b", "c", "b", "a"} {
		arrive(s, id, now)
	}
	got := s.received("")
	if len(got) != 2 || got[0].EventID != "c" || got[1].EventID != "a" || len(s.latest) != 2 {
		t.Errorf("kept: %+v, known: %d", got, len(s.latest))
	}
	if c := s.stats(); c.Accepted != 4 || c.Duplicates != 1 || c.Forgotten != 2 {
		t.Errorf("%+v", c)
	}
}

// TestForgettingTheFirstKeepsTheSecond: the same key twice, past the window. To forget the older record must not make the
// younger one's repeats new.
func TestForgettingTheFirstKeepsTheSecond(t *testing.T) {
	s, now := newStore(2), time.Unix(1704067200, 0)
	later := now.Add(dedupWindow)
	arrive(s, "a", now)
	arrive(s, "a", later)
	arrive(s, "b", later)
	arrive(s, "a", later)
	if c := s.stats(); c.Accepted != 3 || c.Duplicates != 1 || c.Forgotten != 1 {
		t.Errorf("%+v", c)
	}
}

// TestWindowIsExact: 48 hours from the first arrival, not from the last one.
func TestWindowIsExact(t *testing.T) {
	s, now := newStore(10), time.Unix(1704067200, 0)
	for _, after := range []time.Duration{0, 47 * time.Hour, dedupWindow - 1, dedupWindow} {
		arrive(s, "a", now.Add(after))
	}
	got := s.received("a")
	if len(got) != 2 || got[0].Copies != 3 || !got[0].LastAt.Equal(now.Add(dedupWindow-1)) || got[1].Copies != 1 {
		t.Errorf("%+v", got)
	}
}
