package message_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
)

func sampleStats() message.Stats {
	return message.Stats{
		PixelID: "C4ABCDEF", Day: "2026-01-01", AskedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Counts: []message.Count{
			{Event: "SHOPPING", Total: 120, Browser: 70, Server: 50, Attributed: 31}, {Event: "PAGE_VIEW"},
		},
	}
}

func TestStats_EncodeGolden(t *testing.T) {
	t.Parallel()
	want := sampleStats()
	data, err := message.EncodeStats(want)
	if err != nil {
		t.Fatal(err)
	}
	compareGolden(t, "stats.v1.json", data)
	got, err := message.DecodeStats(data, want.AskedAt)
	want.Version = message.Version
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("decoded, error = %v (-want +got):\n%s", err, diff)
	}
}

func TestDecodeStats_RejectsInvalid(t *testing.T) {
	t.Parallel()
	stored := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	one := `{"event":"SHOPPING","total":1,"browser":0,"server":1,"attributed":0}`
	body := func(day, counts string) string {
		return `{"version":1,"pixel_id":"C4","day":"` + day + `","asked_at":"2026-01-02T03:04:05Z","counts":[` +
			counts + `]}`
	}
	many := make([]string, message.MaxEventTypes+1)
	for i := range many {
		many[i] = fmt.Sprintf(`{"event":"E%d"}`, i)
	}
	for name, tc := range map[string]struct {
		data  string
		valid bool
		newer bool
	}{
		"valid":              {data: body("2026-01-01", one), valid: true},
		"today":              {data: body("2026-01-02", one), valid: true},
		"tomorrow":           {data: body("2026-01-03", one)},
		"a month ago":        {data: body("2025-12-03", one), valid: true},
		"a year ago":         {data: body("2025-01-01", one)},
		"no day":             {data: body("2026-02-30", one)},
		"newer":              {data: `{"version":2,"counts":{}}`, newer: true},
		"empty":              {data: ``},
		"cut":                {data: body("2026-01-01", one)[:90]},
		"no counts":          {data: body("2026-01-01", "")},
		"too many":           {data: body("2026-01-01", strings.Join(many, ","))},
		"repeated":           {data: body("2026-01-01", one+","+one)},
		"no name":            {data: body("2026-01-01", `{"total":1}`)},
		"long name":          {data: body("2026-01-01", `{"event":"`+strings.Repeat("x", 101)+`"}`)},
		"unsafe name":        {data: body("2026-01-01", `{"event":"A\u202e"}`)},
		"negative":           {data: body("2026-01-01", `{"event":"A","server":-1}`)},
		"too large a number": {data: body("2026-01-01", `{"event":"A","server":9007199254740993}`)},
		"a text":             {data: body("2026-01-01", `{"event":"A","server":"7"}`)},
		"no pixel":           {data: strings.Replace(body("2026-01-01", one), "C4", "", 1)},
		"never asked":        {data: `{"version":1,"pixel_id":"C4","day":"2026-01-01","counts":[` + one + `]}`},
		"too large":          {data: body("2026-01-01", one) + strings.Repeat(" ", 64<<10)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := message.DecodeStats([]byte(tc.data), stored)
			if (err == nil) != tc.valid || errors.Is(err, message.ErrNewer) != tc.newer {
				t.Errorf("error = %v, want valid %t, newer %t", err, tc.valid, tc.newer)
			}
		})
	}
}

// A wrong clock of a worker must not make its answer the last one for years.
func TestDecodeStats_DatesByTheQueuesClock(t *testing.T) {
	t.Parallel()
	stored := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for asked, want := range map[time.Time]time.Time{
		stored.Add(-time.Hour):       stored.Add(-time.Hour),
		stored.Add(time.Minute):      stored.Add(time.Minute),
		stored.AddDate(50, 0, 0):     stored,
		stored.AddDate(0, 0, -3):     stored,
		stored.Add(time.Nanosecond):  stored,
		stored.Add(-49 * time.Hour):  stored,
		stored.Add(10 * time.Minute): stored,
	} {
		s := sampleStats()
		s.AskedAt = asked
		data, err := message.EncodeStats(s)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := message.DecodeStats(data, stored); err != nil || !got.AskedAt.Equal(want) {
			t.Errorf("asked at %s: %s, %v, want %s", asked, got.AskedAt, err, want)
		}
	}
}
