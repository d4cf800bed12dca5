package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"purchase-relay/internal/secret"
	"purchase-relay/migrations"
)

// ErrTooOld is returned if the schema requires a newer binary than this one.
var ErrTooOld = errors.New("ledger schema requires a newer binary")

// Migrate migrates the schema to this binary's level, as the owner in url. An advisory lock serialises
// replicas that start together. A newer schema is left unchanged.
func Migrate(ctx context.Context, url secret.String) (applied int, err error) {
	conn, _, err := openOwner(url)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 60))
	if err != nil {
		return 0, err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, migrations.FS,
		goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return 0, fmt.Errorf("read migrations: %w", err)
	}
	if ready, err := schemaReady(ctx, conn); err != nil || ready {
		return 0, Explain(err) // a runtime role without DDL rights must be able to start
	}
	results, err := provider.Up(ctx)
	if err != nil {
		return len(results), fmt.Errorf("migrate ledger: %w", Explain(err))
	}
	return len(results), nil
}

// openOwner opens a connection as the schema's owner, whose role is user.
func openOwner(url secret.String) (conn *sql.DB, user string, err error) {
	config, err := parseURL(url)
	if err != nil {
		return nil, "", fmt.Errorf("migrate: %w", ErrURL)
	}
	config.ConnectTimeout = 3 * time.Second
	return stdlib.OpenDB(*config), config.User, nil
}

const sqlHasVersions = `SELECT to_regclass('public.goose_db_version') IS NOT NULL`

const sqlSchemaLevel = `SELECT COALESCE(max(version_id), 0) FROM public.goose_db_version WHERE is_applied`

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

const sqlOldestBinary = `SELECT oldest_binary FROM public.schema_compat`

// CheckSchema returns an error unless this binary can use the schema: ErrTooOld, or which migrations or
// rights are missing.
func (db *DB) CheckSchema(ctx context.Context) error {
	var level, oldest int
	if err := db.pool.QueryRow(ctx, sqlSchemaLevel).Scan(&level); err != nil {
		return fmt.Errorf("read schema level: %w", Explain(err))
	}
	if level < migrations.Level {
		return fmt.Errorf("schema is at level %d of %d: run `ingest migrate`", level, migrations.Level)
	}
	if err := db.pool.QueryRow(ctx, sqlOldestBinary).Scan(&oldest); err != nil {
		return fmt.Errorf("read oldest binary of the schema: %w", Explain(err))
	}
	if oldest > migrations.Level {
		return ErrTooOld
	}
	return db.checkRights(ctx)
}
