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

// declaredTests returns the names of the tests and fuzz tests as folder/name.
func declaredTests(t *testing.T) (tests []string) {
	t.Helper()
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, top := range []string{"cmd", "internal"} {
		err := fs.WalkDir(os.DirFS(root), top, func(file string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(file, "_test.go") {
				return err
			}
			for _, m := range declared.FindAllStringSubmatch(read(t, file), -1) {
				tests = append(tests, path.Join(path.Dir(file), m[1]))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return tests
}

// promises returns the last cells of the tables whose last column names tests.
func promises(t *testing.T, file string) (cells []string) {
	t.Helper()
	for table := range strings.SplitSeq(read(t, file), "\n\n") {
		rows := strings.Split(strings.TrimSpace(table), "\n")
		header := strings.TrimRight(rows[0], "| ")
		if !strings.HasSuffix(header, "| test") && !strings.HasSuffix(header, "| shown by") {
			continue
		}
		for _, row := range rows[2:] {
			columns := strings.Split(strings.Trim(row, "| "), "|")
			cells = append(cells, columns[len(columns)-1])
		}
	}
	return cells
}

// Each promise names existing tests or a command of make. An ellipsis stands for any part of a name. A test
// without a package before it may be in any package.
func TestPromises_NameTheirTests(t *testing.T) {
	t.Parallel()
	tests := declaredTests(t)
	total := 0
	for _, file := range []string{"docs/security.md", "docs/promises.md"} {
		named := regexp.MustCompile("`((?:internal|cmd)/[^`]+|(?:Test|Fuzz)[^`]+|make [^`]+)`")
		for _, cell := range promises(t, file) {
			total++
			folder, count := "…", 0
			for _, m := range named.FindAllStringSubmatch(cell, -1) {
				name := m[1]
				if strings.HasPrefix(name, "internal/") || strings.HasPrefix(name, "cmd/") {
					folder = name
					continue
				}
				count++
				pattern := strings.ReplaceAll(regexp.QuoteMeta(folder+"/"+name), "…", ".*")
				exists := regexp.MustCompile("^" + pattern + "$").MatchString
				if !strings.HasPrefix(name, "make ") && !slices.ContainsFunc(tests, exists) {
					t.Errorf("%s names %s in %s, which does not exist", file, name, folder)
				}
			}
			if count == 0 {
				t.Errorf("%s: a promise without a test: %s", file, cell)
			}
		}
	}
	if total < 40 {
		t.Errorf("promises = %d, want at least 40: has a table's header changed?", total)
	}
}
