package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"purchase-relay/internal/secret"
)

// rights returns the privileges that the runtime role needs by table, exactly those of the statements. DELETE
// is for `ingest prune` and `ingest forget`. Unless the role owns the schema it can run no DDL and no
// TRUNCATE.
func rights() map[string][]string {
	write := []string{"SELECT", "INSERT", "UPDATE"}
	all := []string{"SELECT", "INSERT", "UPDATE", "DELETE"}
	return map[string][]string{
		"stripe_events": all, "profiles": all, "purchases": all, "attempts": all, "trials": all,
		"purchase_attempts": {"SELECT"},
		"backfills":         write, "reconciliations": write, "tiktok_counts": all,
		"tiktok_count_history": {"SELECT", "INSERT", "DELETE"},
		"rollup_changes":       {"SELECT", "DELETE"}, "rollup_totals": all, "rollup_sales": all, "rollup_keys": all,
		"rollup_delays": all, "rollup_statuses": write, "schema_compat": {"SELECT"}, "goose_db_version": {"SELECT"},
	}
}

func rightColumns() (tables, privileges []string) {
	for table, list := range rights() {
		for _, privilege := range list {
			tables, privileges = append(tables, table), append(privileges, privilege)
		}
	}
	return tables, privileges
}

// ErrNoRights is wrapped by errors about missing rights. Its text is the remedy, because the error ends a
// command that prints nothing else.
var ErrNoRights = errors.New("run `ingest migrate` with MIGRATE_DATABASE_URL naming the schema's owner and " +
	"DATABASE_URL naming this role: it grants what ingest needs")

// Explain wraps an error about missing rights with ErrNoRights.
func Explain(err error) error {
	const insufficientPrivilege = "42501"
	if pgErr := new(pgconn.PgError); errors.As(err, &pgErr) && pgErr.Code == insufficientPrivilege {
		return fmt.Errorf("%w: %w", err, ErrNoRights)
	}
	return err
}

// A table that no longer exists has no missing privileges.
const sqlMissingRights = `
SELECT r.privilege || ' on ' || r.tab FROM unnest($1::text[], $2::text[]) AS r (tab, privilege)
WHERE NOT has_table_privilege(to_regclass('public.' || r.tab), r.privilege) ORDER BY r.tab, r.privilege`

func missingRights(ctx context.Context, conn interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
},
) ([]string, error) {
	tables, privileges := rightColumns()
	rows, err := conn.Query(ctx, sqlMissingRights, tables, privileges)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func (db *DB) checkRights(ctx context.Context) error {
	missing, err := missingRights(ctx, db.pool)
	switch {
	case err != nil:
		return fmt.Errorf("read rights: %w", err)
	case len(missing) > 0:
		return fmt.Errorf("this role lacks %s: %w", strings.Join(missing, ", "), ErrNoRights)
	}
	return nil
}

const sqlLockGrants = `SELECT pg_advisory_xact_lock(` + lockGrants + `)`

// Grant grants the role of the runtime URL its rights on the owner's tables. It does nothing if both URLs
// have the same role.
func Grant(ctx context.Context, ownerURL, runtime secret.String) (err error) {
	conn, user, err := openOwner(ownerURL)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	config, err := parseURL(runtime)
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", ErrURL)
	}
	if config.User == user {
		return nil
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("grant rights: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // no effect after the commit
	role := pgx.Identifier{config.User}.Sanitize()
	// Concurrent grants on one table fail, and replicas may start together.
	statements := []string{sqlLockGrants, "GRANT USAGE ON SCHEMA public TO " + role}
	for table, list := range rights() {
		statements = append(statements,
			"GRANT "+strings.Join(list, ", ")+" ON public."+pgx.Identifier{table}.Sanitize()+" TO "+role)
	}
	for _, statement := range statements {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("grant rights to %s: %w", role, err)
		}
	}
	return tx.Commit()
}

const sqlMayCreate = `SELECT has_schema_privilege('public', 'CREATE')`

// MayCreate reports whether this role may create tables. Before Postgres 15 every role may by default.
func (db *DB) MayCreate(ctx context.Context) (may bool, err error) {
	return may, db.pool.QueryRow(ctx, sqlMayCreate).Scan(&may)
}
