package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdxlib"
)

// example describes a file by the modules of binaries with these names, each this test's own.
func example(t *testing.T, names ...string) source {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range names {
		if err := os.Symlink(binary, filepath.Join(dir, "bin-"+name)); err != nil {
			t.Fatal(err)
		}
	}
	artefact := filepath.Join(dir, "relay_0.1.0~dev.1_amd64.deb")
	if err := os.WriteFile(artefact, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	return source{
		artefact: artefact, version: "0.1.0",
		created: time.Date(2026, 11, 28, 17, 0, 0, 0, time.FixedZone("CET", 3600)),
		pattern: filepath.Join(dir, "bin-*"),
	}
}

func TestDocument_ListsModulesOfBinaries(t *testing.T) {
	t.Parallel()
	text, err := example(t, "ingest").document()
	if err != nil {
		t.Fatal(err)
	}
	var doc spdx.Document
	if err := json.ReadInto(bytes.NewReader(text), &doc); err != nil {
		t.Fatal(err)
	}
	if err := spdxlib.ValidateDocument(&doc); err != nil {
		t.Errorf("document is not valid SPDX: %v", err)
	}
	if got, want := doc.CreationInfo.Created, "2026-11-28T16:00:00Z"; got != want {
		t.Errorf("created = %s, want %s", got, want)
	}
	const sum = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73" // of "content"
	if got := doc.Packages[0].PackageChecksums; len(got) != 1 || got[0].Value != sum {
		t.Errorf("checksums = %v, want %s", got, sum)
	}
	var modules []string
	for _, p := range doc.Packages[1:] {
		modules = append(modules, p.PackageExternalReferences[0].Locator)
	}
	for _, want := range []string{"pkg:golang/stdlib@1.", "pkg:golang/github.com/spdx/tools-golang@v0."} {
		if !slices.ContainsFunc(modules, func(m string) bool { return strings.HasPrefix(m, want) }) {
			t.Errorf("modules = %q, want one with %s", modules, want)
		}
	}
	if !slices.IsSorted(modules) {
		t.Errorf("modules = %q, want them sorted", modules)
	}
}

// A module of several binaries is listed once.
func TestDocument_SameInputGivesSameBytes(t *testing.T) {
	t.Parallel()
	first, err := example(t, "ingest").document()
	if err != nil {
		t.Fatal(err)
	}
	second, err := example(t, "ingest", "worker").document()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Errorf("documents differ:\n%s\n%s", first, second)
	}
}

func TestDocument_RejectsMissingAndForeignFiles(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*source)
		want   string
	}{
		"no artefact":   {func(s *source) { s.artefact += ".missing" }, "read the artefact"},
		"no binary":     {func(s *source) { s.pattern = "/nowhere/*" }, "no file matches"},
		"no Go binary":  {func(s *source) { s.pattern = s.artefact }, "read the modules"},
		"wrong pattern": {func(s *source) { s.pattern = "[" }, "find the binaries"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := example(t, "ingest")
			tc.change(&s)
			if _, err := s.document(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q", err, tc.want)
			}
		})
	}
}
