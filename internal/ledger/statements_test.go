package ledger

import (
	"path/filepath"
	"strings"
	"testing"

	"purchase-relay/internal/testkit/sqlconst"
)

// A statement that selects * fails in an older binary once a migration adds a column.
func TestStatements_NameTheirColumns(t *testing.T) {
	t.Parallel()
	for name, sql := range statements(t) {
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
