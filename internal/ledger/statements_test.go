package ledger

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/pglocal/pgtest"
	"purchase-relay/internal/testkit/sqlconst"
)

// Every statement can be prepared on the migrated schema and names its columns.
func TestStatements_ArePreparable(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	if _, err := Migrate(t.Context(), secret.String(url)); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	for name, sql := range statements(t) {
		if _, err := conn.Prepare(t.Context(), name, sql); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(sql, "SELECT *") {
			t.Errorf("%s has SELECT *, want named columns", name)
		}
	}
}

// statements returns the SQL statements of all packages by package and name.
func statements(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, dir := range []string{".", "../ops/report", "../ops/maintenance", "../ops/backfill"} {
		list, err := sqlconst.Statements(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			t.Fatalf("no statements found in %s", dir)
		}
		for name, sql := range list {
			all[filepath.Base(dir)+" "+name] = sql
		}
	}
	return all
}
