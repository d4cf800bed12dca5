package stripegen

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"
)

// maxOvertaken bounds how many events overtake one that is held back.
const maxOvertaken = 10

// Disorder is how the arrival of events differs from their creation: Stripe delivers each at least once, in
// no order. The zero value is perfect order, all due immediately. A share is from 0 to 1.
type Disorder struct {
	Seed       uint64        // the same seed makes the same choices
	Every      time.Duration // from the creation of one event to that of the next
	Delay      time.Duration // each arrives up to this much later
	Reorder    float64       // share that is overtaken by 1 to 10 later ones
	Duplicates float64       // share that arrives a second time, up to Delay and 10 events later
	Withhold   float64       // share that never arrives, as with a disabled endpoint
}

// Arrival is the body of an event and when it is due, counted from the beginning.
type Arrival struct {
	After time.Duration
	Body  []byte
}

// Plan returns the arrivals of events in order of time, and the events that never arrive. The bodies are in
// order of creation. Plan is a pure function; its results share the bodies.
func (d Disorder) Plan(bodies [][]byte) (plan []Arrival, withheld [][]byte) {
	type entry struct {
		Arrival
		overtaken int // by how many later entries
	}
	rng := rand.New(rand.NewPCG(d.Seed, 0)) //nolint:gosec // reproducible choices, no secret
	delay := func() time.Duration { return time.Duration(rng.Int64N(int64(max(d.Delay, 0)) + 1)) }
	some := func() int { return 1 + rng.IntN(maxOvertaken) }
	var entries []entry
	for i, body := range bodies {
		if rng.Float64() < d.Withhold {
			withheld = append(withheld, body)
			continue
		}
		first := entry{Arrival: Arrival{After: time.Duration(i)*d.Every + delay(), Body: body}}
		if rng.Float64() < d.Reorder {
			first.overtaken = some()
		}
		entries = append(entries, first)
		if rng.Float64() < d.Duplicates {
			second := Arrival{After: first.After + delay(), Body: body}
			entries = append(entries, entry{Arrival: second, overtaken: some()})
		}
	}
	slices.SortStableFunc(entries, func(a, b entry) int { return cmp.Compare(a.After, b.After) })
	places := make([][]Arrival, len(entries))
	for i, e := range entries {
		at := min(i+e.overtaken, len(entries)-1)
		e.After = entries[at].After
		if at == i {
			places[at] = slices.Insert(places[at], 0, e.Arrival) // before those that it overtakes
		} else {
			places[at] = append(places[at], e.Arrival)
		}
	}
	return slices.Concat(places...), withheld
}
