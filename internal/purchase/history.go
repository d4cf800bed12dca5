package purchase

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// History is everything that the ledger knows of one purchase, without the buyer's address.
type History struct {
	Purchase       // Email and Keys are empty
	ProfileID      string
	Generation     int       // counts from 1; raised by a replay and by the sweeper
	Received       time.Time // when the ledger first heard of it
	FirstPublished time.Time // first handed to the queue; zero: not yet, or replayed and not yet again
	Published      time.Time // last taken by the queue; zero: never
	Sequence       uint64    // its place in the stream PURCHASES; 0: unknown
	Finished       time.Time // zero: on its way
	RequestID      string    // TikTok's, of the accepting attempt, else of the last one
	Envelope       []byte    // the message for the queue, as it was stored; nil: nothing is sent, or it was dropped
	Sent           *Sent     // what TikTok got; nil: not delivered
	KeyMask        *int16    // which match keys the message holds or held, by Mask's bits; nil: there is none
	TrialSession   string    // of a first payment: its trial's purchase
	FirstPayment   string    // of a trial: the purchase that it became; "": none yet
	Converted      time.Time // when that was
	Events         []Reception
	Attempts       []Attempt
}

// Reception is one of Stripe's events about a purchase, and what became of it.
type Reception struct {
	EventID     string
	Type        string
	Created     time.Time // Stripe's own time, whole seconds; zero: unknown
	Received    time.Time
	Disposition Disposition
}

// Step is one line of a purchase's timeline.
type Step struct {
	At   time.Time
	What string // a sentence without personal data
	Mood Mood
}

// Mood says how a step went.
type Mood string

// The moods.
const (
	MoodNeutral Mood = "neutral"
	MoodGood    Mood = "good"
	MoodWait    Mood = "wait" // it will be tried again
	MoodBad     Mood = "bad"
)

func moodOf(s Status) Mood {
	switch s {
	case StatusDelivered:
		return MoodGood
	case StatusRetrying:
		return MoodWait
	case StatusDead, StatusRejected, StatusPaymentFailed:
		return MoodBad
	default:
		return MoodNeutral
	}
}

func moodOfAttempt(c Class) Mood {
	switch c {
	case ClassDelivered:
		return MoodGood
	case ClassRefused:
		return MoodBad
	default:
		return MoodWait
	}
}

// Timeline lists what happened, in the order in which it happened.
func (h *History) Timeline() []Step {
	var steps []Step
	add := func(at time.Time, mood Mood, what string, args ...any) {
		if !at.IsZero() {
			steps = append(steps, Step{at.UTC(), fmt.Sprintf(what, args...), mood})
		}
	}
	switch {
	case h.Kind == KindTrial, h.Reason == ReasonNoPayment:
		add(h.At, MoodNeutral, "checked out without a payment, by Stripe's time")
	case h.Kind == KindFirstPayment:
		add(h.At, MoodNeutral, "first payment after the trial %s, by Stripe's time", h.TrialSession)
	default:
		add(h.At, MoodNeutral, "paid, by Stripe's time")
	}
	add(h.Converted, MoodGood, "first payment after it: %s", h.FirstPayment)
	for _, e := range h.Events {
		add(e.Received, MoodNeutral, "Stripe's %s (%s): %s", LogSafe(e.Type), LogSafe(e.EventID), e.Disposition)
		if e.Disposition == Processed && e.Type != TypeAsyncFailed && e.Type != TypeInvoicePaid && h.ProfileID != "" {
			add(e.Received, MoodGood, "customer provisioned: profile %s", h.ProfileID)
		}
	}
	if h.FirstPublished.Before(h.Published) {
		add(h.FirstPublished, MoodNeutral, "handed to the queue")
	}
	if h.Sequence > 0 {
		add(h.Published, MoodNeutral, "taken by the queue as generation %d, sequence %d", h.Generation, h.Sequence)
	} else {
		add(h.Published, MoodNeutral, "taken by the queue as generation %d", h.Generation)
	}
	for i, a := range h.Attempts {
		text := fmt.Sprintf("attempt %d at TikTok: %s after %s", i+1, a.Class, a.Took)
		if a.Code != nil {
			text += fmt.Sprintf(", code %d", *a.Code)
		}
		if a.Message != "" {
			text += fmt.Sprintf(", %q", a.Message)
		}
		if a.RequestID != "" {
			text += fmt.Sprintf(", request_id %s", a.RequestID)
		}
		add(a.At, moodOfAttempt(a.Class), "%s", text)
	}
	add(h.Finished, moodOf(h.Status), "%s", h.Standing())
	slices.SortStableFunc(steps, func(a, b Step) int { return cmp.Compare(a.At.UnixNano(), b.At.UnixNano()) })
	return steps
}

// Standing is the status with its reason, for people.
func (h *History) Standing() string {
	switch {
	case h.Status == StatusDelivered:
		return "delivered: accepted by TikTok"
	case h.Reason != ReasonNone:
		return fmt.Sprintf("%s (%s)", h.Status, h.Reason)
	default:
		return string(h.Status)
	}
}
