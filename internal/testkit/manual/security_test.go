package manual_test

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
)

// Each promise of docs/security.md names the tests that show it, and they are there.
func TestSecurity_PromisesNameTheirTests(t *testing.T) {
	t.Parallel()
	tests := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, top := range []string{"cmd", "internal"} {
		err := fs.WalkDir(os.DirFS(root), top, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(root + "/" + path)
			for _, m := range declared.FindAllSubmatch(text, -1) {
				tests[string(m[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(root + "/docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "| who | might | what protects | shown by |\n|---|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	if !found || strings.Count(table, "\n") < 10 {
		t.Fatal("docs/security.md has no table of promises any more")
	}
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`")
	for row := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSpace(row), "|")
		names := named.FindAllStringSubmatch(cells[len(cells)-2], -1)
		if len(names) == 0 {
			t.Errorf("this promise names no test: %s", row)
		}
		for _, name := range names {
			if !tests[name[1]] {
				t.Errorf("docs/security.md names %s, which is nowhere", name[1])
			}
		}
	}
}
