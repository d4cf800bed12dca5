package main

import (
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
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

// sold is a sale and what became of it.
type sold struct {
	x *experiment
	s *sale
	r row
	e tiktoksim.Event
}

// A sale that became what it must is no finding; any difference is.
func TestResult_DiffersFromWanted(t *testing.T) {
	for name, tc := range map[string]struct {
		chance float64 // of draw
		spoil  func(c *sold)
		broken bool
	}{
		"card":         {chance: 0},
		"two events":   {chance: 0.6},
		"delayed":      {chance: 0.7},
		"failed":       {chance: 0.82},
		"trial":        {chance: 0.87},
		"no address":   {chance: 0.92},
		"foreign":      {chance: 0.95},
		"ahead of now": {chance: 0.98},
		"refused, as injected": {0, func(c *sold) {
			c.x.refused.Store(true)
			c.r.Status, c.r.Reason, c.r.Accepted, c.e = "dead", "refused", 0, tiktoksim.Event{}
		}, false},
		"refused":           {0, func(c *sold) { c.r.Status, c.r.Reason = "dead", "refused" }, true},
		"never answered":    {0, func(c *sold) { delete(c.x.accepted, c.s.events[0].EventID) }, true},
		"not on the ledger": {0, func(c *sold) { c.r = row{} }, true},
		"not at TikTok":     {0, func(c *sold) { c.e = tiktoksim.Event{} }, true},
		"two bodies":        {0, func(c *sold) { c.e.Variants = 2 }, true},
		"another time":      {0, func(c *sold) { c.e.EventTime += 7 }, true},
		"as a test":         {0, func(c *sold) { c.e.TestEventCode = testCode }, true},
		"applied twice":     {0, func(c *sold) { c.r.Attempts++ }, true},
		"accepted twice":    {0, func(c *sold) { c.r.Accepted++ }, true},
		"still pending":     {0, func(c *sold) { c.r.Status = "pending" }, true},
		"no profile":        {0, func(c *sold) { c.r.Email = "" }, true},
		"unpaid at TikTok":  {0.82, func(c *sold) { c.e.Variants = 1 }, true},
		"foreign recorded":  {0.95, func(c *sold) { c.r.Status = "delivered" }, true},
		"foreign processed": {0.95, func(c *sold) { c.x.accepted[c.s.events[0].EventID] = "processed" }, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := &sold{x: &experiment{accepted: make(map[string]string)}}
			c.s, c.r = draw(tc.chance, stripegen.NewCheckout().Live()), row{Attempts: 1, Recorded: 1, Calls: 1}
			answer, recorded := "processed", make(map[string]bool)
			c.r.Status = string(c.s.end)
			switch c.s.end {
			case ignored:
				answer, c.r.Status = `{"status":"ignored"}`, ""
			case trial:
				c.r.Email = strings.ToLower(*c.s.events[0].Email)
			case paid:
				c.r.Status, c.r.Email, c.r.Accepted = "delivered", strings.ToLower(*c.s.events[0].Email), 1
				c.e.Variants, c.e.Copies, c.e.EventTime = 1, 1, c.s.events[len(c.s.events)-1].Created.Unix()
				if c.s.future {
					c.e.EventTime = time.Now().Unix()
				}
			case failed, rejected:
			}
			for _, e := range c.s.events {
				recorded[e.EventID], c.x.accepted[e.EventID] = c.s.end != ignored, answer
			}
			if tc.spoil != nil {
				tc.spoil(c)
			}
			got, want := c.x.result(c.s, c.r, c.e, recorded), c.x.wanted(c.s, c.r, c.e)
			if (got != want) != tc.broken {
				t.Errorf("result = %+v, wanted = %+v, want them to differ: %t", got, want, tc.broken)
			}
		})
	}
}
