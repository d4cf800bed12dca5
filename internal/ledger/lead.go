package ledger

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Lead is a role that one process at a time has among all that share the ledger. It is an advisory lock of a connection of its own: a
// process that dies, or loses its connection, loses the role. It is safe for concurrent use.
type Lead struct {
	db   *DB
	take string // the statement
	role string // for people

	mu   sync.Mutex
	conn *pgxpool.Conn // nil: somebody else leads, as far as we know
}

// A session's lock: it stands until it is given back or the connection ends.
const sqlTryLead = `SELECT pg_try_advisory_lock(` + lockLead + `)`

// LeadAlarm returns the role of telling people of troubles.
func (db *DB) LeadAlarm() *Lead { return &Lead{db: db, take: sqlTryLead, role: "telling"} }

const sqlTryCheck = `SELECT pg_try_advisory_lock(` + lockCheck + `)`

// LeadCheck returns the role of looking for what webhooks missed, from time to time.
func (db *DB) LeadCheck() *Lead { return &Lead{db: db, take: sqlTryCheck, role: "checking"} }

const sqlTryCommand = `SELECT pg_try_advisory_lock(` + lockCommand + `)`

// LeadBackfill returns the role of the one who runs the command.
func (db *DB) LeadBackfill() *Lead { return &Lead{db: db, take: sqlTryCommand, role: "catching up"} }

// Hold says whether this process has the role now, and takes it where nobody has.
func (l *Lead) Hold(ctx context.Context) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		err := l.conn.Ping(ctx)
		if err == nil {
			return true, nil
		}
		l.drop(ctx)
		return false, fmt.Errorf("keep the role of %s: %w", l.role, err)
	}
	conn, err := l.db.pool.Acquire(ctx)
	if err != nil {
		return false, fmt.Errorf("take the role of %s: %w", l.role, err)
	}
	var taken bool
	if err := conn.QueryRow(ctx, l.take).Scan(&taken); err != nil || !taken {
		conn.Release()
		return false, err
	}
	l.conn = conn
	return true, nil
}

const sqlGiveRole = `SELECT pg_advisory_unlock_all()`

// Release gives the role back, for instance before the pool is closed. When it returns another one can take it: a connection's end alone
// would free it a moment later.
func (l *Lead) Release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, _ = l.conn.Exec(ctx, sqlGiveRole) // where it fails the connection is gone, or about to be
	l.drop(ctx)
}

// drop closes the connection instead of returning it: whatever state it is in, the lock ends with it.
func (l *Lead) drop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = l.conn.Hijack().Close(ctx) // the server may be gone
	l.conn = nil
}
