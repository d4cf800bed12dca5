package ledger

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/secret"
	"purchase-relay/migrations"
)

// What the ledger asks of its server.
const (
	leastVersion   = 130000 // gen_random_uuid, vacuum by insertions
	testedVersion  = 150000
	pooled         = 16 // connections that one ingest may take
	examineTimeout = 10 * time.Second
)

// facts are what a look at the server tells.
type facts struct {
	version     int
	versionText string
	replica     bool
	ahead       time.Duration // its clock before ours; negative: behind
	lossy       []string      // settings under which a commit may be lost
	used, most  int           // connections
}

// Examine looks at the server behind a URL, at the schema, at this role's rights and at what came lately. It changes nothing.
func Examine(ctx context.Context, url secret.Text) []doctor.Check {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	config, err := pgx.ParseConfig(url.Reveal())
	if err != nil {
		return []doctor.Check{doctor.Failed("Postgres", "DATABASE_URL is not a connection string", "write it as postgres://user:password@host:5432/database")}
	}
	config.ConnectTimeout = 3 * time.Second
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return []doctor.Check{unreachable(err)}
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	checks := []doctor.Check{doctor.Passed("Postgres", "answers as %s on %s", config.User, config.Database), judgeTLS("Postgres: TLS", config)}
	f, err := look(ctx, conn)
	if err != nil {
		return append(checks, doctor.Failed("Postgres: settings", "they cannot be read: "+err.Error(), "see Postgres' own log"))
	}
	checks = append(checks, f.judge()...)
	return append(checks, examineSchema(ctx, conn)...)
}

// ExamineTLS looks at how a URL of DATABASE_URL's kind reaches its server, without connecting.
func ExamineTLS(what string, url secret.Text) doctor.Check {
	config, err := pgx.ParseConfig(url.Reveal())
	if err != nil {
		return doctor.Failed(what, "it is not a connection string", "write it as postgres://user:password@host:5432/database")
	}
	return judgeTLS(what, config)
}

// judgeTLS looks at every server and every way to it that the driver may take: sslmode=prefer and allow, and
// the default, speak in the clear where the server, or who answers in its place, wants it so.
func judgeTLS(what string, config *pgx.ConnConfig) doctor.Check {
	ways := append([]*pgconn.FallbackConfig{{Host: config.Host, TLSConfig: config.TLSConfig}}, config.Fallbacks...)
	clear, unverified := false, false
	for _, way := range ways {
		switch tls := way.TLSConfig; {
		case local(way.Host):
		case tls == nil:
			clear = true
		case tls.InsecureSkipVerify: // and sslmode=verify-ca, which takes any name
			unverified = true
		}
	}
	const remedy = "add sslmode=verify-full to the URL, and sslrootcert where the authority is your own"
	switch {
	case clear:
		return doctor.Warned(what, "sslmode lets passwords and purchases travel in the clear", remedy)
	case unverified:
		return doctor.Warned(what, "the connection is encrypted, and the server's name is not verified", remedy)
	}
	return doctor.Passed(what, "the server is on this machine, or its certificate and name are verified")
}

// local reports whether a host is a socket's folder or this machine.
func local(host string) bool {
	if strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// unreachable says why there is no connection. What pgx says holds no password.
func unreachable(err error) doctor.Check {
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch refused.Code {
		case "28P01", "28000":
			return doctor.Failed("Postgres", "refuses the role: "+refused.Message, "mend user and password in DATABASE_URL, or pg_hba.conf")
		case "3D000":
			return doctor.Failed("Postgres", refused.Message, "create it: createdb, then ingest migrate")
		case "53300":
			return doctor.Failed("Postgres", refused.Message, "raise max_connections, or find out who holds them")
		}
		return doctor.Failed("Postgres", refused.Message, "see Postgres' own log")
	}
	return doctor.Failed("Postgres", "does not answer: "+err.Error(), "start it; check host, port and TLS in DATABASE_URL, and the way there (DNS, firewall)")
}

const sqlClock = `SELECT clock_timestamp()`

const sqlServer = `
SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(), current_setting('fsync'),
    current_setting('full_page_writes'), current_setting('synchronous_commit'),
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), current_setting('max_connections')::int`

func look(ctx context.Context, conn *pgx.Conn) (f facts, err error) {
	var theirs time.Time
	var fsync, pages, commit string
	began := time.Now()
	if err := conn.QueryRow(ctx, sqlClock).Scan(&theirs); err != nil {
		return f, err
	}
	f.ahead = theirs.Sub(began.Add(time.Since(began) / 2))
	err = conn.QueryRow(ctx, sqlServer).Scan(&f.version, &f.versionText, &f.replica, &fsync, &pages, &commit, &f.used, &f.most)
	for _, s := range []struct{ name, value string }{{"fsync", fsync}, {"full_page_writes", pages}, {"synchronous_commit", commit}} {
		if s.value == "off" {
			f.lossy = append(f.lossy, s.name)
		}
	}
	return f, err
}

func (f *facts) judge() []doctor.Check {
	return []doctor.Check{f.judgeVersion(), f.judgeReplica(), f.judgeDurability(), f.judgeClock(), f.judgeConnections()}
}

func (f *facts) judgeVersion() doctor.Check {
	const what = "Postgres: version"
	switch {
	case f.version < leastVersion:
		return doctor.Failed(what, f.versionText+" is too old", "update it to 13 or newer, better 15")
	case f.version < testedVersion:
		return doctor.Warned(what, f.versionText+" is older than what is tested", "update it to 15 or newer when convenient")
	}
	return doctor.Passed(what, "%s", f.versionText)
}

func (f *facts) judgeReplica() doctor.Check {
	if f.replica {
		return doctor.Failed("Postgres: primary", "this is a replica: nothing can be written", "name the primary in DATABASE_URL, for instance with target_session_attrs=read-write")
	}
	return doctor.Passed("Postgres: primary", "takes writes")
}

func (f *facts) judgeDurability() doctor.Check {
	if len(f.lossy) > 0 {
		return doctor.Failed("Postgres: durability", strings.Join(f.lossy, ", ")+" is off: a crash may lose purchases that Stripe was told are safe", "switch it on")
	}
	return doctor.Passed("Postgres: durability", "a commit outlives a crash")
}

// Five minutes are Stripe's tolerance: a clock that is off by more refuses every webhook.
func (f *facts) judgeClock() doctor.Check {
	const what, remedy = "Postgres: clock", "let both machines follow a time server (timedatectl, chrony)"
	apart := f.ahead.Abs().Round(time.Millisecond)
	found := fmt.Sprintf("differs from this machine's by %s", apart)
	switch {
	case apart > time.Minute:
		return doctor.Failed(what, found+"; past 5 minutes on this one every webhook's signature is refused as stale", remedy)
	case apart > 2*time.Second:
		return doctor.Warned(what, found, remedy)
	}
	return doctor.Passed(what, "%s", found)
}

func (f *facts) judgeConnections() doctor.Check {
	const what = "Postgres: connections"
	found := fmt.Sprintf("%d of %d are taken", f.used, f.most)
	if f.most-f.used < pooled {
		return doctor.Warned(what, fmt.Sprintf("%s; one ingest may take %d", found, pooled), "raise max_connections, or lower the pools of others (pool_max_conns in DATABASE_URL for ingest's)")
	}
	return doctor.Passed(what, "%s", found)
}

func examineSchema(ctx context.Context, conn *pgx.Conn) []doctor.Check {
	const what, migrate = "ledger: schema", "run ingest migrate (ingest does it at its start, where its role may)"
	var exists bool
	var level, oldest int
	if err := conn.QueryRow(ctx, sqlHasVersions).Scan(&exists); err != nil {
		return []doctor.Check{doctor.Failed(what, "it cannot be read: "+err.Error(), "see Postgres' own log")}
	}
	if !exists {
		return []doctor.Check{doctor.Failed(what, "the database is empty", migrate)}
	}
	err := conn.QueryRow(ctx, sqlSchemaLevel).Scan(&level)
	if err == nil {
		err = conn.QueryRow(ctx, sqlOldestBinary).Scan(&oldest)
	}
	if err != nil {
		return []doctor.Check{doctor.Failed(what, Explain(err).Error(), errNoRights.Error())}
	}
	return append([]doctor.Check{judgeSchema(level, oldest)}, examineRole(ctx, conn)...)
}

func judgeSchema(level, oldest int) doctor.Check {
	const what = "ledger: schema"
	switch {
	case oldest > migrations.Level:
		return doctor.Failed(what, ErrTooOld.Error(), "start the newer binary")
	case level < migrations.Level:
		return doctor.Failed(what, fmt.Sprintf("it is at level %d of %d", level, migrations.Level), "run ingest migrate (ingest does it at its start, where its role may)")
	case level > migrations.Level:
		return doctor.Warned(what, fmt.Sprintf("it is at level %d, this binary knows %d: it can be used", level, migrations.Level), "run the newer binary everywhere when convenient")
	}
	return doctor.Passed(what, "at level %d", level)
}

func examineRole(ctx context.Context, conn *pgx.Conn) (checks []doctor.Check) {
	missing, err := missingRights(ctx, conn)
	switch {
	case err != nil:
		checks = append(checks, doctor.Failed("ledger: rights", "they cannot be read: "+err.Error(), "see Postgres' own log"))
	case len(missing) > 0:
		checks = append(checks, doctor.Failed("ledger: rights", "this role lacks "+strings.Join(missing, ", "), errNoRights.Error()))
	default:
		checks = append(checks, doctor.Passed("ledger: rights", "this role has what it needs"))
	}
	var owns bool
	switch err := conn.QueryRow(ctx, sqlMayCreate).Scan(&owns); {
	case err != nil:
		checks = append(checks, doctor.Failed("ledger: least privilege", "it cannot be read: "+err.Error(), "see Postgres' own log"))
	case owns:
		checks = append(checks, doctor.Warned("ledger: least privilege", "this role may create tables", "give ingest a role of its own, and the owner's URL to ingest migrate alone (docs/operations.md, Two roles in Postgres)"))
	default:
		checks = append(checks, doctor.Passed("ledger: least privilege", "this role cannot change the schema"))
	}
	if len(missing) > 0 || err != nil {
		return checks
	}
	return append(checks, examineEvents(ctx, conn))
}

// examineEvents looks at what Stripe told lately: an endpoint's secret does not say whether it is the live or the test endpoint's.
func examineEvents(ctx context.Context, conn *pgx.Conn) doctor.Check {
	live, test, err := latestEvents(ctx, conn)
	if err != nil {
		return doctor.Failed("Stripe: webhooks", "they cannot be counted: "+err.Error(), "see Postgres' own log")
	}
	return judgeEvents(live, test)
}

const sqlEventsByMode = `SELECT livemode, max(received_at) FROM public.stripe_events WHERE received_at > now() - interval '30 days' GROUP BY livemode`

// latestEvents are the last checkouts of 30 days, by mode; zero: there was none.
func latestEvents(ctx context.Context, conn *pgx.Conn) (live, test time.Time, err error) {
	rows, err := conn.Query(ctx, sqlEventsByMode)
	if err != nil {
		return live, test, err
	}
	var livemode bool
	var newest time.Time
	_, err = pgx.ForEachRow(rows, []any{&livemode, &newest}, func() error {
		if livemode {
			live = newest.UTC()
		} else {
			test = newest.UTC()
		}
		return nil
	})
	return live, test, err
}

// LiveEvents says whether a live checkout came in 30 days, as far as the ledger can be asked.
func LiveEvents(ctx context.Context, url secret.Text) bool {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, url.Reveal())
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	live, _, err := latestEvents(ctx, conn)
	return err == nil && !live.IsZero()
}

func judgeEvents(live, test time.Time) doctor.Check {
	const what = "Stripe: webhooks"
	switch {
	case live.IsZero() && test.IsZero():
		return doctor.Warned(what, "no checkout came in 30 days", "send one: in Stripe's test mode, or stripe trigger checkout.session.completed; then see the endpoint's deliveries in Stripe")
	case live.IsZero():
		return doctor.Warned(what, "only test checkouts came in 30 days, the last at "+test.Format(time.RFC3339),
			"if the shop sells already: add the live endpoint's signing secret to STRIPE_WEBHOOK_SECRET (comma-separated); live and test endpoints have different ones")
	}
	return doctor.Passed(what, "the last live checkout came at %s", live.Format(time.RFC3339))
}
