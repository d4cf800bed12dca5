package ledger

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Acquire takes a connection out of the pool.
func (db *DB) Acquire(ctx context.Context) (*pgxpool.Conn, error) { return db.pool.Acquire(ctx) }

// Settled waits until every queued receipt is written, or has failed.
func (db *DB) Settled() { db.batcher.close() }
