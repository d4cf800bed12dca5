package purchase

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// plainReadings is readings in few words, without a thought of speed.
func plainReadings(text string) (list []string) {
	plain := []string{text}
	for range 3 {
		next, err := url.PathUnescape(plain[len(plain)-1])
		if err != nil || next == plain[len(plain)-1] {
			break
		}
		plain = append(plain, next)
	}
	for _, reading := range plain {
		list = append(list, reading)
		for _, more := range []string{"+/", "-_"} {
			notLetter := func(r rune) bool {
				return !strings.ContainsRune("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"+more, r)
			}
			for word := range strings.FieldsFuncSeq(reading, notLetter) {
				if len(word) < 11 {
					continue
				}
				word = strings.NewReplacer("+", "-", "/", "_").Replace(word)
				for _, decode := range []func(string) ([]byte, error){base64.RawURLEncoding.DecodeString, hex.DecodeString} {
					if said, err := decode(word); err == nil && printable(string(said)) {
						list = append(list, string(said))
					}
				}
			}
		}
	}
	return list
}

func FuzzReadings(f *testing.F) {
	const email = "grace.hopper@navy-mail.example"
	for _, seed := range []string{
		"", "plain", email, "%2525", "https://shop.example/u/" + base64.StdEncoding.EncodeToString([]byte(email+"?>")) + "/x",
		base64.URLEncoding.EncodeToString([]byte("???" + email)), hex.EncodeToString([]byte(email)), "%41%42%zz", "\xff\xfe" + strings.Repeat("QUFB", 300),
		"Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15", "ééééééééééééé",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if diff := cmp.Diff(plainReadings(text), slices.Collect(readings(text))); diff != "" {
			t.Error(diff)
		}
	})
}

var kept string

func BenchmarkMatchKeys(b *testing.B) {
	const page = "https://shop.example/checkout/pro?plan=annual&utm_source=tiktok&utm_campaign=autumn&ttclid=E.C.P.CsocA0SNqdfyXyZ0123456789abcdefghijklmnopqrstuvwxyz"
	c := &Checkout{
		Phone: "+1 213-555-0147", Name: "Grace Brewster Murray",
		Metadata: map[string]string{
			metaTTCLID: "E.C.P.CsocA0SNqdfyXyZ0123456789abcdefghijklmnopqrstuvwxyz", metaTTP: "2QkWzXf9aBcDeFgHiJkLmNoPqRs", metaIP: "203.0.113.7",
			metaUserAgent: "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.0 Mobile/15E148 Safari/604.1",
			metaPageURL:   page, metaReferrer: "https://www.tiktok.com/@shop/video/7301234567890123456",
		},
	}
	b.ReportAllocs()
	for b.Loop() {
		keys, _ := NewMatchKeys("grace.hopper@navy-mail.example", c)
		kept = keys.Phone
	}
}
