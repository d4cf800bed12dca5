package tiktok_test

import (
	"strings"
	"testing"

	"purchase-relay/internal/tiktok"
)

func TestMeaning(t *testing.T) {
	for code, want := range map[int]string{
		0: "Accepted", 40050: "already", 40002: "not valid", 40007: "content", 40105: "access", 401: "firewall", 403: "firewall", 413: "firewall", 404: "access", 429: "Too many",
		40100: "Too many", 503: "not well", 51234: "not well", 12345: "does not list", 20001: "Partly",
	} {
		meaning, remedy := tiktok.Meaning(code)
		if !strings.Contains(meaning, want) {
			t.Errorf("%d: %q, want %q", code, meaning, want)
		}
		if accepted := code == 0 || code == 40050; accepted != (remedy == "") {
			t.Errorf("%d: remedy %q", code, remedy)
		}
	}
}
