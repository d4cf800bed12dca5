package purchase_test

import (
	"strings"
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

func TestNewMatchKeys_DropsPlaceholderMetadata(t *testing.T) {
	t.Parallel()
	contents := []string{"content_id", "content_name", "content_category", "brand", "price", "quantity"}
	for _, value := range placeholders {
		for _, key := range []string{"ttclid", "ttp", "client_ip", "user_agent", "page_url", "referrer"} {
			c := &purchase.Checkout{Metadata: map[string]string{key: value}}
			keys, got := purchase.NewMatchKeys("", c)
			want := dropped(strings.TrimPrefix(key, "client_"), purchase.DropPlaceholder, 1)
			if diff := cmp.Diff(want, got); keys != (purchase.MatchKeys{}) || diff != "" {
				t.Errorf("%s = %q: keys %+v, dropped (-want +got):\n%s", key, value, keys, diff)
			}
		}
		for _, key := range contents {
			content, got := purchase.NewContent("", &purchase.Checkout{Metadata: map[string]string{key: value}})
			if diff := cmp.Diff(dropped(key, purchase.DropPlaceholder, 1), got); content != nil || diff != "" {
				t.Errorf("%s = %q: content %+v, dropped (-want +got):\n%s", key, value, content, diff)
			}
		}
	}
}

func TestNewMatchKeys_DropsPlaceholderDetails(t *testing.T) {
	t.Parallel()
	keys, got := purchase.NewMatchKeys("", &purchase.Checkout{
		Name: "undefined undefined", Phone: "undefined", Locale: "null",
		Address: purchase.Address{City: "null", State: "[object Object]", PostalCode: "undefined", Country: "null"},
	})
	var want []purchase.Dropped
	for _, key := range []string{"phone", "zip_code", "city", "state", "country", "locale", "name"} {
		want = append(want, dropped(key, purchase.DropPlaceholder, 1)...)
	}
	if diff := cmp.Diff(want, got); diff != "" || keys != (purchase.MatchKeys{}) {
		t.Errorf("keys %+v, dropped (-want +got):\n%s", keys, diff)
	}
}

// Null is a surname and None a town.
func TestNewMatchKeys_KeepsRealNamesAndPlaces(t *testing.T) {
	t.Parallel()
	for name, kept := range map[string]bool{
		"Jennifer Null": true, "Nan Goldin": true, "NAN": true, "Nil Costa": true, "Maria None": true,
		"Null": false, "null null": false, "NaN NaN": false, "undefined Smith": false, "null Smith": false,
		"Undefined": false, "None None": false, "{{first_name}} {{last_name}}": false,
		"[object Object]": false, "__NAME__": false,
	} {
		if got := keysFor("", &purchase.Checkout{Name: name}).FirstName; (got != "") != kept {
			t.Errorf("name %q: first name = %q, want it kept: %t", name, got, kept)
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
		address := purchase.Address{City: tc.city, Country: tc.country}
		if got := keysFor("", &purchase.Checkout{Address: address}).City; (got != "") != tc.kept {
			t.Errorf("city %q in %q = %q, want it kept: %t", tc.city, tc.country, got, tc.kept)
		}
	}
}

func TestNewMatchKeys_KeepsSimilarValues(t *testing.T) {
	t.Parallel()
	for key, values := range map[string][]string{
		"ttclid":     {"E.C.P.null", "E.C.P.CsocA0SNqdfy__", "__abc", "none1", "Nullable"},
		"user_agent": {"Mozilla/5.0 (Linux; Android 10; K) null", "curl/8 {x}", "100%"},
		"page_url":   {"https://shop.example/undefined?q=none", "https://none.example/"},
	} {
		for _, value := range values {
			_, got := purchase.NewMatchKeys("", &purchase.Checkout{Metadata: map[string]string{key: value}})
			if len(got) > 0 {
				t.Errorf("%s = %q: dropped %v, want none", key, value, got)
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
			t.Errorf("locale %q = %q, want %q", raw, got, want)
		}
	}
}
