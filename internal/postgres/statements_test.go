package postgres

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/dev/pglocal/pgtest"
	"purchase-relay/internal/secret"
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
	file, err := parser.ParseFile(token.NewFileSet(), "statements.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	prepared := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		sql, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		name := spec.Names[0].Name
		if _, err := conn.Prepare(t.Context(), name, sql); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(sql, "SELECT *") {
			t.Errorf("%s selects every column there is", name)
		}
		prepared++
		return true
	})
	if prepared < 10 {
		t.Errorf("only %d statements were found", prepared)
	}
}
