package purchase

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Selection says which purchases a replay is about: one by its id, some by theirs, or all that match the rest.
//
// Who may be replayed: dead, and skipped (not_configured); skipped (test_purchase) by its own id alone; skipped
// (no_payment) never, because no money is no sale; delivered never.
type Selection struct {
	ID     string
	IDs    []string  // some, at most MaxSome
	Status Status    // dead or skipped
	Reason Reason    // "": any
	Code   *int      // TikTok's last code, nil: any
	NoCode bool      // only those without any code
	Since  time.Time // ended at or after; zero: any

	Within time.Duration // ended within this span, by the ledger's clock; 0: any
}

// SetSince reads which ends are meant: a span (30m, 72h, 7d) before the replay, by the ledger's clock, or a
// time in RFC 3339. "": all.
func (s *Selection) SetSince(text string) (err error) {
	if span, ok := parseSpan(text); ok {
		s.Within = span
		return nil
	}
	s.Since, err = ParseSince(text, time.Time{})
	return err
}

var (
	// ErrUnknown says that the ledger does not hold the purchase.
	ErrUnknown = errors.New("the ledger does not know this purchase")
	// ErrNotReplayable says that the purchase stands where no replay may take it from.
	ErrNotReplayable = errors.New("this purchase cannot be replayed: only dead ones, and those skipped for want of a token or as a test")
)

// Replayable counts purchases that a replay would take, which were given up on alike.
type Replayable struct {
	Reason Reason
	Code   *int // TikTok's last; nil: none
	Count  int
	Late   int // of these, first sent more than 48 h ago: TikTok may count them twice
	Old    int // of these, paid longer ago than TikTokShows
}

// TikTokShows is how old an event may be: TikTok is said to neither match nor show older ones. Source: Amperity's
// documentation of its TikTok destination; TikTok's own names no age.
const TikTokShows = 28 * 24 * time.Hour

// Sum adds up counts, and how many of them are late.
func Sum(counts []Replayable) (n, late int) {
	for _, c := range counts {
		n += c.Count
		late += c.Late
	}
	return n, late
}

// Old adds up how many purchases are too old to be matched by TikTok.
func Old(counts []Replayable) (n int) {
	for _, c := range counts {
		n += c.Old
	}
	return n
}

// MaxSome is how many purchases may be chosen by their ids at once.
const MaxSome = 200

// Check says what is wrong with a selection.
func (s *Selection) Check() error {
	switch {
	case len(s.IDs) > 0 && s.ID != "", (s.ID != "" || len(s.IDs) > 0) && (s.Status != "" || s.Reason != "" || s.Code != nil || s.NoCode || !s.Since.IsZero()):
		return errors.New("choose purchases by their ids, or many by status, reason, code and time, not both")
	case s.ID != "" && !ValidID(s.ID), slices.ContainsFunc(s.IDs, func(id string) bool { return !ValidID(id) }):
		return errors.New("the id has no usable form")
	case len(s.IDs) > MaxSome:
		return fmt.Errorf("at most %d purchases can be chosen by their ids", MaxSome)
	case s.ID == "" && len(s.IDs) == 0 && s.Status != StatusDead && s.Status != StatusSkipped:
		return errors.New("status is dead or skipped")
	case s.Reason != "" && LogSafe(string(s.Reason)) != string(s.Reason):
		return errors.New("the reason has no usable form")
	}
	return nil
}

// ParseSince reads how far back to look: a span (30m, 72h, 7d) before now, or a time in RFC 3339. "" is the zero time.
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

// Chosen returns the ids of a selection that names them; nil where it chooses by status.
func (s *Selection) Chosen() []string {
	if s.ID != "" {
		return []string{s.ID}
	}
	return s.IDs
}
