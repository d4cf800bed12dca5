package ledger

import (
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/pglocal/pgtest"
	"purchase-relay/internal/testkit/sqlconst"
)

// openEmpty returns a migrated, empty ledger.
func openEmpty(tb testing.TB) *DB {
	tb.Helper()
	url := secret.String(pgtest.Database(tb))
	if _, err := Migrate(tb.Context(), url); err != nil {
		tb.Fatal(err)
	}
	db, err := Open(tb.Context(), url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(db.Close)
	return db
}

// Plans are often prepared while the ledger is empty and kept as it grows: webhooks, pruning and the list of
// problems must use indexes.
func TestPlans_OfEmptyLedgerUseIndexes(t *testing.T) {
	t.Parallel()
	conn, err := openEmpty(t).pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	prune, err := sqlconst.Statements("../ops/maintenance")
	if err != nil {
		t.Fatal(err)
	}
	problems, err := sqlconst.Statements("../ops/report")
	if err != nil {
		t.Fatal(err)
	}
	// The rollup's table of changes is always small.
	seqScan := regexp.MustCompile(`Seq Scan on (public\.)?[^r]`)
	const pruneTypes = "text, timestamptz, boolean, timestamptz, text, int"
	const pruneValues = "'delivered', now(), true, now(), 'cs', 500"
	for name, statement := range map[string]struct{ sql, types, values string }{
		"events":         {sqlKnownEvents, "text[]", "'{a,b}'"},
		"sessions":       {sqlSessionStates, "text[]", "'{a,b}'"},
		"profiles":       {sqlKnownProfiles, "boolean[], text[]", "'{t,f}', '{a,b}'"},
		"lock":           {sqlLockPurchases, "text[]", "'{a,b}'"},
		"prune":          {prune["sqlPrunePurchases"], pruneTypes, pruneValues},
		"prune_attempts": {prune["sqlPruneAttempts"], pruneTypes, pruneValues},
		"prune_events": {
			prune["sqlPruneEvents"], "timestamptz, timestamptz, text, int", "now(), now(), 'evt', 500",
		},
		"displaced":      {sqlDisplaceAttempts, "text[]", "'{a,b}'"},
		"attempts":       {problems["sqlAttempts"], "text[]", "'{a,b}'"},
		"problem_groups": {problems["sqlProblemGroups"], "", ""},
		"problem_times":  {problems["sqlProblemTimes"], "", ""},
	} {
		if statement.types != "" {
			statement.types, statement.values = "("+statement.types+")", "("+statement.values+")"
		}
		prepare := "SET plan_cache_mode = force_generic_plan; PREPARE " + name + " " + statement.types + " AS "
		if _, err := conn.Exec(t.Context(), prepare+statement.sql); err != nil {
			t.Fatal(err)
		}
		explain := "EXPLAIN EXECUTE " + name + " " + statement.values
		rows, err := conn.Query(t.Context(), explain, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Join(plan, "\n")
		if !strings.Contains(text, "Index") || seqScan.MatchString(text) {
			t.Errorf("%s: want an index scan, got\n%s", name, text)
		}
		// The mode alone selects every profile: each webhook of a new ledger read all of them.
		const both = "Index Cond: ((livemode = u.livemode) AND (email = u.email))"
		if name == "profiles" && !strings.Contains(text, both) {
			t.Errorf("%s: want a look-up by mode and address, got\n%s", name, text)
		}
	}
}
