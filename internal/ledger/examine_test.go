package ledger

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/pglocal/pgtest"
	"purchase-relay/migrations"
)

// verdict returns one check's verdict, "" where it is missing.
func verdict(checks []doctor.Check, what string) doctor.Verdict {
	for _, c := range checks {
		if c.What == what {
			return c.Verdict
		}
	}
	return ""
}

// Whatever sslmode allows is looked at: the driver falls back to it where the other end says so.
func TestExamineTLS(t *testing.T) {
	for url, want := range map[secret.Text]doctor.Verdict{
		"postgres://u:p@db.example/d":                                  doctor.Warn,
		"postgres://u:p@db.example/d?sslmode=disable":                  doctor.Warn,
		"postgres://u:p@db.example/d?sslmode=allow":                    doctor.Warn,
		"postgres://u:p@db.example/d?sslmode=prefer":                   doctor.Warn,
		"postgres://u:p@db.example/d?sslmode=require":                  doctor.Warn,
		"postgres://u:p@db.example/d?sslmode=verify-full":              doctor.Pass,
		"postgres://u:p@10.0.0.1/d?sslmode=disable":                    doctor.Warn,
		"postgres://u:p@127.0.0.1/d?sslmode=disable":                   doctor.Pass,
		"postgres://u:p@localhost/d":                                   doctor.Pass,
		"postgres://u:p@[::1]/d?sslmode=disable":                       doctor.Pass,
		"postgres:///d?host=/run/postgresql":                           doctor.Pass,
		"host=/run/postgresql dbname=d":                                doctor.Pass,
		"host=127.0.0.1,db.example dbname=d sslmode=disable":           doctor.Warn,
		"host=/run/postgresql,db.example dbname=d sslmode=verify-full": doctor.Pass,
		"postgres://u:p@localhost.evil.example/d?sslmode=disable":      doctor.Warn,
		"postgres://u:p@db.example/d?sslmode=hunter2":                  doctor.Fail,
	} {
		got := ExamineTLS("TLS", url)
		if got.Verdict != want || (got.Remedy == "") != (want == doctor.Pass) || strings.Contains(got.Found+got.Remedy, "hunter2") {
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
		want doctor.Verdict
	}{
		"a version of today":      {good, "Postgres: version", doctor.Pass},
		"an older version":        {with(func(f *facts) { f.version = 140000 }), "Postgres: version", doctor.Warn},
		"a version too old":       {with(func(f *facts) { f.version = 120022 }), "Postgres: version", doctor.Fail},
		"a primary":               {good, "Postgres: primary", doctor.Pass},
		"a replica":               {with(func(f *facts) { f.replica = true }), "Postgres: primary", doctor.Fail},
		"durable":                 {good, "Postgres: durability", doctor.Pass},
		"fsync off":               {with(func(f *facts) { f.lossy = []string{"fsync"} }), "Postgres: durability", doctor.Fail},
		"clocks agree":            {with(func(f *facts) { f.ahead = -time.Second }), "Postgres: clock", doctor.Pass},
		"its clock is behind":     {with(func(f *facts) { f.ahead = -5 * time.Second }), "Postgres: clock", doctor.Warn},
		"its clock is far ahead":  {with(func(f *facts) { f.ahead = 2 * time.Minute }), "Postgres: clock", doctor.Fail},
		"connections are free":    {good, "Postgres: connections", doctor.Pass},
		"connections are running": {with(func(f *facts) { f.used = 90 }), "Postgres: connections", doctor.Warn},
	} {
		if got := verdict(tc.f.judge(), tc.what); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
	for name, tc := range map[string]struct {
		check doctor.Check
		want  doctor.Verdict
	}{
		"this level":      {judgeSchema(migrations.Level, 1), doctor.Pass},
		"a level behind":  {judgeSchema(migrations.Level-1, 1), doctor.Fail},
		"a level ahead":   {judgeSchema(migrations.Level+1, 1), doctor.Warn},
		"too new for us":  {judgeSchema(migrations.Level+1, migrations.Level+1), doctor.Fail},
		"live checkouts":  {judgeEvents(time.Now(), time.Now()), doctor.Pass},
		"test ones alone": {judgeEvents(time.Time{}, time.Now()), doctor.Warn},
		"nothing came":    {judgeEvents(time.Time{}, time.Time{}), doctor.Warn},
	} {
		if tc.check.Verdict != tc.want || (tc.check.Remedy == "") != (tc.want == doctor.Pass) {
			t.Errorf("%s: %+v, want %q", name, tc.check, tc.want)
		}
	}
}

func TestExamineARealLedger(t *testing.T) {
	r := newRoles(t)
	if checks := Examine(t.Context(), r.owner); verdict(checks, "Postgres") != doctor.Pass || verdict(checks, "ledger: schema") != doctor.Fail {
		t.Errorf("an empty database: %+v", checks)
	}
	if _, err := Migrate(t.Context(), r.owner); err != nil {
		t.Fatal(err)
	}
	if checks := Examine(t.Context(), r.runtime); verdict(checks, "ledger: schema") != doctor.Fail {
		t.Errorf("a role without any right: %+v", checks)
	}
	r.migrate()
	want := map[string]doctor.Verdict{
		"Postgres": doctor.Pass, "Postgres: TLS": doctor.Pass, "Postgres: version": doctor.Pass, "Postgres: primary": doctor.Pass, "Postgres: clock": doctor.Pass, "Postgres: connections": doctor.Pass,
		"Postgres: durability": doctor.Fail, // the tests' server is a throw-away one
		"ledger: schema":       doctor.Pass, "ledger: rights": doctor.Pass, "ledger: least privilege": doctor.Pass, "Stripe: webhooks": doctor.Warn,
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
	if checks := Examine(t.Context(), r.owner); verdict(checks, "ledger: least privilege") != doctor.Warn {
		t.Errorf("the owner: %+v", checks)
	}
	for _, statement := range []string{
		`INSERT INTO public.stripe_events (event_id, type, checkout_session_id, livemode, received_at, disposition) VALUES ('evt_1', 'x', 'cs_1', true, now(), 'processed')`,
		`REVOKE UPDATE ON public.attempts FROM "` + r.role + `"`,
	} {
		if verdict(Examine(t.Context(), r.runtime), "ledger: rights") != doctor.Pass {
			t.Fatal("the rights were gone before")
		}
		if _, err := r.admin.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if checks := Examine(t.Context(), r.runtime); verdict(checks, "ledger: rights") != doctor.Fail || verdict(checks, "Stripe: webhooks") != "" {
		t.Errorf("one right less: %+v", checks)
	}
	if !LiveEvents(t.Context(), r.owner) || LiveEvents(t.Context(), "postgres://u@127.0.0.1:1/d") {
		t.Error("live checkouts")
	}
	if checks := Examine(t.Context(), r.owner); verdict(checks, "Stripe: webhooks") != doctor.Pass {
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
		if len(checks) != 1 || checks[0].Verdict != doctor.Fail || checks[0].Remedy == "" || !strings.Contains(checks[0].Found, tc.says) || strings.Contains(checks[0].Found, "hunter2") {
			t.Errorf("%s: %+v", name, checks)
		}
	}
}
