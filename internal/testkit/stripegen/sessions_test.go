package stripegen_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"purchase-relay/internal/testkit/stripegen"
)

// A session is created as it was asked for; what Stripe refuses is refused.
func TestSessions(t *testing.T) {
	sessions := &stripegen.Sessions{Pay: "https://pay.example/"}
	create := func(change func(form url.Values, h http.Header)) (int, string) {
		t.Helper()
		form := url.Values{
			"mode": {"subscription"}, "line_items[0][price]": {"price_1"}, "line_items[0][quantity]": {"1"}, "success_url": {"https://shop.example/"},
			"metadata[ttclid]": {"E.C.P.abc"}, "client_reference_id": {"order-7"},
		}
		header := http.Header{"Authorization": {"Bearer sk_test_1"}, "Content-Type": {"application/x-www-form-urlencoded"}}
		change(form, header)
		r := httptest.NewRequest(http.MethodPost, "/v1/checkout/sessions", strings.NewReader(form.Encode()))
		r.Header = header
		w := httptest.NewRecorder()
		sessions.ServeHTTP(w, r)
		body, err := io.ReadAll(w.Body)
		if err != nil {
			t.Fatal(err)
		}
		return w.Code, string(body)
	}
	if code, body := create(func(url.Values, http.Header) {}); code != http.StatusOK || !strings.Contains(body, `"url":"https://pay.example/cs_test_`) {
		t.Fatalf("%d %s", code, body)
	}
	c := sessions.Created()[0].Checkout()
	if c.Metadata["ttclid"] != "E.C.P.abc" || c.Reference != "order-7" || c.PaymentStatus != "paid" {
		t.Errorf("its event: %+v", c)
	}
	for name, tc := range map[string]struct {
		change func(form url.Values, h http.Header)
		want   int
	}{
		"no key":                  {func(_ url.Values, h http.Header) { h.Del("Authorization") }, 401},
		"JSON":                    {func(_ url.Values, h http.Header) { h.Set("Content-Type", "application/json") }, 400},
		"no price":                {func(f url.Values, _ http.Header) { f.Del("line_items[0][price]") }, 400},
		"a value of 501":          {func(f url.Values, _ http.Header) { f.Set("metadata[a]", strings.Repeat("é", 501)) }, 400},
		"a key of 41":             {func(f url.Values, _ http.Header) { f.Set("metadata["+strings.Repeat("a", 41)+"]", "b") }, 400},
		"a dot in the reference":  {func(f url.Values, _ http.Header) { f.Set("client_reference_id", "E.C") }, 400},
		"metadata of metadata":    {func(f url.Values, _ http.Header) { f.Set("metadata[a][b]", "c") }, 400},
		"a value of 500 is taken": {func(f url.Values, _ http.Header) { f.Set("metadata[a]", strings.Repeat("é", 500)) }, 200},
	} {
		if code, body := create(tc.change); code != tc.want {
			t.Errorf("%s: %d %s", name, code, body)
		}
	}
}
