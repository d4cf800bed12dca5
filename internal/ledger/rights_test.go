package ledger

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/pglocal/pgtest"
)

// roles is a database with two roles: the owner, which migrates, and the runtime role, without rights at
// first.
type roles struct {
	t              *testing.T
	admin          *pgx.Conn
	owner, runtime secret.String
	role           string // the runtime's
}

func newRoles(t *testing.T) *roles {
	t.Helper()
	admin := pgtest.Database(t)
	u, err := url.Parse(admin)
	if err != nil {
		t.Fatal(err)
	}
	database := strings.Trim(u.Path, "/")
	as := func(role string) secret.String {
		query := u.Query()
		query.Set("user", role)
		return secret.String("postgres:///" + database + "?" + query.Encode())
	}
	r := &roles{t: t, owner: as("owner_" + database), role: "Run-Time-" + database} // a name that must be quoted
	r.runtime = as(r.role)
	r.admin = r.connect(secret.String(admin))
	r.exec("CREATE ROLE owner_" + database + " LOGIN")
	r.exec(`CREATE ROLE "` + r.role + `" LOGIN`)
	r.exec("ALTER DATABASE " + database + " OWNER TO owner_" + database)
	r.exec("ALTER SCHEMA public OWNER TO owner_" + database)
	r.exec("REVOKE CREATE ON SCHEMA public FROM PUBLIC") // the default since Postgres 15
	return r
}

// exec runs a statement as the superuser.
func (r *roles) exec(statement string) {
	r.t.Helper()
	if _, err := r.admin.Exec(r.t.Context(), statement); err != nil {
		r.t.Fatalf("%s: %v", statement, err)
	}
}

func (r *roles) connect(url secret.String) *pgx.Conn {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), url.Reveal())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close(r.t.Context()) })
	return conn
}

func (r *roles) migrate() {
	r.t.Helper()
	if _, err := Migrate(r.t.Context(), r.owner); err != nil {
		r.t.Fatal(err)
	}
	if err := Grant(r.t.Context(), r.owner, r.runtime); err != nil {
		r.t.Fatal(err)
	}
}

// Every statement can be prepared. EXPLAIN checks the rights for a statement without running it.
func TestRuntimeRole_CanRunEveryStatement(t *testing.T) {
	t.Parallel()
	r := newRoles(t)
	r.migrate()
	conn := r.connect(r.runtime)
	for name, sql := range statements(t) {
		prepared, err := conn.Prepare(t.Context(), name, sql)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		arguments := ""
		if n := len(prepared.ParamOIDs); n > 0 {
			arguments = "(" + strings.TrimSuffix(strings.Repeat("NULL,", n), ",") + ")"
		}
		if _, err := conn.Exec(t.Context(), `EXPLAIN EXECUTE "`+name+`"`+arguments); err != nil {
			t.Errorf("%s: %v; add the right to rights.go", name, err)
		}
	}
}

func TestRights_CoverEveryTable(t *testing.T) {
	t.Parallel()
	r := newRoles(t)
	r.migrate()
	rows, err := r.admin.Query(t.Context(), `
		SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(tables) < 6 {
		t.Fatalf("tables = %v, %v, want at least 6", tables, err)
	}
	for _, table := range tables {
		if len(rights()[table]) == 0 {
			t.Errorf("rights of table %s are missing in rights.go", table)
		}
	}
}

func TestRuntimeRole_CannotRunDDL(t *testing.T) {
	t.Parallel()
	r := newRoles(t)
	r.migrate()
	conn := r.connect(r.runtime)
	for _, statement := range []string{
		"CREATE TABLE public.mine (a int)", "CREATE TABLE mine AS SELECT 1", "CREATE SCHEMA mine",
		"CREATE VIEW public.mine AS SELECT 1", "CREATE INDEX ON public.purchases (mode)",
		"CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'", "CREATE ROLE mine",
		"CREATE DATABASE mine", "CREATE EXTENSION dblink", "DROP TABLE public.purchases",
		"DROP INDEX public.purchases_pending", "DROP SCHEMA public CASCADE",
		"ALTER TABLE public.purchases ADD COLUMN mine int", "ALTER TABLE public.purchases DISABLE TRIGGER ALL",
		"ALTER TABLE public.purchases OWNER TO CURRENT_USER", "TRUNCATE public.purchases",
		"TRUNCATE public.attempts", "TRUNCATE public.stripe_events", "TRUNCATE public.profiles",
		"DELETE FROM public.rollup_statuses", "DELETE FROM public.schema_compat",
		"UPDATE public.schema_compat SET oldest_binary = 99",
		"INSERT INTO public.goose_db_version (version_id, is_applied) VALUES (99, true)",
		"COPY public.purchases TO PROGRAM 'cat'", "SET ROLE postgres", "ALTER ROLE CURRENT_USER SUPERUSER",
	} {
		_, err := conn.Exec(t.Context(), statement)
		if pgErr := new(pgconn.PgError); !errors.As(err, &pgErr) || pgErr.Code != "42501" {
			t.Errorf("%s: error = %v, want insufficient_privilege", statement, err)
		}
	}
	var owned int
	const countOwned = `SELECT count(*) FROM pg_class WHERE pg_get_userbyid(relowner) = $1`
	if err := r.admin.QueryRow(t.Context(), countOwned, r.role).Scan(&owned); err != nil || owned != 0 {
		t.Errorf("tables and indexes of the runtime role = %d, %v, want 0", owned, err)
	}
	db := r.open()
	if may, err := db.MayCreate(t.Context()); err != nil || may {
		t.Errorf("MayCreate = %t, %v, want false", may, err)
	}
	r.exec("GRANT CREATE ON SCHEMA public TO PUBLIC") // the default before Postgres 15
	if may, err := db.MayCreate(t.Context()); err != nil || !may {
		t.Errorf("MayCreate after the grant = %t, %v, want true", may, err)
	}
}

func (r *roles) open() *DB {
	r.t.Helper()
	db, err := Open(r.t.Context(), r.runtime)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(db.Close)
	return db
}

// A leader holds its lock for its lifetime. Meanwhile a starting replica is granted its rights, and the
// rollup is folded.
func TestLeadership_BlocksNoOtherLock(t *testing.T) {
	t.Parallel()
	r := newRoles(t)
	r.migrate()
	db := r.open()
	leader := db.NotifierLeadership()
	defer leader.Release()
	if leads, err := leader.Hold(t.Context()); err != nil || !leads {
		t.Fatalf("Hold = %t, %v, want true", leads, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := Grant(ctx, r.owner, r.runtime); err != nil {
		t.Errorf("Grant = %v, want success", err)
	}
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		locked, err := TryLock(ctx, tx, LockRollup)
		if !locked {
			t.Error("TryLock(LockRollup) = false, want true")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Errors about missing rights name them and the remedy.
func TestRuntimeRole_WithoutRights(t *testing.T) {
	t.Parallel()
	r := newRoles(t)
	if _, err := Migrate(t.Context(), r.runtime); !errors.Is(err, ErrNoRights) {
		t.Errorf("Migrate an empty database = %v, want ErrNoRights", err)
	}
	if _, err := Migrate(t.Context(), r.owner); err != nil {
		t.Fatal(err)
	}
	db := r.open()
	if _, err := Migrate(t.Context(), r.runtime); !errors.Is(err, ErrNoRights) {
		t.Errorf("Migrate without rights = %v, want ErrNoRights", err)
	}
	if err := db.CheckSchema(t.Context()); !errors.Is(err, ErrNoRights) {
		t.Errorf("CheckSchema without rights = %v, want ErrNoRights", err)
	}
	for range 2 { // idempotent
		if err := Grant(t.Context(), r.owner, r.runtime); err != nil {
			t.Fatal(err)
		}
		if err := db.CheckSchema(t.Context()); err != nil {
			t.Errorf("CheckSchema with rights = %v, want none", err)
		}
	}
	if n, err := Migrate(t.Context(), r.runtime); n != 0 || err != nil {
		t.Errorf("Migrate a current schema = %d, %v, want 0", n, err)
	}
	r.exec(`REVOKE UPDATE ON public.attempts FROM "` + r.role + `"`)
	err := db.CheckSchema(t.Context())
	if !errors.Is(err, ErrNoRights) || !strings.Contains(err.Error(), "UPDATE on attempts") {
		t.Errorf("CheckSchema = %v, want ErrNoRights with UPDATE on attempts", err)
	}
	if err := Grant(t.Context(), r.runtime, r.runtime); err != nil {
		t.Errorf("Grant to the owner itself = %v, want none", err)
	}
}
