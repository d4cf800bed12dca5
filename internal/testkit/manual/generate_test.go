package manual_test

import (
	"cmp"
	"flag"
	"fmt"
	"go/doc/comment"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"purchase-relay/internal/testkit/manual"
)

//go:generate go test . -run TestGenerate -update

var update = flag.Bool("update", false, "write the generated text into the files")

// section is a part of a generated file.
type section struct {
	title string
	list  []manual.Variable
}

func TestGenerate_CommittedFilesAreCurrent(t *testing.T) {
	t.Parallel()
	ingest, err1 := manual.Variables(root, "ingest")
	worker, err2 := manual.Variables(root, "tiktok-worker")
	if err := cmp.Or(err1, err2); err != nil {
		t.Fatal(err)
	}
	var both []manual.Variable
	for _, v := range ingest {
		if slices.Contains(worker, v) {
			both = append(both, v)
		}
	}
	shared := func(v manual.Variable) bool { return slices.Contains(both, v) }
	sections := []section{
		{"ingest", slices.DeleteFunc(ingest, shared)},
		{"tiktok-worker", slices.DeleteFunc(worker, shared)},
		{"Both", both},
	}
	between := regexp.MustCompile(`(?s)(BEGIN GENERATED[^\n]*\n).*(\n[^\n]*END GENERATED)`)
	for name, generated := range map[string]string{
		"docs/configuration.md": markdown(sections), ".env.example": example(sections),
	} {
		got := read(t, name)
		want := between.ReplaceAllString(got, "${1}\n"+strings.ReplaceAll(generated, "$", "$$")+"$2")
		switch {
		case !between.MatchString(got):
			t.Errorf("%s has no generated part", name)
		case got == want:
		case *update:
			if err := os.WriteFile(filepath.Join(root, name), []byte(want), 0o644); err != nil {
				t.Error(err)
			}
		default:
			t.Errorf("%s differs from the configuration structs: run go generate ./...", name)
		}
	}
}

// markdown renders a table for each section.
func markdown(sections []section) string {
	var out strings.Builder
	for _, s := range sections {
		fmt.Fprintf(&out, "## %s\n\n| variable | default | | meaning |\n|---|---|---|---|\n", s.title)
		for _, v := range s.list {
			value, file := "empty", ""
			if v.Default != "" {
				value = "`" + v.Default + "`"
			} else if strings.Contains(v.Help, " Required. ") {
				value = "required"
			}
			if v.File {
				file = "file"
			}
			fmt.Fprintf(&out, "| `%s` | %s | %s | %s |\n", v.Name, value, file, v.Help)
		}
		out.WriteString("\n")
	}
	return strings.TrimSuffix(out.String(), "\n")
}

// example renders each variable once, as a comment and an assignment that is commented out.
func example(sections []section) string {
	var out strings.Builder
	seen := map[string]bool{}
	wrap := comment.Printer{TextPrefix: "# ", TextWidth: 98}
	for _, s := range sections {
		fmt.Fprintf(&out, "# %s %s\n\n", s.title, strings.Repeat("-", 97-len(s.title)))
		for _, v := range s.list {
			if !seen[v.Name] {
				help := wrap.Text(new(comment.Parser).Parse(v.Help))
				fmt.Fprintf(&out, "%s#%s=%s\n\n", help, v.Name, cmp.Or(v.Default, v.Example))
			}
			seen[v.Name] = true
		}
	}
	return strings.TrimSuffix(out.String(), "\n")
}
