package message

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/purchase"
)

// The states of a worker.
const (
	WorkerRunning = "running"
	WorkerPaused  = "paused" // TikTok rejects the token, the permission or the address
	WorkerOpen    = "open"   // TikTok is down: the circuit is open
	WorkerOff     = "off"    // no access token: every purchase is skipped
)

// WorkerState is a worker's periodic report on itself. DecodeWorkerState adds Instance and Seen, which are
// not part of the message.
type WorkerState struct {
	Instance  string    `json:"instance,omitempty"` // from the subject
	Version   string    `json:"version"`            // of the worker's binary
	State     string    `json:"state"`              // running, paused, open or off
	Reason    string    `json:"reason,omitempty"`
	Pixel     string    `json:"pixel,omitempty"`      // of live purchases; "": unknown, or none
	TestPixel string    `json:"test_pixel,omitempty"` // of test purchases; "": unknown, or they are not sent
	Since     time.Time `json:"since"`
	Seen      time.Time `json:"seen,omitzero"` // time of receipt

	// Stats is why TikTok's counts cannot be read; nil: they can, or this worker does not ask for them.
	Stats *StatsProblem `json:"stats,omitempty"`
}

// Limits of a worker's state, in characters.
const (
	maxInstance    = 100
	maxVersion     = 64
	maxStateReason = 300
	maxState       = 4096 // of the message, in bytes
)

// EncodeWorkerState encodes a worker's state.
func EncodeWorkerState(s WorkerState) ([]byte, error) {
	s.Version, s.Reason = logsafe.Text(s.Version, maxVersion), logsafe.Text(s.Reason, maxStateReason)
	s.Instance, s.Seen = "", time.Time{}
	if p := s.Stats; p != nil {
		s.Stats = &StatsProblem{Kind: p.Kind, Reason: logsafe.Text(p.Reason, maxStateReason), Since: p.Since}
	}
	return json.Marshal(s)
}

// DecodeWorkerState decodes the state of an instance, received at now. Its strings are bounded and log-safe.
func DecodeWorkerState(instance string, data []byte, now time.Time) (WorkerState, error) {
	var s WorkerState
	switch {
	case !purchase.ValidID(instance) || len(instance) > maxInstance:
		return s, errors.New("instance is malformed")
	case len(data) > maxState:
		return s, errors.New("state is too large")
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return WorkerState{}, errors.New("malformed JSON")
	}
	switch s.State {
	case WorkerRunning, WorkerPaused, WorkerOpen, WorkerOff:
	default:
		return WorkerState{}, fmt.Errorf("state %.20q is not running, paused, open or off", s.State)
	}
	s.Version, s.Reason = logsafe.Text(s.Version, maxVersion), logsafe.Text(s.Reason, maxStateReason)
	s.Pixel, s.TestPixel = pixelOrEmpty(s.Pixel), pixelOrEmpty(s.TestPixel)
	s.Instance, s.Since, s.Seen = instance, plausible(s.Since, now), now.UTC()
	if p := s.Stats; p != nil {
		p.Kind, p.Reason = logsafe.Text(p.Kind, maxReason), logsafe.Text(p.Reason, maxStateReason)
		p.Since = plausible(p.Since, now)
	}
	return s, nil
}

// pixelOrEmpty returns a pixel's id, or "" if it is malformed: pages make links of it.
func pixelOrEmpty(id string) string {
	if len(id) > maxPixel || !purchase.ValidID(id) {
		return ""
	}
	return id
}

// plausible returns the start of a state, or now if that is unknown or implausible.
func plausible(since, now time.Time) time.Time {
	if since.IsZero() || since.After(now) || since.Before(time.Unix(0, 0)) {
		since = now
	}
	return since.UTC()
}
