package message_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// A compromised worker cannot report an outcome that the ledger cannot store.
func TestDecodeOutcomes_BoundsEachField(t *testing.T) {
	t.Parallel()
	const sound = `"event_id":"cs_1","generation":1,"result":"dead","reason":"refused","at":"2026-01-02T03:04:05Z","sequence":7`
	const attempt = `"id":"a","at":"2026-01-02T03:04:05Z","took_ms":1,"class":"refused","code":40002,"message":"no","request_id":"r"`
	read := func(fields string) error {
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
		whole := sound + `,"attempt":{` + attempt + `}`
		if !strings.Contains(whole, tc.field) {
			t.Fatalf("there is no %s", tc.field)
		}
		if err := read(strings.Replace(whole, tc.field, tc.good, 1)); err != nil {
			t.Errorf("%.60s: error = %v, want none", tc.good, err)
		}
		if err := read(strings.Replace(whole, tc.field, tc.bad, 1)); err == nil {
			t.Errorf("%.60s is read", tc.bad)
		}
	}
}

func TestDecodeOutcomes_CleansTexts(t *testing.T) {
	t.Parallel()
	list, err := message.DecodeOutcomes([]byte(`{"version":1,"outcomes":[{
		"event_id":"cs_1","generation":1,"result":"retrying","at":"2026-01-02T03:04:05Z",
		"attempt":{"id":"a","at":"2026-01-02T03:04:05Z","message":"a\u202eb\u001b[2J\n\u200bc","request_id":"r\u2066\ufeff1"}}]}`))
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if a := list[0].Attempt; a.Message != "ab[2J c" || a.RequestID != "r1" {
		t.Errorf("message = %q, request_id = %q", a.Message, a.RequestID)
	}
}

func TestDecodeOutcomes_BoundsTheirNumber(t *testing.T) {
	t.Parallel()
	one := []byte(`{"event_id":"cs_1","generation":1,"result":"dead","at":"2026-01-02T03:04:05Z"}`)
	many := make([][]byte, 10_001)
	for i := range many {
		many[i] = one
	}
	list, err := message.DecodeOutcomes(message.EncodeOutcomes(many))
	if len(list) != 10_000 || err == nil {
		t.Errorf("%d outcomes, error = %v; want 10000 and one", len(list), err)
	}
}

// Times that the queue's clock makes impossible become the queue's.
func TestOutcome_Dated(t *testing.T) {
	t.Parallel()
	taken := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	year9999, year1 := time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct{ at, want time.Time }{
		"a moment before":            {taken.Add(-time.Second), taken.Add(-time.Second)},
		"a clock ahead":              {taken.Add(3 * time.Minute), taken.Add(3 * time.Minute)},
		"a clock far ahead":          {taken.Add(time.Hour), taken},
		"an outcome that was kept":   {taken.Add(-47 * time.Hour), taken.Add(-47 * time.Hour)},
		"before it can have been":    {taken.Add(-49 * time.Hour), taken},
		"the end of the calendar":    {year9999, taken},
		"the beginning of calendars": {year1, taken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := message.Outcome{EventID: "cs_1", At: tc.at, Attempt: &message.Attempt{ID: "a", At: tc.at}}
			got := o.Dated(taken)
			if !got.At.Equal(tc.want) || !got.Attempt.At.Equal(tc.want) {
				t.Errorf("at = %s, attempt.at = %s, want %s", got.At, got.Attempt.At, tc.want)
			}
			if !o.Attempt.At.Equal(tc.at) {
				t.Error("the outcome that was given is changed")
			}
		})
	}
	early := message.Outcome{At: taken, Taken: taken.AddDate(0, 0, -40), Sequence: 7}.Dated(taken)
	future := message.Outcome{At: taken, Taken: taken.Add(time.Hour), Sequence: 7}.Dated(taken)
	if early.Taken.IsZero() || early.Sequence != 7 || !future.Taken.IsZero() || future.Sequence != 0 {
		t.Errorf("taken = %v (%d), %v (%d); want the first kept and the second dropped", early.Taken, early.Sequence, future.Taken, future.Sequence)
	}
}

func TestGeneration_IsBounded(t *testing.T) {
	t.Parallel()
	for msgID, want := range map[string]int{"cs_1:1048576": 1 << 20, "cs_1:1048577": 1, "cs_1:2147483648": 1, "cs_1:99999999999999999999": 1} {
		if got := message.Generation(msgID); got != want {
			t.Errorf("Generation(%q) = %d, want %d", msgID, got, want)
		}
	}
}

func TestEncodeDeadLetter_BoundsEachField(t *testing.T) {
	t.Parallel()
	sound := message.DeadLetter{EventID: "cs_1", Generation: 1, Reason: purchase.ReasonRefused, DiedAt: time.Unix(1, 0), Envelope: []byte(`{}`)}
	for name, change := range map[string]func(d *message.DeadLetter){
		"event_id":      func(d *message.DeadLetter) { d.EventID = "cs.1" },
		"generation":    func(d *message.DeadLetter) { d.Generation = message.MaxGeneration + 1 },
		"no generation": func(d *message.DeadLetter) { d.Generation = 0 },
		"no reason":     func(d *message.DeadLetter) { d.Reason = "" },
		"reason":        func(d *message.DeadLetter) { d.Reason = "\u202e" },
		"attempts":      func(d *message.DeadLetter) { d.Attempts = -1 },
		"not dated":     func(d *message.DeadLetter) { d.DiedAt = time.Time{} },
	} {
		d := sound
		change(&d)
		if data, err := message.EncodeDeadLetter(d); err == nil {
			t.Errorf("%s: encoded as %s", name, data)
		}
	}
	sound.Message, sound.RequestID = "a\u202eb\x00"+strings.Repeat("c", 2000), "r\u200b1"
	data, err := message.EncodeDeadLetter(sound)
	if err != nil || !strings.Contains(string(data), `"message":"abccc`) || !strings.Contains(string(data), `"request_id":"r1"`) || len(data) > 1300 {
		t.Errorf("encoded as %s, error = %v", data, err)
	}
}

func TestDecodeWorkerState(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, tc := range map[string]struct {
		instance, data string
		want           message.WorkerState
	}{
		"sound": {
			"w-1", `{"version":"v1.2.3-4+g5","state":"paused","reason":"live: 40105 no such token","since":"2026-01-01T00:00:00+01:00"}`,
			message.WorkerState{Version: "v1.2.3-4+g5", State: "paused", Reason: "live: 40105 no such token", Since: time.Date(2025, 12, 31, 23, 0, 0, 0, time.UTC)},
		},
		"overrides": {
			"w-1", `{"version":"v\u202e1","state":"running","reason":"\u2067live\u202e\u200b\u001b[31m\nall is well","since":"2026-01-01T00:00:00Z"}`,
			message.WorkerState{Version: "v1", State: "running", Reason: "live[31m all is well", Since: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)},
		},
		"since tomorrow":    {"w-1", `{"state":"off","since":"9999-01-01T00:00:00Z"}`, message.WorkerState{State: "off", Since: now}},
		"since for ever":    {"w-1", `{"state":"open","since":"0001-01-02T00:00:00Z"}`, message.WorkerState{State: "open", Since: now}},
		"since unknown":     {"w-1", `{"state":"open"}`, message.WorkerState{State: "open", Since: now}},
		"a novel":           {"w-1", `{"state":"open","reason":"` + strings.Repeat("x", 3000) + `","version":"` + strings.Repeat("y", 500) + `"}`, message.WorkerState{State: "open", Reason: strings.Repeat("x", 300) + "…", Version: strings.Repeat("y", 64) + "…", Since: now}},
		"another's name":    {"w-1", `{"instance":"w-2","state":"open","seen":"2020-01-01T00:00:00Z"}`, message.WorkerState{State: "open", Since: now}},
		"an unknown state":  {"w-1", `{"state":"winning"}`, message.WorkerState{}},
		"a state in caps":   {"w-1", `{"state":"RUNNING"}`, message.WorkerState{}},
		"no state":          {"w-1", `{}`, message.WorkerState{}},
		"no JSON":           {"w-1", `state`, message.WorkerState{}},
		"a wrong type":      {"w-1", `{"state":"running","since":7}`, message.WorkerState{}},
		"too large":         {"w-1", `{"state":"open","reason":"` + strings.Repeat("x", 4096) + `"}`, message.WorkerState{}},
		"an odd instance":   {"w\u202e1", `{"state":"open"}`, message.WorkerState{}},
		"a long instance":   {strings.Repeat("w", 101), `{"state":"open"}`, message.WorkerState{}},
		"without instance":  {"", `{"state":"open"}`, message.WorkerState{}},
		"a deeper instance": {"w.1", `{"state":"open"}`, message.WorkerState{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := message.DecodeWorkerState(tc.instance, []byte(tc.data), now)
			if (err == nil) != (tc.want.State != "") {
				t.Errorf("error = %v", err)
			}
			if err == nil {
				tc.want.Instance, tc.want.Seen = "w-1", now // never what the message claims
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}
