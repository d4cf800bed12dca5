// Package sqlconst reads a package's SQL statements from its source, so that a test can prepare each one.
package sqlconst

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"strings"
)

// Statements returns the constants of the package in dir whose names begin with "sql", by name. The other
// ones are parts of statements.
func Statements(dir string) (map[string]string, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	// Nothing is imported: errors about that are ignored, and a statement must do without.
	config := types.Config{IgnoreFuncBodies: true, Error: func(error) {}}
	pkg, _ := config.Check(dir, fset, files, nil)
	statements := map[string]string{}
	for _, name := range pkg.Scope().Names() {
		c, isConst := pkg.Scope().Lookup(name).(*types.Const)
		if !isConst || !strings.HasPrefix(name, "sql") {
			continue
		}
		if c.Val().Kind() != constant.String {
			return nil, fmt.Errorf("evaluate %s: not a string made of the package's own constants", name)
		}
		statements[name] = constant.StringVal(c.Val())
	}
	return statements, nil
}
