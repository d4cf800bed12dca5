// Package ledger records purchases in Postgres. Its methods implement what
// the steps ask of a ledger; every statement is a named constant in statements.go.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
)

// DB is the ledger in Postgres. It is safe for concurrent use.
type DB struct {
	pool    *pgxpool.Pool
	records group[purchase.Receipt, purchase.Recorded]
	onSkip  func(Skipped) // nil: rows that are left out are not reported
}

// Plans are made once a connection, often while a table is still empty: then Postgres would read it from end to end for ever, and
// slower with each purchase. What has no index is read so all the same, and then looks so dear that workers would be started for a
// handful of rows: five milliseconds each time.
// A client that vanished in the middle of a transaction holds its locks for ten seconds, and its place for a minute and a half,
// instead of the two hours of the system's keepalive. Statements here follow each other at once.
const sqlSession = `
SELECT set_config('idle_in_transaction_session_timeout', '10000', false), set_config('tcp_keepalives_idle', '60', false),
    set_config('tcp_keepalives_interval', '10', false), set_config('tcp_keepalives_count', '3', false),
    set_config('enable_seqscan', 'off', false), set_config('max_parallel_workers_per_gather', '0', false), set_config('jit', 'off', false)`

// Open prepares a pool for url; it does not connect, so that it succeeds while Postgres is away. An error says
// that the URL is unusable.
func Open(ctx context.Context, url secret.Text) (*DB, error) {
	config, err := pgxpool.ParseConfig(url.Reveal())
	if err != nil {
		return nil, errors.New("DATABASE_URL is not a Postgres connection string (postgres://user:password@host:5432/database)")
	}
	config.MinConns = 2 // warm: a lone webhook pays no connection's setup
	if config.MaxConns < 16 {
		config.MaxConns = 16
	}
	config.ConnConfig.ConnectTimeout = 3 * time.Second
	config.ConnConfig.RuntimeParams["application_name"] = "purchase-relay"
	config.HealthCheckPeriod = 5 * time.Second
	config.PingTimeout = time.Second // a dead connection that nobody told us of costs a webhook a second of its five
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
	db.records = group[purchase.Receipt, purchase.Recorded]{
		flushers: recordFlushers, most: recordMost, room: recordRoom, long: recordLong, timeout: recordTimeout, write: db.record,
	}
	return db, nil
}

// closeTimeout is for the connections' leave-taking: pgx gives one that is dead, and nobody said so, fifteen seconds, which is longer than
// a process has to stop.
const closeTimeout = 2 * time.Second

// Close ends the pool after the writes under way. Who else used it has ended before; what still holds a connection after closeTimeout is
// left behind.
func (db *DB) Close() {
	db.records.close()
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

// Ping says whether Postgres answers.
func (db *DB) Ping(ctx context.Context) error { return db.pool.Ping(ctx) }

// nullable writes "" as null.
func nullable(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// nullableTime writes the zero time as null.
func nullableTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
