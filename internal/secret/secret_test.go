package secret_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"purchase-relay/internal/secret"
)

func TestTextNeverPrintsItself(t *testing.T) {
	const plain = "whsec_hunter2"
	s := secret.Text(plain)
	asJSON, err := json.Marshal(map[string]any{"a": s, "b": &s})
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{
		fmt.Sprint(s), fmt.Sprintf("%s %v %q %+v %#v", s, s, s, struct{ S secret.Text }{s}, s), string(asJSON),
	} {
		if strings.Contains(out, "hunter2") {
			t.Errorf("the secret was printed: %s", out)
		}
	}
	if s.Reveal() != plain {
		t.Errorf("Reveal = %q", s.Reveal())
	}
}
