package report

import (
	"math"
	"slices"
	"time"

	"purchase-relay/internal/purchase"
)

// Coverage counts match keys: of delivered purchases those that were sent, of the others those that are to be
// sent.
type Coverage struct {
	Of   int                         // purchases whose keys are known
	With [purchase.MatchKeyKinds]int // of these, with the key, in the order of purchase.MatchKeyNames

	Strong int // of these, with a click id or an e-mail address: one alone may find the buyer
	Late   int // of these, with a click id older than CLICK_WINDOW at the purchase
}

// DayCoverage is the coverage of one day of UTC.
type DayCoverage struct {
	At time.Time
	Coverage
}

func (c *Coverage) add(d *Coverage) {
	c.Of, c.Strong, c.Late = c.Of+d.Of, c.Strong+d.Strong, c.Late+d.Late
	for i := range c.With {
		c.With[i] += d.With[i]
	}
}

// Fall is a kind of match key that far fewer purchases carry than the week before.
type Fall struct {
	Name        string
	Before, Now float64 // shares of the purchases, 0 to 1
}

// fewest is how many purchases a week needs to be compared: fewer say nothing.
const fewest = 20

// Falls compares the seven days up to now with the seven before: which kinds of keys lost a quarter of their
// share or more.
func Falls(days []DayCoverage, now time.Time) (falls []Fall) {
	var week, before Coverage
	today := now.UTC().Truncate(24 * time.Hour)
	for i := range days {
		switch ago := today.Sub(days[i].At) / (24 * time.Hour); {
		case ago < 0 || ago >= 14:
		case ago < 7:
			week.add(&days[i].Coverage)
		default:
			before.add(&days[i].Coverage)
		}
	}
	if week.Of < fewest || before.Of < fewest {
		return nil
	}
	compare := func(name string, n, earlier int) {
		f := Fall{Name: name, Before: float64(earlier) / float64(before.Of), Now: float64(n) / float64(week.Of)}
		if f.Before > 0 && 4*n*before.Of <= 3*earlier*week.Of {
			falls = append(falls, f)
		}
	}
	for i, name := range purchase.MatchKeyNames() {
		compare(name, week.With[i], before.With[i])
	}
	compare("At least one strong key", week.Strong, before.Strong)
	return falls
}

// delaySteps are the steps of the histogram for each doubling; its first one begins at delayFloor seconds.
// The ledger's rollup counts in the same steps.
const (
	delaySteps = 4
	delayFloor = 0.1
)

// Delays is a histogram of times: step i counts those from 0.1 s × 2^(i/4) on.
type Delays map[int]int

// Quantile estimates the time under which the share q (0 to 1) of the times lie, to within a step, about a
// tenth. false: there are none.
func (d Delays) Quantile(q float64) (time.Duration, bool) {
	total := 0
	steps := make([]int, 0, len(d))
	for step, n := range d {
		if n > 0 {
			total += n
			steps = append(steps, step)
		}
	}
	if total == 0 {
		return 0, false
	}
	slices.Sort(steps)
	rank, below := q*float64(total), 0.0
	for _, step := range steps {
		n := float64(d[step])
		if below+n >= rank {
			low := delayFloor * math.Pow(2, float64(step)/delaySteps)
			return time.Duration(low * math.Pow(2, (rank-below)/n/delaySteps) * float64(time.Second)), true
		}
		below += n
	}
	return 0, false // not reached: the last step ends at total
}
