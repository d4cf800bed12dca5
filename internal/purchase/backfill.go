package purchase

import "time"

// Backfill is how far a catch-up with Stripe's list has come. The list is walked from the newest event to the oldest, so that what
// is left of an unfinished one lies between Since and Cursor.
type Backfill struct {
	Origin       string    // who catches up: each goes on with its own
	Since, Until time.Time // of Stripe's time
	Cursor       string    // the last event that is done; "": none yet
	Reached      time.Time // the time of that event
	Counts       BackfillCounts
	Finished     time.Time // zero: it is not
}

// BackfillCounts are the events that a catch-up has been through, by what became of them.
type BackfillCounts struct {
	Known     int // a webhook had brought them, or one of the same meaning
	New       int // no webhook had
	Ignored   int // of a mode that does not count
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

// Sum is the number of all events.
func (c BackfillCounts) Sum() int { return c.Known + c.New + c.Ignored + c.Rejected + c.Malformed }
