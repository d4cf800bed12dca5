package postgres

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/checkup"
	"purchase-relay/internal/dev/pglocal/pgtest"
	"purchase-relay/internal/secret"
	"purchase-relay/migrations"
)

// verdict returns one check's verdict, "" where it is missing.
func verdict(checks []checkup.Check, what string) checkup.Verdict {
	for _, c := range checks {
		if c.What == what {
			return c.Verdict
		}
	}
	return ""
}

// Whatever sslmode allows is looked at: the driver falls back to it where the other end says so.
func TestExamineTLS(t *testing.T) {
	for url, want := range map[secret.Text]checkup.Verdict{
		"postgres://u:p@db.example/d":                                  checkup.Warn,
		"postgres://u:p@db.example/d?sslmode=disable":                  checkup.Warn,
		"postgres://u:p@db.example/d?sslmode=allow":                    checkup.Warn,
		"postgres://u:p@db.example/d?sslmode=prefer":                   checkup.Warn,
		"postgres://u:p@db.example/d?sslmode=require":                  checkup.Warn,
		"postgres://u:p@db.example/d?sslmode=verify-full":              checkup.Pass,
		"postgres://u:p@10.0.0.1/d?sslmode=disable":                    checkup.Warn,
		"postgres://u:p@127.0.0.1/d?sslmode=disable":                   checkup.Pass,
		"postgres://u:p@localhost/d":                                   checkup.Pass,
		"postgres://u:p@[::1]/d?sslmode=disable":                       checkup.Pass,
		"postgres:///d?host=/run/postgresql":                           checkup.Pass,
		"host=/run/postgresql dbname=d":                                checkup.Pass,
		"host=127.0.0.1,db.example dbname=d sslmode=disable":           checkup.Warn,
		"host=/run/postgresql,db.example dbname=d sslmode=verify-full": checkup.Pass,
		"postgres://u:p@localhost.evil.example/d?sslmode=disable":      checkup.Warn,
		"postgres://u:p@db.example/d?sslmode=hunter2":                  checkup.Fail,
	} {
		got := ExamineTLS("TLS", url)
		if got.Verdict != want || (got.Remedy == "") != (want == checkup.Pass) || strings.Contains(got.Found+got.Remedy, "hunter2") {
			t.Errorf("ExamineTLS(%s) = %+v, want %s", url.Reveal(), got, want)
		}
	}
}

// Each judgement passes, and does not.
func TestJudgements(t *testing.T) {
	good := facts{version: 150018, versionText: "15.18", most: 100}
	with := func(change func(f *facts)) facts { f := good; change(&f); return f }
	for name, tc := range map[string]struct {
		f    facts
		what string
		want checkup.Verdict
	}{
		"a version of today":      {good, "Postgres: version", checkup.Pass},
		"an older version":        {with(func(f *facts) { f.version = 140000 }), "Postgres: version", checkup.Warn},
		"a version too old":       {with(func(f *facts) { f.version = 120022 }), "Postgres: version", checkup.Fail},
		"a primary":               {good, "Postgres: primary", checkup.Pass},
		"a replica":               {with(func(f *facts) { f.replica = true }), "Postgres: primary", checkup.Fail},
		"durable":                 {good, "Postgres: durability", checkup.Pass},
		"fsync off":               {with(func(f *facts) { f.lossy = []string{"fsync"} }), "Postgres: durability", checkup.Fail},
		"clocks agree":            {with(func(f *facts) { f.ahead = -time.Second }), "Postgres: clock", checkup.Pass},
		"its clock is behind":     {with(func(f *facts) { f.ahead = -5 * time.Second }), "Postgres: clock", checkup.Warn},
		"its clock is far ahead":  {with(func(f *facts) { f.ahead = 2 * time.Minute }), "Postgres: clock", checkup.Fail},
		"connections are free":    {good, "Postgres: connections", checkup.Pass},
		"connections are running": {with(func(f *facts) { f.used = 90 }), "Postgres: connections", checkup.Warn},
	} {
		if got := verdict(tc.f.judge(), tc.what); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
	for name, tc := range map[string]struct {
		check checkup.Check
		want  checkup.Verdict
	}{
		"this level":      {judgeSchema(migrations.Level, 1), checkup.Pass},
		"a level behind":  {judgeSchema(migrations.Level-1, 1), checkup.Fail},
		"a level ahead":   {judgeSchema(migrations.Level+1, 1), checkup.Warn},
		"too new for us":  {judgeSchema(migrations.Level+1, migrations.Level+1), checkup.Fail},
		"live checkouts":  {judgeEvents(time.Now(), time.Now()), checkup.Pass},
		"test ones alone": {judgeEvents(time.Time{}, time.Now()), checkup.Warn},
		"nothing came":    {judgeEvents(time.Time{}, time.Time{}), checkup.Warn},
	} {
		if tc.check.Verdict != tc.want || (tc.check.Remedy == "") != (tc.want == checkup.Pass) {
			t.Errorf("%s: %+v, want %q", name, tc.check, tc.want)
		}
	}
}

func TestExamineARealLedger(t *testing.T) {
	r := newRoles(t)
	if checks := Examine(t.Context(), r.owner); verdict(checks, "Postgres") != checkup.Pass || verdict(checks, "ledger: schema") != checkup.Fail {
		t.Errorf("an empty database: %+v", checks)
	}
	if _, err := Migrate(t.Context(), r.owner); err != nil {
		t.Fatal(err)
	}
	if checks := Examine(t.Context(), r.runtime); verdict(checks, "ledger: schema") != checkup.Fail {
		t.Errorf("a role without any right: %+v", checks)
	}
	r.migrate()
	want := map[string]checkup.Verdict{
		"Postgres": checkup.Pass, "Postgres: TLS": checkup.Pass, "Postgres: version": checkup.Pass, "Postgres: primary": checkup.Pass, "Postgres: clock": checkup.Pass, "Postgres: connections": checkup.Pass,
		"Postgres: durability": checkup.Fail, // the tests' server is a throw-away one
		"ledger: schema":       checkup.Pass, "ledger: rights": checkup.Pass, "ledger: least privilege": checkup.Pass, "Stripe: webhooks": checkup.Warn,
	}
	checks := Examine(t.Context(), r.runtime)
	for what, wanted := range want {
		if got := verdict(checks, what); got != wanted {
			t.Errorf("%s: %q, want %q", what, got, wanted)
		}
	}
	if len(checks) != len(want) {
		t.Errorf("checks: %+v", checks)
	}
	if checks := Examine(t.Context(), r.owner); verdict(checks, "ledger: least privilege") != checkup.Warn {
		t.Errorf("the owner: %+v", checks)
	}
	for _, statement := range []string{
		`INSERT INTO public.stripe_events (event_id, type, checkout_session_id, livemode, received_at, disposition) VALUES ('evt_1', 'x', 'cs_1', true, now(), 'processed')`,
		`REVOKE UPDATE ON public.attempts FROM "` + r.role + `"`,
	} {
		if verdict(Examine(t.Context(), r.runtime), "ledger: rights") != checkup.Pass {
			t.Fatal("the rights were gone before")
		}
		if _, err := r.admin.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if checks := Examine(t.Context(), r.runtime); verdict(checks, "ledger: rights") != checkup.Fail || verdict(checks, "Stripe: webhooks") != "" {
		t.Errorf("one right less: %+v", checks)
	}
	if !LiveEvents(t.Context(), r.owner) || LiveEvents(t.Context(), "postgres://u@127.0.0.1:1/d") {
		t.Error("live checkouts")
	}
	if checks := Examine(t.Context(), r.owner); verdict(checks, "Stripe: webhooks") != checkup.Pass {
		t.Errorf("a live checkout came: %+v", checks)
	}
}

// Whatever is wrong with the connection is told, with what to do, and without the password.
func TestExamineWithoutAConnection(t *testing.T) {
	url := pgtest.Database(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for name, tc := range map[string]struct{ url, says string }{
		"no URL":           {"postgres://[hunter2", "not a connection string"},
		"nobody there":     {"postgres://u:hunter2@127.0.0.1:1/d", "does not answer"},
		"no such database": {strings.Replace(url, "/test_", "/nothing_", 1), "does not exist"},
		"no such role":     {url + "&user=nobody_of_ours", "nobody_of_ours"},
	} {
		checks := Examine(t.Context(), secret.Text(tc.url))
		if len(checks) != 1 || checks[0].Verdict != checkup.Fail || checks[0].Remedy == "" || !strings.Contains(checks[0].Found, tc.says) || strings.Contains(checks[0].Found, "hunter2") {
			t.Errorf("%s: %+v", name, checks)
		}
	}
}
