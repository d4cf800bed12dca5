package maintenance

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// ParseSince parses a duration (30m, 72h, 7d) before now, or an RFC 3339 time. "" is the zero time.
func ParseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at, nil
	}
	if age, ok := parseAge(text); ok {
		return now.Add(-age), nil
	}
	return time.Time{}, errors.New("must be a duration (30m, 72h, 7d) or a time (2026-01-02T15:04:05Z)")
}

// parseAge parses a positive duration; a day has 24 hours.
func parseAge(text string) (time.Duration, bool) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.Atoi(days)
		return time.Duration(n) * 24 * time.Hour, err == nil && n > 0 && n < 10_000
	}
	age, err := time.ParseDuration(text)
	return age, err == nil && age > 0
}
