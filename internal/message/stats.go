package message

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"purchase-relay/internal/logsafe"
)

// Limits of a day's counts.
const (
	// MaxEventTypes is the number of event types per message.
	MaxEventTypes = 100
	// MaxEventType is the length of an event type's name, in characters.
	MaxEventType = 100

	maxPixel    = 64
	maxDaysBack = 31 // TikTok answers for 30 days
	maxStats    = 64 << 10
)

// Stats is how many events TikTok counts for a pixel on one UTC day, as a worker asked. A later answer
// replaces an earlier one.
type Stats struct {
	Version int       `json:"version"`
	PixelID string    `json:"pixel_id"`
	Day     string    `json:"day"` // YYYY-MM-DD
	AskedAt time.Time `json:"asked_at"`
	Counts  []Count   `json:"counts"` // at least one
}

// Count is a day's number of events of one type.
type Count struct {
	Event      string `json:"event"` // as TikTok lists it
	Total      int64  `json:"total"`
	Browser    int64  `json:"browser"`
	Server     int64  `json:"server"`
	Attributed int64  `json:"attributed"` // to the advertiser's ads
}

// EncodeStats encodes a day's counts.
func EncodeStats(s Stats) ([]byte, error) {
	s.Version = Version
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("encode counts of %q: %w", s.Day, err)
	}
	return json.Marshal(s)
}

// DecodeStats decodes a day's counts, which the stream stored at a time. A time of asking that is
// implausible by that clock is replaced by it: a later one would block every later answer. The error is
// ErrNewer or describes the invalid field.
func DecodeStats(data []byte, stored time.Time) (Stats, error) {
	if len(data) > maxStats {
		return Stats{}, errors.New("counts are too large")
	}
	var s Stats
	if err := decode(data, &s, &s.Version); err != nil {
		return Stats{}, err
	}
	if err := s.check(); err != nil {
		return Stats{}, err
	}
	if s.AskedAt.After(stored.Add(clockSkew)) || s.AskedAt.Before(stored.Add(-maxPublishAge)) {
		s.AskedAt = stored
	}
	s.AskedAt = s.AskedAt.UTC().Truncate(time.Microsecond) // Postgres' precision
	day, _ := time.Parse(time.DateOnly, s.Day)             // checked above
	if day.After(s.AskedAt.Add(clockSkew)) || day.Before(s.AskedAt.AddDate(0, 0, -maxDaysBack)) {
		return Stats{}, errors.New("day is out of range")
	}
	return s, nil
}

func (s *Stats) check() error {
	_, err := time.Parse(time.DateOnly, s.Day)
	switch {
	case s.PixelID == "" || len(s.PixelID) > maxPixel || logsafe.Text(s.PixelID, maxPixel) != s.PixelID:
		return errors.New("pixel_id is malformed")
	case err != nil:
		return errors.New("day is malformed")
	case s.AskedAt.IsZero():
		return errors.New("asked_at is missing")
	case len(s.Counts) == 0:
		return errors.New("counts is empty")
	case len(s.Counts) > MaxEventTypes:
		return errors.New("counts has too many elements")
	}
	seen := make(map[string]bool, len(s.Counts))
	for _, c := range s.Counts {
		if c.Event == "" || logsafe.Text(c.Event, MaxEventType) != c.Event {
			return errors.New("counts.event is malformed")
		}
		if seen[c.Event] {
			return errors.New("counts.event is repeated")
		}
		seen[c.Event] = true
		for _, n := range []int64{c.Total, c.Browser, c.Server, c.Attributed} {
			if n < 0 || n > maxSequence {
				return errors.New("counts has a number out of range")
			}
		}
	}
	return nil
}

// StatsQueue is the kind of a StatsProblem whose lease or publish failed.
const StatsQueue = "queue"

// StatsProblem is why a worker that asks for TikTok's counts has none to report.
type StatsProblem struct {
	Kind   string    `json:"kind"` // the class of TikTok's answer, or StatsQueue
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
}
