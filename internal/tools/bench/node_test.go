package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// npm uses the configured registry; each lock has the hash of every package.
func TestNPM_LocksNameContents(t *testing.T) {
	for _, dir := range []string{"nodehandler", "../testdeps/testdata/axe"} {
		t.Run(dir, func(t *testing.T) { checkLock(t, dir) })
	}
}

func checkLock(t *testing.T, dir string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "package-lock.json"))
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
	if data, err = os.ReadFile(filepath.Join(dir, "package.json")); err != nil {
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
