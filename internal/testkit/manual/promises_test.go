package manual_test

import (
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// declaredTests returns the names of the tests and fuzz tests, by their package's folder.
func declaredTests(t *testing.T) map[string][]string {
	t.Helper()
	tests := map[string][]string{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, top := range []string{"cmd", "internal"} {
		err := fs.WalkDir(os.DirFS(root), top, func(file string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(file, "_test.go") {
				return err
			}
			text, err := os.ReadFile(root + "/" + file)
			for _, m := range declared.FindAllSubmatch(text, -1) {
				tests[path.Dir(file)] = append(tests[path.Dir(file)], string(m[1]))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return tests
}

// rowsBelow returns the rows of the table with a header, of which there must be at least ten.
func rowsBelow(t *testing.T, file, header string) []string {
	t.Helper()
	text, err := os.ReadFile(root + "/" + file)
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), header)
	table, _, _ = strings.Cut(table, "\n\n")
	rows := strings.Split(strings.TrimSpace(table), "\n")
	if !found || len(rows) < 10 {
		t.Fatalf("%s has no table of promises", file)
	}
	return rows
}

// Each promise of docs/security.md and docs/promises.md names tests that exist, the latter with their package.
// An ellipsis stands for any part of a name.
func TestPromises_NameTheirTests(t *testing.T) {
	t.Parallel()
	tests := declaredTests(t)
	exists := func(pkg, name string) bool {
		pattern := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(name), "…", `\w*`) + "$")
		folder := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(pkg), "…", `.*`) + "$")
		for dir, names := range tests {
			if pkg != "" && !folder.MatchString(dir) {
				continue
			}
			if slices.ContainsFunc(names, pattern.MatchString) {
				return true
			}
		}
		return false
	}
	named := regexp.MustCompile("`((?:internal|cmd)/[^`]+|(?:Test|Fuzz)[^`]+|make [^`]+)`")
	for file, header := range map[string]string{
		"docs/security.md": "| who | might | what protects | shown by |\n|---|---|---|---|\n",
		"docs/promises.md": "| promise | test |\n|---|---|\n",
	} {
		for _, row := range rowsBelow(t, file, header) {
			cells := strings.Split(strings.Trim(row, "| "), "|")
			pkg, count := "", 0
			for _, m := range named.FindAllStringSubmatch(cells[len(cells)-1], -1) {
				switch name := m[1]; {
				case strings.HasPrefix(name, "make "):
					count++
				case strings.Contains(name, "/"):
					pkg = name
				default:
					count++
					if !exists(pkg, name) {
						t.Errorf("%s names %s in %q, which does not exist", file, name, pkg)
					}
				}
			}
			if count == 0 {
				t.Errorf("%s: a promise without a test: %s", file, row)
			}
		}
	}
}
