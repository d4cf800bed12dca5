package purchase_test

import (
	"strings"
	"testing"
	"unicode"

	"purchase-relay/internal/purchase"
)

func TestNormaliseEmail_Canonical(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		" ALICE_abc@gmail.com ":                       "alice_abc@gmail.com",
		"o'brien+shop@mail.example.co.uk":             "o'brien+shop@mail.example.co.uk",
		"\u200brobin@example.com":                     "robin@example.com",
		"ro\u00adbin@exam\u2060ple.com\ufeff":         "robin@example.com",
		"robin\ufffd@example.com":                     "robin@example.com",
		"robin\ufe0f@example.com":                     "robin@example.com",
		"\u202arobin@example.com\u202c":               "robin@example.com",
		"robin @ example.com":                         "robin@example.com",
		"robin@\u3000example.com\u00a0":               "robin@example.com",
		"robin@example.com\r\n":                       "robin@example.com",
		"re\u0301mi@example.com":                      "rémi@example.com",
		"R\u00c9MI@example.com":                       "rémi@example.com",
		"J\u030cana@example.com":                      "\u01f0ana@example.com", // composes in lower case alone
		"robin\uff20example\uff0ecom":                 "robin@example.com",
		"robin@example\u3002com":                      "robin@example.com",
		"robin\uff11\uff3f\uff12@example.com":         "robin1_2@example.com",
		"\uff52obin@example.com":                      "\uff52obin@example.com", // a full-width letter remains
		"\u212aate@example.com":                       "\u212aate@example.com",  // KELVIN SIGN
		"\u212a\u0301ate@example.com":                 "\u212a\u0301ate@example.com",
		"\u0130lker@example.com":                      "\u0130lker@example.com", // dotted capital I
		"I\u0307lker@example.com":                     "\u0130lker@example.com",
		"bo\u017f\u017f@example.com":                  "bo\u017f\u017f@example.com", // long s
		"ünï@EXÄMPLE.com":                             "ünï@exämple.com",
		"пример@почта.рф":                             "пример@почта.рф",
		"a..b@docomo.example.com":                     "a..b@docomo.example.com",
		"a.@ezweb.example":                            "a.@ezweb.example",
		".a@ezweb.example":                            ".a@ezweb.example",
		"a@my_host.example":                           "a@my_host.example",
		"a@b.example.":                                "a@b.example",
		"{a}/b=c?d^e`f|g~h!#$%&*@x.example":           "{a}/b=c?d^e`f|g~h!#$%&*@x.example",
		strings.Repeat("a", 243) + "@b.example.":      strings.Repeat("a", 243) + "@b.example",
		strings.Repeat("\u200b", 300) + "a@b.example": "a@b.example",
	} {
		if got := purchase.NormaliseEmail(raw); got != want {
			t.Errorf("NormaliseEmail(%q) = %q, want %q", raw, got, want)
		}
	}
}

func TestNormaliseEmail_Invalid(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{
		"", "   ", "\u200b", "nobody", "undefined", "a@b", "@b.example", "a@", "a@.", "a@@b.example",
		"a@b@c.example", "A <a@b.example>", `"a b"@c.example`, "mailto:a@b.example",
		"a@b.example\x00", "a\x00@b.example", "a\x7f@b.example", "a@b.example\nBcc: c@d.example", "\xff@b.example",
		"a@b..example", "a@.b.example", "a@[127.0.0.1]",
		"a@b.example,c@d.example", "a@b.example;", "a@exa mple", strings.Repeat("a", 250) + "@b.com",
		strings.Repeat("é", 125) + "@b.example",
	} {
		if got := purchase.NormaliseEmail(raw); got != "" {
			t.Errorf("NormaliseEmail(%q) = %q, want \"\"", raw, got)
		}
	}
}

func FuzzNormaliseEmail(f *testing.F) {
	for _, seed := range []string{
		"a@b.example", " A..B@Exa\u200bmple.COM.", "re\u0301mi@example.com", "\u212aate\u0301@x.example",
		"İ@x.example", "ǰ\u0323@x.example", "\uff21\uff20\uff0e\uff21.x",
		"\u0345\u0301a@b.c", "ΐ@x.example", "\u1fef\u037e@x.example", "a@b\u3002c", "Å\u030a@x.y", "\xff\xfe@x.y",
		"ẞß@x.y", "ςΣ@x.y",
	} {
		f.Add(seed)
	}
	asciiLetters := func(s string) (n int) {
		for _, r := range s {
			if r < unicode.MaxASCII && unicode.IsLetter(r) {
				n++
			}
		}
		return n
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got := purchase.NormaliseEmail(raw)
		if again := purchase.NormaliseEmail(got); again != got {
			t.Errorf("NormaliseEmail(%q) = %q, then %q", raw, got, again)
		}
		if asciiLetters(got) > asciiLetters(raw) {
			t.Errorf("NormaliseEmail(%q) = %q, want no more ASCII letters", raw, got)
		}
		blank := func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }
		if got != "" && (len(got) > 254 || strings.Count(got, "@") != 1 || strings.ContainsFunc(got, blank)) {
			t.Errorf("NormaliseEmail(%q) = %q, want an address", raw, got)
		}
	})
}
