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

// roles is a database with two roles: one owns it and migrates, the other has nothing yet.
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
	for _, statement := range []string{
		"CREATE ROLE owner_" + database + " LOGIN", `CREATE ROLE "` + r.role + `" LOGIN`, "ALTER DATABASE " + database + " OWNER TO owner_" + database,
		"ALTER SCHEMA public OWNER TO owner_" + database, "REVOKE CREATE ON SCHEMA public FROM PUBLIC", // as Postgres has it since 15
	} {
		if _, err := r.admin.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	return r
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

// The runtime role can run every statement there is. (EXPLAIN checks the rights and does not run it.)
func TestRuntimeRoleCanRunEveryStatement(t *testing.T) {
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
			t.Errorf("the runtime role may not run %s: %v; see rights.go", name, err)
		}
	}
}

// A table that a migration adds needs a word in rights.go.
func TestEveryTableHasItsRights(t *testing.T) {
	t.Parallel()
	r := newRoles(t)
	r.migrate()
	rows, err := r.admin.Query(t.Context(), `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(tables) < 6 {
		t.Fatalf("tables: %v, %v", tables, err)
	}
	for _, table := range tables {
		if len(rights()[table]) == 0 {
			t.Errorf("rights.go does not say what the runtime role may do on %s", table)
		}
	}
}

// It owns nothing and changes no schema.
func TestRuntimeRoleCannotRunDDL(t *testing.T) {
	t.Parallel()
	r := newRoles(t)
	r.migrate()
	conn := r.connect(r.runtime)
	for _, statement := range []string{
		"CREATE TABLE public.mine (a int)", "CREATE TABLE mine AS SELECT 1", "CREATE SCHEMA mine", "CREATE VIEW public.mine AS SELECT 1", "CREATE INDEX ON public.purchases (mode)",
		"CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'", "CREATE ROLE mine", "CREATE DATABASE mine", "CREATE EXTENSION dblink",
		"DROP TABLE public.purchases", "DROP INDEX public.purchases_pending", "DROP SCHEMA public CASCADE", "ALTER TABLE public.purchases ADD COLUMN mine int",
		"ALTER TABLE public.purchases DISABLE TRIGGER ALL", "ALTER TABLE public.purchases OWNER TO CURRENT_USER", "TRUNCATE public.purchases", "TRUNCATE public.attempts",
		"TRUNCATE public.stripe_events", "TRUNCATE public.profiles", "DELETE FROM public.rollup_statuses", "DELETE FROM public.schema_compat", "UPDATE public.schema_compat SET oldest_binary = 99",
		"INSERT INTO public.goose_db_version (version_id, is_applied) VALUES (99, true)", "COPY public.purchases TO PROGRAM 'cat'",
		"SET ROLE postgres", "ALTER ROLE CURRENT_USER SUPERUSER",
	} {
		_, err := conn.Exec(t.Context(), statement)
		if refusal := new(pgconn.PgError); !errors.As(err, &refusal) || refusal.Code != "42501" {
			t.Errorf("the runtime role is not refused %q: %v", statement, err)
		}
	}
	var owned int
	if err := r.admin.QueryRow(t.Context(), `SELECT count(*) FROM pg_class WHERE pg_get_userbyid(relowner) = $1`, r.role).Scan(&owned); err != nil || owned != 0 {
		t.Errorf("the runtime role owns %d tables and indexes (%v)", owned, err)
	}
	db := r.open()
	if may, err := db.MayCreate(t.Context()); err != nil || may {
		t.Errorf("may it create tables? %v, %v", may, err)
	}
	if _, err := r.admin.Exec(t.Context(), "GRANT CREATE ON SCHEMA public TO PUBLIC"); err != nil { // as Postgres had it before 15
		t.Fatal(err)
	}
	if may, err := db.MayCreate(t.Context()); err != nil || !may {
		t.Errorf("may it create tables? %v, %v", may, err)
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

// The one that tells people holds its lock as long as it lives. A replica that starts meanwhile gets its rights, and the rollup goes on.
func TestALeaderStopsNobody(t *testing.T) {
	t.Parallel()
	r := newRoles(t)
	r.migrate()
	db := r.open()
	lead := db.LeadAlarm()
	defer lead.Release()
	if taken, err := lead.Hold(t.Context()); err != nil || !taken {
		t.Fatalf("the lead: %t, %v", taken, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := Grant(ctx, r.owner, r.runtime); err != nil {
		t.Errorf("grant: %v", err)
	}
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		taken, err := TryLock(ctx, tx, LockRollup)
		if !taken {
			t.Error("the rollup's lock is taken")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A runtime role without rights is told of with its remedy, whatever it lacks.
func TestRuntimeRoleWithoutRights(t *testing.T) {
	t.Parallel()
	r := newRoles(t)
	if _, err := Migrate(t.Context(), r.runtime); !errors.Is(err, ErrNoRights) {
		t.Errorf("an empty database: %v", err)
	}
	if _, err := Migrate(t.Context(), r.owner); err != nil {
		t.Fatal(err)
	}
	db := r.open()
	if _, err := Migrate(t.Context(), r.runtime); !errors.Is(err, ErrNoRights) {
		t.Errorf("no right at all, at the migration: %v", err)
	}
	if err := db.CheckSchema(t.Context()); !errors.Is(err, ErrNoRights) {
		t.Errorf("no right at all: %v", err)
	}
	for range 2 { // once more harms nothing
		if err := Grant(t.Context(), r.owner, r.runtime); err != nil {
			t.Fatal(err)
		}
		if err := db.CheckSchema(t.Context()); err != nil {
			t.Errorf("with its rights: %v", err)
		}
	}
	if n, err := Migrate(t.Context(), r.runtime); n != 0 || err != nil {
		t.Errorf("a schema that is up to date needs no owner: %d, %v", n, err)
	}
	if _, err := r.admin.Exec(t.Context(), `REVOKE UPDATE ON public.attempts FROM "`+r.role+`"`); err != nil {
		t.Fatal(err)
	}
	if err := db.CheckSchema(t.Context()); !errors.Is(err, ErrNoRights) || !strings.Contains(err.Error(), "UPDATE on attempts") {
		t.Errorf("one right less: %v", err)
	}
	if err := Grant(t.Context(), r.runtime, r.runtime); err != nil {
		t.Errorf("one role for both: %v", err)
	}
}
