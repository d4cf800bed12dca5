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

func TestNameAndAddress(t *testing.T) {
	for name, tc := range map[string]struct {
		c    purchase.Checkout
		want purchase.MatchKeys
	}{
		"everything": {
			purchase.Checkout{Name: "  Grace  Brewster HOPPER ", Address: purchase.Address{City: " New York ", State: "NY", PostalCode: "10001-1234", Country: "US"}},
			purchase.MatchKeys{FirstName: sha("grace"), LastName: sha("brewster hopper"), Zip: sha("100011234"), City: "newyork", State: "ny", Country: "us"},
		},
		"other alphabets": {
			purchase.Checkout{Name: "Élodie Œuvrard", Address: purchase.Address{City: "Saint-Étienne", PostalCode: "SW1A 1AA", Country: "gb"}},
			purchase.MatchKeys{FirstName: sha("élodie"), LastName: sha("œuvrard"), Zip: sha("sw1a1aa"), City: "saintétienne", Country: "gb"},
		},
		"one word": {purchase.Checkout{Name: "Prince"}, purchase.MatchKeys{FirstName: sha("prince")}},
		"hashes": {
			purchase.Checkout{Name: strings.ToUpper(sha("grace")), Address: purchase.Address{PostalCode: strings.ToUpper(sha("10001"))}},
			purchase.MatchKeys{FirstName: sha("grace"), Zip: sha("10001")},
		},
		"nothing": {purchase.Checkout{Name: "  "}, purchase.MatchKeys{}},
	} {
		keys, dropped := purchase.NewMatchKeys("", &tc.c)
		if diff := cmp.Diff(tc.want, keys); diff != "" || len(dropped) > 0 {
			t.Errorf("%s: dropped %v\n%s", name, dropped, diff)
		}
	}
}

// Whatever is unusable is dropped alone, with its reason.
func TestDroppedWithReason(t *testing.T) {
	long := strings.Repeat("x", 3000)
	for name, tc := range map[string]struct {
		change func(c *purchase.Checkout)
		want   purchase.Dropped
	}{
		"a phone of letters":       {func(c *purchase.Checkout) { c.Phone = "call me" }, purchase.Dropped{Key: "phone", Reason: purchase.DropInvalid}},
		"a name of digits":         {func(c *purchase.Checkout) { c.Name = "4711" }, purchase.Dropped{Key: "name", Reason: purchase.DropInvalid}},
		"a name that is an e-mail": {func(c *purchase.Checkout) { c.Name = "me@example.com" }, purchase.Dropped{Key: "name", Reason: purchase.DropInvalid}},
		"a name of 3000 letters":   {func(c *purchase.Checkout) { c.Name = long }, purchase.Dropped{Key: "name", Reason: purchase.DropTooLong}},
		"a city of digits":         {func(c *purchase.Checkout) { c.Address.City = "12345" }, purchase.Dropped{Key: "city", Reason: purchase.DropInvalid}},
		"a city that is the buyer": {func(c *purchase.Checkout) { c.Address.City = "Grace Hopper" }, purchase.Dropped{Key: "city", Reason: purchase.DropPersonal}},
		"a state with a NUL":       {func(c *purchase.Checkout) { c.Address.State = "N\x00Y" }, purchase.Dropped{Key: "state", Reason: purchase.DropInvalid}},
		"a country's name":         {func(c *purchase.Checkout) { c.Address.Country = "Germany" }, purchase.Dropped{Key: "country", Reason: purchase.DropInvalid}},
		"a postal code of signs":   {func(c *purchase.Checkout) { c.Address.PostalCode = "<script>" }, purchase.Dropped{Key: "zip_code", Reason: purchase.DropInvalid}},
		"a country as the address": {func(c *purchase.Checkout) { c.Metadata["client_ip"] = "US" }, purchase.Dropped{Key: "ip", Reason: purchase.DropInvalid}},
		"a click id of 501":        {func(c *purchase.Checkout) { c.Metadata["ttclid"] = strings.Repeat("a", 501) }, purchase.Dropped{Key: "ttclid", Reason: purchase.DropTooLong}},
		"a click id that is a list": {func(c *purchase.Checkout) {
			delete(c.Metadata, "ttclid")
			c.NonStrings = map[string]bool{"ttclid": true}
		}, purchase.Dropped{Key: "ttclid", Reason: purchase.DropWrongType}},
		"the buyer in the page": {func(c *purchase.Checkout) { c.Metadata["page_url"] = "https://shop.example/gracehopper" }, purchase.Dropped{Key: "page_url", Reason: purchase.DropPersonal}},
		"the buyer as ttp":      {func(c *purchase.Checkout) { c.Metadata["ttp"] = "grace.hopper" }, purchase.Dropped{Key: "ttp", Reason: purchase.DropPersonal}},
	} {
		t.Run(name, func(t *testing.T) {
			c := purchase.Checkout{
				Name: "Grace Hopper", Phone: "+12133734253", Address: purchase.Address{City: "Arlington", State: "VA", PostalCode: "22201", Country: "US"},
				Metadata: map[string]string{"ttclid": "E.C.P.abc", "ttp": "2QkW", "client_ip": "203.0.113.7", "user_agent": "Mozilla/5.0", "page_url": "https://shop.example/", "referrer": "https://www.tiktok.com/"},
			}
			whole, none := purchase.NewMatchKeys("buyer@example.com", &c)
			tc.change(&c)
			keys, dropped := purchase.NewMatchKeys("buyer@example.com", &c)
			if diff := cmp.Diff([]purchase.Dropped{tc.want}, dropped); diff != "" || len(none) > 0 {
				t.Errorf("dropped: %v before, then\n%s", none, diff)
			}
			if lost := len(fields(whole)) - len(fields(keys)); lost < 0 || lost > 2 { // a name is two keys
				t.Errorf("%d keys are lost:\n%s", lost, cmp.Diff(whole, keys))
			}
		})
	}
}

// fields are the keys that are there.
func fields(keys purchase.MatchKeys) (list []string) {
	for part := range strings.SplitSeq(fmt.Sprintf("%+v", keys), " ") {
		if _, value, _ := strings.Cut(part, ":"); strings.Trim(value, "}") != "" {
			list = append(list, part)
		}
	}
	return list
}

func TestClickIDOfReference(t *testing.T) {
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
			t.Errorf("%s: %q, want %q", reference, got, want)
		}
	}
	keys := keysFor("", &purchase.Checkout{Reference: "ttclid-E_dC", Metadata: map[string]string{"ttclid": "of.the.metadata"}})
	if keys.TTCLID != "of.the.metadata" {
		t.Errorf("the metadata's own yields to the reference: %s", keys.TTCLID)
	}
	if keys := keysFor("", &purchase.Checkout{Reference: "ttclid-E_dC"}); keys.TTCLID != "E.C" {
		t.Errorf("the reference is passed over: %s", keys.TTCLID)
	}
}

func TestConsent(t *testing.T) {
	for _, tc := range []struct {
		answer          string
		asked, required bool // whether there is consent with CONSENT_KEY alone, and with CONSENT_REQUIRED
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
		{"\u0000", false, false},
		{strings.Repeat("yes", 200), false, false},
	} {
		c := &purchase.Checkout{Metadata: map[string]string{"consent": tc.answer}}
		for gate, want := range map[purchase.Consent]bool{
			{}:                               true,
			{Key: "another"}:                 true,
			{Key: "another", Required: true}: false,
			{Key: "consent"}:                 tc.asked,
			{Key: "consent", Required: true}: tc.required,
		} {
			if got := gate.Given(c); got != want {
				t.Errorf("%q at %+v: %v", tc.answer, gate, got)
			}
		}
	}
	odd := &purchase.Checkout{NonStrings: map[string]bool{"consent": true}}
	if (purchase.Consent{Key: "consent"}).Given(odd) {
		t.Error("a value that is no text is taken for consent")
	}
}

func TestLimited(t *testing.T) {
	for value, want := range map[string]bool{"true": true, "1": true, "yes": true, "of course": true, "": false, "false": false, "No": false, "0": false} {
		if got := purchase.LimitsDataUse(&purchase.Checkout{Metadata: map[string]string{"limited_data_use": value}}); got != want {
			t.Errorf("%q: %v", value, got)
		}
	}
	if !purchase.LimitsDataUse(&purchase.Checkout{NonStrings: map[string]bool{"limited_data_use": true}}) {
		t.Error("a value that is no text does not limit")
	}
}

func TestDomains(t *testing.T) {
	domains, err := purchase.ParseDomains([]string{" Example.com", "@staff.example", ""})
	if err != nil {
		t.Fatal(err)
	}
	for email, want := range map[string]bool{
		"a@example.com": true, "a@mail.example.com": true, "a@staff.example": true,
		"a@notexample.com": false, "a@example.com.evil.example": false, "example.com@b.example": false,
	} {
		if got := domains.Contains(email); got != want {
			t.Errorf("%s: %v", email, got)
		}
	}
	for _, bad := range []string{"example", "a@example.com", "*.example.com", "exa mple.com", "."} {
		if _, err := purchase.ParseDomains([]string{bad}); err == nil {
			t.Errorf("%q is taken for a domain", bad)
		}
	}
}

func TestNewContent(t *testing.T) {
	t.Parallel()
	contents := func(metadata map[string]string) (*purchase.Content, []purchase.Dropped) {
		return purchase.NewContent("buyer@example.com", &purchase.Checkout{
			Name:     "Grace Hopper",
			Metadata: metadata,
		})
	}
	for name, tc := range map[string]struct {
		metadata map[string]string
		want     *purchase.Content
		dropped  []purchase.Dropped
	}{
		"everything": {
			map[string]string{
				"content_id": " 42 ", "content_name": "Plan “Pro”", "content_category": "Plans", "brand": "Example",
				"price": "14.50", "quantity": "3", "content_ids": "42, 43,42",
			},
			&purchase.Content{
				ID: "42", Name: "Plan “Pro”", Category: "Plans", Brand: "Example", Price: "14.50",
				Quantity: 3, IDs: []string{"42", "43"},
			}, nil,
		},
		"a list as JSON": {
			map[string]string{"content_ids": `["a,b", 7, "null", {}]`},
			&purchase.Content{IDs: []string{"a,b", "7"}}, dropped("content_ids", purchase.DropPlaceholder, 2),
		},
		"one id as JSON": {
			map[string]string{"content_ids": `[7]`},
			&purchase.Content{IDs: []string{"7"}},
			nil,
		},
		"a broken list": {
			map[string]string{"content_ids": `["a`},
			&purchase.Content{IDs: []string{"a"}},
			nil,
		},
		"a list of Python's": {
			map[string]string{"content_ids": `['a', 'b']`},
			&purchase.Content{IDs: []string{"a", "b"}}, nil,
		},
		"a long name in Han": {
			map[string]string{"content_name": strings.Repeat("品", 400)},
			&purchase.Content{Name: strings.Repeat("品", 400)}, nil,
		},
		"nothing":          {nil, nil, nil},
		"a quantity alone": {map[string]string{"quantity": "1"}, nil, nil},
		"a price alone":    {map[string]string{"price": "1"}, nil, nil},
		"the buyer": {map[string]string{"content_name": "For Grace Hopper"}, nil, dropped("content_name",
			purchase.DropPersonal, 1)},
		"an address": {map[string]string{"content_id": "other@example.com"}, nil, dropped("content_id",
			purchase.DropPersonal, 1)},
		"an address in a list": {
			map[string]string{"content_ids": "1,other@example.com"},
			&purchase.Content{IDs: []string{"1"}}, dropped("content_ids", purchase.DropPersonal, 1),
		},
		"too long": {
			map[string]string{"content_id": strings.Repeat("x", 501)},
			nil,
			dropped("content_id", purchase.DropTooLong, 1),
		},
		"a line end": {map[string]string{"content_name": "a\nb"}, nil, dropped("content_name",
			purchase.DropInvalid, 1)},
		"a macro": {
			map[string]string{"content_id": "{{product.id}}", "brand": "Example"},
			&purchase.Content{Brand: "Example"}, dropped("content_id", purchase.DropPlaceholder, 1),
		},
	} {
		got, gone := contents(tc.metadata)
		if diff := cmp.Diff(tc.want, got) + cmp.Diff(tc.dropped, gone); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
	for _, quantity := range []string{"0", "-1", "1.5", "many", "9999999999999", "+"} {
		got, gone := contents(map[string]string{"content_id": "42", "quantity": quantity})
		if diff := cmp.Diff(&purchase.Content{ID: "42"}, got) + cmp.Diff(dropped("quantity", purchase.DropInvalid,
			1), gone); diff != "" {
			t.Errorf("quantity %s:\n%s", quantity, diff)
		}
	}
	for price, want := range map[string]json.Number{
		"29.99": "29.99", "5": "5", "0.50": "0.50", "007.5": "7.5", "1000000": "1000000", "0": "", "0.00": "",
		"-1": "", "29,99": "", "$5": "", "5 USD": "", "1e3": "", "5.": "", ".5": "", "1.2.3": "",
		"NaN1": "", "0x10": "", strings.Repeat("9", 21): "",
	} {
		got, gone := contents(map[string]string{"content_id": "42", "price": price})
		if got.Price != want || (want == "") != (len(gone) == 1) {
			t.Errorf("price %q becomes %q, dropped %v, want %q", price, got.Price, gone, want)
		}
	}
}

// dropped is one key, dropped n times for one reason.
func dropped(key string, reason purchase.DropReason, n int) (list []purchase.Dropped) {
	return slices.Repeat([]purchase.Dropped{{Key: key, Reason: reason}}, n)
}

func TestLateClick(t *testing.T) {
	began := time.Unix(1_790_000_000, 0).UTC()
	week := 7 * 24 * time.Hour
	at := func(ago time.Duration) string { return fmt.Sprint(began.Add(-ago).Unix()) }
	for name, tc := range map[string]struct {
		metadata map[string]string
		paid     time.Duration // after the checkout began
		want     bool
	}{
		"at once":                  {map[string]string{"ttclid": "a"}, time.Minute, false},
		"paid after eight days":    {map[string]string{"ttclid": "a"}, week + 24*time.Hour, true},
		"clicked eight days ago":   {map[string]string{"ttclid": "a", "ttclid_at": at(week + 24*time.Hour)}, 0, true},
		"in milliseconds":          {map[string]string{"ttclid": "a", "ttclid_at": at(week+24*time.Hour) + "000"}, 0, true},
		"clicked six days ago":     {map[string]string{"ttclid": "a", "ttclid_at": at(week - 24*time.Hour)}, 0, false},
		"no click id":              {map[string]string{"ttclid_at": at(9 * week)}, 0, false},
		"clicked in the future":    {map[string]string{"ttclid": "a", "ttclid_at": at(-9 * week)}, 0, false},
		"clicked in the year 1970": {map[string]string{"ttclid": "a", "ttclid_at": "7"}, 0, false},
		"no time":                  {map[string]string{"ttclid": "a", "ttclid_at": "yesterday"}, 0, false},
	} {
		c := &purchase.Checkout{Created: began, Metadata: tc.metadata}
		p := purchase.Purchase{At: began.Add(tc.paid), Keys: keysFor("", c), ClickExpires: purchase.ClickExpiry(c,
			week)}
		if got := p.LateClick(); got != tc.want || (p.Mask()&purchase.LateClickMask != 0) != tc.want {
			t.Errorf("%s: %v, mask %b", name, got, p.Mask())
		}
	}
	c := &purchase.Checkout{Created: began, Metadata: map[string]string{"ttclid": "a", "ttclid_at": at(week)}}
	for window, want := range map[time.Duration]bool{
		24 * time.Hour: true, week - time.Second: true, week: false,
		4 * week: false,
	} {
		p := purchase.Purchase{At: began, Keys: keysFor("", c), ClickExpires: purchase.ClickExpiry(c, window)}
		if got := p.LateClick(); got != want {
			t.Errorf("a click of a week ago in a window of %s is late: %v, want %v", window, got, want)
		}
	}
}

func TestMask(t *testing.T) {
	keys := purchase.MatchKeys{
		Email: "a", TTCLID: "b", PageURL: "c", ExternalID: "not counted", Referrer: "not counted",
	}
	if got := keys.Mask(); got != 1|4|64 {
		t.Errorf("mask %b", got)
	}
	full := purchase.MatchKeys{
		Email: "a", Phone: "a", TTCLID: "a", TTP: "a", IP: "a", UserAgent: "a", PageURL: "a", FirstName: "a", City: "a",
	}
	if got := full.Mask(); got != 1<<purchase.MatchKeyKinds-1 {
		t.Errorf("mask %b", got)
	}
}
