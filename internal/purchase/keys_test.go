package purchase_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/purchase"
)

func sha(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func keysOf(metadata map[string]string) purchase.MatchKeys {
	return keysFor("", &purchase.Checkout{Metadata: metadata})
}

func keysFor(email string, c *purchase.Checkout) purchase.MatchKeys {
	keys, _ := purchase.NewMatchKeys(email, c)
	return keys
}

// dropped returns one key, dropped n times for one reason.
func dropped(key string, reason purchase.DropReason, n int) []purchase.Dropped {
	return slices.Repeat([]purchase.Dropped{{Key: key, Reason: reason}}, n)
}

// The literal hashes are from TikTok's documentation and from other senders' tests.
func TestHashes(t *testing.T) {
	const (
		alice    = "848a771458438fc2ec420560d769fb9b9b86851ee338ec56517baabd79d3bb4f"
		bugs     = "67e28cdcc3e845d3a4da05ca9fe5ddb7320a83b4cc2167f0555a3b04f63511e3"
		phone    = "9f7ec22d72092cd3c0b58726ed9c2d91b92e51a3f29837508fb2948bb22dd2fd"
		fives    = "910a625c4ba147b544e6bd2f267e130ae14c591b6ba9c25cb8573322dedbebd0"
		digits   = "00a63bd0437d6ca0fa7b95c00ab2e7c020faa71440e5246750d6b517689e6777"
		external = "80fba0ae1c48e3978e43e4efc365e14e12ea0c830ba8ba5b9a2dafc7e3f2ab8b"
	)
	for name, tc := range map[string]struct {
		hash  func(string) string
		cases map[string]string
	}{
		"HashEmail": {purchase.HashEmail, map[string]string{
			" ALICE_abc@gmail.com ": alice, "bugsbunny@warnerbros.com": bugs, strings.ToUpper(bugs): bugs, "  ": "",
			" RE\u0301MI@exam\u200bple\uff0ecom": sha("rémi@example.com"),
			"\u212aate@example.com":              sha("\u212aate@example.com"), // KELVIN SIGN
		}},
		"HashPhone": {purchase.HashPhone, map[string]string{
			"(+1)2133734253": phone, "+1555-555-5555": fives, "12345678901234": digits, fives: fives,
			"abc": "", "+1234567890123456": "", "+0123456789": "", "+123456": "", "": "",
		}},
		"HashExternalID": {purchase.HashExternalID, map[string]string{" user_123 ": external, "": ""}},
	} {
		for raw, want := range tc.cases {
			if got := tc.hash(raw); got != want {
				t.Errorf("%s(%q) = %q, want %q", name, raw, got, want)
			}
		}
	}
}

func TestNewMatchKeys_NameAndAddress(t *testing.T) {
	for name, tc := range map[string]struct {
		name    string
		address purchase.Address
		want    purchase.MatchKeys
	}{
		"all": {
			"  Grace  Brewster HOPPER ",
			purchase.Address{City: " New York ", State: "NY", PostalCode: "10001-1234", Country: "US"},
			purchase.MatchKeys{
				FirstName: sha("grace"), LastName: sha("brewster hopper"), Zip: sha("100011234"),
				City: "newyork", State: "ny", Country: "us",
			},
		},
		"other letters": {
			"Élodie Œuvrard",
			purchase.Address{City: "Saint-Étienne", PostalCode: "SW1A 1AA", Country: "gb"},
			purchase.MatchKeys{
				FirstName: sha("élodie"), LastName: sha("œuvrard"), Zip: sha("sw1a1aa"),
				City: "saintétienne", Country: "gb",
			},
		},
		"one word": {"Prince", purchase.Address{}, purchase.MatchKeys{FirstName: sha("prince")}},
		"hashes": {
			strings.ToUpper(sha("grace")),
			purchase.Address{PostalCode: strings.ToUpper(sha("10001"))},
			purchase.MatchKeys{FirstName: sha("grace"), Zip: sha("10001")},
		},
		"blank": {"  ", purchase.Address{}, purchase.MatchKeys{}},
	} {
		t.Run(name, func(t *testing.T) {
			keys, dropped := purchase.NewMatchKeys("", &purchase.Checkout{Name: tc.name, Address: tc.address})
			if diff := cmp.Diff(tc.want, keys); diff != "" || len(dropped) > 0 {
				t.Errorf("dropped %v; keys (-want +got):\n%s", dropped, diff)
			}
		})
	}
}

// An unusable key is dropped with its reason, and the other keys remain.
func TestNewMatchKeys_DropsUnusableKey(t *testing.T) {
	checkout := func() purchase.Checkout {
		return purchase.Checkout{
			Name: "Grace Hopper", Phone: "+12133734253",
			Address: purchase.Address{City: "Arlington", State: "VA", PostalCode: "22201", Country: "US"},
			Metadata: map[string]string{
				"ttclid": "E.C.P.abc-_1", "ttp": "2QkW", "client_ip": "2606:4700::1",
				"user_agent": `Mozilla/5.0 (it's "quoted")`, "page_url": "https://shop.example/c?a=b",
				"referrer": "https://www.tiktok.com/",
			},
		}
	}
	base := checkout()
	all, none := purchase.NewMatchKeys("buyer@example.com", &base)
	if len(none) > 0 {
		t.Fatalf("dropped %v of a valid checkout, want none", none)
	}
	want := purchase.MatchKeys{
		Email: sha("buyer@example.com"), Phone: sha("+12133734253"), TTCLID: "E.C.P.abc-_1", TTP: "2QkW",
		IP: "2606:4700::1", UserAgent: `Mozilla/5.0 (it's "quoted")`, PageURL: "https://shop.example/c?a=b",
		Referrer: "https://www.tiktok.com/", FirstName: sha("grace"), LastName: sha("hopper"), Zip: sha("22201"),
		City: "arlington", State: "va", Country: "us",
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Fatalf("keys (-want +got):\n%s", diff)
	}
	const (
		invalid, tooLong, personal = purchase.DropInvalid, purchase.DropTooLong, purchase.DropPersonal
		placeholder, wrongType     = purchase.DropPlaceholder, purchase.DropWrongType
	)
	quotes := strings.Repeat(`"'<\`, 500)
	longPage := "https://a.example/" + strings.Repeat("x", 2048)
	for _, tc := range []struct {
		key    string // TikTok's name
		values []string
		reason purchase.DropReason
	}{
		{"phone", []string{"call me"}, invalid},
		{"name", []string{"4711", "me@example.com"}, invalid},
		{"name", []string{strings.Repeat("x", 3000)}, tooLong},
		{"city", []string{"12345"}, invalid},
		{"city", []string{"Grace Hopper"}, personal},
		{"state", []string{"N\x00Y"}, invalid},
		{"country", []string{"Germany"}, invalid},
		{"zip_code", []string{"<script>"}, invalid},
		{"ttclid", []string{"a b", "a\x00b", "<script>", "me@example.com"}, invalid},
		{"ttclid", []string{strings.Repeat("a", 501)}, tooLong},
		{"ttclid", []string{"NonString"}, wrongType},
		{"ttp", []string{"a b", "a\x00"}, invalid},
		{"ttp", []string{quotes}, tooLong},
		{"ttp", []string{"grace.hopper"}, personal},
		{"ip", []string{"US", "\x00"}, invalid},
		{"ip", []string{quotes}, tooLong},
		{"user_agent", []string{"Mozilla\x00", "Mozilla\r\nX: y"}, invalid},
		{"user_agent", []string{quotes}, tooLong},
		{"user_agent", []string{"Mozilla buyer@example.com"}, personal},
		{"user_agent", []string{"\xff\xfe"}, placeholder},
		{"page_url", []string{"/checkout", "javascript:alert(1)", "ftp://a.example/", "https://"}, invalid},
		{"page_url", []string{longPage}, tooLong},
		{"page_url", []string{"https://shop.example/gracehopper"}, personal},
		{"referrer", []string{"tiktok", "https://a<.example", "android-app://com.zhiliaoapp.musically/"}, invalid},
		{"referrer", []string{"com.example.app://open"}, invalid},
	} {
		for _, value := range tc.values {
			c := checkout()
			want := all
			switch tc.key {
			case "phone":
				c.Phone, want.Phone = value, ""
			case "name":
				c.Name, want.FirstName, want.LastName = value, "", ""
			case "city":
				c.Address.City, want.City = value, ""
			case "state":
				c.Address.State, want.State = value, ""
			case "country":
				c.Address.Country, want.Country = value, ""
			case "zip_code":
				c.Address.PostalCode, want.Zip = value, ""
			case "ttclid":
				c.Metadata["ttclid"], want.TTCLID = value, ""
			case "ttp":
				c.Metadata["ttp"], want.TTP = value, ""
			case "ip":
				c.Metadata["client_ip"], want.IP = value, ""
			case "user_agent":
				c.Metadata["user_agent"], want.UserAgent = value, ""
			case "page_url":
				c.Metadata["page_url"], want.PageURL = value, ""
			case "referrer":
				c.Metadata["referrer"], want.Referrer = value, ""
			}
			switch {
			case tc.reason == wrongType:
				delete(c.Metadata, tc.key)
				c.NonStrings = map[string]bool{tc.key: true}
			case tc.key == "page_url" && tc.reason == personal:
				want.PageURL = "https://shop.example/"
			}
			keys, got := purchase.NewMatchKeys("buyer@example.com", &c)
			if diff := cmp.Diff(dropped(tc.key, tc.reason, 1), got) + cmp.Diff(want, keys); diff != "" {
				t.Errorf("%s = %.40q (-want +got):\n%s", tc.key, value, diff)
			}
		}
	}
}

func TestClickIDFromReference(t *testing.T) {
	for reference, want := range map[string]string{
		"ttclid-E_dC_dP_dabc-1__2":           "E.C.P.abc-1_2",
		"ttclid-plain":                       "plain",
		"order-7":                            "",
		"ttclid-":                            "",
		"ttclid-a_":                          "",
		"ttclid-a_x":                         "",
		"TTCLID-a":                           "",
		"ttclid-" + strings.Repeat("a", 193): strings.Repeat("a", 193),
		"ttclid-" + strings.Repeat("a", 194): "",
	} {
		if got := purchase.ClickIDFromReference(reference); got != want {
			t.Errorf("ClickIDFromReference(%q) = %q, want %q", reference, got, want)
		}
	}
}

func TestConsent_Given(t *testing.T) {
	for _, tc := range []struct {
		value              string
		optional, required bool // consent with CONSENT_KEY alone, and with CONSENT_REQUIRED
	}{
		{"", true, false},
		{"  ", true, false},
		{"yes", true, true},
		{" True ", true, true},
		{"1", true, true},
		{"granted", true, true},
		{"opt-in", true, true},
		{"no", false, false},
		{"FALSE", false, false},
		{"0", false, false},
		{"denied", false, false},
		{"perhaps", false, false},
		{"yes, but", false, false},
		{"g\u0130ven", false, false}, // strings.ToLower makes U+0130 an i
		{"ye\u017f", false, false},
		{"\u0000", false, false},
		{strings.Repeat("yes", 200), false, false},
	} {
		c := &purchase.Checkout{Metadata: map[string]string{"consent": tc.value}}
		for setting, want := range map[purchase.Consent]bool{
			{}:                               true,
			{Key: "another"}:                 true,
			{Key: "another", Required: true}: false,
			{Key: "consent"}:                 tc.optional,
			{Key: "consent", Required: true}: tc.required,
		} {
			if got := setting.Given(c); got != want {
				t.Errorf("%+v.Given(%q) = %t, want %t", setting, tc.value, got, want)
			}
		}
	}
	nonString := &purchase.Checkout{NonStrings: map[string]bool{"consent": true}}
	if (purchase.Consent{Key: "consent"}).Given(nonString) {
		t.Error("Given(non-string) = true, want false")
	}
}

func TestLimitsDataUse(t *testing.T) {
	for value, want := range map[string]bool{
		"true": true, "1": true, "yes": true, "of course": true, "": false, "false": false, "No": false, "0": false,
	} {
		c := &purchase.Checkout{Metadata: map[string]string{"limited_data_use": value}}
		if got := purchase.LimitsDataUse(c); got != want {
			t.Errorf("LimitsDataUse(%q) = %t, want %t", value, got, want)
		}
	}
	if !purchase.LimitsDataUse(&purchase.Checkout{NonStrings: map[string]bool{"limited_data_use": true}}) {
		t.Error("LimitsDataUse(non-string) = false, want true")
	}
}

func TestParseDomains(t *testing.T) {
	domains, err := purchase.ParseDomains(
		[]string{" Example.com", "@staff.example", "", ".dot.example", "root.example.", "Bücher.example"})
	if err != nil {
		t.Fatal(err)
	}
	for email, want := range map[string]bool{
		"a@example.com": true, "a@mail.example.com": true, "a@staff.example": true,
		"a@dot.example": true, "a@x.dot.example": true, "a@root.example": true, "a@bücher.example": true,
		"a@notexample.com": false, "a@example.com.evil.example": false, "example.com@b.example": false,
	} {
		if got := domains.Contains(email); got != want {
			t.Errorf("Contains(%q) = %t, want %t", email, got, want)
		}
	}
	for _, invalid := range []string{"example", "a@example.com", "*.example.com", "exa mple.com", "."} {
		if _, err := purchase.ParseDomains([]string{invalid}); err == nil {
			t.Errorf("ParseDomains(%q) = no error", invalid)
		}
	}
}

func TestNewContent(t *testing.T) {
	t.Parallel()
	type metadata map[string]string
	read := func(m metadata) (*purchase.Content, []purchase.Dropped) {
		return purchase.NewContent("buyer@example.com", &purchase.Checkout{Name: "Grace Hopper", Metadata: m})
	}
	const invalid, tooLong, personal = purchase.DropInvalid, purchase.DropTooLong, purchase.DropPersonal
	const placeholder = purchase.DropPlaceholder
	ids := func(ids ...string) *purchase.Content { return &purchase.Content{IDs: ids} }
	for name, tc := range map[string]struct {
		metadata metadata
		want     *purchase.Content
		dropped  []purchase.Dropped
	}{
		"all": {
			metadata{
				"content_id": " 42 ", "content_name": "Plan “Pro”", "content_category": "Plans", "brand": "Example",
				"price": "14.50", "quantity": "3", "content_ids": "42, 43,42",
			},
			&purchase.Content{
				ID: "42", Name: "Plan “Pro”", Category: "Plans", Brand: "Example", Price: "14.50",
				Quantity: 3, IDs: []string{"42", "43"},
			}, nil,
		},
		"JSON list": {
			metadata{"content_ids": `["a,b", 7, "null", {}]`}, ids("a,b", "7"), dropped("content_ids", placeholder, 2),
		},
		"JSON list of one": {metadata{"content_ids": `[7]`}, ids("7"), nil},
		"cut JSON list":    {metadata{"content_ids": `["a`}, ids("a"), nil},
		"Python list":      {metadata{"content_ids": `['a', 'b']`}, ids("a", "b"), nil},
		"400 Han characters": {
			metadata{"content_name": strings.Repeat("品", 400)},
			&purchase.Content{Name: strings.Repeat("品", 400)}, nil,
		},
		"none":          {nil, nil, nil},
		"only quantity": {metadata{"quantity": "1"}, nil, nil},
		"only price":    {metadata{"price": "1"}, nil, nil},
		"buyer's name":  {metadata{"content_name": "For Grace Hopper"}, nil, dropped("content_name", personal, 1)},
		"e-mail":        {metadata{"content_id": "other@example.com"}, nil, dropped("content_id", personal, 1)},
		"e-mail in a list": {
			metadata{"content_ids": "1,other@example.com"}, ids("1"), dropped("content_ids", personal, 1),
		},
		"too long": {metadata{"content_id": strings.Repeat("x", 501)}, nil, dropped("content_id", tooLong, 1)},
		"line end": {metadata{"content_name": "a\nb"}, nil, dropped("content_name", invalid, 1)},
		"macro": {
			metadata{"content_id": "{{product.id}}", "brand": "Example"},
			&purchase.Content{Brand: "Example"}, dropped("content_id", placeholder, 1),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, gotDropped := read(tc.metadata)
			if diff := cmp.Diff(tc.want, got) + cmp.Diff(tc.dropped, gotDropped); diff != "" {
				t.Errorf("content (-want +got):\n%s", diff)
			}
		})
	}
	for _, quantity := range []string{"0", "-1", "1.5", "many", "9999999999999", "+"} {
		got, gotDropped := read(metadata{"content_id": "42", "quantity": quantity})
		want := dropped("quantity", invalid, 1)
		if diff := cmp.Diff(&purchase.Content{ID: "42"}, got) + cmp.Diff(want, gotDropped); diff != "" {
			t.Errorf("quantity %q (-want +got):\n%s", quantity, diff)
		}
	}
	for price, want := range map[string]json.Number{
		"29.99": "29.99", "5": "5", "0.50": "0.50", "007.5": "7.5", "1000000": "1000000", "0": "", "0.00": "",
		"-1": "", "29,99": "", "$5": "", "5 USD": "", "1e3": "", "5.": "", ".5": "", "1.2.3": "",
		"NaN1": "", "0x10": "", strings.Repeat("9", 21): "",
	} {
		got, gotDropped := read(metadata{"content_id": "42", "price": price})
		if got.Price != want || (want == "") != (len(gotDropped) == 1) {
			t.Errorf("price %q = %q, dropped %v, want %q", price, got.Price, gotDropped, want)
		}
	}
}

func TestPurchase_LateClick(t *testing.T) {
	const day, week = 24 * time.Hour, 7 * 24 * time.Hour
	began := time.Unix(1_790_000_000, 0).UTC()
	clicked := func(ago time.Duration) string { return fmt.Sprint(began.Add(-ago).Unix()) }
	for name, tc := range map[string]struct {
		ttclid, ttclidAt string
		paid             time.Duration // after the checkout began
		window           time.Duration
		want             bool
	}{
		"paid after a minute":      {"a", "", time.Minute, week, false},
		"paid after eight days":    {"a", "", 8 * day, week, true},
		"clicked eight days ago":   {"a", clicked(8 * day), 0, week, true},
		"in milliseconds":          {"a", clicked(8*day) + "000", 0, week, true},
		"clicked six days ago":     {"a", clicked(6 * day), 0, week, false},
		"no click id":              {"", clicked(9 * week), 0, week, false},
		"clicked in the future":    {"a", clicked(-9 * week), 0, week, false},
		"clicked in 1970":          {"a", "7", 0, week, false},
		"malformed time":           {"a", "yesterday", 0, week, false},
		"window of a day":          {"a", clicked(week), 0, day, true},
		"a second over the window": {"a", clicked(week), 0, week - time.Second, true},
		"end of the window":        {"a", clicked(week), 0, week, false},
		"window of four weeks":     {"a", clicked(week), 0, 4 * week, false},
	} {
		t.Run(name, func(t *testing.T) {
			metadata := map[string]string{"ttclid": tc.ttclid, "ttclid_at": tc.ttclidAt}
			c := &purchase.Checkout{Created: began, Metadata: metadata}
			expires := purchase.ClickExpiry(c, tc.window)
			p := purchase.Purchase{At: began.Add(tc.paid), Keys: keysFor("", c), ClickExpires: expires}
			if got := p.LateClick(); got != tc.want || (p.Mask()&purchase.LateClickMask != 0) != tc.want {
				t.Errorf("LateClick = %t, mask %b, want %t", got, p.Mask(), tc.want)
			}
		})
	}
}

func TestMatchKeys_Mask(t *testing.T) {
	for want, keys := range map[int16]purchase.MatchKeys{
		1 | 4 | 64: {
			Email: "a", TTCLID: "b", PageURL: "c", ExternalID: "not counted", Referrer: "not counted",
		},
		1<<purchase.MatchKeyKinds - 1: {
			Email: "a", Phone: "a", TTCLID: "a", TTP: "a", IP: "a", UserAgent: "a", PageURL: "a", FirstName: "a",
			City: "a",
		},
	} {
		if got := keys.Mask(); got != want {
			t.Errorf("Mask = %b, want %b", got, want)
		}
	}
}
