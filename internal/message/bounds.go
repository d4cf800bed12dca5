package message

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/purchase"
)

// Bounds of what a worker may report. Its user in NATS may publish anything on its subjects: a worker that
// was taken over, or one that is broken, must not be able to make the ledger or its pages unusable.
const (
	// MaxGeneration bounds what a message may say, far above any number of replays and far below what the
	// ledger's columns hold.
	MaxGeneration = 1 << 20

	maxTook      = 24 * time.Hour
	maxSequence  = 1 << 53 // what JSON's numbers hold exactly
	maxOutcomes  = 10_000  // in one message
	maxReason    = 40
	maxMessage   = 1000
	maxRequestID = 200
	maxAttempts  = 1 << 31
)

// Bounds of a worker's state, in characters where it is text.
const (
	maxInstance    = 100
	maxVersion     = 64
	maxStateReason = 300
	maxState       = 4096 // bytes of the message
)

// How far the clocks of a worker and of the queue may be apart, and how long a worker may keep an outcome
// that it could not publish.
const (
	clockSkew   = 5 * time.Minute
	outcomeKept = 48 * time.Hour
)

// Dated returns the outcome with times that the queue's clock makes possible: taken is when its stream took
// the outcome. What is later than that, or from before the purchase can have been sent, becomes that time. A
// worker's clock that is wrong, or lies, thereby moves no purchase out of every range that is looked at,
// swept or pruned.
func (o Outcome) Dated(taken time.Time) Outcome {
	if impossible(o.At, taken) {
		o.At = taken
	}
	if o.Taken.After(taken.Add(clockSkew)) {
		o.Taken, o.Sequence = time.Time{}, 0
	}
	if a := o.Attempt; a != nil && impossible(a.At, taken) {
		dated := *a
		dated.At = taken
		o.Attempt = &dated
	}
	return o
}

func impossible(at, taken time.Time) bool {
	return at.After(taken.Add(clockSkew)) || at.Before(taken.Add(-outcomeKept))
}

// checkBounds says what of an outcome no worker would say.
func (o *Outcome) checkBounds() error {
	switch {
	case o.Generation < 1 || o.Generation > MaxGeneration:
		return errors.New("generation is out of range")
	case o.Sequence > maxSequence:
		return errors.New("sequence is out of range")
	case !word(string(o.Reason)):
		return errors.New("reason has no usable form")
	}
	a := o.Attempt
	if a == nil {
		return nil
	}
	switch {
	case a.TookMS < 0 || a.TookMS > maxTook.Milliseconds():
		return errors.New("attempt.took_ms is out of range")
	case a.Code != nil && int(int32(*a.Code)) != *a.Code: //nolint:gosec // the conversion is the check: the ledger's column has 32 bits
		return errors.New("attempt.code is out of range")
	case !word(string(a.Class)):
		return errors.New("attempt.class has no usable form")
	case !storable(a.Message, maxMessage), !storable(a.RequestID, maxRequestID):
		return errors.New("attempt has an unusable text")
	}
	return nil
}

// word reports whether a text has the form of a reason or a class: at most 40 lower-case letters, digits and
// '_'.
func word(s string) bool {
	return len(s) <= maxReason && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// readable returns the attempt with texts that can be shown as they are.
func (a *Attempt) readable() {
	a.Message, a.RequestID = logsafe.Text(a.Message, maxMessage), logsafe.Text(a.RequestID, maxRequestID)
}

// check says what of a dead letter no worker would say.
func (d *DeadLetter) check() error {
	switch {
	case !purchase.ValidID(d.EventID):
		return errors.New("event_id has no usable form")
	case d.Generation < 1 || d.Generation > MaxGeneration:
		return errors.New("generation is out of range")
	case d.Attempts < 0 || d.Attempts >= maxAttempts:
		return errors.New("attempts is out of range")
	case d.Reason == "" || !word(string(d.Reason)):
		return errors.New("reason has no usable form")
	case d.DiedAt.IsZero():
		return errors.New("died_at is missing")
	}
	return nil
}

// EncodeWorkerState encodes a worker's state.
func EncodeWorkerState(s WorkerState) ([]byte, error) {
	s.Version, s.Reason = logsafe.Text(s.Version, maxVersion), logsafe.Text(s.Reason, maxStateReason)
	s.Instance, s.Seen = "", time.Time{}
	return json.Marshal(s)
}

// DecodeWorkerState reads the state that an instance published; now is when it came. Whatever it says is
// bounded and can be shown as it is.
func DecodeWorkerState(instance string, data []byte, now time.Time) (WorkerState, error) {
	var s WorkerState
	switch {
	case !purchase.ValidID(instance) || len(instance) > maxInstance:
		return s, errors.New("instance has no usable form")
	case len(data) > maxState:
		return s, errors.New("the state is too large")
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return WorkerState{}, errors.New("not a JSON state")
	}
	switch s.State {
	case WorkerRunning, WorkerPaused, WorkerOpen, WorkerOff:
	default:
		return WorkerState{}, fmt.Errorf("state %.20q is none of running, paused, open, off", s.State)
	}
	s.Version, s.Reason = logsafe.Text(s.Version, maxVersion), logsafe.Text(s.Reason, maxStateReason)
	if s.Since.IsZero() || s.Since.After(now) || s.Since.Before(time.Unix(0, 0)) {
		s.Since = now // it is not known since when
	}
	s.Instance, s.Since, s.Seen = instance, s.Since.UTC(), now.UTC()
	return s, nil
}
