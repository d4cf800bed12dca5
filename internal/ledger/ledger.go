// Package ledger records purchases in Postgres. Each SQL statement is a constant above its caller.
package ledger

import (
	"context"
	"errors"
	"fmt"
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
	onSkip  func(Skipped) // nil: rows that are left out are not reported
}

// A prepared plan is made once per connection, often while a table is still empty: the planner would then
// choose sequential scans for good, slower with each purchase. Without them, what has no index looks so dear
// that it would start parallel workers and the JIT for a handful of rows: 5 ms each time. A client that
// vanished in a transaction holds its locks for 10 s and its connection for 90 s, instead of the two hours of
// the system's keepalive. Statements of a transaction follow each other immediately.
const sqlSession = `
SELECT set_config('idle_in_transaction_session_timeout', '10000', false),
    set_config('tcp_keepalives_idle', '60', false), set_config('tcp_keepalives_interval', '10', false),
    set_config('tcp_keepalives_count', '3', false), set_config('enable_seqscan', 'off', false),
    set_config('max_parallel_workers_per_gather', '0', false), set_config('jit', 'off', false)`

// Open prepares a pool for url. It does not connect, and succeeds while Postgres is down. An error means that
// the URL is unusable.
func Open(ctx context.Context, url secret.String) (*DB, error) {
	config, err := pgxpool.ParseConfig(url.Reveal())
	if err != nil {
		return nil, errDatabaseURL
	}
	config.MinConns = 2 // a lone webhook waits for no connection setup
	if config.MaxConns < 16 {
		config.MaxConns = 16
	}
	config.ConnConfig.ConnectTimeout = 3 * time.Second
	config.ConnConfig.RuntimeParams["application_name"] = "purchase-relay"
	config.HealthCheckPeriod = 5 * time.Second
	config.PingTimeout = time.Second // of a webhook's 5 s: the connection may be half-open
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, sqlSession, pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("prepare a session: %w", err)
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

var errDatabaseURL = errors.New(
	"DATABASE_URL is not a Postgres connection string (postgres://user:password@host:5432/database)")

// closeTimeout bounds pool shutdown. pgx waits 15 s for a half-open connection, longer than a process has to
// stop.
const closeTimeout = 2 * time.Second

// Close closes the pool after the writes in progress. Other users of the pool have ended before. Connections
// that are still in use after closeTimeout are abandoned.
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

// Ping returns an error unless Postgres answers.
func (db *DB) Ping(ctx context.Context) error { return db.pool.Ping(ctx) }

// column returns one value per row: an array parameter of unnest, encoded without reflection.
func column[R, T any](rows []R, value func(R) T) pgtype.FlatArray[T] {
	values := make(pgtype.FlatArray[T], len(rows))
	for i, row := range rows {
		values[i] = value(row)
	}
	return values
}

// nullable returns nil, Postgres' null, for "".
func nullable(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// NullTime returns nil, Postgres' null, for the zero time.
func NullTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
