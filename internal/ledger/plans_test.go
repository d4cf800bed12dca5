package ledger

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/pglocal/pgtest"
	"purchase-relay/internal/testkit/sqlconst"
)

// A plan that is kept is often made while the ledger is still empty, and then it grows: no webhook, and no step of a pruning, may read a table from end to end.
func TestPlansOfAnEmptyLedger(t *testing.T) {
	t.Parallel()
	url := secret.String(pgtest.Database(t))
	if _, err := Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	db, err := Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	conn, err := db.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	prune, err := sqlconst.Statements("../ops/maintenance")
	if err != nil {
		t.Fatal(err)
	}
	for name, statement := range map[string]struct{ sql, types, values string }{
		"events":         {sqlKnownEvents, "text[]", "'{a,b}'"},
		"sessions":       {sqlSessionStates, "text[]", "'{a,b}'"},
		"profiles":       {sqlKnownProfiles, "text[], text[]", "'{a,b}', '{c}'"},
		"lock":           {sqlLockPurchases, "text[]", "'{a,b}'"},
		"prune":          {prune["sqlPrunePurchases"], "text, timestamptz, boolean, timestamptz, text, int", "'delivered', now(), true, now(), 'cs', 500"},
		"prune_attempts": {prune["sqlPruneAttempts"], "text, timestamptz, boolean, timestamptz, text, int", "'delivered', now(), true, now(), 'cs', 500"},
		"prune_events":   {prune["sqlPruneEvents"], "timestamptz, timestamptz, text, int", "now(), now(), 'evt', 500"},
	} {
		for _, statement := range []string{"SET plan_cache_mode = force_generic_plan", "PREPARE " + name + " (" + statement.types + ") AS " + statement.sql} {
			if _, err := conn.Exec(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		rows, err := conn.Query(t.Context(), "EXPLAIN EXECUTE "+name+" ("+statement.values+")", pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		if text := strings.Join(plan, "\n"); !strings.Contains(text, "Index") || strings.Contains(text, "Seq Scan") {
			t.Errorf("%s:\n%s", name, text)
		}
	}
}
