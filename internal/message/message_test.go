package message_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

var update = flag.Bool("update", false, "write golden files that do not exist yet")

// compareGolden compares a message with its golden file.
func compareGolden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	want, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && *update {
		want, err = got, os.WriteFile(path, append(got, '\n'), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimSpace(string(want)), string(got)); diff != "" {
		t.Errorf("%s is frozen (-golden +got):\n%s", name, diff)
	}
}

func samplePurchase() *purchase.Purchase {
	amount := int64(2999)
	return &purchase.Purchase{
		ID: "cs_live_a1B2", Livemode: true, AmountMinor: &amount, Currency: "usd",
		At: time.Unix(1704067200, 0).UTC(), Email: "buyer@example.com",
		Keys: purchase.MatchKeys{
			Email: purchase.HashEmail("buyer@example.com"), Phone: purchase.HashPhone("+12133734253"),
			ExternalID: purchase.HashExternalID("5f1d7a4e-0000-4000-8000-000000000001"),
			TTCLID:     "E.C.P.abc", TTP: "2QkW.1", IP: "203.0.113.7", UserAgent: `Mozilla/5.0 "quoted"`,
			PageURL: "https://shop.example/checkout?ttclid=E.C.P.abc", Referrer: "https://www.tiktok.com/",
		},
	}
}

func TestEnvelope_EncodesGolden(t *testing.T) {
	t.Parallel()
	full := samplePurchase()
	full.Keys.FirstName, full.Keys.LastName = purchase.HashExternalID("grace"), purchase.HashExternalID("hopper")
	full.Keys.Zip = purchase.HashZip("SW1A 1AA")
	full.Keys.City, full.Keys.State, full.Keys.Country, full.Keys.Locale = "newyork", "ny", "us", "en-US"
	full.Content = &purchase.Content{
		ID: "plan-1", Name: "Plan", Category: "Plans", Brand: "Example",
		Price: "14.50", Quantity: 2, IDs: []string{"plan-1", "plan-2"},
	}
	full.EventName, full.LimitedDataUse = "StartTrial", true
	for file, p := range map[string]*purchase.Purchase{
		"envelope.v1.json":      samplePurchase(),
		"envelope_full.v1.json": full,
	} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			data, err := message.EncodeEnvelope(p)
			if err != nil {
				t.Fatal(err)
			}
			compareGolden(t, file, data)
			if strings.Contains(string(data), "buyer@") {
				t.Errorf("envelope = %s, want no plain address", data)
			}
			got, err := message.DecodeEnvelope(data)
			if err != nil {
				t.Fatal(err)
			}
			want := message.Envelope{
				Version: 1, EventID: p.ID, Livemode: true, PurchasedAt: 1704067200,
				AmountMinor: p.AmountMinor, Currency: "usd", Keys: p.Keys,
				Event: p.EventName, LimitedDataUse: p.LimitedDataUse, Content: p.Content,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
		})
	}
}

// next is the version that a future binary will write.
const next = message.Version + 1

func TestDecodeEnvelope_RejectsInvalid(t *testing.T) {
	const valid = `{"version":1,"event_id":"cs_1","purchased_at":1` // without the closing brace
	for name, tc := range map[string]struct {
		data  string
		newer bool
	}{
		"empty":              {data: ``},
		"list":               {data: `[1]`},
		"null":               {data: `null`},
		"no version":         {data: `{"event_id":"cs_1","purchased_at":1}`},
		"newer":              {data: fmt.Sprintf(`{"version":%d,"event_id":{}}`, next), newer: true},
		"id with a dot":      {data: `{"version":1,"event_id":"cs.1","purchased_at":1}`},
		"no time":            {data: `{"version":1,"event_id":"cs_1"}`},
		"plain e-mail":       {data: valid + `,"match_keys":{"email":"a@b.example"}}`},
		"plain name":         {data: valid + `,"match_keys":{"last_name":"hopper"}}`},
		"event with a blank": {data: valid + `,"event":"Start Trial"}`},
		"upper-case hash":    {data: valid + `,"match_keys":{"phone":"` + strings.Repeat("A", 64) + `"}}`},
		"negative amount":    {data: valid + `,"amount_minor":-1}`},
		"malformed currency": {data: valid + `,"currency":"doubloon"}`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := message.DecodeEnvelope([]byte(tc.data))
			if err == nil || errors.Is(err, message.ErrNewer) != tc.newer {
				t.Errorf("DecodeEnvelope(%s): error = %v, want one, newer: %t", tc.data, err, tc.newer)
			}
		})
	}
	if _, err := message.EncodeEnvelope(&purchase.Purchase{ID: "cs_1 or so", At: time.Unix(1, 0)}); err == nil {
		t.Error("EncodeEnvelope with an invalid id: error = nil, want one")
	}
}

func TestOutcomes_EncodeGolden(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	list := []message.Outcome{
		{
			EventID: "cs_live_a1B2", Generation: 2, Result: purchase.StatusDead, Reason: purchase.ReasonRefused,
			At: at,
			Attempt: message.NewAttempt(purchase.Attempt{
				ID: "w1-7", At: at.Add(-time.Second), Took: 120 * time.Millisecond, Class: purchase.ClassRefused,
				Code: new(40002), Message: "Batch.0.event_id: Not a valid string", RequestID: "2026010203040500",
			}),
		},
		{
			EventID: "cs_live_c3D4", Generation: 1, Result: purchase.StatusDelivered, At: at,
			Sequence: 7, Taken: at,
			Sent: &purchase.Sent{Keys: 69, Minor: new(int64(2999)), Page: "https://shop.example/"},
		},
		{
			EventID: "cs_live_e5F6", Generation: 1, Result: purchase.StatusRetrying, At: at,
			Next: at.Add(15 * time.Minute),
		},
	}
	data := encodeOutcomes(t, list...)
	compareGolden(t, "outcomes.v1.json", data)
	got, err := message.DecodeOutcomes(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(list, got); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
}

// encodeOutcomes encodes a message of outcomes.
func encodeOutcomes(t *testing.T, list ...message.Outcome) []byte {
	t.Helper()
	encoded := make([][]byte, len(list))
	for i, o := range list {
		data, err := message.EncodeOutcome(o)
		if err != nil {
			t.Fatal(err)
		}
		encoded[i] = data
	}
	return message.EncodeOutcomes(encoded)
}

func TestDeadLetter_EncodesGolden(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	data, err := message.EncodeDeadLetter(message.DeadLetter{
		EventID: "cs_live_a1B2", Generation: 2, Reason: purchase.ReasonRefused, Code: new(40002), Message: "m",
		RequestID: "r", Attempts: 3, FirstPublished: at.Add(-time.Hour), DiedAt: at,
		Envelope: []byte(`{"version":1}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	compareGolden(t, "deadletter.v1.json", data)
}

func TestDecodeOutcomes_ReturnsValidOnes(t *testing.T) {
	t.Parallel()
	const (
		valid   = `{"event_id":"cs_1","generation":1,"result":"dead","at":"2026-01-02T03:04:05Z"}`
		invalid = `{"event_id":"cs_2","generation":1,"result":"unknown"}`
	)
	data := `{"version":1,"outcomes":[` + invalid + "," + valid + "," + invalid + `]}`
	list, err := message.DecodeOutcomes([]byte(data))
	if err == nil || len(list) != 1 || list[0].EventID != "cs_1" {
		t.Errorf("outcomes = %+v, error = %v; want cs_1 and an error", list, err)
	}
}

func TestDecodeOutcomes_RejectsInvalid(t *testing.T) {
	t.Parallel()
	const at = `"at":"2026-01-02T03:04:05Z"`
	one := func(fields string) string { return `{"version":1,"outcomes":[{` + fields + `}]}` }
	for name, tc := range map[string]struct {
		data  string
		newer bool
	}{
		"empty list":      {data: `{"version":1,"outcomes":[]}`},
		"no list":         {data: `{"version":1}`},
		"not a list":      {data: `{"version":1,"outcomes":7}`},
		"no version":      {data: `{"outcomes":[]}`},
		"newer":           {data: fmt.Sprintf(`{"version":%d,"outcomes":7}`, next), newer: true},
		"pending":         {data: one(`"event_id":"cs_1","generation":1,"result":"pending",` + at)},
		"generation 0":    {data: one(`"event_id":"cs_1","generation":0,"result":"dead",` + at)},
		"no time":         {data: one(`"event_id":"cs_1","generation":1,"result":"dead"`)},
		"no id":           {data: one(`"event_id":"","generation":1,"result":"dead",` + at)},
		"NUL in a reason": {data: one(`"event_id":"cs_1","generation":1,"result":"dead","reason":"\u0000",` + at)},
		"NUL in a message": {data: one(`"event_id":"cs_1","generation":1,"result":"dead",` + at +
			`,"attempt":{"id":"a",` + at + `,"message":"a\u0000b"}`)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			list, err := message.DecodeOutcomes([]byte(tc.data))
			if err == nil || len(list) > 0 || errors.Is(err, message.ErrNewer) != tc.newer {
				t.Errorf("outcomes = %+v, error = %v, want an error, newer: %t", list, err, tc.newer)
			}
		})
	}
}

func TestMsgID_CarriesGeneration(t *testing.T) {
	if got := message.MsgID("cs_1", 3); got != "cs_1:3" || message.Generation(got) != 3 {
		t.Errorf("MsgID = %q, Generation = %d, want cs_1:3, 3", got, message.Generation(got))
	}
}

func FuzzDecode(f *testing.F) {
	e, _ := message.EncodeEnvelope(samplePurchase())
	at := time.Unix(1, 0)
	skipped := message.Outcome{EventID: "cs_1", Generation: 1, Result: purchase.StatusSkipped, At: at}
	o, _ := message.EncodeOutcome(skipped)
	f.Add(e)
	f.Add(message.EncodeOutcomes([][]byte{o, o}))
	f.Add([]byte(`{"version":1,"outcomes":[{"event_id":"cs_1","generation":1,"result":"delivered",` +
		`"at":"2026-01-02T03:04:05Z","sent":{"keys":69,"minor":1,"page":"https://shop.example/"}}]}`))
	f.Add([]byte(`{"version":1}`))
	c, _ := message.EncodeStats(sampleStats())
	f.Add(c)
	f.Fuzz(func(t *testing.T, data []byte) {
		if e, err := message.DecodeEnvelope(data); err == nil {
			if !purchase.ValidID(e.EventID) {
				t.Errorf("event_id = %q, want a valid id", e.EventID)
			}
		}
		list, _ := message.DecodeOutcomes(data)
		for _, o := range list {
			if _, err := message.EncodeOutcome(o); err != nil {
				t.Errorf("encode the decoded %+v: %v", o, err)
			}
		}
		if s, err := message.DecodeStats(data, at); err == nil {
			if _, err := message.EncodeStats(s); err != nil {
				t.Errorf("encode the decoded %+v: %v", s, err)
			}
		}
	})
}

func TestOutcome_Sent(t *testing.T) {
	t.Parallel()
	at := time.Unix(1704067200, 0).UTC()
	o := message.Outcome{EventID: "cs_1", Generation: 1, Result: purchase.StatusDelivered, At: at}
	const page = "https://shop.example/ä?a=1&b"
	for want, sent := range map[string]*purchase.Sent{
		`"at":"2024-01-01T00:00:00Z"}`:                           nil,
		`,"sent":{"keys":0}}`:                                    {},
		`,"sent":{"keys":511,"minor":0}}`:                        {Keys: 511, Minor: new(int64(0))},
		`"minor":1,"page":"https://shop.example/ä?a=1\u0026b"}}`: {Keys: 64, Minor: new(int64(1)), Page: page},
	} {
		o.Sent = sent
		data, err := message.EncodeOutcome(o)
		if err != nil || !strings.HasSuffix(string(data), want) {
			t.Errorf("encoded = %s, error = %v, want …%s", data, err, want)
		}
		list, err := message.DecodeOutcomes(message.EncodeOutcomes([][]byte{data}))
		if diff := cmp.Diff([]message.Outcome{o}, list); err != nil || diff != "" {
			t.Errorf("decoded, error = %v (-want +got):\n%s", err, diff)
		}
	}
	for _, sent := range []purchase.Sent{
		{Keys: -1},
		{Keys: 512},
		{Minor: new(int64(-1))},
		{Page: "/checkout"},
		{Page: "javascript:alert(1)"},
		{Page: "https://buyer:secret@shop.example/"},
		{Page: "https://shop.example/\x00"},
		{Page: "https://shop.example/\xff"},
		{Page: "https://shop.example/" + strings.Repeat("x", 2048)},
	} {
		o.Sent = &sent
		if data, err := message.EncodeOutcome(o); err == nil {
			t.Errorf("encoded = %s, want an error", data)
		}
	}
}
