package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"purchase-relay/internal/secret"
	"purchase-relay/migrations"
)

// ErrTooOld is returned if the schema demands a newer binary.
var ErrTooOld = errors.New(
	"the ledger's schema is too new for this binary: start the newer one, or restore the older schema")

// Migrate brings the schema to this binary's level, under an advisory lock: replicas may start together. url
// is the schema owner's. A schema that is ahead of this binary is left alone.
func Migrate(ctx context.Context, url secret.String) (applied int, err error) {
	conn, _, err := owner(url)
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
		return 0, fmt.Errorf("read the migrations: %w", err)
	}
	if ready, err := schemaReady(ctx, conn); err != nil || ready {
		return 0, Explain(err) // up to date: a runtime role without DDL rights must be able to start
	}
	results, err := provider.Up(ctx)
	if err != nil {
		return len(results), fmt.Errorf("migrate the ledger: %w", Explain(err))
	}
	return len(results), nil
}

// owner opens a connection of the schema's owner; user is its role.
func owner(url secret.String) (conn *sql.DB, user string, err error) {
	config, err := pgx.ParseConfig(url.Reveal())
	if err != nil {
		return nil, "", errors.New("the migration's URL is not a Postgres connection string")
	}
	config.ConnectTimeout = 3 * time.Second
	return stdlib.OpenDB(*config), config.User, nil
}

const sqlHasVersions = `SELECT to_regclass('public.goose_db_version') IS NOT NULL`

const sqlSchemaLevel = `SELECT COALESCE(max(version_id), 0) FROM public.goose_db_version WHERE is_applied`

// schemaReady reports whether every migration of this binary has been applied.
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

// CheckSchema returns an error unless this binary may use the schema: ErrTooOld, or the missing migrations or
// rights.
func (db *DB) CheckSchema(ctx context.Context) error {
	var level, oldest int
	if err := db.pool.QueryRow(ctx, sqlSchemaLevel).Scan(&level); err != nil {
		return fmt.Errorf("read the schema's level: %w", Explain(err))
	}
	if level < migrations.Level {
		return fmt.Errorf("the schema is at level %d of %d: run `ingest migrate`", level, migrations.Level)
	}
	if err := db.pool.QueryRow(ctx, sqlOldestBinary).Scan(&oldest); err != nil {
		return fmt.Errorf("read the oldest binary of the schema: %w", Explain(err))
	}
	if oldest > migrations.Level {
		return ErrTooOld
	}
	return db.checkRights(ctx)
}
