package purchase_test

import (
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/purchase"
)

// An address is read as browsers read it, and the click id is found whatever the rest looks like.
func TestNewMatchKeys_PageAsBrowsersTakeIt(t *testing.T) {
	t.Parallel()
	const click = "E.C.P.click_-.~1"
	for _, tc := range []struct{ name, raw, page string }{
		{
			"as it is", "http://demo.mywebsite.com?a=b&ttclid=" + click,
			"http://demo.mywebsite.com?a=b&ttclid=" + click,
		},
		{
			"bare percent in the path", "https://shop.example/sale-100%-off?ttclid=" + click,
			"https://shop.example/sale-100%25-off?ttclid=" + click,
		},
		{
			"bare percent in the query", "https://shop.example/?off=100%&ttclid=" + click,
			"https://shop.example/?off=100%25&ttclid=" + click,
		},
		{
			"bare percent at the end", "https://shop.example/?ttclid=" + click + "&off=5%",
			"https://shop.example/?ttclid=" + click + "&off=5%25",
		},
		{
			"half an escape", "https://shop.example/a%2?x=%zz&ttclid=" + click,
			"https://shop.example/a%252?x=%25zz&ttclid=" + click,
		},
		{"no scheme", "shop.example/x?ttclid=" + click, "https://shop.example/x?ttclid=" + click},
		{
			"no scheme but a port", "shop.example:8443/x?ttclid=" + click,
			"https://shop.example:8443/x?ttclid=" + click,
		},
		{"two slashes", "//shop.example/x?ttclid=" + click, "https://shop.example/x?ttclid=" + click},
		{"one slash", "https:/shop.example/x?ttclid=" + click, "https://shop.example/x?ttclid=" + click},
		{"backslashes", `https:\\shop.example\x\y?ttclid=` + click, "https://shop.example/x/y?ttclid=" + click},
		{
			"HTML's ampersand", "https://shop.example/?a=1&amp;ttclid=" + click,
			"https://shop.example/?a=1&ttclid=" + click,
		},
		{
			"HTML's ampersand twice", "https://shop.example/?a=1&amp;amp;ttclid=" + click,
			"https://shop.example/?a=1&ttclid=" + click,
		},
		{
			"HTML's ampersand as a number", "https://shop.example/?a=1&#38;ttclid=" + click,
			"https://shop.example/?a=1&ttclid=" + click,
		},
		{
			"JSON's ampersand", `https:\/\/shop.example\/x?a=1\u0026ttclid=` + click,
			"https://shop.example/x?a=1&ttclid=" + click,
		},
		{"route behind #", "https://shop.example/#/checkout?ttclid=" + click, "https://shop.example/"},
		{
			"route behind #!", "https://shop.example/?a=1#!/checkout?b=2&ttclid=" + click,
			"https://shop.example/?a=1",
		},
		{"directly behind #", "https://shop.example/x#ttclid=" + click, "https://shop.example/x"},
		{"upper case", "HTTPS://SHOP.Example/X?TTCLID=" + click, "https://shop.example/X?TTCLID=" + click},
		{
			"an empty one before", "https://shop.example/?ttclid=&ttclid=" + click,
			"https://shop.example/?ttclid=" + click,
		},
		{
			"a macro before", "https://shop.example/?ttclid=__CLICKID__&ttclid=" + click,
			"https://shop.example/?ttclid=" + click,
		},
		{
			"another parameter", "https://shop.example/?nottclid=no&ttclid=" + click,
			"https://shop.example/?nottclid=no&ttclid=" + click,
		},
		{
			"a host of another alphabet", "https://Bücher.example/größe?ttclid=" + click,
			"https://xn--bcher-kva.example/gr%C3%B6%C3%9Fe?ttclid=" + click,
		},
		{
			"a host in full-width letters", "https://ｓｈｏｐ．example/?ttclid=" + click,
			"https://shop.example/?ttclid=" + click,
		},
		{
			"a host with an underscore", "https://my_shop.example/?ttclid=" + click,
			"https://my_shop.example/?ttclid=" + click,
		},
		{
			"line ends and tabs", " https://shop.exa\nmple/a\tb?ttclid=" + click + "\r\n",
			"https://shop.example/ab?ttclid=" + click,
		},
		{
			"blanks inside", "https://shop.example/a b?c=d e&ttclid=" + click,
			"https://shop.example/a%20b?c=d%20e&ttclid=" + click,
		},
		{
			"invisible characters", "\u200bhttps://shop.example/\u2060?ttclid=" + click + "\ufeff",
			"https://shop.example/?ttclid=" + click,
		},
		{"quotes around", `"https://shop.example/?ttclid=` + click + `"`, "https://shop.example/?ttclid=" + click},
		{
			"escaped as a whole", "https%3A%2F%2Fshop.example%2Fx%3Fa%3D1%26ttclid%3D" + click,
			"https://shop.example/x?a=1&ttclid=" + click,
		},
		{
			"within another's query", "https://shop.example/login?next=%2Foffer%3Fttclid%3D" + click,
			"https://shop.example/login?next=%2Foffer%3Fttclid%3D" + click,
		},
		{
			"an escaped click id", "https://shop.example/?ttclid=" + strings.ReplaceAll(click, ".", "%2E"),
			"https://shop.example/?ttclid=" + strings.ReplaceAll(click, ".", "%2E"),
		},
		{
			"dots in the path", "https://shop.example/a/../b/./%2e%2E/c/?ttclid=" + click,
			"https://shop.example/c/?ttclid=" + click,
		},
		{"signs of markup", `https://shop.example/<b>"x"{}|^` + "`?a=<script>&ttclid=" + click, "https://shop.example/%3Cb%3E%22x%22%7B%7D%7C%5E%60?a=%3Cscript%3E&ttclid=" + click},
		{"its scheme's port", "https://shop.example:443/?ttclid=" + click, "https://shop.example/?ttclid=" + click},
		{
			"an IPv6 host", "http://[2001:DB8::1]:8080/?ttclid=" + click,
			"http://[2001:db8::1]:8080/?ttclid=" + click,
		},
		{
			"user and password", "https://me:secret@shop.example/?ttclid=" + click,
			"https://shop.example/?ttclid=" + click,
		},
		{
			"a control character", "https://shop.example/\x00?ttclid=" + click,
			"https://shop.example/?ttclid=" + click,
		},
		{"no host", "/checkout?ttclid=" + click, ""},
		{"only a query", "?ttclid=" + click, ""},
		{"a bad host", "https://shop example/?ttclid=" + click, ""},
		{"an undefined host", "undefined/checkout?ttclid=" + click, ""},
		{"an app's address", "shop.example.app://checkout?ttclid=" + click, ""},
		{
			"too long when escaped", "https://shop.example/x?ttclid=" + click + "&q=" + strings.Repeat("ü", 450),
			"https://shop.example/x",
		},
		{"much too long", "https://shop.example/x?ttclid=" + click + "&q=" + strings.Repeat("u", 2500), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := keysOf(map[string]string{"page_url": tc.raw})
			if got.PageURL != tc.page || got.TTCLID != click {
				t.Errorf("page_url %q: page %q, click id %q, want %q, %q", tc.raw, got.PageURL, got.TTCLID, tc.page,
					click)
			}
		})
	}
}

// The first source with a usable click id is taken; what stands in front of it is noted.
func TestNewMatchKeys_ClickIDSources(t *testing.T) {
	t.Parallel()
	const ttclid = "ttclid"
	placeholder, invalid := purchase.Dropped{Key: ttclid, Reason: purchase.DropPlaceholder},
		purchase.Dropped{Key: ttclid, Reason: purchase.DropInvalid}
	for _, tc := range []struct {
		name                          string
		ttclid, page, referrer, refer string
		want                          string
		dropped                       []purchase.Dropped
	}{
		{
			"metadata", "of.metadata", "https://a.example/?ttclid=of.page", "", "ttclid-of_dreference", "of.metadata",
			nil,
		},
		{
			"page after a placeholder", "null", "https://a.example/?ttclid=of.page", "", "", "of.page",
			[]purchase.Dropped{placeholder},
		},
		{
			"page after an unusable one", "a b", "https://a.example/?ttclid=of.page", "", "", "of.page",
			[]purchase.Dropped{invalid},
		},
		{
			"fragment after a placeholder", "", "https://a.example/?ttclid=undefined#/?ttclid=of.fragment", "", "",
			"of.fragment", nil,
		},
		{
			"referrer of the same host", "", "https://a.example/", "https://a.example/?ttclid=of.referrer", "",
			"of.referrer", nil,
		},
		{
			"referrer of a host above", "", "https://pay.a.example/", "https://a.example/?ttclid=of.referrer", "",
			"of.referrer", nil,
		},
		{
			"referrer of another shop", "", "https://a.example/", "https://b.example/?ttclid=of.another",
			"ttclid-of_dreference", "of.reference", nil,
		},
		{
			"reference after placeholders", "{{ttclid}}", "https://a.example/?ttclid=__CLICKID__", "",
			"ttclid-of_dreference", "of.reference",
			[]purchase.Dropped{placeholder, placeholder},
		},
		{"a placeholder as reference", "", "", "", "ttclid-undefined", "", []purchase.Dropped{placeholder}},
		{"a macro as reference", "", "", "", "ttclid-____CLICKID____", "", []purchase.Dropped{placeholder}},
		{"none", "", "https://a.example/", "https://a.example/", "order-7", "", nil},
	} {
		keys, dropped := purchase.NewMatchKeys("", &purchase.Checkout{
			Reference: tc.refer, Metadata: map[string]string{
				"ttclid": tc.ttclid, "page_url": tc.page,
				"referrer": tc.referrer,
			},
		})
		if diff := cmp.Diff(tc.dropped, dropped); keys.TTCLID != tc.want || diff != "" {
			t.Errorf("%s: click id %q, want %q; dropped\n%s", tc.name, keys.TTCLID, tc.want, diff)
		}
	}
}

func FuzzNewMatchKeys_PageURL(f *testing.F) {
	for _, seed := range []string{
		"https://shop.example/a/../%2e%2e/b?x=%&y=%zz#/?ttclid=1", "//[::1]:99999/", `https:\/\/a.example\/`,
		"a.example:80\\x?&amp;&=&", "https://xn--a.example", "https://ﬀ.example/%e9",
		"https://a.example/" + strings.Repeat("/..", 9), "HTTP:////u:p@@a.example.:0/",
		"https://shop.example?&#38;%25", "https://\u0130.example/\u212a", "0.A?&a&'#", `a.a/\/ 0/\/0`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got := keysOf(map[string]string{"page_url": raw})
		if got.PageURL == "" {
			return
		}
		u, err := url.Parse(got.PageURL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil ||
			u.Fragment != "" || len(got.PageURL) > 2048 {
			t.Fatalf("page_url %q becomes %q: %v", raw, got.PageURL, err)
		}
		if !utf8.ValidString(got.PageURL) || strings.ContainsFunc(got.PageURL, func(r rune) bool {
			return r <= ' ' ||
				r > '~'
		}) {
			t.Fatalf("page_url %q becomes %q", raw, got.PageURL)
		}
		again := keysOf(map[string]string{"page_url": got.PageURL})
		if again.PageURL != got.PageURL && !strings.Contains(got.PageURL,
			"@") { // an escaped blank before it may belong to an e-mail address
			t.Fatalf("page_url %q becomes %q, then %q", raw, got.PageURL, again.PageURL)
		}
	})
}
