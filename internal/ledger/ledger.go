// Package ledger stores purchases in Postgres. Each SQL statement is a constant above its caller.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"purchase-relay/internal/secret"
)

// DB is the ledger in Postgres. It is safe for concurrent use.
type DB struct {
	pool    *pgxpool.Pool
	batcher recordBatcher
	onSkip  func(Skipped) // nil: skipped rows are not reported
}

// Plans are prepared once per connection, often while a table is still empty: the planner would choose
// sequential scans and keep them. With sequential scans disabled, an unindexed query looks so expensive that
// Postgres would add parallel workers and the JIT, at 5 ms per query. If a client vanishes during a
// transaction, its locks are freed after 10 s and its connection after 90 s. The system's keepalive takes two
// hours.
const sqlSession = `
SELECT set_config('idle_in_transaction_session_timeout', '10000', false),
    set_config('tcp_keepalives_idle', '60', false), set_config('tcp_keepalives_interval', '10', false),
    set_config('tcp_keepalives_count', '3', false), set_config('enable_seqscan', 'off', false),
    set_config('max_parallel_workers_per_gather', '0', false), set_config('jit', 'off', false)`

// Open creates a connection pool. It does not connect, so it succeeds while Postgres is down; an error means
// that the URL is invalid.
func Open(ctx context.Context, url secret.String) (*DB, error) {
	config, err := parsePoolURL(url)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	config.MinConns = 2 // spares a lone webhook the connection setup
	if config.MaxConns < 16 {
		config.MaxConns = 16
	}
	config.ConnConfig.ConnectTimeout = 3 * time.Second
	config.ConnConfig.RuntimeParams["application_name"] = "purchase-relay"
	config.HealthCheckPeriod = 5 * time.Second
	config.PingTimeout = time.Second // out of a webhook's 5 s; the connection may be half-open
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, sqlSession, pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("configure session: %w", err)
		}
		return nil
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	db := &DB{pool: pool}
	db.batcher = recordBatcher{
		maxWriters: maxWriters, maxBatch: maxBatch, maxQueued: maxQueued,
		slowAfter: slowAfter, timeout: writeTimeout, write: db.record,
	}
	return db, nil
}

// ErrURL is returned for an invalid connection string. It never contains the string: that has a password.
var ErrURL = errors.New("not a Postgres connection string (postgres://user:password@host:5432/database)")

// CheckURL returns ErrURL for a connection string that cannot be used, without connecting.
func CheckURL(url secret.String) error {
	_, err := parsePoolURL(url)
	return err
}

// parsePoolURL also reads the pool's settings, such as pool_max_conns.
func parsePoolURL(url secret.String) (*pgxpool.Config, error) {
	if _, err := parseURL(url); err != nil {
		return nil, err
	}
	config, err := pgxpool.ParseConfig(url.Reveal())
	if err != nil {
		return nil, ErrURL
	}
	return config, nil
}

// parseURL rejects other schemes, too: pgx takes mysql://h/d?a=b for a list of settings.
func parseURL(url secret.String) (*pgx.ConnConfig, error) {
	scheme, _, isURL := strings.Cut(url.Reveal(), "://")
	if isURL && !strings.Contains(scheme, "=") && scheme != "postgres" && scheme != "postgresql" {
		return nil, ErrURL
	}
	config, err := pgx.ParseConfig(url.Reveal())
	if err != nil {
		return nil, ErrURL
	}
	return config, nil
}

// closeTimeout bounds pool shutdown. pgx waits 15 s for a half-open connection, longer than the shutdown may
// take.
const closeTimeout = 2 * time.Second

// Close waits for the writes in progress and closes the pool. Connections that are still in use after
// closeTimeout are abandoned.
func (db *DB) Close() {
	db.batcher.close()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		db.pool.Close()
	}()
	select {
	case <-closed:
	case <-time.After(closeTimeout):
	}
}

// Ping returns an error unless Postgres responds.
func (db *DB) Ping(ctx context.Context) error { return db.pool.Ping(ctx) }

// column returns one value per row as an array parameter for unnest, which pgx encodes without reflection.
func column[R, T any](rows []R, value func(R) T) pgtype.FlatArray[T] {
	values := make(pgtype.FlatArray[T], len(rows))
	for i, row := range rows {
		values[i] = value(row)
	}
	return values
}

func nullable(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// NullTime returns nil (SQL null) for the zero time.
func NullTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
