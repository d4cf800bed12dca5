package nodehandler_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"purchase-relay/internal/testkit/nodehandler"
)

// Whoever installs it uses the registry that they are set up for: the lock names none, but the content of every package.
func TestLock(t *testing.T) {
	data, err := os.ReadFile("package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	var lock struct {
		Packages map[string]struct {
			Version, Resolved, Integrity string
			Dependencies                 map[string]string
		}
	}
	if err := json.Unmarshal(data, &lock); err != nil {
		t.Fatal(err)
	}
	for name, p := range lock.Packages {
		if p.Resolved != "" || name != "" && (p.Integrity == "" || p.Version == "") {
			t.Errorf("%s: %+v", name, p)
		}
	}
	var own struct{ Dependencies map[string]string }
	if data, err = os.ReadFile("package.json"); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &own); err != nil || len(own.Dependencies) == 0 {
		t.Fatalf("%+v, %v", own, err)
	}
	for name, want := range own.Dependencies {
		if lock.Packages[""].Dependencies[name] != want || lock.Packages["node_modules/"+name].Version == "" {
			t.Errorf("%s %s is not what is locked", name, want)
		}
	}
}

func TestMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, _, err := nodehandler.Install(t.Context(), t.TempDir()); !errors.Is(err, nodehandler.ErrMissing) || !strings.Contains(err.Error(), "there is no node") {
		t.Error(err)
	}
}
