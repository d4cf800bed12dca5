package logsafe_test

import (
	"errors"
	"testing"

	"purchase-relay/internal/logsafe"
)

func TestChanges_ReportsEachTextOnce(t *testing.T) {
	var c logsafe.Changes
	if c.Recovered() {
		t.Error("Recovered before any failure = true, want false")
	}
	for _, step := range []struct {
		text string // "": success
		want bool
	}{
		{"dial tcp [::1]:5432: refused", true},
		{"dial tcp [::1]:5432: refused", false},
		{"read tcp 10.0.0.1:40001->10.0.0.2:5432: reset", true},
		{"read tcp 10.0.0.1:40002->10.0.0.2:5432: reset", false},
		{"", true},
		{"", false},
		{"read tcp 10.0.0.1:40003->10.0.0.2:5432: reset", true},
		{"code 40001", true},
		{"code 40105", true},
		{"", true},
	} {
		var got bool
		if step.text == "" {
			got = c.Recovered()
		} else {
			got = c.Failed(errors.New(step.text))
		}
		if got != step.want {
			t.Errorf("after %q: logged = %t, want %t", step.text, got, step.want)
		}
	}
}
