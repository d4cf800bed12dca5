package ledger

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Acquire takes a connection out of the pool.
func (db *DB) Acquire(ctx context.Context) (*pgxpool.Conn, error) { return db.pool.Acquire(ctx) }

// Settled waits until everything that was to be recorded is, or is not.
func (db *DB) Settled() { db.records.close() }
