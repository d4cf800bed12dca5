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

// rights returns the privileges that the runtime role needs by table: those of the statements, and no others.
// `ingest prune` and `ingest forget` delete rows. The role owns no table, runs no DDL and truncates nothing
// if the owner is another role.
func rights() map[string][]string {
	write := []string{"SELECT", "INSERT", "UPDATE"}
	all := []string{"SELECT", "INSERT", "UPDATE", "DELETE"}
	return map[string][]string{
		"stripe_events": all, "profiles": all, "purchases": all, "attempts": all, "trials": all,
		"backfills": write, "reconciliations": write,
		"rollup_changes": {"SELECT", "DELETE"}, "rollup_hours": all, "rollup_delays": all, "rollup_statuses": write,
		"rollup_totals": all, "schema_compat": {"SELECT"}, "goose_db_version": {"SELECT"},
	}
}

// pairs returns the rights as two lists for unnest.
func pairs() (tables, privileges []string) {
	for table, list := range rights() {
		for _, privilege := range list {
			tables, privileges = append(tables, table), append(privileges, privilege)
		}
	}
	return tables, privileges
}

// ErrNoRights is the remedy for a role without rights; the error that wraps it names them.
var ErrNoRights = errors.New("run `ingest migrate` with MIGRATE_DATABASE_URL naming the schema's owner and " +
	"DATABASE_URL naming this role: it grants what ingest needs")

// Explain adds the remedy to an error about missing rights.
func Explain(err error) error {
	const insufficientPrivilege = "42501"
	if refusal := new(pgconn.PgError); errors.As(err, &refusal) && refusal.Code == insufficientPrivilege {
		return fmt.Errorf("%w: %w", err, ErrNoRights)
	}
	return err
}

// A table that no longer exists counts as none.
const sqlMissingRights = `
SELECT r.privilege || ' on ' || r.tab FROM unnest($1::text[], $2::text[]) AS r (tab, privilege)
WHERE NOT has_table_privilege(to_regclass('public.' || r.tab), r.privilege) ORDER BY r.tab, r.privilege`

// missingRights lists the privileges that the role of a connection or pool lacks.
func missingRights(ctx context.Context, conn interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
},
) ([]string, error) {
	tables, privileges := pairs()
	rows, err := conn.Query(ctx, sqlMissingRights, tables, privileges)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// checkRights returns an error that lists this role's missing rights.
func (db *DB) checkRights(ctx context.Context) error {
	missing, err := missingRights(ctx, db.pool)
	switch {
	case err != nil:
		return fmt.Errorf("read the role's rights: %w", err)
	case len(missing) > 0:
		return fmt.Errorf("this role lacks %s: %w", strings.Join(missing, ", "), ErrNoRights)
	}
	return nil
}

const sqlLockGrants = `SELECT pg_advisory_xact_lock(` + lockGrants + `)`

// Grant grants the role of the URL runtime what ingest needs on the tables of the owner's role. It does
// nothing if both are the same role.
func Grant(ctx context.Context, ownerURL, runtime secret.String) (err error) {
	conn, user, err := owner(ownerURL)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	config, err := pgx.ParseConfig(runtime.Reveal())
	if err != nil {
		return errDatabaseURL
	}
	if config.User == user {
		return nil
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("grant the runtime role its rights: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // no effect after the commit
	role := pgx.Identifier{config.User}.Sanitize()
	// Replicas may start together, and concurrent grants on one table fail.
	statements := []string{sqlLockGrants, "GRANT USAGE ON SCHEMA public TO " + role}
	for table, list := range rights() {
		statements = append(statements,
			"GRANT "+strings.Join(list, ", ")+" ON public."+pgx.Identifier{table}.Sanitize()+" TO "+role)
	}
	for _, statement := range statements {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("grant the runtime role %s its rights: %w", role, err)
		}
	}
	return tx.Commit()
}

const sqlMayCreate = `SELECT has_schema_privilege('public', 'CREATE')`

// MayCreate reports whether this role may create tables: Postgres before 15 allows every role to.
func (db *DB) MayCreate(ctx context.Context) (may bool, err error) {
	return may, db.pool.QueryRow(ctx, sqlMayCreate).Scan(&may)
}
