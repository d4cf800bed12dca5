package tiktok_test

import (
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/tiktok"
)

// Other clients hash values and classify answers alike: testdata/vectors.json names each source, and notes
// why we classify an answer differently.
func TestBody_MatchesVectorsOfOtherClients(t *testing.T) {
	data, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Source, Kind, Raw, SHA256, Note string
		Status                          int
		Body                            json.RawMessage
		Class                           purchase.Class
	}
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	hashes := map[string]func(string) string{
		"email": purchase.HashEmail, "phone": purchase.HashPhone, "external_id": purchase.HashExternalID,
	}
	for _, v := range vectors {
		if v.Kind == "answer" {
			if string(v.Body) == "null" {
				v.Body = nil
			}
			if a := tiktok.ParseAnswer(v.Status, v.Body); a.Class != v.Class {
				t.Errorf("%s: class of HTTP %d %s = %s, want %s", v.Source, v.Status, v.Body, a.Class, v.Class)
			}
			continue
		}
		hash, ok := hashes[v.Kind]
		if !ok {
			t.Fatalf("%s: kind %q", v.Source, v.Kind)
		}
		if got := hash(v.Raw); got != v.SHA256 {
			t.Errorf("%s: hash of %s %q = %q, want %q", v.Source, v.Kind, v.Raw, got, v.SHA256)
		}
	}
}

// The event of segmentio/action-destinations' test in our form: single hashes, no contents, no privacy flag,
// our content type and order ID. Its external ID is in lower case, as that client hashes it; we hash IDs as
// they are.
func TestBody_MatchesPayloadsOfOtherClients(t *testing.T) {
	at, err := time.Parse(time.RFC3339, "2024-01-08T13:52:50.212Z")
	if err != nil {
		t.Fatal(err)
	}
	c := config()
	c.EventName = "InitiateCheckout"
	body, err := tiktok.Body(c, "test", "", []message.Envelope{{
		Version: 1, EventID: "corey123", PurchasedAt: at.Unix(), AmountMinor: new(int64(10000)), Currency: "usd",
		Keys: purchase.MatchKeys{
			Email: purchase.HashEmail("coreytest1231@gmail.com"), Phone: purchase.HashPhone("+1555-555-5555"),
			ExternalID: purchase.HashExternalID("testid123"), TTCLID: "12345", IP: "0.0.0.0",
			UserAgent: "Mozilla/5.0 (iPhone; ...)", PageURL: "https://segment.com/", Referrer: "https://google.com/",
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"event_source":"web","event_source_id":"test","data":[{` +
		`"event":"InitiateCheckout","event_time":1704721970,"event_id":"corey123",` +
		`"user":{"email":"eb9869a32b532840dd6aa714f7a872d21d6f650fc5aa933d9feefc64708969c7",` +
		`"phone":"910a625c4ba147b544e6bd2f267e130ae14c591b6ba9c25cb8573322dedbebd0",` +
		`"external_id":"481f202262e9c5ccc48d24e60798fadaa5f6ff1f8369f7ab927c04c3aa682a7f",` +
		`"ttclid":"12345","ip":"0.0.0.0","user_agent":"Mozilla/5.0 (iPhone; ...)"},` +
		`"properties":{"value":100.00,"currency":"USD","content_type":"product","order_id":"corey123"},` +
		`"page":{"url":"https://segment.com/","referrer":"https://google.com/"}}]}`
	if diff := cmp.Diff(want, string(body)); diff != "" {
		t.Error(diff)
	}
}
