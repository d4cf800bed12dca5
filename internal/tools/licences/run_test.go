package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLicence(t *testing.T) {
	mit, err := os.ReadFile("../../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	const gpl = "This program is free software: you can redistribute it and/or modify it under the terms of the GNU General Public License as published by the " +
		"Free Software Foundation, either version 3 of the License, or (at your option) any later version.\n"
	for name, tc := range map[string]struct{ file, text, want, wrong string }{
		"MIT":             {"LICENSE", string(mit), "MIT", ""},
		"another name":    {"licence.md", string(mit), "MIT", ""},
		"none":            {"README", "hello", "", "no licence"},
		"not a licence":   {"LICENSE", "Do what you like.", "", "no licence"},
		"asks for more":   {"COPYING", gpl, "", "asks for more"},
		"one of two does": {"LICENSE", string(mit) + gpl, "", "asks for more"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, tc.file), []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		names, _, err := module{dir: dir}.licence()
		if got := strings.Join(names, ","); got != tc.want || (err == nil) != (tc.wrong == "") || err != nil && !strings.Contains(err.Error(), tc.wrong) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
