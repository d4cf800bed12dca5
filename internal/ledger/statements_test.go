package ledger

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/pglocal/pgtest"
)

// Every constant of statements.go is a statement that the migrated schema takes, and names its columns.
func TestStatements(t *testing.T) {
	url := pgtest.Database(t)
	if _, err := Migrate(t.Context(), secret.Text(url)); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	eachStatement(t, func(name, sql string) {
		if _, err := conn.Prepare(t.Context(), name, sql); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(sql, "SELECT *") {
			t.Errorf("%s selects every column there is", name)
		}
	})
}

// eachStatement visits the constants of statements.go that are whole statements.
func eachStatement(t *testing.T, visit func(name, sql string)) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "statements.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	visited := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		name := spec.Names[0].Name
		if !strings.HasPrefix(name, "sql") {
			return true // a part of others
		}
		visit(name, textOf(t, file, spec.Values[0]))
		visited++
		return true
	})
	if visited < 10 {
		t.Errorf("only %d statements were found", visited)
	}
}

// textOf evaluates a constant text: a literal, a name, or a sum of both.
func textOf(t *testing.T, file *ast.File, e ast.Expr) string {
	t.Helper()
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		if err != nil {
			t.Fatal(err)
		}
		return text
	case *ast.BinaryExpr:
		return textOf(t, file, e.X) + textOf(t, file, e.Y)
	case *ast.Ident:
		var text string
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok && spec.Names[0].Name == e.Name {
				text = textOf(t, file, spec.Values[0])
			}
			return true
		})
		return text
	}
	t.Fatalf("%T is no text", e)
	return ""
}
