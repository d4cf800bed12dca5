package purchase_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"purchase-relay/internal/purchase"
)

// Shops put the buyer's data into URLs, user agents and click ids, plain or escaped.
func TestNewMatchKeys_RemovesPersonalData(t *testing.T) {
	t.Parallel()
	const email, phone, name = "grace.hopper@navy-mail.example", "+1 (213) 555-0147", "Grace Brewster Murray"
	keys := func(metadata map[string]string) purchase.MatchKeys {
		return keysFor(email, &purchase.Checkout{Phone: phone, Name: name, Metadata: metadata})
	}
	const origin = "https://shop.example/"
	for raw, want := range map[string]string{
		origin + "thanks?ttclid=E.C.P.1&utm_source=tiktok": origin + "thanks?ttclid=E.C.P.1&utm_source=tiktok",
		// another number, and a part of the name
		origin + "grace?n=2135550100":                            origin + "grace?n=2135550100",
		origin + "a/grace.hopper@navy-mail.example/b":            origin + "a/b",
		origin + "grace.hopper%40navy-mail.example/b":            origin + "b",
		origin + "grace.hopper%2540navy-mail.example":            origin,
		origin + "?a=1&e=GRACE.Hopper%2540navy-mail.example&b=2": origin + "?a=1&b=2",
		origin + "?e=someone%40else.example":                     origin,
		origin + "?n=Grace+Brewster+Murray&plan=7":               origin + "?plan=7",
		origin + "?x=Grace&y=Murray&plan=7":                      origin + "?plan=7",
		origin + "?u=murray-grace":                               origin,
		origin + "Grace-Brewster-Murray/":                        origin,
		origin + "Grace/Brewster/Murray/x":                       origin,
		origin + "hello/GRACE%20BREWSTER%20MURRAY":               origin + "hello",
		origin + "hello/%47race_murray":                          origin + "hello",
		origin + "call/1-213-555-0147":                           origin + "call",
		origin + "?p=%2B12135550147&ttclid=E.C.P.1":              origin + "?ttclid=E.C.P.1",
		origin + "?p=213.555.0147":                               origin,
		origin + "?first=Ann&last=Lee&plan=1":                    origin + "?plan=1",
		// the shop's name
		"https://grace-brewster-murray.example/x":                     "https://grace-brewster-murray.example/x",
		"https://grace.hopper@shop.example/x":                         "https://shop.example/x",
		origin + "?e=grace.hopper\uff20navy-mail.example":             origin,
		origin + "?e=grace\u200b.hopper@navy-mail.example&x=1":        origin + "?x=1",
		origin + "?\u0433\u0440\u0435\u0439\u0441=1":                  origin + "?%D0%B3%D1%80%D0%B5%D0%B9%D1%81=1",
		origin + "?q=%25%25%2540&ok=100%25":                           origin + "?q=%25%25%2540&ok=100%25",
		origin + "?e=grace.hopper%252540navy-mail.example&name_is=it": origin,
	} {
		got := keys(map[string]string{"page_url": raw, "referrer": raw})
		if got.PageURL != want || got.Referrer != want {
			t.Errorf("%s: page %q, referrer %q, want %q", raw, got.PageURL, got.Referrer, want)
		}
	}
	const browser = "Mozilla/5.0 (X11; Linux x86_64)"
	for raw, want := range map[string]string{
		browser: browser, browser + " for Grace Brewster Murray": "", browser + " 213-555-0147": "",
		browser + " buyer@example.com": "", browser + " 12.1.355": browser + " 12.1.355",
	} {
		if got := keys(map[string]string{"user_agent": raw}).UserAgent; got != want {
			t.Errorf("user agent %q = %q, want %q", raw, got, want)
		}
	}
	page := origin + "?ttclid=murray_grace"
	got := keys(map[string]string{"ttclid": "grace.brewster.murray", "ttp": "2135550147", "page_url": page})
	if got.TTCLID != "" || got.TTP != "" {
		t.Errorf("ttclid = %q, ttp = %q, want none with the buyer's data", got.TTCLID, got.TTP)
	}
	got = keys(map[string]string{"ttclid": "E.C.P.Csoca_0SNqdfy", "ttp": "2ZzXf9aBcD"})
	if got.TTCLID == "" || got.TTP == "" {
		t.Errorf("ttclid = %q, ttp = %q, want both kept", got.TTCLID, got.TTP)
	}
}

func TestNewMatchKeys_KeepsShopNamedLikeBuyer(t *testing.T) {
	t.Parallel()
	for name, host := range map[string]string{
		"Anna Smith": "annasmith.example", "Li Na": "li-na.example", "Zoë Ng": "xn--zong-noa.example",
	} {
		page, referrer := "https://"+host+"/offer?plan=1&ttclid=E.C.P.click", "https://www."+host+"/"
		got, dropped := purchase.NewMatchKeys("anna@"+host, &purchase.Checkout{
			Name: name, Metadata: map[string]string{"page_url": page, "referrer": referrer},
		})
		if got.PageURL != page || got.TTCLID != "E.C.P.click" || got.Referrer != referrer || len(dropped) > 0 {
			t.Errorf("%s at %s: keys = %+v, dropped %v, want all kept", name, host, got, dropped)
		}
	}
}

// The letters of a short name match parts of many words, so only separate words count. A single word is not
// searched.
func TestNewMatchKeys_ShortNames(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, page, want string }{
		{"Li Na", "https://shop.example/li-na/x", "https://shop.example/x"},
		{"Li Na", "https://shop.example/?who=Li%20Na", "https://shop.example/"},
		{"Li Na", "https://shop.example/catalina/x", "https://shop.example/catalina/x"},
		{"李 娜", "https://shop.example/?who=李+娜&a=1", "https://shop.example/?a=1"},
		{"Cher", "https://shop.example/cher", "https://shop.example/cher"},
	} {
		got := keysFor("", &purchase.Checkout{Name: tc.name, Metadata: map[string]string{"page_url": tc.page}})
		if got.PageURL != tc.want {
			t.Errorf("%s in %s: page = %q, want %q", tc.name, tc.page, got.PageURL, tc.want)
		}
	}
}

// A national number is not sent, but still personal data.
func TestNewMatchKeys_RemovesNationalPhone(t *testing.T) {
	t.Parallel()
	got := keysFor("", &purchase.Checkout{
		Phone:    "07700 900123 ext. 4",
		Metadata: map[string]string{"page_url": "https://shop.example/?p=%2B447700900123&x=1"},
	})
	if got.Phone != "" || got.PageURL != "https://shop.example/?x=1" {
		t.Errorf("phone = %q, page = %q, want none and no number", got.Phone, got.PageURL)
	}
}

// No metadata value makes the buyer's address leave in plain text.
func TestNewMatchKeys_NeverSendsPlainEmail(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const address = "buyer.name@mail.example"
		around := rapid.StringOfN(rapid.RuneFrom([]rune("aZ09/?&=#:.;,@% -_\\\u200b")), 0, 20, -1)
		written := rapid.SampledFrom([]string{
			address, "Buyer.Name%40mail.example", "buyer.name%2540mail.example", "buyer.name\uff20mail.example",
		})
		prefix := rapid.SampledFrom([]string{"https://shop.example/", "", "//", "shop.example/?a="})
		value := prefix.Draw(t, "prefix") + around.Draw(t, "before") + written.Draw(t, "written") +
			around.Draw(t, "after")
		m := make(map[string]string)
		for _, k := range []string{
			"ttclid", "ttp", "client_ip", "user_agent", "page_url", "referrer", "content_id", "content_name",
			"brand", "content_ids",
		} {
			m[k] = value
		}
		c := &purchase.Checkout{Metadata: m}
		k := keysFor(address, c)
		content, _ := purchase.NewContent(address, c)
		if content == nil {
			content = &purchase.Content{}
		}
		sent := append([]string{
			k.TTCLID, k.TTP, k.IP, k.UserAgent, k.PageURL, k.Referrer, content.ID, content.Name, content.Brand,
		}, content.IDs...)
		unescape := strings.NewReplacer("%2540", "@", "%40", "@")
		for _, s := range sent {
			if strings.Contains(strings.ToLower(unescape.Replace(s)), address) {
				t.Fatalf("value %q is sent as %q, want no address", value, s)
			}
		}
	})
}

func BenchmarkNewMatchKeys(b *testing.B) {
	c := &purchase.Checkout{
		Phone: "+1 213-555-0147", Name: "Grace Brewster Murray",
		Metadata: map[string]string{
			"ttclid": "E.C.P.CsocA0SNqdfyXyZ0123456789abcdefghijklmnopqrstuvwxyz",
			"ttp":    "2QkWzXf9aBcDeFgHiJkLmNoPqRs", "client_ip": "203.0.113.7",
			"user_agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 " +
				"(KHTML, like Gecko) Version/17.0 Mobile/15E148 Safari/604.1",
			"page_url": "https://shop.example/checkout/pro?plan=annual&utm_source=tiktok&utm_campaign=autumn" +
				"&ttclid=E.C.P.CsocA0SNqdfyXyZ0123456789abcdefghijklmnopqrstuvwxyz",
			"referrer": "https://www.tiktok.com/@shop/video/7301234567890123456",
		},
	}
	b.ReportAllocs()
	for b.Loop() {
		keysFor("grace.hopper@navy-mail.example", c)
	}
}
