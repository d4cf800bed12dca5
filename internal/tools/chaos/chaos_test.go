package main

import (
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
)

// A seed determines the faults: kinds, targets, times.
func TestPlan_IsRepeatable(t *testing.T) {
	kinds := []*kind{
		{name: "often", weight: 9, targets: []string{"a", "b"}, longest: time.Second},
		{name: "rarely", weight: 1, targets: []string{"c"}, longest: 10 * time.Second},
	}
	draw := func(seed uint64) []fault {
		return plan(rand.New(rand.NewPCG(seed, 2)), kinds, time.Minute, 100*time.Millisecond)
	}
	first := draw(1)
	if !reflect.DeepEqual(first, draw(1)) || reflect.DeepEqual(first, draw(2)) {
		t.Error("the faults do not depend on the seed alone")
	}
	counts := make(map[string]int)
	for i, f := range first {
		counts[f.target]++
		if f.at >= time.Minute || i > 0 && f.at < first[i-1].at || f.lasts <= 0 || f.lasts > f.kind.longest {
			t.Errorf("fault %d = %+v", i, f)
		}
	}
	if counts["a"] == 0 || counts["b"] == 0 || counts["c"] == 0 || counts["a"]+counts["b"] < 4*counts["c"] {
		t.Errorf("faults by target = %v, want 9 of a and b for each of c", counts)
	}
}

// Every kind of sale is drawn, with its own events.
func TestNewSales(t *testing.T) {
	ends, events := make(map[end]int), make(map[string]bool)
	sales := newSales(1, 2000)
	for _, s := range sales {
		ends[s.end]++
		for _, e := range s.events {
			events[e.EventID] = true
			if e.SessionID != s.id() || e.Livemode != strings.HasPrefix(s.id(), "cs_live_") {
				t.Errorf("%s has an event of %s", s.id(), e.SessionID)
			}
		}
	}
	for _, e := range []end{paid, failed, trial, rejected, ignored} {
		if ends[e] == 0 {
			t.Errorf("no sale is %s", e)
		}
	}
	if len(events) <= len(sales) {
		t.Errorf("%d different events, %d sales, want more events", len(events), len(sales))
	}
}
