package purchase_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/purchase"
)

var placeholders = []string{
	"null", "NULL", "undefined", "NaN", "none", "None", "nil", "[object Object]", "__CLICKID__", "__clickid__",
	"{{ttclid}}", "{ttclid}", "%%CLICKID%%", "%ttclid%", "${ttclid}",
	"#{ttclid}", "<%= ttclid %>", "[CLICK_ID]", "undefined undefined", "null,null", "undefined-undefined",
	`"null"`, "'undefined'", "(not set)", "N/A", "-", "{}", `{"a":1}`,
	"%7B%7Bttclid%7D%7D", "undefined%20undefined", "%5Bobject%20Object%5D", " undefined ", "\u200bnull",
	"__PIXEL_ID__", "{{ page.url }}",
}

// What only looks like a value is none under any key, and is counted as a placeholder.
func TestNewMatchKeys_PlaceholdersAreNoValues(t *testing.T) {
	t.Parallel()
	for _, value := range placeholders {
		for _, key := range []string{"ttclid", "ttp", "client_ip", "user_agent", "page_url", "referrer"} {
			keys, dropped := purchase.NewMatchKeys("", &purchase.Checkout{Metadata: map[string]string{key: value}})
			name := key
			if key == "client_ip" {
				name = "ip"
			}
			if diff := cmp.Diff([]purchase.Dropped{{Key: name, Reason: purchase.DropPlaceholder}},
				dropped); keys.Mask() != 0 || keys != (purchase.MatchKeys{}) || diff != "" {
				t.Errorf("%s = %q: keys %+v, dropped\n%s", key, value, keys, diff)
			}
		}
		for _, key := range []string{
			"content_id", "content_name", "content_category", "brand", "price",
			"quantity",
		} {
			content, dropped := purchase.NewContent("", &purchase.Checkout{Metadata: map[string]string{key: value}})
			if diff := cmp.Diff([]purchase.Dropped{{Key: key, Reason: purchase.DropPlaceholder}},
				dropped); content != nil || diff != "" {
				t.Errorf("%s = %q: content %+v, dropped\n%s", key, value, content, diff)
			}
		}
	}
}

func TestNewMatchKeys_BuyersOwnPlaceholders(t *testing.T) {
	t.Parallel()
	keys, dropped := purchase.NewMatchKeys("", &purchase.Checkout{
		Name: "undefined undefined", Phone: "undefined", Locale: "null",
		Address: purchase.Address{City: "null", State: "[object Object]", PostalCode: "undefined", Country: "null"},
	})
	want := []purchase.Dropped{}
	for _, key := range []string{"phone", "zip_code", "city", "state", "country", "locale", "name"} {
		want = append(want, purchase.Dropped{Key: key, Reason: purchase.DropPlaceholder})
	}
	if diff := cmp.Diff(want, dropped); diff != "" || keys != (purchase.MatchKeys{}) {
		t.Errorf("keys %+v, dropped\n%s", keys, diff)
	}
}

// People are called Null and live in None.
func TestNewMatchKeys_RealNamesAndPlaces(t *testing.T) {
	t.Parallel()
	for name, kept := range map[string]bool{
		"Jennifer Null": true, "Nan Goldin": true, "NAN": true, "Nil Costa": true, "Maria None": true,
		"Null": false, "null null": false, "NaN NaN": false, "undefined Smith": false, "null Smith": false,
		"Undefined": false, "None None": false, "{{first_name}} {{last_name}}": false,
		"[object Object]": false, "__NAME__": false,
	} {
		if got := keysFor("", &purchase.Checkout{Name: name}).FirstName != ""; got != kept {
			t.Errorf("name %q is kept: %v, want %v", name, got, kept)
		}
	}
	for _, tc := range []struct {
		city, country string
		kept          bool
	}{
		{"None", "IT", true},
		{"None", "US", false},
		{"none", "", false},
		{"Nan", "TH", true},
		{"NaN", "TH", false},
		{"null", "IT", false},
		{"undefined", "US", false},
		{"unknown", "US", false},
		{"Nonesuch", "US", true},
		{"%%CITY%%", "US", false},
	} {
		got := keysFor("", &purchase.Checkout{Address: purchase.Address{
			City:    tc.city,
			Country: tc.country,
		}}).City != ""
		if got != tc.kept {
			t.Errorf("city %q in %q is kept: %v, want %v", tc.city, tc.country, got, tc.kept)
		}
	}
}

func TestNewMatchKeys_RealValuesAreNoPlaceholders(t *testing.T) {
	t.Parallel()
	for key, values := range map[string][]string{
		"ttclid":     {"E.C.P.null", "E.C.P.CsocA0SNqdfy__", "__abc", "none1", "Nullable"},
		"user_agent": {"Mozilla/5.0 (Linux; Android 10; K) null", "curl/8 {x}", "100%"},
		"page_url":   {"https://shop.example/undefined?q=none", "https://none.example/"},
	} {
		for _, value := range values {
			_, dropped := purchase.NewMatchKeys("", &purchase.Checkout{Metadata: map[string]string{key: value}})
			if len(dropped) > 0 {
				t.Errorf("%s = %q: dropped %v", key, value, dropped)
			}
		}
	}
}

func TestNewMatchKeys_Locale(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"en": "en", "EN-us": "en-US", "pt_BR": "pt-BR", "es-419": "es-419", "fil": "fil",
		"zh-hant-tw": "zh-Hant-TW", "auto": "", "AUTO": "", "": "", "english": "", "e": "", "en-": "",
		"en-USA": "", "en-US-x": "", "12": "", "ïs": "",
	} {
		if got := keysFor("", &purchase.Checkout{Locale: raw}).Locale; got != want {
			t.Errorf("locale %q becomes %q, want %q", raw, got, want)
		}
	}
}
