package message_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// A compromised worker must not report an outcome that the ledger cannot store.
func TestDecodeOutcomes_BoundsEachField(t *testing.T) {
	t.Parallel()
	const valid = `"event_id":"cs_1","generation":1,"result":"dead","reason":"refused",` +
		`"at":"2026-01-02T03:04:05Z","sequence":7,"attempt":{"id":"a","at":"2026-01-02T03:04:05Z",` +
		`"took_ms":1,"class":"refused","code":40002,"message":"no","request_id":"r"}`
	decode := func(fields string) error {
		list, err := message.DecodeOutcomes([]byte(`{"version":1,"outcomes":[{` + fields + `}]}`))
		if (err == nil) != (len(list) == 1) {
			t.Errorf("%s: %d outcomes, error = %v", fields, len(list), err)
		}
		return err
	}
	long := strings.Repeat("a", 1001)
	for _, tc := range []struct{ field, good, bad string }{
		{`"generation":1`, `"generation":1048576`, `"generation":1048577`},
		{`"generation":1`, `"generation":2`, `"generation":2147483647`},
		{`"generation":1`, `"generation":2`, `"generation":9223372036854775807`},
		{`"generation":1`, `"generation":2`, `"generation":-1`},
		{`"sequence":7`, `"sequence":9007199254740992`, `"sequence":9007199254740993`},
		{`"sequence":7`, `"sequence":0`, fmt.Sprintf(`"sequence":%d`, uint64(math.MaxUint64))},
		{`"sequence":7`, `"sequence":0`, `"sequence":-1`},
		{`"reason":"refused"`, `"reason":"not_configured"`, `"reason":"a b"`},
		{`"reason":"refused"`, `"reason":""`, `"reason":"<b>"`},
		{`"reason":"refused"`, `"reason":"a"`, `"reason":"\u202eab"`},
		{`"reason":"refused"`, `"reason":"` + long[:40] + `"`, `"reason":"` + long[:41] + `"`},
		{`"at":"2026-01-02T03:04:05Z"`, `"at":"9999-12-31T23:59:59Z"`, `"at":"10000-01-01T00:00:00Z"`},
		{`"took_ms":1`, `"took_ms":86400000`, `"took_ms":86400001`},
		{`"took_ms":1`, `"took_ms":0`, `"took_ms":-1`},
		{`"took_ms":1`, `"took_ms":0`, `"took_ms":9223372036854775807`},
		{`"class":"refused"`, `"class":"retry"`, `"class":"re\nfused"`},
		{`"class":"refused"`, `"class":""`, `"class":"` + long[:41] + `"`},
		{`"code":40002`, `"code":-2147483648`, `"code":2147483648`},
		{`"message":"no"`, `"message":"` + long[:1000] + `"`, `"message":"` + long + `"`},
		{`"request_id":"r"`, `"request_id":"` + long[:200] + `"`, `"request_id":"` + long[:201] + `"`},
		{`"id":"a"`, `"id":"` + long[:255] + `"`, `"id":"` + long[:256] + `"`},
		{`"id":"a"`, `"id":"a-1"`, `"id":"a.b"`},
	} {
		if !strings.Contains(valid, tc.field) {
			t.Fatalf("the valid outcome has no %s", tc.field)
		}
		if err := decode(strings.Replace(valid, tc.field, tc.good, 1)); err != nil {
			t.Errorf("%.60s: error = %v, want nil", tc.good, err)
		}
		if err := decode(strings.Replace(valid, tc.field, tc.bad, 1)); err == nil {
			t.Errorf("%.60s: error = nil, want one", tc.bad)
		}
	}
}

func TestDecodeOutcomes_MakesTextLogSafe(t *testing.T) {
	t.Parallel()
	list, err := message.DecodeOutcomes([]byte(`{"version":1,"outcomes":[{
		"event_id":"cs_1","generation":1,"result":"retrying","at":"2026-01-02T03:04:05Z",
		"attempt":{"id":"a","at":"2026-01-02T03:04:05Z","message":"a\u202eb\u001b[2J\n\u200bc",
		"request_id":"r\u2066\ufeff1"}}]}`))
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if a := list[0].Attempt; a.Message != "ab[2J c" || a.RequestID != "r1" {
		t.Errorf("message = %q, request_id = %q, want \"ab[2J c\", \"r1\"", a.Message, a.RequestID)
	}
}

func TestDecodeOutcomes_BoundsLength(t *testing.T) {
	t.Parallel()
	one := []byte(`{"event_id":"cs_1","generation":1,"result":"dead","at":"2026-01-02T03:04:05Z"}`)
	list, err := message.DecodeOutcomes(message.EncodeOutcomes(slices.Repeat([][]byte{one}, 10_001)))
	if len(list) != 10_000 || err == nil {
		t.Errorf("%d outcomes, error = %v, want 10000 and an error", len(list), err)
	}
}

func TestOutcome_WithValidTimes(t *testing.T) {
	t.Parallel()
	stored := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	year9999, year1 := time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct{ at, want time.Time }{
		"a second before":      {stored.Add(-time.Second), stored.Add(-time.Second)},
		"clock slightly ahead": {stored.Add(3 * time.Minute), stored.Add(3 * time.Minute)},
		"clock far ahead":      {stored.Add(time.Hour), stored},
		"published late":       {stored.Add(-47 * time.Hour), stored.Add(-47 * time.Hour)},
		"too old":              {stored.Add(-49 * time.Hour), stored},
		"year 9999":            {year9999, stored},
		"year 1":               {year1, stored},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := message.Outcome{EventID: "cs_1", At: tc.at, Attempt: &message.Attempt{ID: "a", At: tc.at}}
			got := o.WithValidTimes(stored)
			if !got.At.Equal(tc.want) || !got.Attempt.At.Equal(tc.want) {
				t.Errorf("at = %s, attempt.at = %s, want %s", got.At, got.Attempt.At, tc.want)
			}
			if !o.Attempt.At.Equal(tc.at) {
				t.Errorf("original attempt.at = %s, want %s", o.Attempt.At, tc.at)
			}
		})
	}
	for name, tc := range map[string]struct {
		taken time.Time
		want  uint64 // sequence
	}{
		"taken long ago":      {stored.AddDate(0, 0, -40), 7},
		"taken in the future": {stored.Add(time.Hour), 0},
	} {
		got := message.Outcome{At: stored, Taken: tc.taken, Sequence: 7}.WithValidTimes(stored)
		if got.Sequence != tc.want || got.Taken.IsZero() != (tc.want == 0) {
			t.Errorf("%s: taken = %v, sequence = %d, want sequence %d", name, got.Taken, got.Sequence, tc.want)
		}
	}
	for name, tc := range map[string]struct {
		next  time.Time
		known bool
	}{
		"next in 15 minutes": {stored.Add(15 * time.Minute), true},
		"next just passed":   {stored.Add(-time.Minute), true},
		"next an hour ago":   {stored.Add(-time.Hour), false},
		"next in a week":     {stored.AddDate(0, 0, 7), false},
		"next unknown":       {time.Time{}, false},
	} {
		got := message.Outcome{At: stored, Next: tc.next}.WithValidTimes(stored).Next
		if want := map[bool]time.Time{true: tc.next}[tc.known]; !got.Equal(want) {
			t.Errorf("%s: next = %v, want %v", name, got, want)
		}
	}
}

func TestGeneration_IsBounded(t *testing.T) {
	t.Parallel()
	for msgID, want := range map[string]int{
		"cs_1:1048576": 1 << 20, "cs_1:1048577": 1, "cs_1:2147483648": 1, "cs_1:99999999999999999999": 1,
		"": 1, "cs_1": 1, "cs_1:": 1, "cs_1:x": 1, "cs_1:-4": 1,
	} {
		if got := message.Generation(msgID); got != want {
			t.Errorf("Generation(%q) = %d, want %d", msgID, got, want)
		}
	}
}

func TestEncodeDeadLetter_BoundsEachField(t *testing.T) {
	t.Parallel()
	valid := message.DeadLetter{
		EventID: "cs_1", Generation: 1, Reason: purchase.ReasonRefused, DiedAt: time.Unix(1, 0),
		Envelope: []byte(`{}`),
	}
	for name, change := range map[string]func(d *message.DeadLetter){
		"event_id":      func(d *message.DeadLetter) { d.EventID = "cs.1" },
		"generation":    func(d *message.DeadLetter) { d.Generation = message.MaxGeneration + 1 },
		"no generation": func(d *message.DeadLetter) { d.Generation = 0 },
		"no reason":     func(d *message.DeadLetter) { d.Reason = "" },
		"reason":        func(d *message.DeadLetter) { d.Reason = "\u202e" },
		"attempts":      func(d *message.DeadLetter) { d.Attempts = -1 },
		"no died_at":    func(d *message.DeadLetter) { d.DiedAt = time.Time{} },
	} {
		d := valid
		change(&d)
		if data, err := message.EncodeDeadLetter(d); err == nil {
			t.Errorf("%s: encoded = %s, want an error", name, data)
		}
	}
	valid.Message, valid.RequestID = "a\u202eb\x00"+strings.Repeat("c", 2000), "r\u200b1"
	data, err := message.EncodeDeadLetter(valid)
	if err != nil || len(data) > 1300 {
		t.Errorf("%d bytes, error = %v, want at most 1300", len(data), err)
	}
	for _, want := range []string{`"message":"abccc`, `"request_id":"r1"`} {
		if !strings.Contains(string(data), want) {
			t.Errorf("encoded = %s, want %s", data, want)
		}
	}
}

func TestDecodeWorkerState(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	newYear := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	open := func(reason, version string) message.WorkerState {
		return message.WorkerState{State: "open", Reason: reason, Version: version, Since: now}
	}
	invalid := message.WorkerState{}
	for name, tc := range map[string]struct {
		instance, data string
		want           message.WorkerState // invalid: an error
	}{
		"valid": {
			"w-1", `{"version":"v1.2.3-4+g5","state":"paused","reason":"live: 40105 no such token",` +
				`"since":"2026-01-01T01:00:00+01:00","pixel":"C4A1","test_pixel":"C4A2"}`,
			message.WorkerState{
				Version: "v1.2.3-4+g5", State: "paused", Reason: "live: 40105 no such token", Since: newYear,
				Pixel: "C4A1", TestPixel: "C4A2",
			},
		},
		"malformed pixels": {
			"w-1", `{"state":"open","pixel":"../x","test_pixel":"` + strings.Repeat("C", 65) + `"}`, open("", ""),
		},
		"unsafe text": {
			"w-1", `{"version":"v\u202e1","state":"running","since":"2026-01-01T00:00:00Z",` +
				`"reason":"\u2067live\u202e\u200b\u001b[31m\nall is well"}`,
			message.WorkerState{Version: "v1", State: "running", Reason: "live[31m all is well", Since: newYear},
		},
		"since the future": {
			"w-1", `{"state":"off","since":"9999-01-01T00:00:00Z"}`, message.WorkerState{State: "off", Since: now},
		},
		"since the year 1": {"w-1", `{"state":"open","since":"0001-01-02T00:00:00Z"}`, open("", "")},
		"since unknown":    {"w-1", `{"state":"open"}`, open("", "")},
		"long text": {
			"w-1", `{"state":"open","reason":"` + strings.Repeat("x", 3000) + `","version":"` +
				strings.Repeat("y", 500) + `"}`,
			open(strings.Repeat("x", 300)+"…", strings.Repeat("y", 64)+"…"),
		},
		"forged instance": {
			"w-1", `{"instance":"w-2","state":"open","seen":"2020-01-01T00:00:00Z"}`, open("", ""),
		},
		"counts refused": {
			"w-1", `{"state":"open","stats":{"kind":"access","reason":"40001\u202e no scope",` +
				`"since":"2026-01-01T00:00:00Z"}}`,
			message.WorkerState{State: "open", Since: now, Stats: &message.StatsProblem{
				Kind: "access", Reason: "40001 no scope", Since: newYear,
			}},
		},
		"counts refused, since the future": {
			"w-1", `{"state":"open","stats":{"since":"9999-01-01T00:00:00Z"}}`,
			message.WorkerState{State: "open", Since: now, Stats: &message.StatsProblem{Since: now}},
		},
		"unknown state":       {"w-1", `{"state":"winning"}`, invalid},
		"upper-case state":    {"w-1", `{"state":"RUNNING"}`, invalid},
		"no state":            {"w-1", `{}`, invalid},
		"not JSON":            {"w-1", `state`, invalid},
		"wrong type":          {"w-1", `{"state":"running","since":7}`, invalid},
		"too large":           {"w-1", `{"state":"open","reason":"` + strings.Repeat("x", 4096) + `"}`, invalid},
		"malformed instance":  {"w\u202e1", `{"state":"open"}`, invalid},
		"long instance":       {strings.Repeat("w", 101), `{"state":"open"}`, invalid},
		"no instance":         {"", `{"state":"open"}`, invalid},
		"instance with a dot": {"w.1", `{"state":"open"}`, invalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := message.DecodeWorkerState(tc.instance, []byte(tc.data), now)
			if (err == nil) != (tc.want.State != "") {
				t.Errorf("error = %v", err)
			}
			if err == nil {
				tc.want.Instance, tc.want.Seen = "w-1", now
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("state (-want +got):\n%s", diff)
				}
			}
		})
	}
}
