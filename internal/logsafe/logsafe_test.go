package logsafe_test

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"purchase-relay/internal/logsafe"
)

func TestText_KeepsVisibleCharacters(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ text, want string }{
		"plain":                 {"no such token: 40105", "no such token: 40105"},
		"other scripts":         {"Käufer 購入 покупка", "Käufer 購入 покупка"},
		"direction override":    {"paid\u202egnp.exe\u202c", "paidgnp.exe"},
		"isolates":              {"\u2066a\u2067b\u2068c\u2069", "abc"},
		"direction marks":       {"a\u200e\u200f\u061cb", "ab"},
		"zero-width":            {"run\u200bn\u200ci\u200dng\ufeff", "running"},
		"soft hyphen":           {"pau\u00adsed", "paused"},
		"fillers":               {"a\u3164\u115f\u1160\uffa0\u2800b", "ab"},
		"variation selectors":   {"a\ufe0f\U000e0100b", "ab"},
		"tags":                  {"a\U000e0041\U000e007fb", "ab"},
		"private use":           {"a\ue000\U000f0000b", "ab"},
		"controls":              {"a\x00\x1b[2J\x7f\u0085b", "a[2J b"},
		"line ends":             {"a\r\nb\u2028c\u2029d\te", "a  b c d e"},
		"wide blanks":           {"a\u00a0b\u3000c", "a b c"},
		"invalid UTF-8":         {"a\xff\xc0\xafb", "ab"},
		"shorter than max":      {"0123456789", "0123456789"},
		"cut":                   {strings.Repeat("é", 200), strings.Repeat("é", 20) + "…"},
		"invisible not counted": {strings.Repeat("\u202e", 500) + "ab", "ab"},
		"invisible alone":       {"\u202e\x00", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := logsafe.Text(tc.text, 20); got != tc.want {
				t.Errorf("Text(%q) = %q, want %q", tc.text, got, tc.want)
			}
		})
	}
}

func FuzzText(f *testing.F) {
	f.Add("a\u202eb\xff", 3)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = max(0, min(limit, 100))
		got := logsafe.Text(s, limit)
		if n := utf8.RuneCountInString(got); n > limit+1 || !utf8.ValidString(got) {
			t.Errorf("Text(%q, %d) = %q, want at most %d characters of UTF-8", s, limit, got, limit+1)
		}
		for _, r := range got {
			if !unicode.IsPrint(r) {
				t.Errorf("Text(%q) = %q, want no %U", s, got, r)
			}
		}
	})
}
