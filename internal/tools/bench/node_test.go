package main

import (
	"encoding/json"
	"os"
	"testing"
)

// npm uses the configured registry; the lock has the hash of every package.
func TestNodeHandler_LockNamesContents(t *testing.T) {
	data, err := os.ReadFile("nodehandler/package-lock.json")
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
			t.Errorf("lock of %q = %+v, want a version and a hash, no registry", name, p)
		}
	}
	var own struct{ Dependencies map[string]string }
	if data, err = os.ReadFile("nodehandler/package.json"); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &own); err != nil || len(own.Dependencies) == 0 {
		t.Fatalf("%+v, %v", own, err)
	}
	for name, want := range own.Dependencies {
		if lock.Packages[""].Dependencies[name] != want || lock.Packages["node_modules/"+name].Version == "" {
			t.Errorf("lock of %s lacks %s", name, want)
		}
	}
}
