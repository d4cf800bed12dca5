package report

import "time"

// Period is a time range. Totals are kept by quarter of an hour: the times are multiples of one.
type Period struct {
	From, Until time.Time   // Until is not included
	Steps       []time.Time // starts of the steps to count by, ascending, the first is From; nil: one step
}

// Quarter is the finest resolution of totals. The days of every time zone begin with a quarter hour.
const Quarter = 15 * time.Minute

func (p *Period) steps() []time.Time {
	if len(p.Steps) == 0 {
		return []time.Time{p.From}
	}
	return p.Steps
}

// wholeDays returns the start and end of the whole UTC days in the period. If it has none, both are its end.
func (p *Period) wholeDays() (first, end time.Time) {
	const day = 24 * time.Hour
	first = p.From.UTC().Add(day - time.Nanosecond).Truncate(day)
	end = p.Until.UTC().Truncate(day)
	if !first.Before(end) {
		return p.Until, p.Until
	}
	return first, end
}

// daysWithinSteps returns the whole UTC days in the period if each belongs to one step, else none.
func (p *Period) daysWithinSteps() (first, end time.Time) {
	for i, step := range p.Steps {
		if i > 0 && !step.Truncate(24*time.Hour).Equal(step) {
			return p.Until, p.Until
		}
	}
	return p.wholeDays()
}

// Days is the calendar of a time zone. Its days may have 23 or 25 hours.
type Days struct{ Zone *time.Location }

// Start returns the first instant of the calendar day of a date, which is read in the date's own zone.
func (d Days) Start(date time.Time) time.Time {
	year, month, day := date.Date()
	// No zone changes its offset at noon. If it changed since midnight, midnight is reckoned by the offset
	// before; if the change skipped that midnight, the day begins with the change.
	change, _ := time.Date(year, month, day, 12, 0, 0, 0, d.Zone).ZoneBounds()
	midnight := func(at time.Time) time.Time {
		_, offset := at.Zone()
		return time.Date(year, month, day, 0, 0, -offset, 0, time.UTC).In(d.Zone)
	}
	start := midnight(time.Date(year, month, day, 12, 0, 0, 0, d.Zone))
	if change.IsZero() || change.Before(start) {
		return start
	}
	if before := midnight(change.Add(-time.Nanosecond)); before.Before(change) {
		return before
	}
	return change.In(d.Zone)
}

// Of returns the start of the day of an instant, n days later.
func (d Days) Of(at time.Time, n int) time.Time {
	year, month, day := at.In(d.Zone).Date()
	return d.Start(time.Date(year, month, day+n, 0, 0, 0, 0, time.UTC))
}

// Between returns the start of the day of from and of each later day that begins before until.
func (d Days) Between(from, until time.Time) (starts []time.Time) {
	for start := d.Of(from, 0); start.Before(until); start = d.Of(start, 1) {
		starts = append(starts, start)
	}
	return starts
}
