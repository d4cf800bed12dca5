package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
	"purchase-relay/internal/testkit/ledgergen"
	"purchase-relay/internal/testkit/pglocal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

// operator is somebody who runs commands on a ledger.
type operator struct {
	t    *testing.T
	url  string
	conn *pgx.Conn
}

func newOperator(t *testing.T) *operator {
	t.Helper()
	o := &operator{t: t, url: pgtest.Database(t)}
	if _, err := ledger.Migrate(t.Context(), secret.String(o.url)); err != nil {
		t.Fatal(err)
	}
	var err error
	if o.conn, err = pgx.Connect(t.Context(), o.url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.conn.Close(t.Context()) })
	return o
}

// run returns the exit status and everything that was printed.
func (o *operator) run(stdin string, args ...string) (status int, printed string) {
	o.t.Helper()
	var out bytes.Buffer
	err := run(o.t.Context(), args, env("DATABASE_URL="+o.url), strings.NewReader(stdin), &out)
	return service.ExitCode(err, &out), out.String()
}

func (o *operator) count(sql string, args ...any) (n int) {
	o.t.Helper()
	if err := o.conn.QueryRow(o.t.Context(), sql, args...).Scan(&n); err != nil {
		o.t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func TestPrune(t *testing.T) {
	o := newOperator(t)
	if err := ledgergen.Fill(t.Context(), o.conn, 3000); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--older-than", "34d"}, {"--older-than", "soon"}, {"--attempts-older-than", "6d"}, {"--also", "pending"}, {"--also", "dead,delivered"}} {
		if status, out := o.run("", append([]string{"prune", "--yes"}, args...)...); status != 2 {
			t.Errorf("%v: %d %s", args, status, out)
		}
	}
	status, out := o.run("", "prune", "--dry-run")
	if status != 3 || !strings.Contains(out, "would go") || !strings.Contains(out, "skipped (no_payment)") || !strings.Contains(out, "--also dead,rejected") {
		t.Errorf("a dry run: %d %s", status, out)
	}
	if status, out := o.run("n\n", "prune"); status != 3 || !strings.Contains(out, "Nothing was done") {
		t.Errorf("not confirmed: %d %s", status, out)
	}
	const all = `SELECT count(*) FROM purchases`
	if n := o.count(all); n != 3000 {
		t.Fatalf("%d purchases are left before anything was pruned", n)
	}
	const dead = `SELECT count(*) FROM purchases WHERE status = 'dead'`
	before := o.count(dead)
	if status, out := o.run("y\n", "prune"); status != 3 || !strings.Contains(out, "events") || o.count(dead) != before || o.count(all) > 1000 {
		t.Errorf("pruned: %d %s; %d are left, %d of %d dead", status, out, o.count(all), o.count(dead), before)
	}
	if status, out := o.run("", "prune", "--yes", "--also", "dead,rejected", "--older-than", "35d"); status != 0 || o.count(dead) >= before {
		t.Errorf("by name: %d %s; %d of %d dead are left", status, out, o.count(dead), before)
	}
	if status, out := o.run("", "prune", "--yes", "--also", "dead,rejected", "--older-than", "35d", "--attempts-older-than", "7d"); status != 0 ||
		o.count(`SELECT count(*) FROM attempts a JOIN purchases p USING (checkout_session_id) WHERE p.status = 'delivered' AND a.at < now() - interval '7 days'`) != 0 {
		t.Errorf("attempts: %d %s", status, out)
	}
}
