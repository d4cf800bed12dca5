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

// operator runs commands on a ledger of its own.
type operator struct {
	t    *testing.T
	url  string
	conn *pgx.Conn
}

func newOperator(t *testing.T) *operator {
	t.Helper()
	o := &operator{t: t, url: pgtest.Migrated(t, func(url string) error {
		_, err := ledger.Migrate(t.Context(), secret.String(url))
		return err
	})}
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
	if err := ledgergen.Fill(t.Context(), o.conn, 3000, ledgergen.Year); err != nil {
		t.Fatal(err)
	}
	expect := func(stdin string, status int, args []string, want ...string) {
		t.Helper()
		got, out := o.run(stdin, append([]string{"prune"}, args...)...)
		if got != status {
			t.Errorf("prune %v = %d, want %d:\n%s", args, got, status, out)
		}
		for _, line := range want {
			if !strings.Contains(out, line) {
				t.Errorf("prune %v prints no %q:\n%s", args, line, out)
			}
		}
	}
	for _, args := range [][]string{
		{"--older-than", "34d"},
		{"--older-than", "soon"},
		{"--attempts-older-than", "6d"},
		{"--also", "pending"},
		{"--also", "dead,delivered"},
	} {
		expect("", 2, append(args, "--yes"))
	}
	const (
		all         = `SELECT count(*) FROM purchases`
		dead        = `SELECT count(*) FROM purchases WHERE status = 'dead'`
		oldAttempts = `SELECT count(*) FROM attempts a JOIN purchases p USING (checkout_session_id)
			WHERE p.status = 'delivered' AND a.at < now() - interval '7 days'`
	)
	expect("", 3, []string{"--dry-run"}, "to delete", "skipped (no_payment)", "--also dead,rejected")
	expect("n\n", 3, nil, "Nothing was done")
	if n := o.count(all); n != 3000 {
		t.Fatalf("purchases = %d before anything was confirmed, want 3000", n)
	}
	before := o.count(dead)
	expect("y\n", 3, nil, "events")
	if n := o.count(all); n > 1000 || o.count(dead) != before {
		t.Errorf("purchases = %d, dead = %d, want at most 1000, %d", n, o.count(dead), before)
	}
	also := []string{"--yes", "--also", "dead,rejected", "--older-than", "35d"}
	expect("", 0, also)
	if n := o.count(dead); n >= before {
		t.Errorf("dead = %d after --also dead, want less than %d", n, before)
	}
	expect("", 0, append(also, "--attempts-older-than", "7d"))
	if n := o.count(oldAttempts); n != 0 {
		t.Errorf("old attempts = %d, want 0", n)
	}
}
