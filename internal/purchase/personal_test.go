package purchase_test

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"strings"
	"testing"

	"purchase-relay/internal/purchase"
)

// Shops put the buyer's own data into page addresses, user agents and click ids, in every spelling. What names the buyer, or
// anybody's e-mail address, is left out; what does not is left alone.
func TestNothingNamesTheBuyer(t *testing.T) {
	const email, phone, name = "grace.hopper@navy-mail.example", "+1 (213) 555-0147", "Grace Brewster Murray"
	encoded := base64.StdEncoding.EncodeToString([]byte(email))
	keys := func(metadata map[string]string) purchase.MatchKeys {
		return keysFor(email, &purchase.Checkout{Phone: phone, Name: name, Metadata: metadata})
	}
	const origin = "https://shop.example/"
	for raw, want := range map[string]string{
		origin + "thanks?ttclid=E.C.P.1&utm_source=tiktok": origin + "thanks?ttclid=E.C.P.1&utm_source=tiktok",
		origin + "grace?n=2135550100":                      origin + "grace?n=2135550100", // somebody else
		origin + "?ref=" + encoded:                         origin,
		origin + "u/" + encoded + "/done":                  origin,
		origin + "?ref=" + url.QueryEscape(base64.StdEncoding.EncodeToString([]byte("?"+email+"?"))): origin,
		origin + "?x=" + hex.EncodeToString([]byte(strings.ToUpper(email))):                          origin,
		origin + "grace.hopper%2540navy-mail.example":                                                origin,
		origin + "?n=Grace+Brewster+Murray":                                                          origin,
		origin + "Grace-Brewster-Murray/":                                                            origin,
		origin + "hello/GRACE%20BREWSTER%20MURRAY":                                                   origin,
		origin + "call/1-213-555-0147":                                                               origin,
		origin + "?p=%2B12135550147":                                                                 origin,
		origin + "?p=213.555.0147":                                                                   origin,
		"https://grace-brewster-murray.example/x":                                                    "",
	} {
		got := keys(map[string]string{"page_url": raw, "referrer": raw})
		if got.PageURL != want || got.Referrer != want {
			t.Errorf("%s becomes %q and %q, want %q", raw, got.PageURL, got.Referrer, want)
		}
	}
	for raw, want := range map[string]string{
		"Mozilla/5.0 (X11; Linux x86_64)": "Mozilla/5.0 (X11; Linux x86_64)", "Mozilla/5.0 for Grace Brewster Murray": "", "Mozilla/5.0 213-555-0147": "", "Mozilla " + encoded: "",
	} {
		if got := keys(map[string]string{"user_agent": raw}).UserAgent; got != want {
			t.Errorf("the user agent %q becomes %q", raw, got)
		}
	}
	if got := keys(map[string]string{"ttclid": encoded, "ttp": "2135550147", "page_url": origin + "?ttclid=" + encoded}); got.TTCLID != "" || got.TTP != "" {
		t.Errorf("click ids: %+v", got)
	}
	if got := keys(map[string]string{"ttclid": "E.C.P.Csoca_0SNqdfy", "ttp": "2ZzXf9aBcD"}); got.TTCLID == "" || got.TTP == "" {
		t.Errorf("good click ids: %+v", got)
	}
	short := keysFor(email, &purchase.Checkout{Name: "Shop", Metadata: map[string]string{"page_url": origin + "cart"}})
	if short.PageURL != origin+"cart" {
		t.Errorf("a name of one word hides %q", short.PageURL)
	}
}

func BenchmarkMatchKeys(b *testing.B) {
	c := &purchase.Checkout{Phone: "+12135550147", Name: "Grace Brewster Murray", Metadata: map[string]string{
		"ttclid": "E.C.P.CsocA0SNqdfyGTvCjxYJzB1Qe9Qh0qv", "ttp": "2ZzXf9aBcDeFgHiJkLmNoPqRsTu", "client_ip": "203.0.113.7",
		"user_agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15",
		"page_url":   "https://shop.example/checkout?ttclid=E.C.P.CsocA0SNqdfyGTvCjxYJzB1Qe9Qh0qv", "referrer": "https://www.tiktok.com/",
	}}
	for b.Loop() {
		keysFor("grace.hopper@navy-mail.example", c)
	}
}
