// Package manual generates the lists of docs/configuration.md and .env.example from the configuration
// structs of both binaries: a field's help and comment are its documentation.
package manual

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Variable is one that a binary takes.
type Variable struct {
	Name    string
	Default string // empty: none
	Example string // shown in .env.example where there is no default
	File    bool   // whether NAME_FILE may name a file that holds the value
	Help    string
}

// Variables returns a binary's variables in the order of its struct's fields.
func Variables(root, binary string) ([]Variable, error) {
	return fields(root, "cmd/"+binary, "config")
}

// fields reads a struct's variables from the source of its package. Types that the struct embeds belong to
// packages in internal.
func fields(root, dir, name string) (list []Variable, err error) {
	found, err := findStruct(filepath.Join(root, dir), name)
	if err != nil {
		return nil, err
	}
	for _, field := range found.Fields.List {
		outside, _ := field.Type.(*ast.SelectorExpr)
		if len(field.Names) == 0 {
			embedded, err := fields(root, "internal/"+outside.X.(*ast.Ident).Name, outside.Sel.Name)
			if err != nil {
				return nil, err
			}
			list = append(list, embedded...)
			continue
		}
		source, err := strconv.Unquote(field.Tag.Value)
		if err != nil {
			return nil, fmt.Errorf("read the tag of %s.%s: %w", name, field.Names[0], err)
		}
		tag := reflect.StructTag(source)
		if _, command := tag.Lookup("cmd"); command {
			continue
		}
		help := tag.Get("help") + " " + strings.Join(strings.Fields(field.Doc.Text()), " ")
		list = append(list, Variable{
			Name:    variableName(cmp.Or(tag.Get("name"), field.Names[0].Name)),
			Default: tag.Get("default"), Example: tag.Get("example"),
			File: outside != nil && outside.X.(*ast.Ident).Name == "secret",
			Help: strings.TrimSpace(help),
		})
	}
	return list, nil
}

func findStruct(dir, name string) (*ast.StructType, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		for node := range ast.Preorder(parsed) {
			if spec, ok := node.(*ast.TypeSpec); ok && spec.Name.Name == name {
				return spec.Type.(*ast.StructType), nil
			}
		}
	}
	return nil, fmt.Errorf("find the struct %s in %s", name, dir)
}

var wordBorder = regexp.MustCompile(`([a-z])([A-Z])`)

// variableName returns the environment's name of a field or a flag, as the binaries' parser derives it.
func variableName(name string) string {
	return strings.ToUpper(strings.ReplaceAll(wordBorder.ReplaceAllString(name, "${1}_$2"), "-", "_"))
}

// section is a part of a generated file.
type section struct {
	title string
	list  []Variable
}

// Generate returns the files that hold generated text, by their path below root, with that text renewed.
func Generate(root string) (map[string]string, error) {
	ingest, err := Variables(root, "ingest")
	if err != nil {
		return nil, err
	}
	worker, err := Variables(root, "tiktok-worker")
	if err != nil {
		return nil, err
	}
	var both []Variable
	for _, v := range ingest {
		if slices.Contains(worker, v) {
			both = append(both, v)
		}
	}
	shared := func(v Variable) bool { return slices.Contains(both, v) }
	sections := []section{
		{"ingest", slices.DeleteFunc(ingest, shared)},
		{"tiktok-worker", slices.DeleteFunc(worker, shared)},
		{"Both", both},
	}
	files := map[string]string{"docs/configuration.md": markdown(sections), ".env.example": example(sections)}
	for name, generated := range files {
		if files[name], err = renew(filepath.Join(root, name), generated); err != nil {
			return nil, err
		}
	}
	return files, nil
}

var between = regexp.MustCompile(`(?s)(BEGIN GENERATED[^\n]*\n).*(\n[^\n]*END GENERATED)`)

// renew returns a file's content with other text between its marks.
func renew(file, generated string) (string, error) {
	content, err := os.ReadFile(file) //nolint:gosec // a file of the sources
	if err != nil {
		return "", err
	}
	if !between.Match(content) {
		return "", fmt.Errorf("read %s: no generated part", file)
	}
	generated = strings.ReplaceAll(generated, "$", "$$")
	return between.ReplaceAllString(string(content), "${1}\n"+generated+"$2"), nil
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
