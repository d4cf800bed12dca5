package purchase_test

import (
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/purchase"
)

// A page URL is parsed like in browsers, and its click id is found even if the rest is invalid.
func TestNewMatchKeys_PageURL(t *testing.T) {
	t.Parallel()
	const click = "E.C.P.click_-.~1" // for $ID in the table
	for name, tc := range map[string]struct{ raw, want string }{
		"plain":              {"http://demo.example?a=b&ttclid=$ID", "http://demo.example?a=b&ttclid=$ID"},
		"% in the path":      {"https://a.example/100%-off?ttclid=$ID", "https://a.example/100%25-off?ttclid=$ID"},
		"% in the query":     {"https://a.example/?o=1%&ttclid=$ID", "https://a.example/?o=1%25&ttclid=$ID"},
		"% at the end":       {"https://a.example/?ttclid=$ID&o=5%", "https://a.example/?ttclid=$ID&o=5%25"},
		"cut escapes":        {"https://a.example/%2?x=%z&ttclid=$ID", "https://a.example/%252?x=%25z&ttclid=$ID"},
		"no scheme":          {"a.example/x?ttclid=$ID", "https://a.example/x?ttclid=$ID"},
		"no scheme, a port":  {"a.example:8443/x?ttclid=$ID", "https://a.example:8443/x?ttclid=$ID"},
		"two slashes":        {"//a.example/x?ttclid=$ID", "https://a.example/x?ttclid=$ID"},
		"one slash":          {"https:/a.example/x?ttclid=$ID", "https://a.example/x?ttclid=$ID"},
		"backslashes":        {`https:\\a.example\x\y?ttclid=$ID`, "https://a.example/x/y?ttclid=$ID"},
		"&amp;":              {"https://a.example/?a=1&amp;ttclid=$ID", "https://a.example/?a=1&ttclid=$ID"},
		"&amp; twice":        {"https://a.example/?a=1&amp;amp;ttclid=$ID", "https://a.example/?a=1&ttclid=$ID"},
		"&#38;":              {"https://a.example/?a=1&#38;ttclid=$ID", "https://a.example/?a=1&ttclid=$ID"},
		"JSON escapes":       {`https:\/\/a.example\/x?a=1\u0026ttclid=$ID`, "https://a.example/x?a=1&ttclid=$ID"},
		"route after #":      {"https://a.example/#/checkout?ttclid=$ID", "https://a.example/"},
		"route after #!":     {"https://a.example/?a=1#!/checkout?b=2&ttclid=$ID", "https://a.example/?a=1"},
		"right after #":      {"https://a.example/x#ttclid=$ID", "https://a.example/x"},
		"upper case":         {"HTTPS://A.Example/X?TTCLID=$ID", "https://a.example/X?TTCLID=$ID"},
		"after an empty one": {"https://a.example/?ttclid=&ttclid=$ID", "https://a.example/?ttclid=$ID"},
		"after a macro":      {"https://a.example/?ttclid=__CLICKID__&ttclid=$ID", "https://a.example/?ttclid=$ID"},
		"another parameter":  {"https://a.example?xttclid=1&ttclid=$ID", "https://a.example?xttclid=1&ttclid=$ID"},
		"Unicode": {
			"https://Bücher.example/größe?ttclid=$ID",
			"https://xn--bcher-kva.example/gr%C3%B6%C3%9Fe?ttclid=$ID",
		},
		"full-width host":    {"https://ｓｈｏｐ．example/?ttclid=$ID", "https://shop.example/?ttclid=$ID"},
		"underscore in host": {"https://my_a.example/?ttclid=$ID", "https://my_a.example/?ttclid=$ID"},
		"line ends and tabs": {" https://a.exa\nmple/a\tb?ttclid=$ID\r\n", "https://a.example/ab?ttclid=$ID"},
		"blanks":             {"https://a.example/a b?c d&ttclid=$ID", "https://a.example/a%20b?c%20d&ttclid=$ID"},
		"invisible":          {"\u200bhttps://a.example/\u2060?ttclid=$ID\ufeff", "https://a.example/?ttclid=$ID"},
		"quotes":             {`"https://a.example/?ttclid=$ID"`, "https://a.example/?ttclid=$ID"},
		"escaped URL": {
			"https%3A%2F%2Fa.example%2Fx%3Fa%3D1%26ttclid%3D$ID",
			"https://a.example/x?a=1&ttclid=$ID",
		},
		"within another query": {
			"https://a.example/login?next=%2Foffer%3Fttclid%3D$ID",
			"https://a.example/login?next=%2Foffer%3Fttclid%3D$ID",
		},
		"escaped click id": {
			"https://a.example/?ttclid=" + strings.ReplaceAll(click, ".", "%2E"),
			"https://a.example/?ttclid=" + strings.ReplaceAll(click, ".", "%2E"),
		},
		"macro in the query": {
			"https://a.example/x?c={{campaign.name}}&ttclid=$ID",
			"https://a.example/x?c=%7B%7Bcampaign.name%7D%7D&ttclid=$ID",
		},
		"escaped macro in the query": {
			"https://a.example/x?c=%7B%7Bad.id%7D%7D&ttclid=$ID", "https://a.example/x?c=%7B%7Bad.id%7D%7D&ttclid=$ID",
		},
		"macro in the path": {"https://a.example/${slug}?ttclid=$ID", "https://a.example/$%7Bslug%7D?ttclid=$ID"},
		"dot segments":      {"https://a.example/a/../b/./%2e%2E/c/?ttclid=$ID", "https://a.example/c/?ttclid=$ID"},
		"markup": {
			`https://a.example/<b>"x"{}|^` + "`?a=<script>&ttclid=$ID",
			"https://a.example/%3Cb%3E%22x%22%7B%7D%7C%5E%60?a=%3Cscript%3E&ttclid=$ID",
		},
		"default port":      {"https://a.example:443/?ttclid=$ID", "https://a.example/?ttclid=$ID"},
		"IPv6 host":         {"http://[2001:DB8::1]:8080/?ttclid=$ID", "http://[2001:db8::1]:8080/?ttclid=$ID"},
		"user and password": {"https://me:secret@a.example/?ttclid=$ID", "https://a.example/?ttclid=$ID"},
		"control character": {"https://a.example/\x00?ttclid=$ID", "https://a.example/?ttclid=$ID"},
		"no host":           {"/checkout?ttclid=$ID", ""},
		"only a query":      {"?ttclid=$ID", ""},
		"invalid host":      {"https://a example/?ttclid=$ID", ""},
		"undefined host":    {"undefined/checkout?ttclid=$ID", ""},
		"app's scheme":      {"a.example.app://checkout?ttclid=$ID", ""},
		"too long escaped": {
			"https://a.example/x?ttclid=$ID&q=" + strings.Repeat("ü", 450), "https://a.example/x",
		},
		"too long": {"https://a.example/x?ttclid=$ID&q=" + strings.Repeat("u", 2500), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw, want := strings.ReplaceAll(tc.raw, "$ID", click), strings.ReplaceAll(tc.want, "$ID", click)
			got := keysOf(map[string]string{"page_url": raw})
			if got.PageURL != want || got.TTCLID != click {
				t.Errorf("page_url %q: page %q, click id %q, want %q, %q", raw, got.PageURL, got.TTCLID, want, click)
			}
		})
	}
}

// The first source with a valid click id counts. Invalid ones before it are reported as dropped.
func TestNewMatchKeys_ClickIDSources(t *testing.T) {
	t.Parallel()
	placeholder := dropped("ttclid", purchase.DropPlaceholder, 1)
	invalid := dropped("ttclid", purchase.DropInvalid, 1)
	const page, sub = "https://a.example/", "https://pay.a.example/"
	const withClick, reference = page + "?ttclid=from.page", "ttclid-from_dreference"
	for name, tc := range map[string]struct {
		metadata, page, referrer, reference string
		want                                string
		dropped                             []purchase.Dropped
	}{
		"metadata":                 {"from.metadata", withClick, "", reference, "from.metadata", nil},
		"page after a placeholder": {"null", withClick, "", "", "from.page", placeholder},
		"page after an invalid id": {"a b", withClick, "", "", "from.page", invalid},
		"fragment after a placeholder": {
			"", page + "?ttclid=undefined#/?ttclid=from.fragment", "", "", "from.fragment", nil,
		},
		"referrer, same host":      {"", page, page + "?ttclid=from.referrer", "", "from.referrer", nil},
		"referrer, parent domain":  {"", sub, page + "?ttclid=from.referrer", "", "from.referrer", nil},
		"reference, not another's": {"", page, "https://b.example/?ttclid=other", reference, "from.reference", nil},
		"reference":                {"", "", "", reference, "from.reference", nil},
		"placeholder as reference": {"", "", "", "ttclid-undefined", "", placeholder},
		"macro as reference":       {"", "", "", "ttclid-____CLICKID____", "", placeholder},
		"none":                     {"", page, page, "order-7", "", nil},
		"reference after two macros": {
			"{{ttclid}}", page + "?ttclid=__CLICKID__", "", reference, "from.reference",
			dropped("ttclid", purchase.DropPlaceholder, 2),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			metadata := map[string]string{"ttclid": tc.metadata, "page_url": tc.page, "referrer": tc.referrer}
			keys, got := purchase.NewMatchKeys("", &purchase.Checkout{Reference: tc.reference, Metadata: metadata})
			if diff := cmp.Diff(tc.dropped, got); keys.TTCLID != tc.want || diff != "" {
				t.Errorf("click id = %q, want %q; dropped (-want +got):\n%s", keys.TTCLID, tc.want, diff)
			}
		})
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
	unprintable := func(r rune) bool { return r <= ' ' || r > '~' }
	f.Fuzz(func(t *testing.T, raw string) {
		got := keysOf(map[string]string{"page_url": raw}).PageURL
		if got == "" {
			return
		}
		u, err := url.Parse(got)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil ||
			u.Fragment != "" || len(got) > 2048 {
			t.Fatalf("page_url %q = %q, error %v, want an absolute URL", raw, got, err)
		}
		if !utf8.ValidString(got) || strings.ContainsFunc(got, unprintable) {
			t.Fatalf("page_url %q = %q, want printable ASCII", raw, got)
		}
		// An escaped blank before an '@' may make the second result an e-mail address.
		again := keysOf(map[string]string{"page_url": got}).PageURL
		if again != got && !strings.Contains(got, "@") {
			t.Fatalf("page_url %q = %q, then %q", raw, got, again)
		}
	})
}
