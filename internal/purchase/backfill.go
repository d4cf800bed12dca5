package purchase

import "time"

// Backfill is the progress of a backfill. Stripe's list is walked from the newest event to the oldest: what
// is left lies between Since and Cursor.
type Backfill struct {
	Origin       string    // the command or the check, each with its own progress
	Since, Until time.Time // by Stripe's clock
	Cursor       string    // the last event that is done; "": none yet
	Reached      time.Time // the time of that event
	Counts       BackfillCounts
	Finished     time.Time // zero: not yet
}

// BackfillCounts count the events of a backfill by disposition.
type BackfillCounts struct {
	Known     int // duplicates of what a webhook brought
	New       int
	Ignored   int // of a mode or an account that does not count
	Rejected  int // new, paid, and without a usable e-mail address
	Malformed int // without a usable checkout
}

// Add counts one event.
func (c *BackfillCounts) Add(d Disposition) {
	switch d {
	case Duplicate:
		c.Known++
	case Ignored, Foreign:
		c.Ignored++
	case Rejected:
		c.Rejected++
	case Malformed:
		c.Malformed++
	case Processed, AwaitingPayment, Held:
		c.New++
	}
}

// Sum returns the number of all events.
func (c BackfillCounts) Sum() int { return c.Known + c.New + c.Ignored + c.Rejected + c.Malformed }
