package ledger

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Leadership elects one leader among the processes that share the ledger: the holder of an advisory lock, on
// a connection of its own. A leader that crashes or loses its connection loses the lock. It is safe for
// concurrent use.
type Leadership struct {
	db   *DB
	key  int64
	name string // for error messages

	mu   sync.Mutex
	conn *pgxpool.Conn // nil: not the leader
}

// NotifierLeadership elects the process that sends notifications.
func (db *DB) NotifierLeadership() *Leadership {
	return &Leadership{db: db, key: lockNotifier, name: "notifier"}
}

// CheckLeadership elects the process that runs the periodic backfill and reconciliation.
func (db *DB) CheckLeadership() *Leadership {
	return &Leadership{db: db, key: lockPeriodicCheck, name: "periodic backfill"}
}

// BackfillLeadership elects the process that runs `ingest backfill`.
func (db *DB) BackfillLeadership() *Leadership {
	return &Leadership{db: db, key: lockBackfillCommand, name: "backfill command"}
}

// holdTimeout bounds each of Hold's two steps: the connection may be half-open.
const holdTimeout = 5 * time.Second

const sqlTrySessionLock = `SELECT pg_try_advisory_lock($1)`

// Hold reports whether this process is the leader. It becomes the leader if there is none. If its connection
// has ended, for example with a restart of Postgres, it becomes the leader again over a new one. It returns
// an error if the lock is not free then: Postgres may free the old connection's lock a moment later.
func (l *Leadership) Hold(ctx context.Context) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lost error
	if l.conn != nil {
		if lost = l.ping(ctx); lost == nil {
			return true, nil
		}
		l.closeConn(ctx)
	}
	if err := l.take(ctx); err != nil {
		return false, fmt.Errorf("take leadership of %s: %w", l.name, err)
	}
	if l.conn == nil && lost != nil {
		return false, fmt.Errorf("keep leadership of %s: %w", l.name, lost)
	}
	return l.conn != nil, nil
}

func (l *Leadership) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, holdTimeout)
	defer cancel()
	return l.conn.Ping(ctx)
}

// take takes the lock, unless another process has it.
func (l *Leadership) take(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, holdTimeout)
	defer cancel()
	conn, err := l.db.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	var locked bool
	if err := conn.QueryRow(ctx, sqlTrySessionLock, l.key).Scan(&locked); err != nil || !locked {
		conn.Release()
		return err
	}
	l.conn = conn
	return nil
}

const sqlUnlockAll = `SELECT pg_advisory_unlock_all()`

// Release gives up the leadership, for example before the pool is closed. Another process can become the
// leader as soon as Release returns; closing the connection alone would free the lock a moment later.
func (l *Leadership) Release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, _ = l.conn.Exec(ctx, sqlUnlockAll) // fails only on a broken connection, which holds no lock
	l.closeConn(ctx)
}

// closeConn closes the connection instead of returning it to the pool, so that the lock ends with it.
func (l *Leadership) closeConn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = l.conn.Hijack().Close(ctx) // the server may be down
	l.conn = nil
}
