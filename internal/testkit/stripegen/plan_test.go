package stripegen_test

import (
	"math"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/testkit/stripegen"
)

// numbered returns n bodies that hold their number.
func numbered(n int) [][]byte {
	bodies := make([][]byte, n)
	for i := range bodies {
		bodies[i] = []byte(strconv.Itoa(i))
	}
	return bodies
}

func number(t *testing.T, body []byte) int {
	t.Helper()
	i, err := strconv.Atoi(string(body))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// Every event arrives once or twice or is withheld, in order of time and not before its creation.
func TestDisorder_PlanIsComplete(t *testing.T) {
	t.Parallel()
	const n, every, delay = 300, time.Second, 20 * time.Second
	for seed := range uint64(50) {
		for _, share := range []float64{0, 0.1, 0.5, 1, math.NaN()} {
			d := stripegen.Disorder{
				Seed: seed, Every: every, Delay: delay, Reorder: share, Duplicates: share, Withhold: share / 2,
			}
			plan, withheld := d.Plan(numbered(n))
			times := make([]int, n)
			latest := time.Duration(0)
			for _, a := range plan {
				i := number(t, a.Body)
				times[i]++
				if a.After < latest || a.After < time.Duration(i)*every {
					t.Fatalf("%+v: event %d arrives after %v, behind %v", d, i, a.After, latest)
				}
				latest = a.After
			}
			for _, body := range withheld {
				i := number(t, body)
				if times[i] > 0 {
					t.Fatalf("%+v: event %d is withheld and arrives", d, i)
				}
				times[i] = 1
			}
			if slices.Min(times) < 1 || slices.Max(times) > 2 {
				t.Fatalf("%+v: the events arrive %v times", d, times)
			}
		}
	}
}

func TestDisorder_PlanIsReproducible(t *testing.T) {
	t.Parallel()
	d := stripegen.Disorder{
		Seed: 1, Every: time.Second, Delay: time.Minute, Reorder: 0.2, Duplicates: 0.2, Withhold: 0.2,
	}
	plan, withheld := d.Plan(numbered(200))
	again, againWithheld := d.Plan(numbered(200))
	if diff := cmp.Diff(plan, again) + cmp.Diff(withheld, againWithheld); diff != "" {
		t.Errorf("with the same seed: %s", diff)
	}
	d.Seed = 2
	if other, _ := d.Plan(numbered(200)); cmp.Equal(plan, other) {
		t.Error("with another seed: the same plan")
	}
}

// Each kind of disorder affects its share of 1000 events.
func TestDisorder_PlanShares(t *testing.T) {
	t.Parallel()
	plan, withheld := stripegen.Disorder{Reorder: 0.2, Duplicates: 0.2, Withhold: 0.2}.Plan(numbered(1000))
	overtaken, repeated, latest, seen := 0, 0, 0, map[int]bool{}
	for _, a := range plan {
		i := number(t, a.Body)
		switch {
		case seen[i]:
			repeated++
		case i < latest:
			overtaken++
		}
		seen[i], latest = true, max(latest, i)
	}
	counts := map[string]int{"withheld": len(withheld), "overtaken": overtaken, "repeated": repeated}
	for name, n := range counts {
		if n < 100 || n > 250 {
			t.Errorf("%d events are %s, want about 200", n, name)
		}
	}
	plan, _ = stripegen.Disorder{Reorder: 1}.Plan(numbered(2))
	if first := number(t, plan[0].Body); first != 1 {
		t.Errorf("of two reordered events, %d is first, want 1", first)
	}
}
