package report

import (
	"math"
	"slices"
	"time"

	"purchase-relay/internal/purchase"
)

// Coverage counts match keys: those that were sent for delivered purchases, those to be sent for the
// others.
type Coverage struct {
	Of   int                         // purchases whose keys are known
	With [purchase.MatchKeyKinds]int // of Of, by key, in the order of purchase.MatchKeyNames

	Strong int // of Of, with a click id or an e-mail address: one alone may match the buyer
	Late   int // of Of, with a click id older than CLICK_WINDOW at the purchase
}

// DayCoverage is the coverage of one day.
type DayCoverage struct {
	At time.Time // the start of the day
	Coverage
}

func (c *Coverage) add(d *Coverage) {
	c.Of, c.Strong, c.Late = c.Of+d.Of, c.Strong+d.Strong, c.Late+d.Late
	for i := range c.With {
		c.With[i] += d.With[i]
	}
}

// CoverageDrop is a match key that far fewer purchases carry than the week before.
type CoverageDrop struct {
	Name        string
	Before, Now float64 // shares of the purchases, 0 to 1
}

// minCompared is the least number of purchases of a week to compare.
const minCompared = 20

// CoverageDrops compares the last seven days with the seven before and returns the match keys whose share
// fell by a quarter or more. today is the start of the last day.
func CoverageDrops(days []DayCoverage, today time.Time) (drops []CoverageDrop) {
	var week, before Coverage
	for i := range days {
		switch ago := today.Sub(days[i].At).Round(24*time.Hour) / (24 * time.Hour); {
		case ago < 0 || ago >= 14:
		case ago < 7:
			week.add(&days[i].Coverage)
		default:
			before.add(&days[i].Coverage)
		}
	}
	if week.Of < minCompared || before.Of < minCompared {
		return nil
	}
	compare := func(name string, n, earlier int) {
		if earlier > 0 && 4*n*before.Of <= 3*earlier*week.Of {
			was, is := float64(earlier)/float64(before.Of), float64(n)/float64(week.Of)
			drops = append(drops, CoverageDrop{Name: name, Before: was, Now: is})
		}
	}
	for i, name := range purchase.MatchKeyNames() {
		compare(name, week.With[i], before.With[i])
	}
	compare("At least one strong key", week.Strong, before.Strong)
	return drops
}

// The histogram has delaySteps steps per doubling, from delayFloor seconds on, as the rollup's triggers
// count.
const (
	delaySteps = 4
	delayFloor = 0.1
)

// Delays is a histogram: step i counts the durations from 0.1 s × 2^(i/4) on.
type Delays map[int]int

// Quantile estimates the q-quantile (0 to 1) to within a step; false: the histogram is empty.
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
