package ledger

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Lead is a role that one of the processes that share the ledger holds: an advisory lock on a connection of
// its own. A process that dies, or loses its connection, loses the role. It is safe for concurrent use.
type Lead struct {
	db      *DB
	tryLock string // the statement
	role    string // for error messages

	mu   sync.Mutex
	conn *pgxpool.Conn // nil: not held
}

// A session-level lock: it is held until it is released or the connection ends.
const sqlTryLead = `SELECT pg_try_advisory_lock(` + lockLead + `)`

// LeadAlarm returns the role of the process that sends notifications.
func (db *DB) LeadAlarm() *Lead { return &Lead{db: db, tryLock: sqlTryLead, role: "notifier"} }

const sqlTryCheck = `SELECT pg_try_advisory_lock(` + lockCheck + `)`

// LeadCheck returns the role of the process that runs the periodic backfill and reconciliation.
func (db *DB) LeadCheck() *Lead {
	return &Lead{db: db, tryLock: sqlTryCheck, role: "periodic backfill"}
}

const sqlTryCommand = `SELECT pg_try_advisory_lock(` + lockCommand + `)`

// LeadBackfill returns the role of the command `ingest backfill`.
func (db *DB) LeadBackfill() *Lead {
	return &Lead{db: db, tryLock: sqlTryCommand, role: "backfill command"}
}

// Hold reports whether this process holds the role, and takes it if it is free.
func (l *Lead) Hold(ctx context.Context) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		err := l.conn.Ping(ctx)
		if err == nil {
			return true, nil
		}
		l.drop(ctx)
		return false, fmt.Errorf("keep the role %s: %w", l.role, err)
	}
	conn, err := l.db.pool.Acquire(ctx)
	if err != nil {
		return false, fmt.Errorf("take the role %s: %w", l.role, err)
	}
	var taken bool
	if err := conn.QueryRow(ctx, l.tryLock).Scan(&taken); err != nil || !taken {
		conn.Release()
		return false, err
	}
	l.conn = conn
	return true, nil
}

const sqlUnlockAll = `SELECT pg_advisory_unlock_all()`

// Release releases the role, for instance before the pool is closed. Another process can take it when Release
// returns; the end of the connection alone would free it a moment later.
func (l *Lead) Release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, _ = l.conn.Exec(ctx, sqlUnlockAll) // fails only on a broken connection, which holds no lock
	l.drop(ctx)
}

// drop closes the connection instead of returning it to the pool: the lock ends with it, whatever its state.
func (l *Lead) drop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = l.conn.Hijack().Close(ctx) // the server may be down
	l.conn = nil
}
