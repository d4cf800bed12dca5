package maintenance

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// ParseSince reads how far back to look: a span (30m, 72h, 7d) before now, or a time in RFC 3339. "" is the
// zero time.
func ParseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at, nil
	}
	if span, ok := parseSpan(text); ok {
		return now.Add(-span), nil
	}
	return time.Time{}, errors.New("neither a span such as 30m, 72h or 7d, nor a time such as 2026-01-02T15:04:05Z")
}

// parseSpan reads a positive span; a day has 24 hours.
func parseSpan(text string) (time.Duration, bool) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.Atoi(days)
		return time.Duration(n) * 24 * time.Hour, err == nil && n > 0 && n < 10_000
	}
	span, err := time.ParseDuration(text)
	return span, err == nil && span > 0
}
