// Package manual reads the variables of both binaries from their configuration structs: a field's help and
// comment are its documentation. Its test generates the lists of docs/configuration.md and .env.example.
package manual

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
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

// CheckHelp compares a binary's help, which comes from its parser, with the variables read from its source.
func CheckHelp(t *testing.T, root, binary, help string) {
	t.Helper()
	known, err := Variables(root, binary)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, v := range known {
		want = append(want, "$"+v.Name)
		if v.File {
			want = append(want, "$"+v.Name+"_FILE")
		}
	}
	_, settings, _ := strings.Cut(help, "\nSettings:\n")
	got := regexp.MustCompile(`\$[A-Z_]+`).FindAllString(settings, -1)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s --help names %v, want %v", binary, got, want)
	}
}
