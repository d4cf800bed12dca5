package dashboard

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"purchase-relay/internal/ops/report"
)

// view is what a page or an answer covers: a period, the one before it, and a mode.
type view struct {
	Range    string // a name, or custom
	From, To string // the days of a custom range
	Mode     string
	Name     string // the period in words
	period   report.Period
	before   report.Period
	ByHour   bool // the steps are hours, else days
	livemode *bool
}

const customRange = "custom"

// maxRangeDays limits a custom range: its totals are read by quarter of an hour.
const maxRangeDays = 92

// ranges returns the names of the ranges, in display order. Those with days end with today: 7d is today and
// the six days before.
func ranges() []choice {
	return []choice{
		{Value: "today", Name: "Today"},
		{Value: "yesterday", Name: "Yesterday"},
		{Value: "24h", Name: "24 hours"},
		{Value: "7d", Name: "7 days"},
		{Value: "30d", Name: "30 days"},
	}
}

var errRange = errors.New("range must be today, yesterday, 24h, 7d or 30d")

// parseView parses range or from and to, and mode. The period of a range ends with today, and the one before
// it at the same time of the day, so that both are equally long.
func parseView(values url.Values, mode string, now time.Time, days report.Days) (v view, err error) {
	v.Range, v.Mode = orDefault(values.Get("range"), "30d"), orDefault(values.Get("mode"), mode)
	if v.livemode, err = parseMode(v.Mode); err != nil {
		return v, err
	}
	tomorrow := days.Of(now, 1)
	switch v.From, v.To = values.Get("from"), values.Get("to"); {
	case v.From != "" || v.To != "":
		if values.Get("range") != "" {
			return v, errors.New("choose either range or from and to")
		}
		return v, v.setDays(now, days)
	case v.Range == "today":
		v.setLast(1, "Today", now, days)
	case v.Range == "yesterday":
		v.Name = "Yesterday"
		v.period = report.Period{From: days.Of(now, -1), Until: days.Of(now, 0)}
		v.before = report.Period{From: days.Of(now, -2), Until: days.Of(now, -1)}
	case v.Range == "24h":
		v.Name = "Last 24 hours"
		v.period = report.Period{From: fullHour(now.Add(-24*time.Hour), days), Until: tomorrow}
		v.before = report.Period{From: v.period.From.Add(-24 * time.Hour), Until: v.period.From}
	case v.Range == "7d":
		v.setLast(7, "Last 7 days", now, days)
	case v.Range == "30d":
		v.setLast(30, "Last 30 days", now, days)
	default:
		return v, errRange
	}
	v.setSteps(days)
	return v, nil
}

// setLast sets the period to the n days that end with today.
func (v *view) setLast(n int, name string, now time.Time, days report.Days) {
	v.Name = name
	v.period = report.Period{From: days.Of(now, 1-n), Until: days.Of(now, 1)}
	v.before = report.Period{From: days.Of(now, 1-2*n), Until: sameTime(now, n, days)}
}

// setDays sets the period to the days from From to To, both included.
func (v *view) setDays(now time.Time, days report.Days) error {
	today := now.In(days.Zone)
	from, err := time.Parse(time.DateOnly, v.From)
	if err != nil {
		return errors.New("from must be a day like 2026-01-31")
	}
	to, err := time.Parse(time.DateOnly, orDefault(v.To, today.Format(time.DateOnly)))
	if err != nil {
		return errors.New("to must be a day like 2026-01-31")
	}
	n := int(to.Sub(from)/(24*time.Hour)) + 1
	switch {
	case n < 1:
		return errors.New("from must not be after to")
	case n > maxRangeDays:
		return fmt.Errorf("a range has at most %d days", maxRangeDays)
	}
	v.Range, v.To = customRange, to.Format(time.DateOnly)
	if v.Name = v.From + " to " + v.To; n == 1 {
		v.Name = v.From
	}
	v.period = report.Period{From: days.Start(from), Until: days.Start(to.AddDate(0, 0, 1))}
	v.before = report.Period{From: days.Start(from.AddDate(0, 0, -n)), Until: v.period.From}
	if now.Before(v.period.Until) && !now.Before(v.period.From) {
		v.before.Until = sameTime(now, n, days)
	}
	v.setSteps(days)
	return nil
}

// sameTime returns the time of the day n days before, up to the next quarter hour.
func sameTime(now time.Time, n int, days report.Days) time.Time {
	at := now.In(days.Zone).AddDate(0, 0, -n)
	return at.Add(report.Quarter - time.Nanosecond).Truncate(report.Quarter)
}

// fullHour returns the start of an instant's hour, counted from the start of its day.
func fullHour(at time.Time, days report.Days) time.Time {
	day := days.Of(at, 0)
	return day.Add(at.Sub(day).Truncate(time.Hour))
}

// setSteps sets the period's steps: hours within up to two days, else days. Every day begins with a step.
func (v *view) setSteps(days report.Days) {
	starts := days.Between(v.period.From, v.period.Until)
	if v.ByHour = len(starts) <= 2; !v.ByHour {
		v.period.Steps = starts
		return
	}
	for i, start := range starts {
		end := v.period.Until
		if i+1 < len(starts) {
			end = starts[i+1]
		}
		for ; start.Before(end); start = start.Add(time.Hour) {
			if !start.Before(v.period.From) {
				v.period.Steps = append(v.period.Steps, start)
			}
		}
	}
}

// values returns the parameters of a link to the same range and mode.
func (v *view) values() url.Values {
	values := url.Values{"mode": {v.Mode}}
	if v.Range == customRange {
		values.Set("from", v.From)
		values.Set("to", v.To)
	} else {
		values.Set("range", v.Range)
	}
	return values
}

// list returns the path of the list of the view's purchases that a filter selects, given as names and values.
func (v *view) list(filter ...string) string {
	values := v.values()
	for i := 0; i+1 < len(filter); i += 2 {
		values.Set(filter[i], filter[i+1])
	}
	return link("/purchases", values)
}

// day is a calendar day of a view: a whole one, except at the start of 24h.
type day struct {
	At    time.Time
	Steps []report.Sales
}

// byDay groups the sales of the view's steps by day.
func (v *view) byDay(steps []report.Sales, days report.Days) (list []day) {
	for i, at := range v.period.Steps {
		start := days.Of(at, 0)
		if n := len(list); n == 0 || !list[n-1].At.Equal(start) {
			list = append(list, day{At: start})
		}
		if i < len(steps) {
			last := &list[len(list)-1]
			last.Steps = append(last.Steps, steps[i])
		}
	}
	return list
}
