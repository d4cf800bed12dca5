package ledger

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/pglocal/pgtest"
	"purchase-relay/migrations"
)

// With sslmode=prefer and allow, the driver falls back to plain text if the server asks for it.
func TestTransportOf_IsTheWeakestAllowed(t *testing.T) {
	t.Parallel()
	for url, want := range map[secret.String]Transport{
		"postgres://u:p@db.example/d":                                  TransportClear,
		"postgres://u:p@db.example/d?sslmode=disable":                  TransportClear,
		"postgres://u:p@db.example/d?sslmode=allow":                    TransportClear,
		"postgres://u:p@db.example/d?sslmode=prefer":                   TransportClear,
		"postgres://u:p@db.example/d?sslmode=require":                  TransportUnverified,
		"postgres://u:p@db.example/d?sslmode=verify-full":              TransportVerified,
		"postgres://u:p@10.0.0.1/d?sslmode=disable":                    TransportClear,
		"postgres://u:p@127.0.0.1/d?sslmode=disable":                   TransportVerified,
		"postgres://u:p@localhost/d":                                   TransportVerified,
		"postgres://u:p@[::1]/d?sslmode=disable":                       TransportVerified,
		"postgres:///d?host=/run/postgresql":                           TransportVerified,
		"host=/run/postgresql dbname=d":                                TransportVerified,
		"host=127.0.0.1,db.example dbname=d sslmode=disable":           TransportClear,
		"host=/run/postgresql,db.example dbname=d sslmode=verify-full": TransportVerified,
		"postgres://u:p@localhost.evil.example/d?sslmode=disable":      TransportClear,
	} {
		if got, err := TransportOf(url); got != want || err != nil {
			t.Errorf("TransportOf(%s) = %v, %v, want %v", url.Reveal(), got, err, want)
		}
	}
	if _, err := TransportOf("postgres://u:p@db.example/d?sslmode=hunter2"); !errors.Is(err, ErrURL) ||
		strings.Contains(err.Error(), "hunter2") {
		t.Errorf("unknown sslmode: error = %v, want ErrURL", err)
	}
}

func openProbe(t *testing.T, url secret.String) *Probe {
	t.Helper()
	p, err := OpenProbe(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(context.Background()) })
	return p
}

func TestProbe_ReadsLedger(t *testing.T) {
	t.Parallel()
	r := newRoles(t)
	owner, runtime := openProbe(t, r.owner), openProbe(t, r.runtime)
	if runtime.User != r.role || runtime.Database == "" {
		t.Errorf("connected as %q on %q, want %q", runtime.User, runtime.Database, r.role)
	}
	if s, err := owner.Schema(t.Context()); err != nil || s.Exists {
		t.Errorf("empty database: schema = %+v, %v, want none", s, err)
	}
	if _, err := Migrate(t.Context(), r.owner); err != nil {
		t.Fatal(err)
	}
	if _, err := runtime.Schema(t.Context()); !errors.Is(err, ErrNoRights) {
		t.Errorf("role without rights: error = %v, want ErrNoRights", err)
	}
	r.migrate()
	began := time.Now()
	server, err := runtime.Server(t.Context())
	took := time.Since(began) // half of it is the error of ClockAhead
	if err != nil || server.Version < 130000 || server.VersionText == "" || server.Replica ||
		server.ClockAhead.Abs() > time.Second+took || server.Used < 1 || server.Max <= server.Used {
		t.Errorf("server = %+v, error = %v", server, err)
	}
	if !slices.Contains(server.LossyOff, "fsync") { // as pgtest starts Postgres
		t.Errorf("LossyOff = %q, want fsync", server.LossyOff)
	}
	schema, err := runtime.Schema(t.Context())
	want := Schema{Exists: true, Level: migrations.Level, Known: migrations.Level, Oldest: schema.Oldest}
	if err != nil || schema != want {
		t.Errorf("schema = %+v, error = %v, want %+v", schema, err, want)
	}
	missing := func() []string {
		t.Helper()
		list, err := runtime.MissingRights(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if list := missing(); len(list) > 0 {
		t.Errorf("missing rights = %q, want none", list)
	}
	for p, want := range map[*Probe]bool{owner: true, runtime: false} {
		if may, err := p.MayCreate(t.Context()); err != nil || may != want {
			t.Errorf("MayCreate of %s = %t, %v, want %t", p.User, may, err, want)
		}
	}
	if live, test, err := runtime.LatestEvents(t.Context()); err != nil || !live.IsZero() || !test.IsZero() {
		t.Errorf("LatestEvents before any = %s, %s, %v, want none", live, test, err)
	}
	r.exec(`INSERT INTO public.stripe_events (event_id, type, checkout_session_id, livemode, received_at,
		disposition) VALUES ('evt_1', 'x', 'cs_1', true, now(), 'processed')`)
	r.exec(`REVOKE UPDATE ON public.attempts FROM "` + r.role + `"`)
	if list := missing(); !slices.Equal(list, []string{"UPDATE on attempts"}) {
		t.Errorf("missing rights = %q, want UPDATE on attempts", list)
	}
	if live, test, err := runtime.LatestEvents(t.Context()); err != nil ||
		time.Since(live).Abs() > time.Minute || !test.IsZero() {
		t.Errorf("LatestEvents after a live one = %s, %s, %v, want now and none", live, test, err)
	}
}

func TestProbe_NotReceived(t *testing.T) {
	t.Parallel()
	r := newRoles(t)
	if _, err := Migrate(t.Context(), r.owner); err != nil {
		t.Fatal(err)
	}
	r.exec(`INSERT INTO public.stripe_events (event_id, type, checkout_session_id, livemode, received_at,
		disposition, caught_up) VALUES ('evt_1', 'completed', 'cs_webhook', true, now(), 'processed', false),
		('evt_2', 'completed', 'cs_backfill', true, now(), 'processed', true),
		('evt_3', 'completed', 'cs_both', true, now(), 'processed', true),
		('evt_4', 'completed', 'cs_both', true, now(), 'duplicate', false)`)
	missing, backfilled, err := openProbe(t, r.owner).NotReceived(t.Context(),
		[]string{"cs_webhook", "cs_backfill", "cs_both", "cs_missing", "cs_webhook"},
		[]string{"completed", "completed", "completed", "completed", "succeeded"})
	if err != nil || !slices.Equal(missing, []string{"cs_missing", "cs_webhook"}) ||
		!slices.Equal(backfilled, []string{"cs_backfill"}) {
		t.Errorf("missing = %q, backfilled = %q, error = %v, want cs_missing and a second event of cs_webhook, "+
			"cs_backfill", missing, backfilled, err)
	}
}

// Failed connections are distinguishable, and no error contains the password.
func TestOpenProbe_ReportsCause(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for name, tc := range map[string]struct{ url, state, want string }{
		"no URL":           {"postgres://[hunter2", "", "not a Postgres connection string"},
		"no server":        {"postgres://u:hunter2@127.0.0.1:1/d", "", "refused"},
		"no such database": {strings.Replace(url, "/test_", "/nothing_", 1), "3D000", "does not exist"},
		"no such role":     {url + "&user=unknown_role", "28000", "unknown_role"},
	} {
		_, err := OpenProbe(t.Context(), secret.String(tc.url))
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: error = %v, want %q", name, err, tc.want)
			continue
		}
		state := ""
		if serverErr, ok := errors.AsType[*ServerError](err); ok {
			state = serverErr.SQLState
		}
		if state != tc.state {
			t.Errorf("%s: SQLSTATE = %q, want %q", name, state, tc.state)
		}
	}
}
