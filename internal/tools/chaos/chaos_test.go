package main

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func testKinds() []*kind {
	return []*kind{
		{name: "often", weight: 9, targets: []string{"a", "b"}, longest: time.Second},
		{name: "seldom", weight: 1, targets: []string{"c"}, longest: 10 * time.Second},
	}
}

// A seed repeats the faults: what, whom, when, how long.
func TestPlanIsRepeatable(t *testing.T) {
	draw := func(seed uint64) []fault {
		kinds := testKinds()
		faults := plan(rand.New(rand.NewPCG(seed, 2)), kinds, time.Minute, 100*time.Millisecond)
		for i := range faults {
			faults[i].kind = testKinds()[slices.Index(kinds, faults[i].kind)]
			faults[i].kind = &kind{name: faults[i].kind.name}
		}
		return faults
	}
	equal := func(a, b []fault) bool {
		return slices.EqualFunc(a, b, func(a, b fault) bool {
			return a.kind.name == b.kind.name && a.target == b.target && a.at == b.at && a.lasts == b.lasts && a.pick == b.pick
		})
	}
	first := draw(1)
	if !equal(first, draw(1)) || equal(first, draw(2)) {
		t.Error("a seed does not say what is drawn")
	}
	counts := make(map[string]int)
	for i, f := range first {
		counts[f.kind.name]++
		counts[f.target]++
		if f.at >= time.Minute || i > 0 && f.at < first[i-1].at || f.lasts <= 0 || f.lasts > 10*time.Second {
			t.Errorf("%+v", f)
		}
	}
	if n := len(first); n < 300 || n > 1200 || counts["often"] < 4*counts["seldom"] || counts["seldom"] == 0 || counts["a"] == 0 || counts["b"] == 0 {
		t.Errorf("%d faults: %v", n, counts)
	}
}

// Each kind of sale is drawn, and is what it says.
func TestDraw(t *testing.T) {
	l := newLoad(1, 100, 20*time.Second)
	ends := make(map[end]int)
	twins := 0
	for id, s := range l.sales {
		ends[s.end]++
		if s.future {
			ends["future"]++
		}
		if len(s.events) == 2 && s.events[0].Type == s.events[1].Type {
			twins++
		}
		for _, e := range s.events {
			if e.SessionID != id || e.Livemode != strings.HasPrefix(id, "cs_live_") || l.events[e.EventID] != s {
				t.Errorf("%s has an event of %s", id, e.SessionID)
			}
		}
	}
	for _, e := range []end{paid, failed, trial, rejected, ignored, "future"} {
		if ends[e] == 0 {
			t.Errorf("no sale is %s", e)
		}
	}
	if twins == 0 || len(l.bodies) != len(l.events) {
		t.Errorf("%d twins, %d bodies of %d events", twins, len(l.bodies), len(l.events))
	}
}

// Findings of one kind are told a few times in words, the rest in a number.
func TestFindings(t *testing.T) {
	var f findings
	for i := range 12 {
		f.add("%d is lost", i)
	}
	f.add("alone")
	if lines := f.lines(); len(lines) != most+2 || lines[0] != "0 is lost" || lines[most] != "alone" || !strings.Contains(lines[most+1], "7 more") {
		t.Errorf("%q", lines)
	}
}
