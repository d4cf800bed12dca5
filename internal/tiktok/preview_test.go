package tiktok_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/tiktok"
)

// The worker may have omitted or added fields.
func TestPreview_EqualsSentBody(t *testing.T) {
	t.Parallel()
	var got []byte
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, _ = io.ReadAll(r.Body)
		_, _ = io.WriteString(w, `{"code":0,"message":"OK","request_id":"r1"}`)
	}))
	t.Cleanup(server.Close)
	keys := purchase.MatchKeys{
		Email: purchase.HashEmail("buyer@example.com"), TTCLID: "E.C.P.a", TTP: "ttp1",
		FirstName: purchase.HashExternalID("a"), City: "berlin",
	}
	paged := keys
	paged.PageURL, paged.Referrer = "https://shop.example/own", "https://www.tiktok.com/"
	const shop = "https://shop.example/"
	sale := func(minor int64, currency string, keys purchase.MatchKeys) purchase.Purchase {
		return purchase.Purchase{AmountMinor: &minor, Currency: currency, Keys: keys}
	}
	for name, tc := range map[string]struct {
		purchase purchase.Purchase
		page     string
	}{
		"everything":                {sale(2999, "usd", paged), shop},
		"the default page":          {sale(2999, "usd", keys), shop},
		"a click id and no page":    {sale(2999, "usd", keys), ""},
		"an unsupported currency":   {sale(5000, "xof", paged), ""},
		"unsupported, default page": {sale(5000, "gel", keys), shop},
		"an unknown amount":         {purchase.Purchase{Currency: "usd", Keys: keys}, ""},
		"nothing":                   {purchase.Purchase{}, ""},
	} {
		tc.purchase.ID, tc.purchase.Livemode, tc.purchase.At = "cs_1", true, time.Unix(1704067200, 0)
		data, err := message.EncodeEnvelope(&tc.purchase)
		if err != nil {
			t.Fatal(err)
		}
		envelope, err := message.DecodeEnvelope(data)
		if err != nil {
			t.Fatal(err)
		}
		c := config()
		c.URL, c.PageURL = server.URL, tc.page
		a := tiktok.NewPixel(c, "PIXEL1", "token", "").Send(t.Context(), []message.Envelope{envelope})
		if len(a.Sent) != 1 {
			t.Fatalf("%s: answer = %+v, want one sent event", name, a)
		}
		rendered, err := tiktok.Preview(data, &a.Sent[0])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(eventsOf(t, got), eventsOf(t, rendered)); diff != "" {
			t.Errorf("%s (-sent +preview):\n%s", name, diff)
		}
	}
}

func eventsOf(t *testing.T, body []byte) any {
	t.Helper()
	var all struct{ Data any }
	if err := json.Unmarshal(body, &all); err != nil || all.Data == nil {
		t.Fatalf("body %s: %v", body, err)
	}
	return all.Data
}
