// Package postgres is the neighbour that remembers: the ledger. It alone imports pgx. Its methods implement what
// the steps ask of a ledger; every statement is a named constant in statements.go.
package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/migrations"
)

// DB is the ledger in Postgres. It is safe for concurrent use.
type DB struct {
	pool    *pgxpool.Pool
	records group[purchase.Receipt, purchase.Recorded]
}

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
		flushers: recordFlushers, most: recordMost, room: recordRoom, timeout: recordTimeout, write: db.record,
	}
	return db, nil
}

// Close ends the pool after the writes and queries under way.
func (db *DB) Close() {
	db.records.close()
	db.pool.Close()
}

// Ping says whether Postgres answers.
func (db *DB) Ping(ctx context.Context) error { return db.pool.Ping(ctx) }

// ErrTooOld says that the schema has moved past this binary: start the newer one.
var ErrTooOld = errors.New("the ledger's schema is too new for this binary: start the newer one, or restore the older schema")

// Migrate brings the schema to this binary's level, under an advisory lock: replicas may start together. url is the
// owner's, which may differ from the runtime's. A schema that is ahead of this binary is left alone.
func Migrate(ctx context.Context, url secret.Text) (applied int, err error) {
	config, err := pgx.ParseConfig(url.Reveal())
	if err != nil {
		return 0, errors.New("the migration's URL is not a Postgres connection string")
	}
	config.ConnectTimeout = 3 * time.Second
	conn := stdlib.OpenDB(*config)
	defer func() { err = errors.Join(err, conn.Close()) }()
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 60))
	if err != nil {
		return 0, err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, migrations.FS,
		goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return 0, fmt.Errorf("read the migrations: %w", err)
	}
	if ready, err := schemaReady(ctx, conn); err != nil || ready {
		return 0, err // nothing to do: a runtime role without DDL must be able to start
	}
	results, err := provider.Up(ctx)
	if err != nil {
		return len(results), fmt.Errorf("migrate the ledger: %w", err)
	}
	return len(results), nil
}

// schemaReady says whether every migration of this binary has been applied.
func schemaReady(ctx context.Context, conn *sql.DB) (bool, error) {
	var exists bool
	if err := conn.QueryRowContext(ctx, sqlHasVersions).Scan(&exists); err != nil || !exists {
		return false, err
	}
	var level int
	if err := conn.QueryRowContext(ctx, sqlSchemaLevel).Scan(&level); err != nil {
		return false, err
	}
	return level >= migrations.Level, nil
}

// CheckSchema says whether this binary may use the schema: nil, ErrTooOld, or that it is not there yet.
func (db *DB) CheckSchema(ctx context.Context) error {
	var level, oldest int
	if err := db.pool.QueryRow(ctx, sqlSchemaLevel).Scan(&level); err != nil {
		return fmt.Errorf("read the schema's level: %w", err)
	}
	if level < migrations.Level {
		return fmt.Errorf("the schema is at level %d of %d: run `ingest migrate`", level, migrations.Level)
	}
	if err := db.pool.QueryRow(ctx, sqlOldestBinary).Scan(&oldest); err != nil {
		return fmt.Errorf("read the schema's demands: %w", err)
	}
	if oldest > migrations.Level {
		return ErrTooOld
	}
	return nil
}

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
