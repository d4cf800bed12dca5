package tiktok_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/tiktok"
)

// pixelWithAnswer returns a pixel whose requests are all answered with a body.
func pixelWithAnswer(t *testing.T, c tiktok.Config, body string) *tiktok.Pixel {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(server.Close)
	c.URL = server.URL
	return tiktok.NewPixel(c, "PIXEL1", "secret-token", "")
}

func TestPixel_ReportsSentFields(t *testing.T) {
	t.Parallel()
	const accepted = `{"code":0,"message":"OK","request_id":"r1"}`
	const email, ttclid, ttp, page = 1, 4, 8, 64
	const shop, deep = "https://shop.example/", "https://shop.example/x?y=1"
	own := envelope(new(int64(2999)), "usd")
	all := own.Keys.Mask()
	bare := func(minor *int64, currency string, keys purchase.MatchKeys) message.Envelope {
		return message.Envelope{
			Version: 1, EventID: "cs_1", PurchasedAt: 1704067200, AmountMinor: minor, Currency: currency, Keys: keys,
		}
	}
	none, hashed := purchase.MatchKeys{}, purchase.HashEmail("buyer@example.com")
	for name, tc := range map[string]struct {
		envelope message.Envelope
		page     string // TIKTOK_PAGE_URL
		want     purchase.Sent
	}{
		"everything":           {own, shop, purchase.Sent{Keys: all, Minor: new(int64(2999))}},
		"nothing":              {bare(nil, "", none), "", purchase.Sent{}},
		"a value of 0":         {bare(new(int64(0)), "usd", none), "", purchase.Sent{Minor: new(int64(0))}},
		"unsupported currency": {envelope(new(int64(5000)), "xof"), "", purchase.Sent{Keys: all}},
		"another unsupported":  {envelope(new(int64(5000)), "gel"), "", purchase.Sent{Keys: all}},
		"no currency":          {envelope(new(int64(5000)), ""), "", purchase.Sent{Keys: all}},
		"an unknown amount":    {envelope(nil, "usd"), "", purchase.Sent{Keys: all}},
		"the default page": {
			bare(new(int64(1)), "jpy", purchase.MatchKeys{Email: hashed}), shop,
			purchase.Sent{Keys: email | page, Minor: new(int64(1)), Page: shop},
		},
		"a click id without a page": {
			bare(nil, "", purchase.MatchKeys{TTCLID: "E.C.P.a"}), "", purchase.Sent{Keys: ttclid},
		},
		"a click id and that page": {
			bare(nil, "", purchase.MatchKeys{TTCLID: "E.C.P.a", TTP: "t"}), deep,
			purchase.Sent{Keys: ttclid | ttp | page, Page: deep},
		},
	} {
		for _, payload := range []string{tiktok.PayloadEvents, tiktok.PayloadPixel} {
			c := config()
			c.PageURL, c.Payload = tc.page, payload
			a := pixelWithAnswer(t, c, accepted).Send(t.Context(), []message.Envelope{tc.envelope})
			if diff := cmp.Diff([]purchase.Sent{tc.want}, a.Sent); diff != "" {
				t.Errorf("%s, payload %s (-want +got):\n%s", name, payload, diff)
			}
		}
	}
	both := []message.Envelope{own, bare(nil, "", purchase.MatchKeys{Email: hashed})}
	if diff := cmp.Diff(
		[]purchase.Sent{{Keys: all, Minor: new(int64(2999))}, {Keys: email}},
		pixelWithAnswer(t, config(), accepted).Send(t.Context(), both).Sent,
	); diff != "" {
		t.Errorf("a batch (-want +got):\n%s", diff)
	}
	for _, refused := range []string{`{"code":40002,"message":"no"}`, `{"code":50000}`, "<html>"} {
		if a := pixelWithAnswer(t, config(), refused).Send(t.Context(), both); a.Sent != nil {
			t.Errorf("answer %s: sent = %+v, want none", refused, a.Sent)
		}
	}
}
