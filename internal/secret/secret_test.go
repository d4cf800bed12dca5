package secret_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"purchase-relay/internal/secret"
)

func TestString_IsRedacted(t *testing.T) {
	const plain = "whsec_hunter2"
	s := secret.String(plain)
	asJSON, err := json.Marshal(map[string]any{"a": s, "b": &s})
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{
		fmt.Sprint(s), fmt.Sprintf("%s %v %q %+v %#v", s, s, s, struct{ S secret.String }{s}, s), string(asJSON),
	} {
		if strings.Contains(out, "hunter2") {
			t.Errorf("formatted = %s, want no secret", out)
		}
	}
	if got := s.Reveal(); got != plain {
		t.Errorf("Reveal = %q, want %q", got, plain)
	}
}
