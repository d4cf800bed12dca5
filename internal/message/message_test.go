package message_test

import (
	"errors"
	"flag"
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

func golden(t *testing.T, name string, got []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	want, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && *update {
		if err := os.WriteFile(path, append(got, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
		return got
	}
	if err != nil {
		t.Fatal(err)
	}
	return []byte(strings.TrimSpace(string(want)))
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

func TestEnvelopeV1(t *testing.T) {
	data, err := message.EncodeEnvelope(samplePurchase())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(golden(t, "envelope.v1.json", data)), string(data)); diff != "" {
		t.Errorf("the envelope changed; released bytes must stay (-golden +got):\n%s", diff)
	}
	if strings.Contains(string(data), "buyer@") {
		t.Errorf("a plain address in the envelope: %s", data)
	}
	e, err := message.DecodeEnvelope(data)
	if err != nil {
		t.Fatal(err)
	}
	p := samplePurchase()
	want := message.Envelope{
		Version: 1, EventID: p.ID, Livemode: true, PurchasedAt: 1704067200, AmountMinor: p.AmountMinor, Currency: "usd", Keys: p.Keys,
	}
	if diff := cmp.Diff(want, e); diff != "" {
		t.Error(diff)
	}
}

// What a worker of the first version would send as something else bears a version that it leaves alone; everything else does not.
func TestEnvelopeV2(t *testing.T) {
	p := samplePurchase()
	p.Keys.FirstName, p.Keys.LastName, p.Keys.Zip = purchase.HashExternalID("grace"), purchase.HashExternalID("hopper"), purchase.HashZip("SW1A 1AA")
	p.Keys.City, p.Keys.State, p.Keys.Country, p.Keys.Locale = "newyork", "ny", "us", "en-US"
	p.Content = &purchase.Content{
		ID: "plan-1", Name: "Plan", Category: "Plans", Brand: "Example",
		Price: "14.50", Quantity: 2, IDs: []string{"plan-1", "plan-2"},
	}
	if data, err := message.EncodeEnvelope(p); err != nil || !strings.HasPrefix(string(data), `{"version":1,`) {
		t.Errorf("more match keys: %s, %v", data, err)
	}
	p.EventName, p.LimitedDataUse = "StartTrial", true
	data, err := message.EncodeEnvelope(p)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(golden(t, "envelope.v2.json", data)), string(data)); diff != "" {
		t.Errorf("the envelope changed; released bytes must stay (-golden +got):\n%s", diff)
	}
	e, err := message.DecodeEnvelope(data)
	if err != nil {
		t.Fatal(err)
	}
	want := message.Envelope{
		Version: 2, EventID: p.ID, Livemode: true, PurchasedAt: 1704067200, AmountMinor: p.AmountMinor, Currency: "usd", Keys: p.Keys,
		Event: "StartTrial", LimitedDataUse: true, Content: p.Content,
	}
	if diff := cmp.Diff(want, e); diff != "" {
		t.Error(diff)
	}
}

func TestDecodeEnvelopeRefuses(t *testing.T) {
	hash := strings.Repeat("a", 64)
	for name, tc := range map[string]struct {
		data  string
		newer bool
	}{
		"nothing":              {data: ``},
		"no object":            {data: `[1]`},
		"null":                 {data: `null`},
		"no version":           {data: `{"event_id":"cs_1","purchased_at":1}`},
		"newer":                {data: `{"version":3,"event_id":{}}`, newer: true},
		"id with a dot":        {data: `{"version":1,"event_id":"cs.1","purchased_at":1}`},
		"no time":              {data: `{"version":1,"event_id":"cs_1"}`},
		"plain e-mail":         {data: `{"version":1,"event_id":"cs_1","purchased_at":1,"match_keys":{"email":"a@b.example"}}`},
		"plain name":           {data: `{"version":1,"event_id":"cs_1","purchased_at":1,"match_keys":{"last_name":"hopper"}}`},
		"a strange event":      {data: `{"version":2,"event_id":"cs_1","purchased_at":1,"event":"Start Trial"}`},
		"upper-case hash":      {data: `{"version":1,"event_id":"cs_1","purchased_at":1,"match_keys":{"phone":"` + strings.ToUpper(hash) + `"}}`},
		"negative amount":      {data: `{"version":1,"event_id":"cs_1","purchased_at":1,"amount_minor":-1}`},
		"currency of a pirate": {data: `{"version":1,"event_id":"cs_1","purchased_at":1,"currency":"doubloon"}`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := message.DecodeEnvelope([]byte(tc.data))
			if err == nil || errors.Is(err, message.ErrNewer) != tc.newer {
				t.Errorf("DecodeEnvelope(%s) = %v", tc.data, err)
			}
		})
	}
	if _, err := message.EncodeEnvelope(&purchase.Purchase{ID: "cs_1 or so", At: time.Unix(1, 0)}); err == nil {
		t.Error("an id that is no subject token was encoded")
	}
}

func TestOutcomeV1(t *testing.T) {
	code := 40002
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	o := message.Outcome{
		EventID: "cs_live_a1B2", Generation: 2, Result: purchase.StatusDead, Reason: purchase.ReasonRefused, At: at,
		Attempt: message.NewAttempt(purchase.Attempt{
			ID: "w1-7", At: at.Add(-time.Second), Took: 120 * time.Millisecond, Class: purchase.ClassRefused, Code: &code,
			Message: "Batch.0.event_id: Not a valid string", RequestID: "2026010203040500",
		}),
	}
	data, err := message.EncodeOutcome(o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(golden(t, "outcome.v1.json", data)), string(data)); diff != "" {
		t.Errorf("the outcome changed (-golden +got):\n%s", diff)
	}
	o.Version = 1
	alone, err := message.DecodeOutcomes(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]message.Outcome{o}, alone); diff != "" {
		t.Error(diff)
	}
	list := message.EncodeOutcomes([][]byte{data, data})
	if diff := cmp.Diff(string(golden(t, "outcomes.v2.json", list)), string(list)); diff != "" {
		t.Errorf("the list of outcomes changed (-golden +got):\n%s", diff)
	}
	both, err := message.DecodeOutcomes(list)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]message.Outcome{o, o}, both); diff != "" {
		t.Error(diff)
	}
}

// An outcome that is none takes no other with it.
func TestDecodeOutcomesKeepsTheGoodOnes(t *testing.T) {
	const good, bad = `{"event_id":"cs_1","generation":1,"result":"dead","at":"2026-01-02T03:04:05Z"}`, `{"event_id":"cs_2","generation":1,"result":"eaten"}`
	list, err := message.DecodeOutcomes([]byte(`{"version":2,"outcomes":[` + bad + "," + good + "," + bad + `]}`))
	if err == nil || len(list) != 1 || list[0].EventID != "cs_1" {
		t.Errorf("%+v, %v", list, err)
	}
	for data, newer := range map[string]bool{`{"version":2,"outcomes":[]}`: false, `{"version":2}`: false, `{"version":3,"outcomes":7}`: true, `{"version":2,"outcomes":7}`: false} {
		if list, err := message.DecodeOutcomes([]byte(data)); err == nil || len(list) > 0 || errors.Is(err, message.ErrNewer) != newer {
			t.Errorf("%s: %+v, %v", data, list, err)
		}
	}
}

func TestDecodeOutcomeRefuses(t *testing.T) {
	const at = `"at":"2026-01-02T03:04:05Z"`
	for _, data := range []string{
		`{"version":1,"event_id":"cs_1","generation":1,"result":"pending",` + at + `}`,
		`{"version":1,"event_id":"cs_1","generation":0,"result":"dead",` + at + `}`,
		`{"version":1,"event_id":"cs_1","generation":1,"result":"dead"}`,
		`{"version":1,"event_id":"","generation":1,"result":"dead",` + at + `}`,
		`{"version":1,"event_id":"cs_1","generation":1,"result":"dead","reason":"\u0000",` + at + `}`,
		`{"version":1,"event_id":"cs_1","generation":1,"result":"dead",` + at + `,"attempt":{"id":"a","at":"2026-01-02T03:04:05Z","message":"a\u0000b"}}`,
		`{"version":1,"event_id":"cs_1","generation":1,"result":"dead",` + at + `,"attempt":{"id":"a","at":"2026-01-02T03:04:05Z","code":99999999999}}`,
	} {
		if list, err := message.DecodeOutcomes([]byte(data)); err == nil || len(list) > 0 {
			t.Errorf("decoded: %s", data)
		}
	}
}

func TestMsgIDCarriesTheGeneration(t *testing.T) {
	if got := message.MsgID("cs_1", 3); got != "cs_1:3" || message.Generation(got) != 3 {
		t.Errorf("MsgID = %q, Generation = %d", got, message.Generation(got))
	}
	for _, junk := range []string{"", "cs_1", "cs_1:", "cs_1:x", "cs_1:-4"} {
		if g := message.Generation(junk); g != 1 {
			t.Errorf("Generation(%q) = %d", junk, g)
		}
	}
}

func FuzzDecode(f *testing.F) {
	e, _ := message.EncodeEnvelope(samplePurchase())
	o, _ := message.EncodeOutcome(message.Outcome{EventID: "cs_1", Generation: 1, Result: purchase.StatusSkipped, At: time.Unix(1, 0)})
	f.Add(e)
	f.Add(o)
	f.Add(message.EncodeOutcomes([][]byte{o, o}))
	f.Add([]byte(`{"version":1,"event_id":"cs_1","generation":1,"result":"delivered","at":"2026-01-02T03:04:05Z",` +
		`"sent":{"keys":69,"minor":1,"page":"https://shop.example/"}}`))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if e, err := message.DecodeEnvelope(data); err == nil {
			if !purchase.ValidID(e.EventID) {
				t.Errorf("accepted id %q", e.EventID)
			}
		}
		list, _ := message.DecodeOutcomes(data)
		for _, o := range list {
			if _, err := message.EncodeOutcome(o); err != nil {
				t.Errorf("decoded but not encodable: %v", err)
			}
		}
	})
}

func TestOutcome_CarriesWhatWasSent(t *testing.T) {
	t.Parallel()
	at := time.Unix(1704067200, 0).UTC()
	o := message.Outcome{Version: 1, EventID: "cs_1", Generation: 1, Result: purchase.StatusDelivered, At: at}
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
			t.Errorf("encoded %s, %v, want …%s", data, err, want)
		}
		list, err := message.DecodeOutcomes(data)
		if diff := cmp.Diff([]message.Outcome{o}, list); err != nil || diff != "" {
			t.Errorf("decoded, %v (-want +got):\n%s", err, diff)
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
			t.Errorf("encoded %s, want an error", data)
		}
	}
}
