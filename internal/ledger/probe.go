package ledger

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"purchase-relay/internal/secret"
	"purchase-relay/migrations"
)

// Probe is a read-only connection for the self-check. It reads the state of the server, the schema, the role
// and the latest events; the caller evaluates them.
type Probe struct {
	User, Database string
	conn           *pgx.Conn
}

// ServerError is a connection that the server rejected. Its message contains no password.
type ServerError struct {
	SQLState string
	Message  string
}

// Error implements error.
func (e *ServerError) Error() string { return e.Message }

// OpenProbe connects. It returns ErrURL, a *ServerError or a network error; none contains the password.
func OpenProbe(ctx context.Context, url secret.String) (*Probe, error) {
	config, err := parseURL(url)
	if err != nil {
		return nil, ErrURL
	}
	config.ConnectTimeout = 3 * time.Second
	conn, err := pgx.ConnectConfig(ctx, config)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return nil, &ServerError{pgErr.Code, pgErr.Message}
	}
	if err != nil {
		return nil, err
	}
	return &Probe{User: config.User, Database: config.Database, conn: conn}, nil
}

// Close closes the connection.
func (p *Probe) Close(ctx context.Context) { _ = p.conn.Close(context.WithoutCancel(ctx)) }

// Transport is the protection of a connection.
type Transport int

// The kinds of protection, from best to worst.
const (
	TransportVerified   Transport = iota // local, or TLS with verified certificate and name
	TransportUnverified                  // TLS without verification of the server's name
	TransportClear                       // plain text
)

// TransportOf returns the weakest protection that a URL allows on any host, without connecting. With sslmode
// prefer (the default) and allow, the driver falls back to plain text if the server asks for it.
func TransportOf(url secret.String) (Transport, error) {
	config, err := parseURL(url)
	if err != nil {
		return TransportClear, ErrURL
	}
	worst := TransportVerified
	targets := append([]*pgconn.FallbackConfig{{Host: config.Host, TLSConfig: config.TLSConfig}},
		config.Fallbacks...)
	for _, target := range targets {
		switch tls := target.TLSConfig; {
		case isLocal(target.Host):
		case tls == nil:
			worst = TransportClear
		case tls.InsecureSkipVerify: // also with sslmode=verify-ca, which accepts any name
			worst = max(worst, TransportUnverified)
		}
	}
	return worst, nil
}

func isLocal(host string) bool {
	if strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

const sqlClock = `SELECT clock_timestamp()`

const sqlServer = `
SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),
    current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'),
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
    current_setting('max_connections')::int`

// Server is the state of a Postgres server.
type Server struct {
	Version     int // server_version_num
	VersionText string
	Replica     bool
	ClockAhead  time.Duration // of this machine's clock; negative: behind
	LossyOff    []string      // durability settings that are off: a crash may lose a commit
	Used, Max   int           // connections
}

// Server reads the server's state.
func (p *Probe) Server(ctx context.Context) (s Server, err error) {
	var clock time.Time
	var fsync, pages, commit string
	began := time.Now()
	if err := p.conn.QueryRow(ctx, sqlClock).Scan(&clock); err != nil {
		return s, err
	}
	s.ClockAhead = clock.Sub(began.Add(time.Since(began) / 2))
	row := p.conn.QueryRow(ctx, sqlServer)
	err = row.Scan(&s.Version, &s.VersionText, &s.Replica, &fsync, &pages, &commit, &s.Used, &s.Max)
	for _, setting := range []struct{ name, value string }{
		{"fsync", fsync}, {"full_page_writes", pages}, {"synchronous_commit", commit},
	} {
		if setting.value == "off" {
			s.LossyOff = append(s.LossyOff, setting.name)
		}
	}
	return s, err
}

// Schema is the state of the ledger's schema.
type Schema struct {
	Exists bool
	Level  int // last applied migration
	Known  int // level of this binary
	Oldest int // level of the oldest binary that may use the schema
}

// Schema reads the schema's state. For lack of rights the error wraps ErrNoRights.
func (p *Probe) Schema(ctx context.Context) (Schema, error) {
	s := Schema{Known: migrations.Level}
	if err := p.conn.QueryRow(ctx, sqlHasVersions).Scan(&s.Exists); err != nil || !s.Exists {
		return s, err
	}
	if err := p.conn.QueryRow(ctx, sqlSchemaLevel).Scan(&s.Level); err != nil {
		return s, Explain(err)
	}
	return s, Explain(p.conn.QueryRow(ctx, sqlOldestBinary).Scan(&s.Oldest))
}

// MissingRights lists the privileges that the role lacks, such as "UPDATE on attempts".
func (p *Probe) MissingRights(ctx context.Context) ([]string, error) {
	return missingRights(ctx, p.conn)
}

// MayCreate reports whether the role may create tables.
func (p *Probe) MayCreate(ctx context.Context) (may bool, err error) {
	return may, p.conn.QueryRow(ctx, sqlMayCreate).Scan(&may)
}

const sqlEventsByMode = `
SELECT livemode, max(received_at) FROM public.stripe_events
WHERE received_at > now() - interval '30 days' GROUP BY livemode`

// LatestEvents returns when the last event of the past 30 days was received, by mode; zero: none.
func (p *Probe) LatestEvents(ctx context.Context) (live, test time.Time, err error) {
	rows, err := p.conn.Query(ctx, sqlEventsByMode)
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

// An event that a backfill recorded was not received as a webhook.
const sqlNotReceived = `
SELECT u.session, e.caught_up IS NOT NULL
FROM unnest($1::text[], $2::text[]) AS u (session, type)
CROSS JOIN LATERAL (
    SELECT bool_and(caught_up) AS caught_up FROM public.stripe_events
    WHERE checkout_session_id = u.session AND type = u.type
) e
WHERE e.caught_up IS DISTINCT FROM false`

// NotReceived returns the checkout sessions of events that no webhook brought: those missing on the ledger,
// and those that a backfill recorded. sessions and types are the events'; a session may have several.
func (p *Probe) NotReceived(
	ctx context.Context, sessions, types []string,
) (missing, backfilled []string, err error) {
	rows, err := p.conn.Query(ctx, sqlNotReceived, sessions, types)
	if err != nil {
		return nil, nil, err
	}
	var session string
	var recorded bool
	_, err = pgx.ForEachRow(rows, []any{&session, &recorded}, func() error {
		if recorded {
			backfilled = append(backfilled, session)
		} else {
			missing = append(missing, session)
		}
		return nil
	})
	return missing, backfilled, err
}
