package report_test

import (
	"testing"
	"time"
	_ "time/tzdata"

	"pgregory.net/rapid"

	"purchase-relay/internal/ops/report"
)

func zoneOf(t *testing.T, name string) report.Days {
	t.Helper()
	zone, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return report.Days{Zone: zone}
}

func TestDays_BeginAtTheFirstInstant(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		zone, day, want string
		hours           float64
	}{
		{"UTC", "2026-03-29", "2026-03-29T00:00:00Z", 24},
		{"Europe/Berlin", "2026-03-28", "2026-03-27T23:00:00Z", 24},
		{"Europe/Berlin", "2026-03-29", "2026-03-28T23:00:00Z", 23},
		{"Europe/Berlin", "2026-10-25", "2026-10-24T22:00:00Z", 25},
		{"Asia/Kolkata", "2026-01-02", "2026-01-01T18:30:00Z", 24},
		{"Asia/Kathmandu", "2026-01-02", "2026-01-01T18:15:00Z", 24},
		{"Pacific/Chatham", "2026-04-05", "2026-04-04T10:15:00Z", 25},
		{"Australia/Lord_Howe", "2026-04-05", "2026-04-04T13:00:00Z", 24.5},
		{"America/Santiago", "2026-09-06", "2026-09-06T04:00:00Z", 23}, // begins at 1 o'clock
		{"America/Havana", "2026-11-01", "2026-11-01T04:00:00Z", 25},   // midnight comes twice
		{"Africa/Cairo", "2026-04-24", "2026-04-23T22:00:00Z", 23},     // begins at 1 o'clock
	} {
		days := zoneOf(t, tc.zone)
		date, err := time.Parse(time.DateOnly, tc.day)
		if err != nil {
			t.Fatal(err)
		}
		start, next := days.Start(date), days.Start(date.AddDate(0, 0, 1))
		if got := start.UTC().Format(time.RFC3339); got != tc.want || next.Sub(start).Hours() != tc.hours {
			t.Errorf("%s, %s: start = %s, %v hours, want %s, %v",
				tc.zone, tc.day, got, next.Sub(start).Hours(), tc.want, tc.hours)
		}
	}
}

// Every instant is in exactly one day, which begins with a quarter hour.
func TestDays_PartitionTime(t *testing.T) {
	t.Parallel()
	zones := []string{
		"UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Pacific/Chatham", "Pacific/Apia",
		"Australia/Lord_Howe", "America/Santiago", "America/Havana", "Africa/Cairo", "Asia/Beirut",
		"Pacific/Kiritimati",
	}
	rapid.Check(t, func(rt *rapid.T) {
		days := zoneOf(t, rapid.SampledFrom(zones).Draw(rt, "zone"))
		at := time.Unix(rapid.Int64Range(1_600_000_000, 2_100_000_000).Draw(rt, "at"), 0)
		start, next := days.Of(at, 0), days.Of(at, 1)
		if start.After(at) || !next.After(at) || !days.Of(start, 0).Equal(start) ||
			!days.Of(next.Add(-time.Second), 0).Equal(start) {
			rt.Fatalf("day of %s = %s until %s", at.In(days.Zone), start, next)
		}
		if !start.Truncate(report.Quarter).Equal(start) {
			rt.Fatalf("day begins at %s, want a quarter hour", start)
		}
	})
}
