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

// Probe is one connection for a self-check. It reads facts about the server, the schema, the role and the
// latest events, judges none of them and changes nothing.
type Probe struct {
	User, Database string
	conn           *pgx.Conn
}

// ServerError is a connection or a query that the server refuses. Its message holds no password.
type ServerError struct {
	SQLState string
	Message  string
}

// Error implements error.
func (e *ServerError) Error() string { return e.Message }

// ErrURL is a text that is no connection string.
var ErrURL = errors.New("not a connection string")

// OpenProbe connects. The error is ErrURL, a *ServerError, or that nobody answers; none holds the password.
func OpenProbe(ctx context.Context, url secret.String) (*Probe, error) {
	config, err := pgx.ParseConfig(url.Reveal())
	if err != nil {
		return nil, ErrURL
	}
	config.ConnectTimeout = 3 * time.Second
	conn, err := pgx.ConnectConfig(ctx, config)
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok {
		return nil, &ServerError{refused.Code, refused.Message}
	}
	if err != nil {
		return nil, err
	}
	return &Probe{User: config.User, Database: config.Database, conn: conn}, nil
}

// Close ends the connection.
func (p *Probe) Close(ctx context.Context) { _ = p.conn.Close(context.WithoutCancel(ctx)) }

// Transport is the weakest protection of the connections that a URL allows.
type Transport int

// The kinds of protection, from the best to the worst.
const (
	TransportVerified   Transport = iota // on this machine, or certificate and name are verified
	TransportUnverified                  // encrypted, and the server's name is not verified
	TransportClear                       // in the clear
)

// TransportOf reads it from a URL, without a connection. It looks at every host and every fallback: with
// sslmode=prefer, allow and the default, the driver falls back to plain text where the other end asks for it.
func TransportOf(url secret.String) (Transport, error) {
	config, err := pgx.ParseConfig(url.Reveal())
	if err != nil {
		return TransportClear, ErrURL
	}
	worst := TransportVerified
	targets := append([]*pgconn.FallbackConfig{{Host: config.Host, TLSConfig: config.TLSConfig}},
		config.Fallbacks...)
	for _, target := range targets {
		switch tls := target.TLSConfig; {
		case local(target.Host):
		case tls == nil:
			worst = TransportClear
		case tls.InsecureSkipVerify: // and sslmode=verify-ca, which accepts any name
			worst = max(worst, TransportUnverified)
		}
	}
	return worst, nil
}

// local reports whether a host is a socket's folder or this machine.
func local(host string) bool {
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
	Version     int // as in server_version_num
	VersionText string
	Replica     bool
	ClockAhead  time.Duration // its clock before this machine's; negative: behind
	LossyOff    []string      // settings that are off, so that a crash may lose a commit
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
	Level  int // of the last migration
	Known  int // the level that this binary knows
	Oldest int // the oldest binary's level that may use it
}

// Schema reads the schema's state. An error for lack of rights wraps ErrNoRights.
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

// MissingRights lists what the role lacks, such as "UPDATE on attempts".
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

// LatestEvents returns when the last checkout of 30 days was received, by mode; zero: none.
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
