// Package sqlconst reads a package's SQL statements from its source, so that a test can prepare each one.
package sqlconst

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
)

// Statements returns the constants of a folder's package whose names begin with "sql", by name. A value is
// a literal, a name or a sum of both. Constants with other names are parts of statements.
func Statements(dir string) (map[string]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	values := map[string]ast.Expr{}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return nil, err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Values) == len(spec.Names) {
				for i, name := range spec.Names {
					values[name.Name] = spec.Values[i]
				}
			}
			return true
		})
	}
	statements := map[string]string{}
	for name := range values {
		if !strings.HasPrefix(name, "sql") {
			continue
		}
		if statements[name], err = text(values, values[name]); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return statements, nil
}

func text(values map[string]ast.Expr, e ast.Expr) (string, error) {
	switch e := e.(type) {
	case *ast.BasicLit:
		return strconv.Unquote(e.Value)
	case *ast.BinaryExpr:
		left, err := text(values, e.X)
		if err != nil {
			return "", err
		}
		right, err := text(values, e.Y)
		return left + right, err
	case *ast.Ident:
		if value, ok := values[e.Name]; ok {
			return text(values, value)
		}
		return "", fmt.Errorf("constant %s not found", e.Name)
	}
	return "", fmt.Errorf("%T is no text", e)
}
