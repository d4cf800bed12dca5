package purchase_test

import (
	"maps"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"purchase-relay/internal/purchase"
)

func TestMajorUsesStripesOwnDecimals(t *testing.T) {
	for _, tc := range []struct {
		minor    int64
		currency string
		want     string
	}{
		{2999, "usd", "29.99"},
		{0, "usd", "0.00"},
		{5, "USD", "0.05"},
		{100, "eur", "1.00"},
		{-250, "usd", "-2.50"},
		{800, "jpy", "800"},
		{12345, "kwd", "12.345"},
		{7, "bhd", "0.007"},
		{500, "isk", "5.00"}, // two decimals at Stripe, whatever ISO says
		{500, "ugx", "5.00"},
		{500, "huf", "5.00"},
		{500, "twd", "5.00"},
		{9007199254740993, "usd", "90071992547409.93"}, // past 2^53: no float on the way
	} {
		if got := purchase.Major(tc.minor, tc.currency); got != tc.want {
			t.Errorf("Major(%d, %s) = %s, want %s", tc.minor, tc.currency, got, tc.want)
		}
	}
	for c := range strings.FieldsSeq("BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF") {
		if purchase.Decimals(c) != 0 {
			t.Errorf("%s has %d decimals", c, purchase.Decimals(c))
		}
	}
	for c := range strings.FieldsSeq("BHD JOD KWD OMR TND") {
		if purchase.Decimals(c) != 3 {
			t.Errorf("%s has %d decimals", c, purchase.Decimals(c))
		}
	}
}

// The hashes are those of TikTok's documentation and of other senders' tests.
func TestHashes(t *testing.T) {
	for _, tc := range []struct{ name, got, want string }{
		{"email", purchase.HashEmail(" ALICE_abc@gmail.com "), "848a771458438fc2ec420560d769fb9b9b86851ee338ec56517baabd79d3bb4f"},
		{"email", purchase.HashEmail("bugsbunny@warnerbros.com"), "67e28cdcc3e845d3a4da05ca9fe5ddb7320a83b4cc2167f0555a3b04f63511e3"},
		{"email already hashed", purchase.HashEmail("67E28CDCC3E845D3A4DA05CA9FE5DDB7320A83B4CC2167F0555A3B04F63511E3"), "67e28cdcc3e845d3a4da05ca9fe5ddb7320a83b4cc2167f0555a3b04f63511e3"},
		{"no email", purchase.HashEmail("  "), ""},
		{"phone", purchase.HashPhone("(+1)2133734253"), "9f7ec22d72092cd3c0b58726ed9c2d91b92e51a3f29837508fb2948bb22dd2fd"},
		{"phone", purchase.HashPhone("+1555-555-5555"), "910a625c4ba147b544e6bd2f267e130ae14c591b6ba9c25cb8573322dedbebd0"},
		{"phone", purchase.HashPhone("12345678901234"), "00a63bd0437d6ca0fa7b95c00ab2e7c020faa71440e5246750d6b517689e6777"},
		{"phone already hashed", purchase.HashPhone("c17c025fb9ed44eae8a9d5c9df0312af5c6161bd79bd669692364fc5ecaf108a"), "c17c025fb9ed44eae8a9d5c9df0312af5c6161bd79bd669692364fc5ecaf108a"},
		{"phone: letters", purchase.HashPhone("abc"), ""},
		{"phone: too long", purchase.HashPhone("+1234567890123456"), ""},
		{"phone: leading zero", purchase.HashPhone("+0123456789"), ""},
		{"phone: too short", purchase.HashPhone("+123456"), ""},
		{"no phone", purchase.HashPhone(""), ""},
		{"external id", purchase.HashExternalID(" user_123 "), "80fba0ae1c48e3978e43e4efc365e14e12ea0c830ba8ba5b9a2dafc7e3f2ab8b"},
		{"no external id", purchase.HashExternalID(""), ""},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, tc.got, tc.want)
		}
	}
}

func keysOf(metadata map[string]string) purchase.MatchKeys {
	return keysFor("", &purchase.Checkout{Metadata: metadata})
}

func keysFor(email string, c *purchase.Checkout) purchase.MatchKeys {
	keys, _ := purchase.NewMatchKeys(email, c)
	return keys
}

func TestMatchKeysAreDroppedAlone(t *testing.T) {
	all := map[string]string{
		"ttclid": "E.C.P.abc-_1", "ttp": "2QkW", "client_ip": "2001:db8::1", "user_agent": `Mozilla/5.0 (it's "quoted")`,
		"page_url": "https://shop.example/c?a=b", "referrer": "https://www.tiktok.com/",
	}
	good := purchase.MatchKeys{
		TTCLID: "E.C.P.abc-_1", TTP: "2QkW", IP: "2001:db8::1", UserAgent: `Mozilla/5.0 (it's "quoted")`,
		PageURL: "https://shop.example/c?a=b", Referrer: "https://www.tiktok.com/",
	}
	if got := keysOf(all); got != good {
		t.Fatalf("keys = %+v", got)
	}
	long := strings.Repeat(`"'<\`, 500)
	for key, bad := range map[string][]string{
		"ttclid":     {"", "a b", "a\x00b", "<script>", strings.Repeat("a", 501), "me@example.com"},
		"ttp":        {"a b", "a\x00", long},
		"client_ip":  {"US", "256.1.1.1", "fe80::1%eth0", "\x00", long},
		"user_agent": {"Mozilla\x00", "Mozilla\r\nX: y", "\xff\xfe", long, "Mozilla buyer@example.com"},
		"page_url": {
			"/checkout", "javascript:alert(1)", "ftp://a.example/", "https://",
			"https://a.example/" + strings.Repeat("x", 2048),
		},
		"referrer": {
			"tiktok", "https://a<.example", "android-app://com.zhiliaoapp.musically/",
			"com.example.app://open",
		},
	} {
		for _, value := range bad {
			m := make(map[string]string)
			maps.Copy(m, all)
			m[key] = value
			want := good
			switch key {
			case "ttclid":
				want.TTCLID = ""
			case "ttp":
				want.TTP = ""
			case "client_ip":
				want.IP = ""
			case "user_agent":
				want.UserAgent = ""
			case "page_url":
				want.PageURL = ""
			case "referrer":
				want.Referrer = ""
			}
			if got := keysOf(m); got != want {
				t.Errorf("%s = %.40q: keys = %+v", key, value, got)
			}
		}
	}
}

func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{
		"cs_live_a1B2-_": true, "": false, "cs.1": false, "cs_*": false, "cs_>": false, "cs 1": false, "cs_\x00": false,
		"cs_é": false, strings.Repeat("a", 255): true, strings.Repeat("a", 256): false, "cs_1\n": false,
	} {
		if purchase.ValidID(id) != want {
			t.Errorf("ValidID(%q) = %v", id, !want)
		}
	}
}

// statesInOrder is every state of the payment side, lowest first.
var statesInOrder = []struct {
	status purchase.Status
	reason purchase.Reason
}{
	{"", ""},
	{purchase.StatusAwaitingPayment, ""},
	{purchase.StatusPaymentFailed, ""},
	{purchase.StatusRejected, purchase.ReasonInvalidEmail},
	{purchase.StatusSkipped, purchase.ReasonNoPayment},
	{purchase.StatusPending, ""},
}

func TestStatesMoveOneWay(t *testing.T) {
	for i, from := range statesInOrder {
		for j, to := range statesInOrder[1:] {
			if got, want := purchase.Advances(from.status, from.reason, to.status, to.reason), j+1 > i; got != want {
				t.Errorf("%v → %v: %v", from, to, got)
			}
		}
	}
	for _, paid := range []purchase.Status{purchase.StatusPublished, purchase.StatusRetrying, purchase.StatusDelivered, purchase.StatusDead, purchase.StatusSkipped} {
		for _, to := range statesInOrder[1:] {
			if purchase.Advances(paid, purchase.ReasonRefused, to.status, to.reason) {
				t.Errorf("%s was left for %v", paid, to)
			}
		}
	}
}

// Outcomes in any order, any number of times, lead to the same end.
func TestSettleIsOrderIndependent(t *testing.T) {
	results := []purchase.Status{purchase.StatusRetrying, purchase.StatusDelivered, purchase.StatusDead}
	rapid.Check(t, func(t *rapid.T) {
		reports := rapid.SliceOfN(rapid.SampledFrom(results), 1, 6).Draw(t, "reports")
		end := func(order []purchase.Status) purchase.Status {
			status := purchase.StatusPublished
			for _, r := range order {
				status, _ = purchase.Settle(status, 1, r, 1)
			}
			return status
		}
		want := purchase.StatusRetrying
		for _, r := range reports {
			if r == purchase.StatusDelivered || want != purchase.StatusDelivered && r == purchase.StatusDead {
				want = r
			}
		}
		if got := end(rapid.Permutation(append(reports, reports...)).Draw(t, "order")); got != want {
			t.Fatalf("%v ended %s, want %s", reports, got, want)
		}
	})
}

func TestSettleIgnoresReportsFromBeforeAReplay(t *testing.T) {
	if next, changed := purchase.Settle(purchase.StatusPending, 2, purchase.StatusDead, 1); changed {
		t.Errorf("an old death moved a replayed purchase to %s", next)
	}
	if next, _ := purchase.Settle(purchase.StatusPending, 2, purchase.StatusDelivered, 1); next != purchase.StatusDelivered {
		t.Errorf("an acceptance was forgotten: %s", next)
	}
	if next, changed := purchase.Settle(purchase.StatusDelivered, 1, purchase.StatusDead, 9); changed {
		t.Errorf("delivered was left for %s", next)
	}
}
