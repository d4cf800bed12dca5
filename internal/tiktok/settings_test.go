package tiktok_test

import (
	"net/http/httptest"
	"strings"
	"testing"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/tiktok"
)

func TestTrim(t *testing.T) {
	for in, want := range map[string]string{
		"abc": "abc", " abc\n": "abc", "\ufeffabc\r\n": "abc", "\u200babc\u00a0": "abc", "\tabc\x00": "abc",
		"a b": "a b", " \n": "", "": "",
	} {
		if got := tiktok.Trim(in); got != want {
			t.Errorf("Trim(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestCheck_AcceptsValidForms(t *testing.T) {
	token := func(s string) error { return tiktok.CheckToken(secret.String(s)) }
	for name, tc := range map[string]struct {
		check     func(string) error
		good, bad []string
	}{
		"token": {
			token,
			[]string{"0123456789abcdef", "x", "local-token", "a.b_c~d/e+f=="},
			[]string{
				"", "a b", "a\nb", "Bearer abc", `"abc"`, "'abc'", "a\u00e9b", "a\x7fb", strings.Repeat("x", 1001),
			},
		},
		"pixel": {
			tiktok.CheckPixel,
			[]string{"C4A1B2C3D4E5F6G7H8I9", "LOCALPIXEL", "p"},
			[]string{"", "C4 A1", "C4-A1", "C4\n", "https://x", "C4\u00e9", strings.Repeat("C", 65)},
		},
		"test event code": {
			tiktok.CheckTestCode,
			[]string{"TEST12345", "T", "a_b-c"},
			[]string{"", "TEST 1", "TEST1\r", `"TEST1"`},
		},
	} {
		for _, s := range tc.good {
			if err := tc.check(s); err != nil {
				t.Errorf("%s %q: %v, want nil", name, s, err)
			}
		}
		for _, s := range tc.bad {
			if err := tc.check(s); err == nil || (len(s) > 1 && strings.Contains(err.Error(), s)) {
				t.Errorf("%s %q: %v, want an error without the value", name, s, err)
			}
		}
	}
}

// An invalid token is a fault of the settings. It was once classified as a missing answer and opened the
// circuit.
func TestPixel_InvalidTokenIsNoOutage(t *testing.T) {
	sim := httptest.NewServer(tiktoksim.New(tiktoksim.Config{}))
	defer sim.Close()
	c := config()
	c.URL = sim.URL + eventPath
	for _, token := range []secret.String{"two\nlines", "caf\u00e9", "with blank", ""} {
		a := tiktok.NewPixel(c, "PIXEL1", token, "").
			Send(t.Context(), []message.Envelope{envelope(new(int64(1)), "usd")})
		if a.Class != purchase.ClassAccess || !a.Known || strings.Contains(a.Message, "no answer") ||
			(token != "" && strings.Contains(a.Message, token.Reveal())) {
			t.Errorf("answer with token %q = %+v, want access without the token", token.Reveal(), a)
		}
	}
}
