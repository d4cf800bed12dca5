package stripegen

import (
	"cmp"
	"context"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// reach is how many of the later events overtake one that is held back, at most.
const reach = 10

// Disorder is how the arrival of events differs from the order in which they were made: Stripe promises that each arrives
// at least once, and nothing about when. The zero value is perfect order, all at once. A share is from 0 to 1.
type Disorder struct {
	Seed       uint64        // the same one makes the same choices
	Every      time.Duration // from the making of an event to that of the next
	Delay      time.Duration // each arrives up to this much later
	Reorder    float64       // share that is held back until 1 to 10 later ones went first
	Duplicates float64       // share that comes a second time, after some later ones or up to Delay later, or both
	Withhold   float64       // share that never comes, as of a disabled endpoint
}

// Arrival is an event's body and when it is due, counted from the beginning.
type Arrival struct {
	After time.Duration
	Body  []byte
}

// Plan says when each of the events arrives, in order of arrival, and which never do, in their own order. The bodies are
// given in the order in which they were made. It is a pure function; the bodies are shared with its results.
func (d Disorder) Plan(bodies [][]byte) (plan []Arrival, withheld [][]byte) {
	// place orders what is due at the same time: 2i for the event i, 2i+1 for what is held back behind it.
	type entry struct {
		Arrival
		place int
	}
	rng := rand.New(rand.NewPCG(d.Seed, 0)) //nolint:gosec // choices to be repeated, no secret
	late := func() time.Duration { return time.Duration(rng.Int64N(int64(max(d.Delay, 0)) + 1)) }
	var entries, steady []entry // steady: those that keep their place
	behindOneOf := func(e entry) entry {
		first := steady[max(len(steady)-1-rng.IntN(reach), 0)]
		e.After, e.place = max(e.After, first.After), first.place+1
		return e
	}
	// From the last to the first: what an event is held back behind has its time already.
	for i, body := range slices.Backward(bodies) {
		if rng.Float64() < d.Withhold {
			withheld = append(withheld, body)
			continue
		}
		e := entry{Arrival{time.Duration(i)*d.Every + late(), body}, 2 * i}
		if len(steady) > 0 && rng.Float64() < d.Reorder {
			e = behindOneOf(e)
		} else {
			steady = append(steady, e)
		}
		entries = append(entries, e)
		if rng.Float64() < d.Duplicates {
			e.After += late()
			entries = append(entries, behindOneOf(e))
		}
	}
	slices.Reverse(withheld)
	slices.SortStableFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.After, b.After), cmp.Compare(a.place, b.place))
	})
	for _, e := range entries {
		plan = append(plan, e.Arrival)
	}
	return plan, withheld
}

// Pace is how a plan is played.
type Pace struct {
	Concurrency int           // events under way at a time, those that wait for their next attempt included; 0: 1
	Attempts    int           // until one is answered 2xx; 0: 1
	Wait        time.Duration // before the second attempt; it doubles, see Deliver
}

// Play posts each arrival when it is due, counted from now, or as soon after that as the pace allows, each until it is
// taken, as Deliver does. The arrivals come in order of their time. told gets the last answer to each, whatever it is, one
// call at a time. An event whose last attempt got no answer ends everything with its error, as ctx does.
func (s *Sender) Play(ctx context.Context, arrivals iter.Seq[Arrival], pace Pace, told func(Arrival, Answer)) error {
	var mu sync.Mutex
	began := time.Now()
	group, playing := errgroup.WithContext(ctx)
	group.SetLimit(max(pace.Concurrency, 1))
	for arrival := range arrivals {
		select {
		case <-playing.Done():
		case <-time.After(time.Until(began.Add(arrival.After))):
		}
		if playing.Err() != nil {
			break
		}
		group.Go(func() error {
			answer, err := s.Deliver(playing, arrival.Body, pace.Attempts, pace.Wait)
			if answer.Status == 0 {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			told(arrival, answer)
			return nil
		})
	}
	return cmp.Or(group.Wait(), ctx.Err())
}
